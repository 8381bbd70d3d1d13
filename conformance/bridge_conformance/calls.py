"""Calls with known answers: one by one, of a wanted duration, and from many threads."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import bridge
from bridge.check import Arrays
from bridge_conformance.comparison import assert_equal, assert_outputs
from bridge_conformance.subject import Subject

__all__ = [
    "Call",
    "assert_same",
    "call_of",
    "copies",
    "eager_switching",
    "in_threads",
    "long_call",
]

_MOST_ROWS = 1 << 17
_FIRST_ROWS = 64
_PATIENCE_S = 60.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Call:
    """Inputs, what they have to give, and how long that took when nothing else ran.

    Attributes:
        inputs: For ``predict``.
        answer: What ``predict`` gave for them, alone and undisturbed.
        took_s: Seconds that it took.
    """

    inputs: Arrays
    answer: Arrays
    took_s: float


def call_of(predictor: bridge.Predictor, inputs: Arrays) -> Call:
    """A call and its answer; a shape's first call may prepare, so the second is timed."""
    predictor.predict(inputs)
    started = time.perf_counter()
    answer = predictor.predict(inputs)
    took_s = time.perf_counter() - started
    return Call(inputs, copies(answer, predictor.signature.output_names), took_s)


def copies(answer: Arrays, wanted: Iterable[str]) -> Arrays:
    """Copies of the wanted outputs, which have to be all that there are.

    A backend that answers in one buffer again and again would else be compared with itself.
    """
    __tracebackhide__ = True
    names = sorted(wanted)
    assert sorted(answer) == names, f"outputs are {sorted(answer)}; wanted {names}"
    return {name: answer[name].copy() for name in names}


def long_call(subject: Subject, predictor: bridge.Predictor, at_least_s: float) -> Call:
    """A call of network ``deep`` that takes about that long, or a little longer."""
    rows = _FIRST_ROWS
    while True:
        call = call_of(predictor, subject.network("deep").inputs_for(rows))
        if call.took_s >= at_least_s or rows >= _MOST_ROWS:
            return call
        wanted = int(1.2 * rows * at_least_s / call.took_s)
        rows = min(max(2 * rows, min(wanted, 16 * rows)), _MOST_ROWS)


def assert_same(subject: Subject, got: Arrays, wanted: Arrays) -> None:
    """Equal to the last bit where the backend claims to be deterministic, else close."""
    __tracebackhide__ = True
    assert_outputs(got, wanted)
    if subject.claims.deterministic:
        for name, array in wanted.items():
            assert_equal(got[name], array, name)


def in_threads(count: int, work: Callable[[int], _Result]) -> list[_Result]:
    """``work(0)`` to ``work(count - 1)``, each in a thread of its own, all begun together.

    The first error of any of them is raised when all have ended.
    """
    start = threading.Barrier(count)

    def begin(number: int) -> _Result:
        start.wait(_PATIENCE_S)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(begin, number) for number in range(count)]
    return [future.result() for future in futures]


@contextlib.contextmanager
def eager_switching() -> Iterator[None]:
    """Lets Python switch between threads as often as it can, to find what is shared."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
