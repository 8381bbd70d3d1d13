"""The lists of operators that a model may use without being trusted, one per family.

Each list is a text file, ``operators.txt``, in the folder of its family: names that are
allowed, and with a leading ``-`` names that are known and refused. The header of the
file says where the names come from.
"""

from __future__ import annotations

import functools
from importlib import resources

__all__ = ["allowed", "refused"]


def allowed(family: str) -> frozenset[str]:
    """Operators that only compute on what the model was given and on its own state.

    Args:
        family: ``tensorflow`` or ``torch``.
    """
    return _lists(family)[0]


def refused(family: str) -> frozenset[str]:
    """Operators that the runtime has and that are not allowed, or not as they are."""
    return _lists(family)[1]


@functools.cache
def _lists(family: str) -> tuple[frozenset[str], frozenset[str]]:
    text = resources.files(f"bridge.formats.{family}").joinpath("operators.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return (
        frozenset(line for line in lines if not line.startswith("-")),
        frozenset(line[1:] for line in lines if line.startswith("-")),
    )
