"""Registers the OpenVINO backend."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_openvino.backend import OpenvinoBackend

__all__ = ["register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``openvino``."""
    register(OpenvinoBackend())
