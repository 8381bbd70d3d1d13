"""Registers the ONNX Runtime backend."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_onnxruntime.backend import OnnxruntimeBackend

__all__ = ["register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``onnxruntime``."""
    register(OnnxruntimeBackend())
