"""Measuring predictors: inputs, clocks, agreement, comparison, selection and load.

``bridge_bench.select(model)`` finds the fastest arm that computes the right answer. No
backend is named here, and nothing prints except the scripts (``overhead``, ``startup``,
``simulation``, ``validation`` and the like).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge_bench.selection import Selection, select
    from bridge_bench.verification import verify

__all__ = ["Selection", "select", "verify"]

_HOMES = {"Selection": "selection", "select": "selection", "verify": "verification"}


def __getattr__(name: str) -> Any:
    # Resolved on first use: most of the package is imported for one module of it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"bridge_bench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bridge_bench' has no attribute '{name}'")
