"""The reference evaluator behind the interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import bridge
from bridge.check import Arrays
from bridge.errors import InvalidModel, UnsupportedModel

__all__ = ["ReferenceBackend"]

_TEXT_DTYPES = frozenset(bridge.DType) - {
    bridge.DType.FLOAT8_E4M3FN,
    bridge.DType.FLOAT8_E4M3FNUZ,
    bridge.DType.FLOAT8_E5M2,
    bridge.DType.FLOAT8_E5M2FNUZ,
    bridge.DType.BFLOAT16,
}


class _ReferencePredictor(bridge.Predictor):
    def __init__(self, evaluator: Any, signature: bridge.Signature) -> None:
        import onnx

        super().__init__(
            signature,
            bridge.PredictorInfo(
                provider="onnx.reference",
                threads=1,
                versions={"onnx": onnx.__version__, "numpy": np.__version__},
            ),
        )
        self._evaluator = evaluator
        self._given = set(signature.input_names)

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = self._evaluator.run(list(outputs), dict(inputs))
        arrays: Arrays = {}
        for name, result in zip(outputs, results, strict=True):
            array = np.asarray(result)
            # Identity and reshaping nodes give back their input, or a constant of the model.
            is_owned = array.base is None and not any(array is one for one in inputs.values())
            arrays[name] = array if is_owned and array is not result else array.copy()
        return arrays

    def _close(self) -> None:
        self._evaluator = None


class ReferenceBackend(bridge.Backend):
    """``onnx.reference``: numpy, one operator after the other, no kernels of a runtime."""

    name = "reference"

    def probe(self) -> bridge.Availability:
        """Whether ``onnx`` is installed; it is not imported."""
        return bridge.find_runtime("onnx", ("onnx",), "reference")

    def capabilities(self, device: bridge.Device) -> bridge.Capabilities:
        """Whatever numpy computes; the evaluator keeps state while it runs."""
        return bridge.Capabilities(
            formats=frozenset({"onnx"}),
            dtypes=_TEXT_DTYPES,
            dynamic_dims=True,
            zero_rows=True,
            deterministic=True,
            thread_safety=bridge.ThreadSafety.EXCLUSIVE,
        )

    def error_rules(self) -> tuple[bridge.ErrorRule, ...]:
        """The evaluator's own errors; operators it lacks are named."""
        from google.protobuf.message import DecodeError
        from onnx.reference.op_run import RuntimeImplementationError

        missing = "operator '{operator}' is unknown to the reference evaluator."
        return (
            bridge.ErrorRule(DecodeError, InvalidModel, message="the ONNX file cannot be decoded."),
            bridge.ErrorRule(
                RuntimeImplementationError,
                UnsupportedModel,
                pattern=r"'(?P<operator>[^']+)'",
                message=missing,
                fix="Use another backend for this model.",
            ),
            bridge.ErrorRule(
                NotImplementedError,
                UnsupportedModel,
                pattern=r"(?:Node type|operator|type) '?(?P<operator>[\w.]+)",
                message=missing,
                fix="Use another backend for this model.",
            ),
        )

    def _load(
        self, model: bridge.ModelRef, device: bridge.Device, options: bridge.Options
    ) -> bridge.Predictor:
        import onnx
        from onnx.reference import ReferenceEvaluator

        signature = model.facts.signatures[""]
        for spec in (*signature.inputs, *signature.outputs):
            if spec.dtype is None:
                raise UnsupportedModel(
                    f"'{spec.name}' is no tensor; this backend takes tensors only.",
                    fix="Use a model whose inputs and outputs are tensors.",
                )
        if model.data is not None:
            proto = onnx.load_from_string(model.data)
        else:
            proto = onnx.load(str(model.file))
        return _ReferencePredictor(ReferenceEvaluator(proto), signature)
