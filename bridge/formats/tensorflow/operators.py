"""The list of operators that a SavedModel may run without being trusted."""

from __future__ import annotations

import functools
from importlib import resources

__all__ = ["allowed", "refused"]


def allowed() -> frozenset[str]:
    """Operators that only compute on what the model was given and on its own state."""
    return _lists()[0]


def refused() -> frozenset[str]:
    """Operators that TensorFlow has and that are not allowed here, or not as they are."""
    return _lists()[1]


@functools.cache
def _lists() -> tuple[frozenset[str], frozenset[str]]:
    text = resources.files("bridge.formats.tensorflow").joinpath("operators.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return (
        frozenset(line for line in lines if not line.startswith("-")),
        frozenset(line[1:] for line in lines if line.startswith("-")),
    )
