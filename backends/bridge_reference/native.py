"""The shortest idiomatic load and call of the reference evaluator: a yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.model import ModelRef

__all__ = ["load"]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A call from arrays by name to arrays by name; numpy decides on threads."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(model.file))
    names = evaluator.output_names
    return lambda inputs: dict(zip(names, evaluator.run(None, inputs), strict=True))
