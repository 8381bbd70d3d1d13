"""The backend: what the reference evaluator can do, and how a model is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge import (
    Availability,
    Backend,
    Capabilities,
    Device,
    DType,
    ErrorRule,
    ModelRef,
    PredictorInfo,
    ThreadSafety,
    find_runtime,
)
from bridge.errors import InvalidModel, OptionError, UnsupportedModel
from bridge_reference.options import ReferenceOptions
from bridge_reference.predictor import ReferencePredictor

__all__ = ["ReferenceBackend"]

_OTHER_BACKEND = "Use another backend, or export the model without it."
_NEWER = "Install a newer onnx, or export the model for an older version."

# Fields of TypeProto, for what is no tensor.
_KINDS = {
    "sequence_type": "sequence",
    "map_type": "map",
    "optional_type": "optional value",
    "sparse_tensor_type": "sparse tensor",
}


class ReferenceBackend(Backend):
    """``onnx.reference`` on the CPU."""

    name = "reference"
    options_type = ReferenceOptions
    is_oracle = True

    def probe(self) -> Availability:
        """Whether ``onnx`` is installed; it is not imported."""
        return find_runtime("onnx", ("onnx", "onnx-weekly"), "reference")

    def capabilities(self, device: Device) -> Capabilities:
        """Every type that numpy and ``ml_dtypes`` have; inputs are copied, whatever they are."""
        return Capabilities(
            formats=frozenset({"onnx"}),
            dtypes=frozenset(DType),
            dynamic_dims=True,
            zero_rows=True,
            deterministic=True,
            thread_safety=ThreadSafety.EXCLUSIVE,
        )

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """What the evaluator and the checker raise; the texts are those of onnx 1.23."""
        from google.protobuf.message import DecodeError
        from onnx.checker import ValidationError

        unknown = "the reference evaluator has no operator {operator}."
        return (
            ErrorRule(
                ValidationError,
                UnsupportedModel,
                r"No Op registered for (?P<operator>\S+) with domain_version of (?P<opset>\d+)",
                "the reference evaluator has no operator {operator} of opset {opset}.",
                _OTHER_BACKEND,
            ),
            ErrorRule(
                ValidationError,
                UnsupportedModel,
                r"ir_version (?P<ir_version>\d+) is higher than the checker's \((?P<newest>\d+)\)",
                "the model is of IR version {ir_version}; this onnx knows up to {newest}.",
                _NEWER,
            ),
            ErrorRule(
                ValidationError,
                InvalidModel,
                r"topologically sorted, however input '(?P<tensor>[^']*)' of node",
                "the graph reads the tensor '{tensor}', which nothing before makes.",
                "Export it again.",
            ),
            ErrorRule(
                ValidationError,
                InvalidModel,
                r"(?P<why>[^\n]*[^\s.])",
                "the model breaks a rule of ONNX: {why}.",
                "Export it again.",
            ),
            ErrorRule(
                DecodeError,
                InvalidModel,
                None,
                "onnx cannot read the file; it is truncated, or damaged.",
                "Export or copy it again.",
            ),
            # NotImplementedError is a RuntimeError.
            ErrorRule(
                RuntimeError,
                UnsupportedModel,
                r"Node type '(?P<operator>[^']+)' from domain '(?P<domain>[^']*)' is unknown",
                "the reference evaluator has no operator {domain}.{operator}.",
                _OTHER_BACKEND,
            ),
            ErrorRule(
                RuntimeError,
                UnsupportedModel,
                r"Domain '(?P<domain>[^']*)' \(node type: '(?P<operator>[^']+)'\) is not specified",
                "the model uses the operator {domain}.{operator} without importing an opset of "
                "its domain.",
                "Export it again.",
            ),
            ErrorRule(
                Exception,
                UnsupportedModel,
                r"(?:No|Not) (?:registered |default )?(?:schema|implementation) for operator "
                r"'(?P<operator>[^']+)'",
                unknown,
                _OTHER_BACKEND,
            ),
        )

    def _load(
        self, model: ModelRef, device: Device, options: ReferenceOptions
    ) -> ReferencePredictor:
        import onnx
        from onnx.reference import ReferenceEvaluator

        if model.declared is not None:
            raise OptionError(
                f"a whole signature was given for {model.name}, but its format holds its own.",
                fix="Leave the signature out.",
            )
        # The format is named because onnx goes by the suffix otherwise.
        if model.data is not None:
            proto = onnx.load_model_from_string(model.data, format="protobuf")
        else:
            proto = onnx.load_model(str(model.file), format="protobuf")
        _check(model.data if model.data is not None else str(model.file))
        _require_known_opset(proto)
        _require_tensors(proto)
        info = PredictorInfo(
            device=device,
            provider="onnx.reference",
            versions={"onnx": onnx.__version__, "numpy": np.__version__},
        )
        return ReferencePredictor(ReferenceEvaluator(proto), model.facts.signatures[""], info)


def _check(model: bytes | str) -> None:
    """Has ONNX's checker look at the model, because the evaluator itself forgives much.

    Raises:
        ValidationError: The model breaks a rule, other than that inputs and outputs have a
            shape: exporters leave it out where the rank is unknown, and runtimes accept that.
    """
    from onnx.checker import ValidationError, check_model

    try:
        check_model(model)
    except ValidationError as error:
        if "Field 'shape' of 'type' is required" not in str(error):
            raise


def _require_known_opset(proto: Any) -> None:
    """Refuses newer opsets, which the evaluator would run with its newest implementations."""
    from onnx.defs import onnx_opset_version

    newest = onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise UnsupportedModel(
                f"the model is of opset {opset.version}; this onnx knows up to {newest}.",
                fix=_NEWER,
                opset=opset.version,
                newest=newest,
            )


def _require_tensors(proto: Any) -> None:
    from onnx import TensorProto

    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type.WhichOneof("value")
        if kind == "tensor_type":
            element = value.type.tensor_type.elem_type
            try:
                DType.of(_numpy_dtype(element))
            except (KeyError, ValueError):
                shown = f"tensor of {TensorProto.DataType.Name(element)}"
            else:
                continue
        else:
            shown = _KINDS.get(kind, "value of no stated type")
        raise UnsupportedModel(
            f"'{value.name}' is {'an' if shown[0] in 'aeiou' else 'a'} {shown}; the bridge passes "
            "dense tensors of types that numpy or ml_dtypes have.",
            fix="Export the model with plain tensors as inputs and outputs.",
            tensor=value.name,
            type=shown,
        )


def _numpy_dtype(element: int) -> Any:
    from onnx.helper import tensor_dtype_to_np_dtype

    return tensor_dtype_to_np_dtype(element)
