"""The shortest idiomatic use of ONNX's reference evaluator, as a yardstick for the bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import ModelRef

__all__ = ["load"]

Arrays = dict[str, npt.NDArray[np.generic]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> tuple[Callable[[Arrays], Any], Callable[[Any], Arrays]]:
    """``ReferenceEvaluator.run`` alone, and what names its results.

    Args:
        model: A model whose file has its usual suffix, or the bytes of an ONNX model.
        threads: Not used: numpy decides on its threads.
        signature_key: Not used: ONNX models have one signature.

    Returns:
        The call, and what turns its result into arrays by name.
    """
    del threads, signature_key
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(model.file) if model.data is None else model.data)
    names = evaluator.output_names

    return (
        lambda inputs: evaluator.run(None, inputs),
        lambda results: dict(zip(names, results, strict=True)),
    )
