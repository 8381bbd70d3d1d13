"""A folder that appears under its name only when all of it is on the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from bridge import staging
from bridge.manifest import reason, sync

__all__ = ["fill", "install", "obstacle"]


def obstacle(target: Path, foreign: Callable[[Path, set[str]], str | None]) -> str | None:
    """Why a folder cannot get a name, as the end of a sentence; ``None`` if it can.

    Args:
        target: The name, absolute.
        foreign: Called for a folder that is there and not empty, with its names; says why
            it is to be kept, ``None`` if it may be replaced.
    """
    while True:
        before = _identity(target)
        problem = _obstacle(target, foreign)
        if problem is None or _identity(target) == before:
            return problem  # else another process replaced the folder while it was looked at


def fill(folder: Path, contents: Mapping[str, Path | bytes]) -> None:
    """Makes a folder with these files by relative path, and brings all of it to the disk.

    Raises:
        OSError: It is there already, a source cannot be read, or the disk does not take it.
    """
    folder.mkdir()
    folders = {folder}
    for name, content in contents.items():
        place = folder / name
        for parent in reversed(place.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            folders.add(folder / parent)
        with place.open("xb") as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream, 2**20)
            stream.flush()
            os.fsync(stream.fileno())
    for item in folders:
        sync(item)


def install(staged: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Gives a folder its final name, in place of an empty or an older one.

    Args:
        staged: The folder, beside the target.
        target: Its name to be. An older folder there is deleted.
        check: Called before a folder that is not empty is replaced; raises to keep it.

    Raises:
        OSError: The names cannot be changed; the older folder is still in its place.
    """
    for _ in range(100):  # as often as other processes may come in between
        try:
            staged.rename(target)  # there is nothing yet, or an empty folder
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        check(target)
        if _exchange(staged, target):
            staging.delete(staged)
            break
        if _replace(staged, target):
            break
    else:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
    # The folder is whole and in its place; a failure here says only that its name might
    # not outlive a power cut.
    with contextlib.suppress(OSError):
        sync(target.parent)


def _obstacle(target: Path, foreign: Callable[[Path, set[str]], str | None]) -> str | None:
    try:
        about = target.lstat()
    except FileNotFoundError:
        there = next(parent for parent in target.parents if os.path.lexists(parent))
        if not there.is_dir():
            return f"'{there}' is not a folder"
        return None if os.access(there, os.W_OK | os.X_OK) else f"'{there}' may not be written to"
    except (OSError, ValueError) as error:
        return reason(error)
    if stat.S_ISLNK(about.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISDIR(about.st_mode):
        return "it is not a folder"
    if target.is_mount():
        return "it is a mount point, which nothing can take the place of"
    if _is_around_us(target):
        return "it is the current folder, or holds it, and would be replaced as a whole"
    try:
        names = {item.name for item in target.iterdir()}
        problem = foreign(target, names) if names else None
    except OSError as error:
        return reason(error)
    if problem is None and not os.access(target.parent, os.W_OK | os.X_OK):
        return f"'{target.parent}' may not be written to"
    return problem


def _is_around_us(folder: Path) -> bool:
    """Whether it is the current folder, or one above that."""
    try:
        current = Path.cwd()
    except FileNotFoundError:
        return False
    return Path(os.path.realpath(folder)) in (current, *current.parents)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        about = path.lstat()
    except (OSError, ValueError):
        return None
    return about.st_dev, about.st_ino


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step; False if the system cannot.

    Source: renameat2(2).
    """
    at_cwd, exchange = -100, 2
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _replace(staged: Path, target: Path) -> bool:
    """The same in two steps, for systems without the one: for an instant nothing is there."""
    old = target.with_name(f"{staged.name}.old")
    try:
        target.rename(old)
    except FileNotFoundError:
        return False
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            staging.delete(old)
            return False
        old.rename(target)
        raise
    staging.delete(old)
    return True
