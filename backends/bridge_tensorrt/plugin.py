"""Registers the TensorRT backend and the adapter that builds engines."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_tensorrt.adapter import OnnxToEngine
from bridge_tensorrt.backend import TensorrtBackend

__all__ = ["register_adapters", "register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``tensorrt``."""
    register(TensorrtBackend())


@bridge.hookimpl
def register_adapters(register: Callable[[bridge.Adapter], None]) -> None:
    """Registers the adapter ``onnx-to-engine``."""
    register(OnnxToEngine())
