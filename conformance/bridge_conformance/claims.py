"""Which tests a backend has to pass: decided by what it claims.

A test marked ``requires`` runs where a capability is claimed, one marked ``refuses``
where it is not: so every "no" is tested as well. Both read the backend's own
``capabilities()``; nothing is declared twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import pytest

from bridge.capabilities import Capabilities

__all__ = [
    "applies",
    "full",
    "is_full",
    "lacks",
    "not_claimed",
    "not_verified",
    "refuses",
    "requires",
]

full = pytest.mark.full
"""Left out by ``--quick``: takes more than a few seconds."""

_YES = True


def is_full(cls: type) -> bool:
    """Whether a class of the suite takes long as a whole."""
    return any(mark.name == full.name for mark in getattr(cls, "pytestmark", []))


def requires(capability: str, value: object = _YES) -> pytest.MarkDecorator:
    """Runs only where the backend claims a capability.

    Args:
        capability: A field of ``Capabilities``; or ``dtype`` or ``format``, which mean
            that the test's parameter of that name is among ``dtypes`` or ``formats``.
        value: What the field has to be.
    """
    return pytest.mark.requires(capability, value)


def refuses(capability: str, value: object = _YES) -> pytest.MarkDecorator:
    """Runs only where the backend does not claim a capability; arguments as ``requires``."""
    return pytest.mark.refuses(capability, value)


def not_verified(reason: str) -> NoReturn:
    """Ends a test as "not verified", which is never counted as passed.

    Args:
        reason: One sentence: what could not be tried here, and why.
    """
    pytest.skip(f"not verified: {reason}")


def not_claimed(reason: str) -> NoReturn:
    """Ends a test as "not claimed": it needs something that the backend says it cannot do.

    Args:
        reason: One sentence: what that is.
    """
    pytest.skip(f"not claimed: {reason}")


def applies(claims: Capabilities, marks: list[pytest.Mark], parameters: Mapping[str, Any]) -> bool:
    """Whether a test with these marks and parameters is for a backend with these claims."""
    return not any(_is_unmet(claims, mark, parameters) for mark in marks)


def lacks(claims: Capabilities, marks: list[pytest.Mark], parameters: Mapping[str, Any]) -> bool:
    """Whether a test is not for a backend because of something that it does not claim."""
    required = [mark for mark in marks if mark.name == "requires"]
    return not applies(claims, required, parameters)


def _is_unmet(claims: Capabilities, mark: pytest.Mark, parameters: Mapping[str, Any]) -> bool:
    if mark.name not in ("requires", "refuses"):
        return False
    capability, value = mark.args
    if capability in ("dtype", "format"):
        held = parameters[capability] in getattr(claims, f"{capability}s")
    else:
        held = getattr(claims, capability) == value
    return bool(held is not (mark.name == "requires"))
