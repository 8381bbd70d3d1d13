"""The shortest idiomatic use of ONNX Runtime, as a yardstick for the bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import ModelRef
from bridge.cpus import default_threads
from bridge_onnxruntime.runtime import onnxruntime

__all__ = ["load"]

Arrays = dict[str, npt.NDArray[np.generic]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> tuple[Callable[[Arrays], Any], Callable[[Any], Arrays]]:
    """``InferenceSession.run`` alone, on the CPU, and what names its results.

    Args:
        model: A model whose file has its usual suffix, or the bytes of an ONNX model.
        threads: Threads of one operator; ``None`` means the bridge's default.
        signature_key: Not used: ONNX models have one signature.

    Returns:
        The call, and what turns its result into arrays by name.
    """
    del signature_key
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads or default_threads()
    source = str(model.file) if model.data is None else model.data
    session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    return (
        lambda inputs: session.run(None, inputs),
        lambda results: dict(zip(names, results, strict=True)),
    )
