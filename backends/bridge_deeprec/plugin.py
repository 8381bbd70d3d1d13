"""Registers the DeepRec backend."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_deeprec.backend import DeeprecBackend

__all__ = ["register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``deeprec``."""
    register(DeeprecBackend())
