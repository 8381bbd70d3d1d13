"""A slice: some calls of one predictor, timed one by one in the process that runs them.

The timed region is the call and a look at the first and the last element of every
output, so that a result which is computed only when it is read counts as well. The
loop itself costs well under a microsecond per call; ``null_call`` measures it.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays

__all__ = ["Slice", "await_rest", "drift", "null_call", "timed"]

_SETTLE_S = 0.1
_LOOK_S = 0.002
_QUIET_SHARE = 0.2  # of one processor, below which the process counts as quiet


@dataclass(frozen=True, slots=True)
class Slice:
    """What a slice saw.

    Attributes:
        ns: Nanoseconds of each call, int64, in the order in which the calls began.
        elapsed_ns: From the beginning of the first call to the end of the last.
        cpu_ns: CPU time of the whole process meanwhile, all threads.
        drift: Largest ``|y - y0| / (1 + |y0|)`` between the outputs ``y`` of the last
            call and those kept for the same inputs, ``y0``; infinite where names,
            dtypes, shapes or what is not finite differ; ``None`` if none were kept.
        warmed: Calls before them that ``Capabilities.warm_calls`` asked for; not timed.
    """

    ns: npt.NDArray[np.int64]
    elapsed_ns: int
    cpu_ns: int
    drift: float | None = None
    warmed: int = 0


def timed(
    call: Callable[[Arrays], Arrays],
    variants: Sequence[Arrays],
    calls: int,
    *,
    first: int = 0,
    discard: int = 0,
    callers: int = 1,
    settle: bool = False,
) -> tuple[Slice, Arrays, int]:
    """Times calls over the variants in turn.

    Args:
        call: Takes one variant, returns arrays by name.
        variants: Sets of inputs, at least one.
        calls: Number of timed calls, at least one.
        first: Turn of the first call: ``variants[first % len(variants)]``.
        discard: Calls before the first timed one, whose times are thrown away.
        callers: Threads that share the calls, each in a closed loop: it begins its
            next call when its last one has returned.
        settle: Wait first until nothing else in this process computes.

    Returns:
        The slice (without ``drift``), the outputs of the last call, and the index of
        the variant that gave them.
    """
    if settle:
        await_rest()
    for turn in range(first, first + discard):
        _look_at(call(variants[turn % len(variants)]))
    first += discard
    turns = [variants[(first + index) % len(variants)] for index in range(calls)]
    with _collector_off():
        if callers > 1:
            ns, elapsed_ns, cpu_ns, last = _side_by_side(call, turns, callers)
        else:
            ns, elapsed_ns, cpu_ns, last = _in_turn(call, turns)
    return Slice(ns, elapsed_ns, cpu_ns), last, (first + calls - 1) % len(variants)


def await_rest() -> None:
    """Waits until no thread of this process computes any more, at most ``_SETTLE_S``.

    Threads of another predictor may still be spinning after its last call: those of
    onnxruntime 1.32 do for 38 ms (measured), which takes a processor from this one.
    """
    ends = perf_counter_ns() + int(_SETTLE_S * 1e9)
    while perf_counter_ns() < ends:
        before = process_time_ns()
        time.sleep(_LOOK_S)
        if process_time_ns() - before < _QUIET_SHARE * _LOOK_S * 1e9:
            return


def null_call(_inputs: Arrays) -> Arrays:
    """A call that does nothing: what it costs in ``timed`` is the cost of the loop."""
    return _NOTHING


_NOTHING: Arrays = {"nothing": np.zeros(1, np.float32)}


def drift(outputs: Arrays, kept: Arrays) -> float:
    """How far outputs are from the kept ones; see ``Slice``. 0 for equal strings."""
    if outputs.keys() != kept.keys():
        return float("inf")
    return max((_distance(array, kept[name]) for name, array in outputs.items()), default=0.0)


def _in_turn(
    call: Callable[[Arrays], Arrays], turns: Sequence[Arrays]
) -> tuple[npt.NDArray[np.int64], int, int, Arrays]:
    ends = [0] * len(turns)
    begins = [0] * len(turns)
    results: Arrays = {}
    cpu_ns = process_time_ns()
    for index, inputs in enumerate(turns):
        begins[index] = perf_counter_ns()
        results = call(inputs)
        for array in results.values():
            if array.size:
                array.item(0)
                array.item(-1)
        ends[index] = perf_counter_ns()
    cpu_ns = process_time_ns() - cpu_ns
    ns = np.array(ends, np.int64) - np.array(begins, np.int64)
    return ns, ends[-1] - begins[0], cpu_ns, results


def _side_by_side(
    call: Callable[[Arrays], Arrays], turns: Sequence[Arrays], callers: int
) -> tuple[npt.NDArray[np.int64], int, int, Arrays]:
    begins = np.zeros(len(turns), np.int64)
    ends = np.zeros(len(turns), np.int64)
    indices = itertools.count()  # next() on it is atomic
    ready = threading.Barrier(callers + 1)
    failures: list[BaseException] = []
    last: list[Arrays] = []

    def work() -> None:
        ready.wait()
        try:
            while (index := next(indices)) < len(turns) and not failures:
                began = perf_counter_ns()
                results = call(turns[index])
                _look_at(results)
                ends[index] = perf_counter_ns()
                begins[index] = began
                if index == len(turns) - 1:
                    last.append(results)
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            failures.append(error)

    threads = [threading.Thread(target=work, name=f"bridge-caller-{one}") for one in range(callers)]
    for thread in threads:
        thread.start()
    cpu_ns = process_time_ns()
    ready.wait()
    for thread in threads:
        thread.join()
    cpu_ns = process_time_ns() - cpu_ns
    if failures:
        raise failures[0]
    return ends - begins, int(ends.max() - begins.min()), cpu_ns, last[0]


def _look_at(results: Arrays) -> None:
    for array in results.values():
        if array.size:
            array.item(0)
            array.item(-1)


@contextmanager
def _collector_off() -> Iterator[None]:
    """A collection in the middle of a call would be counted as the call's own time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _distance(array: npt.NDArray[Any], kept: npt.NDArray[Any]) -> float:
    if array.dtype != kept.dtype or array.shape != kept.shape:
        return float("inf")
    if array.dtype.hasobject:
        return 0.0 if np.array_equal(array, kept) else float("inf")
    wide = np.complex128 if array.dtype.kind == "c" else np.float64
    new, old = array.astype(wide), kept.astype(wide)
    finite = np.isfinite(old)
    # Where one is not finite, both must be the same: NaN, or infinity of the same sign.
    if not np.array_equal(finite, np.isfinite(new)) or not np.array_equal(
        new[~finite], old[~finite], equal_nan=True
    ):
        return float("inf")
    new, old = new[finite], old[finite]
    if not new.size:
        return 0.0
    with np.errstate(over="ignore"):
        return float((np.abs(new - old) / (1.0 + np.abs(old))).max())
