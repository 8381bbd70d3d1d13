"""The hooks of a plugin.

A plugin is a module named by an entry point of the group ``bridge``. It decorates
functions of these names with ``bridge.hookimpl``; each gets a ``register`` callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

from bridge.adapter import Adapter
from bridge.backend import Backend
from bridge.model import Format

__all__ = ["hookimpl"]

hookspec = pluggy.HookspecMarker("bridge")
hookimpl = pluggy.HookimplMarker("bridge")


@hookspec
def register_backends(register: Callable[[Backend], None]) -> None:
    """Registers backends; must be cheap and import no runtime."""


@hookspec
def register_formats(register: Callable[[Format], None]) -> None:
    """Registers model formats, each with its native backend."""


@hookspec
def register_adapters(register: Callable[[Adapter], None]) -> None:
    """Registers conversions; must be cheap and import no converter."""


@hookspec
def register_commands(register: Callable[[Any], None]) -> None:
    """Registers commands of the ``bridge`` program, as typer apps."""


@hookspec
def register_conformance_models(register: Callable[[Any], None]) -> None:
    """Registers models with expected outputs for the conformance suite."""
