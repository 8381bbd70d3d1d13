"""Registers the reference backend."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_reference.backend import ReferenceBackend

__all__ = ["register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``reference``."""
    register(ReferenceBackend())
