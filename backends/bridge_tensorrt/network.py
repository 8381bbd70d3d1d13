"""ONNX models as TensorRT reads them: the network, its signature, what it cannot take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge import DType, ModelRef, Signature, TensorSpec
from bridge.errors import DeviceUnavailable, InvalidModel, UnsupportedModel
from bridge.formats.onnx import require_known_opset
from bridge.signature import Dim, dim
from bridge_tensorrt.messages import listener, mark, since
from bridge_tensorrt.module import TITLES

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["Network", "dtype_of", "parse", "title_of"]

_DTYPES = {
    "FLOAT": DType.FLOAT32,
    "HALF": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "INT8": DType.INT8,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "BOOL": DType.BOOL,
    "UINT8": DType.UINT8,
    "FP8": DType.FLOAT8_E4M3FN,
}


@dataclass(frozen=True)
class Network:
    """A parsed model.

    Attributes:
        builder: What made it; needed as long as the network.
        parser: The same; it owns the weights.
        definition: TensorRT's own network.
        signature: Its inputs and outputs; named dims where the ONNX model names them.
        holding_shapes: Names of the inputs whose values decide shapes.
        float_types: Floating-point types that occur in it, such as ``float32``.
    """

    builder: rtx.Builder
    parser: rtx.OnnxParser
    definition: rtx.INetworkDefinition
    signature: Signature
    holding_shapes: tuple[str, ...]
    float_types: tuple[str, ...]


def title_of(trt: Any) -> str:
    """What people call a module, with its version."""
    return f"{TITLES[trt.__name__]} {trt.__version__}"


def dtype_of(native: rtx.DataType, tensor: str) -> DType:
    """The element type of an input or output.

    Raises:
        UnsupportedModel: Arrays of that type cannot be exchanged.
    """
    if native.name not in _DTYPES:
        raise UnsupportedModel(
            f"tensor '{tensor}' is of type {native.name}, which is not exchanged.",
            fix="Convert it inside the model.",
            dtype=native.name,
            tensor=tensor,
        )
    return _DTYPES[native.name]


def parse(trt: Any, model: ModelRef) -> Network:
    """Parses an ONNX model into a strongly typed network.

    Every tensor keeps the type that the model gives it: float32 stays float32, and int64
    stays int64. No plugin library is loaded beside those that the vendor ships with the
    module; a model cannot name one.

    Args:
        trt: The module.
        model: An ONNX model; external data is found beside its path.

    Raises:
        InvalidModel: The bytes are no ONNX model.
        UnsupportedModel: TensorRT does not take it; operators are named.
        DeviceUnavailable: This module's builder needs a GPU, and there is none.
    """
    require_known_opset(model)  # TensorRT reads a newer one as the newest it knows
    start = mark()
    log = listener(trt)
    if trt.__name__ == "tensorrt":
        # Some ONNX operators are implemented there as plugins of the vendor's own library.
        trt.init_libnvinfer_plugins(log, "")
    try:
        builder: rtx.Builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:
        said = "; ".join(since(start)) or str(error)
        raise DeviceUnavailable(
            f"{title_of(trt)} cannot start its builder: {said}",
            fix="Build on a machine with a GPU, or with module=tensorrt_rtx, which needs none.",
            module=trt.__name__,
        ) from error
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    definition: rtx.INetworkDefinition = builder.create_network(1 << int(flag))
    parser: rtx.OnnxParser = trt.OnnxParser(definition, log)
    if model.data is not None:
        is_parsed = parser.parse(model.data)
    else:
        is_parsed = parser.parse_from_file(str(model.file))
    if not is_parsed:
        raise _refusal(trt, parser, model)
    return Network(
        builder=builder,
        parser=parser,
        definition=definition,
        signature=_signature(definition, model),
        holding_shapes=_holding_shapes(definition),
        float_types=_float_types(definition),
    )


def _refusal(trt: Any, parser: rtx.OnnxParser, model: ModelRef) -> InvalidModel | UnsupportedModel:
    reasons: dict[str, str] = {}
    for index in range(parser.num_errors):
        error: rtx.ParserError = parser.get_error(index)
        text = error.desc().strip()
        if error.code() == trt.ErrorCode.MODEL_DESERIALIZE_FAILED:
            return InvalidModel(
                f"{title_of(trt)} cannot read {model.name}: {text}",
                fix="It may be truncated, or miss its external data; export or copy it again.",
                native_error=text,
            )
        if "Plugin not found" in text:
            text = "there is no such operator, and no plugin of that name"
        reasons.setdefault(error.node_operator() or "the graph", text)
    first = next(iter(reasons), "the graph")
    names = ", ".join(f"'{name}'" for name in reasons) or "'the graph'"
    reason = reasons.get(first, "it gave no reason").rstrip(".")
    return UnsupportedModel(
        f"{title_of(trt)} does not take operator {names} of {model.name}: {reason}.",
        fix="Use another backend, or export the model without it.",
        operators=sorted(reasons),
        native_error=reasons,
    )


def _signature(definition: rtx.INetworkDefinition, model: ModelRef) -> Signature:
    stated = model.facts.signatures.get("")
    known = (
        {} if stated is None else {spec.name: spec for spec in (*stated.inputs, *stated.outputs)}
    )
    inputs = [_spec(definition.get_input(index), known) for index in range(definition.num_inputs)]
    outputs = [
        _spec(definition.get_output(index), known) for index in range(definition.num_outputs)
    ]
    if stated is not None:
        # TensorRT gives outputs in an order of its own.
        places = {name: place for place, name in enumerate(stated.output_names)}
        outputs.sort(key=lambda spec: places.get(spec.name, len(places)))
    return Signature(tuple(inputs), tuple(outputs))


def _spec(tensor: rtx.ITensor, known: dict[str, TensorSpec]) -> TensorSpec:
    """What TensorRT says, with the names of dims that the model's own bytes tell."""
    name = tensor.name
    sizes = tuple(tensor.shape)
    other = known.get(name)
    told: tuple[Dim, ...] = (None,) * len(sizes)
    if other is not None and other.shape is not None and len(other.shape) == len(sizes):
        told = other.shape
    shape: list[Dim] = []
    for axis, size in enumerate(sizes):
        label = told[axis] or dim(tensor.get_dimension_name(axis))
        shape.append(size if size >= 0 else label)
    return TensorSpec(name, dtype_of(tensor.dtype, name), tuple(shape), native_name=name)


def _holding_shapes(definition: rtx.INetworkDefinition) -> tuple[str, ...]:
    found = []
    for index in range(definition.num_inputs):
        tensor: rtx.ITensor = definition.get_input(index)
        if tensor.is_shape_tensor:
            found.append(tensor.name)
    return tuple(found)


def _float_types(definition: rtx.INetworkDefinition) -> tuple[str, ...]:
    found = set()
    for index in range(definition.num_layers):
        layer: rtx.ILayer = definition.get_layer(index)
        for place in range(layer.num_outputs):
            tensor: rtx.ITensor | None = layer.get_output(place)
            if tensor is not None and tensor.dtype.name in _DTYPES:
                kind = _DTYPES[tensor.dtype.name]
                if kind.is_float:
                    found.add(kind.value)
    return tuple(sorted(found))
