"""Registers the TensorFlow backend."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_tensorflow.backend import TensorflowBackend

__all__ = ["register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``tensorflow``."""
    register(TensorflowBackend())
