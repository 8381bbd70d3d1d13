"""What TensorRT says, on its way into ``logging`` and into error texts."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from bridge.logs import logger

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["listener", "mark", "since"]

# By number: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose (ILogger.Severity).
_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
# Said by tensorrt_rtx 1.7.1 whenever a builder's configuration is made; nothing is wrong.
_NOISE = ("Thread context has not been set!",)
_KEPT = 64

_log = logger("tensorrt")
_errors: deque[tuple[int, str]] = deque(maxlen=_KEPT)
_count = itertools.count(1)


@functools.cache
def listener(trt: Any) -> rtx.ILogger:
    """The one logger of this process for a module; TensorRT keeps the first it is given."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: rtx.ILogger.Severity, msg: str) -> None:
            level = _LEVELS[int(severity)]
            text = msg.strip()
            if text.startswith(_NOISE):
                level = logging.DEBUG
            if level >= logging.ERROR:
                _errors.append((next(_count), text))
            if _log.isEnabledFor(level):
                _log.log(level, "%s", text)

    made: rtx.ILogger = Listener()
    return made


def mark() -> int:
    """A point in time, for ``since``; it costs next to nothing."""
    return _errors[-1][0] if _errors else 0


def since(point: int) -> list[str]:
    """Errors that TensorRT logged after ``mark`` gave ``point``, at most the last 64.

    They may be of another thread: TensorRT does not say for whom it logs.
    """
    return [text for number, text in tuple(_errors) if number > point]
