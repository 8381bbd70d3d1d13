"""A fixed piece of work, timed in every block, that tells when the machine is disturbed."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from bridge_bench.stats import median

__all__ = ["CanaryBird"]

_SIZE = 60_000  # numbers to sort: about 5 ms on one core, with no thread pool involved
_ENOUGH = 5  # times from which a running median means something


class CanaryBird:
    """Times the same single-threaded work again and again.

    Attributes:
        times_s: Its time in each block that was kept.
        redone: Blocks that were thrown away because of it.
        is_noisy: More blocks were off than may be redone.
    """

    def __init__(self, tolerance: float, redo_share: float) -> None:
        self.times_s: list[float] = []
        self.redone = 0
        self.is_noisy = False
        self._tolerance = tolerance
        self._redo_share = redo_share
        self._numbers = np.random.default_rng(0).standard_normal(_SIZE)

    def sing(self) -> float:
        """The time of the work now, in seconds; the better of two, to forgive one tick."""
        return min(self._once(), self._once())

    def accepts(self, time_s: float) -> bool:
        """Whether a block with this time may be kept; counts it either way.

        A block is off if its time differs from the running median by more than the
        tolerance. Once too many have been redone, all are kept and the host is noisy.
        """
        is_off = (
            len(self.times_s) >= _ENOUGH
            and abs(time_s / median(self.times_s) - 1) > self._tolerance
        )
        if is_off and self.redone < self._redo_share * (len(self.times_s) + self.redone):
            self.redone += 1
            return False
        self.is_noisy = self.is_noisy or is_off
        self.times_s.append(time_s)
        return True

    def _once(self) -> float:
        started = perf_counter()
        np.sort(self._numbers)
        return perf_counter() - started
