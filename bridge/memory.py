"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["resident_bytes"]

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now, mapped files included; some 15 µs.

    Returns:
        Bytes, in whole pages; ``None`` where the system has no ``/proc/self/statm``.

    Source: proc_pid_statm(5). Since Linux 6.2 the kernel adds up counters of each CPU
    lazily, so that the figure may be off by some hundred KiB.
    """
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
