"""What this process holds: threads, file descriptors, memory, and how that grows over calls."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

from bridge_conformance.claims import not_verified

__all__ = ["Growth", "Held", "growth_over_second_half", "held", "settled"]

_SETTLING_S = 5.0
_POLL_S = 0.05


class Held(NamedTuple):
    """What the process holds at one moment.

    Attributes:
        threads: Threads, those of native code among them.
        descriptors: Open file descriptors.
        resident_bytes: Memory that it occupies, in whole pages.
        allocated_bytes: What all of it, native code too, has from ``malloc``, to the byte;
            0 where the C library cannot tell.
    """

    threads: int
    descriptors: int
    resident_bytes: int
    allocated_bytes: int


class Growth(NamedTuple):
    """How many bytes more the process holds after some calls than before them.

    Attributes:
        python: What Python and numpy have allocated.
        native: ``Held.allocated_bytes``.
        resident: ``Held.resident_bytes``: coarser, but sees what the others do not.
    """

    python: int
    native: int
    resident: int


def held() -> Held:
    """What this process holds now, rubbish collected; ends the test where nothing tells it."""
    gc.collect()
    try:
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - paths are not wanted
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with open("/proc/self/statm") as file:  # noqa: PTH123 - opens no more than it must
            pages = int(file.read().split()[1])
    except FileNotFoundError:
        not_verified("this system has no /proc, which tells what a process holds.")
    return Held(threads, descriptors, pages * os.sysconf("SC_PAGESIZE"), _allocated_bytes())


def settled(before: Held) -> Held:
    """What is held when threads that were told to end have ended, or have had the time to."""
    deadline_s = time.monotonic() + _SETTLING_S
    while True:
        now = held()
        if now.threads <= before.threads and now.descriptors <= before.descriptors:
            return now
        if time.monotonic() > deadline_s:
            return now
        time.sleep(_POLL_S)


def growth_over_second_half(call: Callable[[], object], times: int) -> Growth:
    """Runs ``call`` that often; growth from the middle to the end.

    The first half is for what is made once and kept. ``tracemalloc`` makes calls slower,
    and is stopped afterwards.
    """
    half = times // 2
    tracemalloc.start()
    try:
        for _ in range(half):
            call()
        before = held()
        python, _ = tracemalloc.get_traced_memory()
        for _ in range(times - half):
            call()
        after = held()
        return Growth(
            tracemalloc.get_traced_memory()[0] - python,
            after.allocated_bytes - before.allocated_bytes,
            after.resident_bytes - before.resident_bytes,
        )
    finally:
        tracemalloc.stop()


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


@functools.cache
def _mallinfo2() -> Callable[[], _Mallinfo2] | None:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33
    if function is not None:
        function.restype = _Mallinfo2
    return function


def _allocated_bytes() -> int:
    """Bytes in use of all arenas of ``malloc``, those in maps of their own among them."""
    function = _mallinfo2()
    if function is None:
        return 0
    info = function()
    return int(info.uordblks) + int(info.hblkhd)
