"""Locks between processes, which the kernel releases when their holder dies.

Two kinds: ``lock`` excludes everybody else from a name; ``hold`` says that a folder is in
use by this process, beside others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from pathlib import Path

from bridge.logs import logger
from bridge.manifest import READ, Damaged, check_private

__all__ = ["OPEN", "claim", "hold", "is_at", "lock", "release", "remember"]

OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO in place of a file must not block

# Each folder held costs one file descriptor.
_MOST_HELD = 64
_held: dict[Path, int] = {}
_held_lock = threading.Lock()


def lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file for this thread alone, creating it if need be.

    Returns:
        The descriptor that holds the lock until it is closed; None if another thread or
        process has it and ``wait`` is false.

    Raises:
        OSError: The file cannot be made, or its file system knows no locks.
    """
    while True:
        descriptor = os.open(path, OPEN | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(descriptor)
                    return None
                logger("cache").info("waiting for another process that builds %.12s", path.name)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file was removed by its last holder: lock the new one


def hold(folder: Path) -> None:
    """Mark a folder as in use by this process, through the file ``lock`` inside it.

    Raises:
        Damaged: That file is not a private file, or the folder was just removed.
        OSError: There is no such file.
    """
    descriptor = os.open(folder / "lock", READ)
    try:
        check_private(os.fstat(descriptor), "'lock'", stat.S_ISREG)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not is_at(descriptor, folder / "lock"):
            raise Damaged("it was removed meanwhile")
    except BaseException:
        os.close(descriptor)
        raise
    remember(folder, descriptor)


def remember(folder: Path, descriptor: int) -> None:
    """Keep the descriptor that holds a folder, and let go of the oldest beyond 64."""
    with _held_lock:
        dropped = [_held.pop(folder, None)]
        _held[folder] = descriptor
        if len(_held) > _MOST_HELD:
            dropped.append(_held.pop(next(iter(_held))))
    for old in dropped:
        if old is not None:
            os.close(old)


def release(folder: Path) -> bool:
    """Undo ``hold``; whether there was anything to undo."""
    with _held_lock:
        descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def claim(folder: Path) -> int:
    """Keep all others from holding a folder, so that it can be removed.

    Returns:
        The descriptor to close afterwards.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It has no file ``lock``.
    """
    was_held = release(folder)
    descriptor = os.open(folder / "lock", OPEN)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        if was_held:
            with contextlib.suppress(OSError, Damaged):  # just damaged: of no use to us either
                hold(folder)
        raise
    return descriptor


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False
