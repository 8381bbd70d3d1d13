"""Sessions that the predictors of one model share, so that its weights are there once.

TensorFlow keeps variables, tables and optimised graphs per session; two sessions share
nothing. So predictors of equal files and equal settings share a session, as long as no
call changes the model.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from bridge_tensorflow.session import OpenSession

__all__ = ["Lease", "same_files"]


class _Entry:
    def __init__(self) -> None:
        self.users = 0
        self.opening = threading.Lock()
        self.session: OpenSession | None = None


_guard = threading.Lock()
# Weak, so that predictors that nobody closes take their session with them all the same.
_entries: weakref.WeakValueDictionary[Hashable, _Entry] = weakref.WeakValueDictionary()


class Lease:
    """One predictor's hold on a session; the last one to let go closes it.

    Args:
        key: Equal for predictors that may share; ``None`` for a session of its own.
        opened: Opens the session, where nobody has yet.

    Attributes:
        session: The session.
        is_shared: Another predictor had it already.
    """

    def __init__(self, key: Hashable | None, opened: Callable[[], OpenSession]) -> None:
        # What a parent process has open is none of a forked child's: its threads are gone.
        self._key = (os.getpid(), object() if key is None else key)
        with _guard:
            self._entry = _entries.get(self._key) or _Entry()
            _entries[self._key] = self._entry
            self._entry.users += 1
        try:
            with self._entry.opening:
                self.is_shared = self._entry.session is not None
                if self._entry.session is None:
                    self._entry.session = opened()
                self.session = self._entry.session
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go; called once."""
        with _guard:
            self._entry.users -= 1
            if self._entry.users:
                return
            _entries.pop(self._key, None)
        if self._entry.session is not None:
            self._entry.session.close()


def same_files(paths: Iterable[Path]) -> tuple[tuple[object, ...], ...]:
    """Equal for the same files with unchanged content, told from what the system knows.

    A file that is written to, replaced or restored has another time of change.

    Raises:
        OSError: A file is gone.
    """
    found = []
    for path in paths:
        status = path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found.append((str(path), status.st_dev, status.st_ino, status.st_size, *times))
    return tuple(found)


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603 - another thread of the parent may have held it
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_guard)
