"""What predictors of one file have in common, kept for as long as one of them lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from pathlib import Path
from typing import Any

__all__ = ["content_key", "find", "keep"]

_held: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def content_key(path: Path) -> Hashable:
    """Equal while the file's content is the same; to be asked for before it is read.

    The time of the last change of the inode cannot be set by programs, so that neither a
    file written anew nor another one in its place has the key of the old one.
    """
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def find(key: Hashable) -> Any:
    """What was kept under an equal key and is still in use; ``None`` if nothing is."""
    with _lock:
        return _held.get(key)


def keep(key: Hashable, item: Any) -> None:
    """Lets others find an item while its users hold it; what is there already stays."""
    with _lock:
        _held.setdefault(key, item)
