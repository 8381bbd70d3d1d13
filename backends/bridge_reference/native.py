"""The shortest idiomatic use of ONNX's reference evaluator, as a yardstick for the bridge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bridge import ModelRef

__all__ = ["load"]

Arrays = dict[str, npt.NDArray[np.generic]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> Callable[[Arrays], Arrays]:
    """A function that answers one call with ``ReferenceEvaluator.run`` alone.

    Args:
        model: A model whose file has its usual suffix, or the bytes of an ONNX model.
        threads: Not used: numpy decides on its threads.
        signature_key: Not used: ONNX models have one signature.
    """
    del threads, signature_key
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(model.file) if model.data is None else model.data)
    names = evaluator.output_names

    def call(inputs: Arrays) -> Arrays:
        return dict(zip(names, evaluator.run(None, inputs), strict=True))

    return call
