"""What this process holds: threads, file descriptors, memory, and how that grows over calls."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from bridge_conformance.claims import not_verified

__all__ = ["Growth", "Held", "growths", "held", "settled"]

_SETTLING_S = 5.0
_POLL_S = 0.05
_SAMPLED_CALLS = 5  # one sample for so many calls


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
    """How much more the process holds after some calls than before them.

    Attributes:
        calls: How many these were.
        small_objects: Blocks of Python's own allocator, which serves what has at most 512
            bytes.
        allocated_bytes: As in ``Held``: of larger objects, of arrays, of native code.
        resident_bytes: As in ``Held``: coarser, but sees what the others do not.
    """

    calls: int
    small_objects: int
    allocated_bytes: int
    resident_bytes: int


def held() -> Held:
    """What this process holds now, rubbish collected; ends the test where nothing tells it."""
    gc.collect()
    try:
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - paths are not wanted
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    except FileNotFoundError:
        _no_proc()
    return Held(threads, descriptors, _resident_bytes(), _allocated_bytes())


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


def growths(call: Callable[[], object], times: int) -> Iterator[Growth]:
    """Calls without end; growth from one quarter of ``times`` to the next.

    Two quarters go before, for what is made once and kept. Of each quarter counts the
    moment at which least was held, because runtimes free some things only now and then: the
    memory of onnxruntime 1.32 goes up and down by 600 KB over some 200 calls that fail.
    """
    quarter = times // 4
    for _ in range(2 * quarter):
        call()
    before = _least(call, quarter)
    while True:
        after = _least(call, quarter)
        yield Growth(quarter, *(new - old for new, old in zip(after, before, strict=True)))
        before = after


def _least(call: Callable[[], object], times: int) -> tuple[int, int, int]:
    """Small objects, allocated and resident bytes: the least of each seen while calling."""
    objects = allocated = resident = sys.maxsize
    gc.collect()  # empties Python's lists of free objects as well
    for number in range(times):
        call()
        if number % _SAMPLED_CALLS == 0:
            gc.collect(1)  # what is younger than that
            objects = min(objects, sys.getallocatedblocks())
            allocated = min(allocated, _allocated_bytes())
            resident = min(resident, _resident_bytes())
    return objects, allocated, resident


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - opens no more than it must
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except FileNotFoundError:
        _no_proc()


def _no_proc() -> NoReturn:
    not_verified("this system has no /proc, which tells what a process holds.")


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
