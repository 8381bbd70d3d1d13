"""When queries arrive: our own Poisson arrivals, and LoadGen's, computed again."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["loadgen_arrivals", "poisson_arrivals"]

Nanoseconds = npt.NDArray[np.int64]


def poisson_arrivals(qps: float, duration_s: float, least: int, seed: int) -> Nanoseconds:
    """Arrival times in nanoseconds from the start, ascending.

    Args:
        qps: Mean rate.
        duration_s: Arrivals are within this time, unless fewer than ``least`` are.
        least: Number of arrivals, at least.
        seed: Equal seeds give equal arrivals.
    """
    generator = np.random.default_rng(seed)
    expected = qps * duration_s
    count = max(least, math.ceil(expected + 6 * math.sqrt(expected) + 8))
    times = generator.exponential(1e9 / qps, count).cumsum()
    kept = max(least, int(np.searchsorted(times, duration_s * 1e9)), 1)
    return times[:kept].astype(np.int64)


def loadgen_arrivals(qps: float, count: int, seed: int) -> tuple[Nanoseconds, int]:
    """The arrivals that LoadGen's Server scenario schedules, and the time of the next one.

    LoadGen hands out neither its schedule nor latencies of single queries. It draws gaps
    with ``std::exponential_distribution<double>`` from ``std::mt19937``, which libstdc++
    does as below, and logs the time after the last one as ``generated_query_duration``:
    whoever uses this compares the two, and does without where they differ.

    Returns:
        ``count`` times in nanoseconds, the first 0; and the time of the next.

    Source: ``loadgen/loadgen.cc`` (GenerateQueries) and ``loadgen/utils.h`` of
    mlcommons/inference; ``bits/random.tcc`` of GCC (generate_canonical).
    """
    # Not the modern generator: this one is std::mt19937, seed and all.
    generator = np.random.RandomState(seed)
    words = generator.randint(0, 2**32, 2 * count, dtype=np.uint32).astype(np.float64)
    uniform = (words[0::2] + words[1::2] * 2.0**32) / 2.0**64
    gaps = (-np.log(1 - uniform) / qps * 1e9).astype(np.int64)
    times = np.concatenate([[0], gaps.cumsum()])
    return times[:-1], int(times[-1])
