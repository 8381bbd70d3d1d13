"""The reference evaluator behind the predictor interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import Layout, Predictor, PredictorInfo, Signature, TensorSpec
from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.errors import InputError, PredictError

__all__ = ["ReferencePredictor"]


class ReferencePredictor(Predictor):
    """One call at a time: that the evaluator's operators keep no state is not documented.

    The evaluator hands out its inputs and constants as they are (``Identity``, ``Clip``
    without bounds, reshaping): inputs and outputs are copied, so that nobody shares memory
    with the model or with an earlier call.
    """

    layout = Layout.ANY

    def __init__(self, evaluator: Any, signature: Signature, info: PredictorInfo) -> None:
        super().__init__(signature, info)
        self._evaluator = evaluator
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        given = {name: _given(self._inputs[name], array) for name, array in inputs.items()}
        try:
            # Infinities are results here, and numpy's warnings about them nobody's business.
            with np.errstate(all="ignore"):
                results = self._evaluator.run(list(outputs), given)
        except Exception as error:
            node = _failing_node(error.__traceback__)
            if node is None or isinstance(error, MemoryError):
                raise
            raise PredictError(
                f"the operator {node.op_type} ('{node.onnx_node.name}') failed: "
                f"{type(error).__name__}: {str(error).rstrip('.')}.",
                operator=node.op_type,
                node=node.onnx_node.name,
                native_error=str(error),
            ) from error
        return {
            name: _owned(self._outputs[name], result)
            for name, result in zip(outputs, results, strict=True)
        }

    def _close(self) -> None:
        self._evaluator = None


def _given(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = np.array(array, order="C", copy=True)
    if spec.dtype is DType.STRING:
        for index, item in np.ndenumerate(copy):
            if isinstance(item, bytes):
                copy[index] = _text(spec.name, item)
    return copy


def _text(name: str, item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"input '{name}' holds bytes that are no UTF-8 text: {error}.",
            fix="Decode them to str first; ONNX strings are UTF-8.",
            input=name,
        ) from error


def _owned(spec: TensorSpec, result: Any) -> npt.NDArray[Any]:
    wanted = None if spec.dtype is None else spec.dtype.numpy
    array = np.array(result, order="C", copy=True)
    if spec.dtype is DType.STRING and array.dtype.kind in "UT":
        array = array.astype(object)
    if wanted is not None and array.dtype != wanted:
        raise PredictError(
            f"the reference evaluator computed output '{spec.name}' as {array.dtype}; the model "
            f"declares {spec.dtype}.",
            fix="An operator of onnx.reference does not keep its type; use another backend.",
            output=spec.name,
        )
    return array


def _failing_node(traceback: TracebackType | None) -> Any:
    """The innermost operator that was running, from the evaluator's own frames."""
    node = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == "onnx.reference.reference_evaluator":
            node = frame.f_locals.get("node", node)
        traceback = traceback.tb_next
    return node if hasattr(node, "op_type") and hasattr(node, "onnx_node") else None
