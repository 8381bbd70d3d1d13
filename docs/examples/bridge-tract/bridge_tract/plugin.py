"""Registers the backend; imports no runtime."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_tract.backend import TractBackend


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    register(TractBackend())
