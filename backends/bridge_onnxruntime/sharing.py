"""What predictors of one process share: sessions of equal models, and one arena.

``InferenceSession.run`` may be called from any thread, so that two predictors with the
same model and options need one session only. The Python API of onnxruntime has no other
way to share weights: the container for prepacked ones is for C alone, and without it
each session packs its own copy (seen with onnxruntime 1.32).
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from bridge_onnxruntime.runtime import onnxruntime

__all__ = ["register_arena", "shared_session"]


class _Sessions:
    """Sessions by what makes them equal, as long as a predictor has them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.alive: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()


_sessions = _Sessions()


def shared_session(key: Hashable, make: Callable[[], Any]) -> Any:
    """The session of a key, made if no predictor has it; others wait meanwhile.

    Raises:
        Exception: Whatever ``make`` raises; nothing is kept then.
    """
    sessions = _sessions
    with sessions.lock:
        session = sessions.alive.get(key)
        if session is None:
            session = make()
            sessions.alive[key] = session
        return session


@functools.cache
def register_arena() -> None:
    """Makes the arena for CPU memory that sessions may share; others go on without it."""
    ort = onnxruntime()
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(memory, None)


def _forget() -> None:
    """In a forked child: the parent's sessions have no threads there, and its lock no owner."""
    global _sessions  # noqa: PLW0603 - one registry a process
    _sessions = _Sessions()


os.register_at_fork(after_in_child=_forget)
