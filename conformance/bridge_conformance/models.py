"""The bridge plugin ``conformance``: registers the writers that the suite itself has.

Another distribution registers writers of its own formats with the same hook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import bridge

if TYPE_CHECKING:
    from bridge_conformance.writing import Writer

__all__ = ["register_conformance_models"]


@bridge.hookimpl
def register_conformance_models(register: Callable[[Writer], None]) -> None:
    """Registers a writer for each format that the suite can write."""
    # Imported here: every process that uses the bridge imports this module.
    from bridge_conformance.writers.onnx import write_onnx
    from bridge_conformance.writing import Writer

    register(Writer("onnx", "onnx", write_onnx))
