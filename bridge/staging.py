"""Folders in which a cache entry is built or removed, and their removal."""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path

from bridge.locks import OPEN, is_at

__all__ = ["begin", "clear", "delete", "delete_at_exit"]

# A folder without a lock is one just begun, or one being removed: an hour is far more than
# either takes.
_ABANDONED_S = 3600.0

# Each with the process that made it: a forked child runs the same exit functions.
_temporary: list[tuple[int, Path]] = []


def begin(parent: Path) -> tuple[Path, int]:
    """A new folder with an empty ``files`` in it, and the lock that says that we live.

    Raises:
        OSError: It cannot be made; nothing is left of it then.
    """
    while True:
        folder = parent / secrets.token_hex(8)
        folder.mkdir(0o700)
        try:
            (folder / "files").mkdir(0o700)
            hold = os.open(folder / "lock", OPEN | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(hold, fcntl.LOCK_SH)
                if is_at(hold, folder / "lock"):
                    return folder, hold
                os.close(hold)  # cleared away in the instant before it was locked
            except BaseException:
                os.close(hold)
                raise
        except BaseException:
            delete(folder)
            raise


def clear(parent: Path) -> None:
    """Delete everything in a folder that no living process works on."""
    for item in parent.iterdir():
        try:
            lock = os.open(item / "lock", OPEN)
        except OSError:
            _delete_if_old(item)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            delete(item)  # before the lock is given up: see begin
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def delete(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        # What cannot be deleted stays for the next ``clear``.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def delete_at_exit(folder: Path) -> None:
    """Delete a folder when this process ends."""
    _temporary.append((os.getpid(), folder))


@atexit.register
def _delete_temporary() -> None:
    for process, folder in _temporary:
        if process == os.getpid():
            delete(folder)


def _delete_if_old(item: Path) -> None:
    try:
        age_s = time.time() - item.lstat().st_mtime
    except FileNotFoundError:
        return
    if age_s > _ABANDONED_S:
        delete(item)
