"""How much memory a call allocates for arrays: numpy reports its allocations to tracemalloc."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

__all__ = ["traced_peak_bytes"]

_SETTLING_CALLS = 4


def traced_peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that Python and numpy hold at once during a settled call, over the state before.

    Args:
        call: Is called several times before it is measured, so that what is made once,
            such as the buffers of a runtime, is there already.

    Source: numpy's ``np.lib.tracemalloc_domain``; memory of native code is not seen.
    """
    for _ in range(_SETTLING_CALLS):
        call()
    tracemalloc.start()
    try:
        call()  # what tracing itself allocates on first use
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before
