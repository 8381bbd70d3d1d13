"""The shortest idiomatic load and call of ONNX Runtime: a yardstick, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.model import ModelRef

__all__ = ["load"]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A call from arrays by name to arrays by name, on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        model.data or str(model.file), settings, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
