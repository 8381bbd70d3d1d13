"""Registers the DeepRec backend, its formats and its adapters."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_deeprec.adapter import DeeprecToSavedModel, TablesToOnnx
from bridge_deeprec.backend import DeeprecBackend
from bridge_deeprec.folder import OnnxWithTables, SavedModelWithTables
from bridge_deeprec.saved import DeeprecModel

__all__ = ["register_adapters", "register_backends", "register_formats"]


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    """Registers the backend ``deeprec``."""
    register(DeeprecBackend())


@bridge.hookimpl
def register_formats(register: Callable[[bridge.Format], None]) -> None:
    """Registers models with DeepRec's operators, and what is made of them."""
    for kind in (DeeprecModel, SavedModelWithTables, OnnxWithTables):
        register(kind())


@bridge.hookimpl
def register_adapters(register: Callable[[bridge.Adapter], None]) -> None:
    """Registers the ways out of DeepRec's formats."""
    register(DeeprecToSavedModel())
    register(TablesToOnnx())
