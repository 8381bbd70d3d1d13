"""Registers the Torch backend."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_torch.backend import TorchBackend

__all__ = ["register_backends"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``torch``."""
    register(TorchBackend())
