"""Ways to call one model, timed in blocks in which each has its turns."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter_ns
from typing import Any, NamedTuple

from bridge.slice import await_rest
from bridge_bench.stats import median

__all__ = ["FULL", "QUICK", "VARIANTS", "Pace", "Side", "measure"]

VARIANTS = 8
"""Sets of inputs that take turns."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long is measured.

    Attributes:
        row_s: Time for all blocks.
        slice_s: Time of a side's calls in a block.
        least_calls: Calls in a slice at least.
        least_blocks: Blocks at least, unless they take three times as long; two in any case.
        halves: Whether each side has two slices in a block, the second in reverse order, so
            that what drifts meanwhile falls on all alike.
        warm_s: Time of calls before the first block, for each side.
    """

    row_s: float = 12.0
    slice_s: float = 0.02
    least_calls: int = 3
    least_blocks: int = 12
    halves: bool = True
    warm_s: float = 0.3


FULL = Pace()
QUICK = Pace(row_s=1.0, slice_s=0.006, least_calls=2, least_blocks=4, halves=False, warm_s=0.05)


class Side(NamedTuple):
    """One way to call.

    Attributes:
        prepare: Takes the index of a set of inputs, gives what ``call`` takes; not timed.
        call: What is timed.
    """

    prepare: Callable[[int], Any]
    call: Callable[[Any], object]


def measure(
    sides: Mapping[str, Side], pace: Pace, *, variants: int = VARIANTS, seed: int = 0
) -> dict[str, list[float]]:
    """Microseconds of a call of each side, block by block."""
    order = random.Random(seed)  # noqa: S311 - an order, no secret
    with _collector_off():
        calls = {name: _calibrated(side, pace, variants) for name, side in sides.items()}
        blocks: dict[str, list[float]] = {name: [] for name in sides}
        ends, turn, count = monotonic() + pace.row_s, 0, 0
        while monotonic() < ends or count < 2 or _may_overrun(pace, count, ends):
            count += 1
            turns = order.sample(list(sides), len(sides))
            turns += turns[::-1] if pace.halves else []
            logs: dict[str, list[float]] = {name: [] for name in sides}
            for name in turns:
                await_rest()
                logs[name].append(math.log(_slice(sides[name], calls[name], turn, variants)))
                turn += calls[name]
            for name, found in logs.items():
                blocks[name].append(math.exp(sum(found) / len(found)) / 1e3)
    return blocks


def _may_overrun(pace: Pace, count: int, ends: float) -> bool:
    """Whether there are too few blocks still, and no more than twice the time too much."""
    return count < pace.least_blocks and monotonic() < ends + 2 * pace.row_s


def _calibrated(side: Side, pace: Pace, variants: int) -> int:
    """Warms a side up; the number of calls in its slices."""
    ends, turn, least_ns = monotonic() + pace.warm_s, 0, math.inf
    while turn < 5 or monotonic() < ends:
        least_ns = min(least_ns, _slice(side, 1, turn, variants, discard=0))
        turn += 1
    share = 0.5 if pace.halves else 1.0
    return max(pace.least_calls, round(share * pace.slice_s * 1e9 / least_ns))


def _slice(side: Side, calls: int, first: int, variants: int, discard: int = 1) -> float:
    """Median nanoseconds of calls in a row; the first of them only fetches what was evicted."""
    prepare, call, clock = side.prepare, side.call, perf_counter_ns
    found = [0] * calls
    for turn in range(-discard, calls):
        given = prepare((first + turn) % variants)
        began = clock()
        call(given)
        ended = clock()
        if turn >= 0:
            found[turn] = ended - began
    return max(median(found), 1.0)


@contextmanager
def _collector_off() -> Iterator[None]:
    """A collection in the middle of a call would be counted as the call's own time."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
