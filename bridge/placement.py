"""A folder that appears under its name only when all of it is on the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bridge import staging
from bridge.manifest import sync

__all__ = ["fill", "install"]


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
