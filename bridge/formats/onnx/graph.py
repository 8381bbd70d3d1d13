"""What the bytes of an ONNX ``ModelProto`` say, read without onnx or any runtime.

Field numbers are those of ``onnx/onnx.proto`` (onnx 1.23), which never change. Where a
message may stand once and stands twice, protobuf would merge the two; no exporter writes
that, and it is refused, so that no runtime sees a tensor that was not seen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from bridge.dtypes import DType
from bridge.signature import Dim, Signature, TensorSpec, dim
from bridge.wire import VARINT, Span, WireError, signed

__all__ = ["CompiledPart", "Contents", "StoredTensor", "read_model"]

DENSE_LIMIT = 1 << 40
"""Elements that a sparse tensor may stand for; runtimes make it dense."""

_BFLOAT16, _STRING = 16, 8
# TensorProto.DataType: the name in onnx.proto, our type if there is one, bits per element.
_TYPES: dict[int, tuple[str, DType | None, int]] = {
    1: ("FLOAT", DType.FLOAT32, 32),
    2: ("UINT8", DType.UINT8, 8),
    3: ("INT8", DType.INT8, 8),
    4: ("UINT16", DType.UINT16, 16),
    5: ("INT16", DType.INT16, 16),
    6: ("INT32", DType.INT32, 32),
    7: ("INT64", DType.INT64, 64),
    8: ("STRING", DType.STRING, 0),
    9: ("BOOL", DType.BOOL, 8),
    10: ("FLOAT16", DType.FLOAT16, 16),
    11: ("DOUBLE", DType.FLOAT64, 64),
    12: ("UINT32", DType.UINT32, 32),
    13: ("UINT64", DType.UINT64, 64),
    14: ("COMPLEX64", DType.COMPLEX64, 64),
    15: ("COMPLEX128", DType.COMPLEX128, 128),
    16: ("BFLOAT16", DType.BFLOAT16, 16),
    17: ("FLOAT8E4M3FN", DType.FLOAT8_E4M3FN, 8),
    18: ("FLOAT8E4M3FNUZ", DType.FLOAT8_E4M3FNUZ, 8),
    19: ("FLOAT8E5M2", DType.FLOAT8_E5M2, 8),
    20: ("FLOAT8E5M2FNUZ", DType.FLOAT8_E5M2FNUZ, 8),
    21: ("UINT4", DType.UINT4, 4),
    22: ("INT4", DType.INT4, 4),
    23: ("FLOAT4E2M1", DType.FLOAT4_E2M1FN, 4),
    24: ("FLOAT8E8M0", DType.FLOAT8_E8M0FNU, 8),
    25: ("UINT2", DType.UINT2, 2),
    26: ("INT2", DType.INT2, 2),
    27: ("FLOAT6E2M3", None, 6),
    28: ("FLOAT6E3M2", None, 6),
}
_VALUE_KINDS = {
    4: "a sequence",
    5: "a map",
    7: "an opaque value",
    8: "a sparse tensor",
    9: "an optional value",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor with ``external_data`` entries.

    Attributes:
        name: Its name, empty for tensors in attributes.
        is_external: Its ``data_location`` says so; else runtimes ignore the entries.
        entries: The entries in file order, keys and values.
        size_bytes: What its dims and type need; ``None`` where the type is unknown.
    """

    name: str
    is_external: bool
    entries: tuple[tuple[str, str], ...]
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class CompiledPart:
    """An ``EPContext`` node: a part of the model compiled for one execution provider.

    Attributes:
        name: The node's name.
        locations: The files it names.
    """

    name: str
    locations: tuple[str, ...]


@dataclass(slots=True)
class Contents:
    """What ``read_model`` found.

    Attributes:
        signature: Inputs and outputs of the graph.
        operators: Count of each operator in all graphs and functions.
        functions: The model's own functions, named as their calls are in ``operators``.
        ir_version: Version of the format.
        opsets: Opset versions by domain.
        producer: Who wrote the file.
        metadata_keys: Keys of ``metadata_props``.
        stored: Tensors with ``external_data`` entries.
        compiled: ``EPContext`` nodes.
        notes: Sentences about the signature.
    """

    signature: Signature = field(default_factory=lambda: Signature((), ()))
    operators: Counter[str] = field(default_factory=Counter)
    functions: set[str] = field(default_factory=set)
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    producer: str = ""
    metadata_keys: list[str] = field(default_factory=list)
    stored: list[StoredTensor] = field(default_factory=list)
    compiled: list[CompiledPart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_model(root: Span) -> Contents:
    """Reads a ``ModelProto``; tensor data is skipped.

    Raises:
        WireError: The bytes are truncated or corrupt, or no such message.
    """
    contents = Contents()
    graph: Span | None = None
    version = ""
    for number, _, value in root.fields():
        if isinstance(value, int):
            if number == 1:
                contents.ir_version = signed(value)
        elif number == 2:
            contents.producer = value.text()
        elif number == 3:
            version = value.text()
        elif number == 7:
            graph = _once(graph, value, "graph")
        elif number == 8:
            contents.opsets.update([_opset(value)])
        elif number == 14:
            contents.metadata_keys.append(_entry(value)[0])
        elif number == 20:
            for training in _graphs_of_training(value):
                _graph(training, contents)
        elif number == 25:
            _function(value, contents)
    if graph is None:
        raise WireError("the model has no graph", root.start)
    contents.producer = f"{contents.producer} {version}".strip()[:200]
    _main_graph(graph, contents)
    return contents


def _once(known: Span | None, value: Span, what: str) -> Span:
    if known is not None:
        raise WireError(f"the {what} stands twice", value.start)
    return value


def _opset(span: Span) -> tuple[str, int]:
    domain, version = "", 0
    for number, _, value in span.fields():
        if number == 1 and isinstance(value, Span):
            domain = value.text()
        elif number == 2 and isinstance(value, int):
            version = signed(value)
    return domain or "ai.onnx", version


def _entry(span: Span, *, strict: bool = False) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, _, value in span.fields():
        if number in texts and isinstance(value, Span):
            texts[number] = value.text(strict=strict)
    return texts[1], texts[2]


def _graphs_of_training(span: Span) -> Iterator[Span]:
    for number, _, value in span.fields():
        if number in {1, 2} and isinstance(value, Span):
            yield value


def _function(span: Span, contents: Contents) -> None:
    name = domain = ""
    for number, _, value in span.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            name = value.text()
        elif number == 10:
            domain = value.text()
        elif number == 7:
            _node(value, contents)
        elif number == 11:
            _attribute(value, contents)
    contents.functions.add(_operator(domain, name))


def _operator(domain: str, name: str) -> str:
    return name if domain in {"", "ai.onnx"} else f"{domain}.{name}"


def _graph(span: Span, contents: Contents) -> tuple[list[Span], list[Span], set[str]]:
    """Reads nodes and tensors; returns inputs, outputs and names of initializers."""
    inputs: list[Span] = []
    outputs: list[Span] = []
    initializers: set[str] = set()
    for number, _, value in span.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            _node(value, contents)
        elif number == 5:
            initializers.add(_tensor(value, contents))
        elif number == 15:
            initializers.add(_sparse_tensor(value, contents))
        elif number == 11:
            inputs.append(value)
        elif number == 12:
            outputs.append(value)
    return inputs, outputs, initializers


def _node(span: Span, contents: Contents) -> None:
    name = operator = domain = ""
    attributes = []
    for number, _, value in span.fields():
        if not isinstance(value, Span):
            continue
        if number == 4:
            operator = value.text()
        elif number == 5:
            attributes.append(value)
        elif number == 7:
            domain = value.text()
        elif number == 3:
            name = value.text()
    contents.operators[_operator(domain, operator)] += 1
    for attribute in attributes:
        _attribute(attribute, contents)
    if operator == "EPContext":
        contents.compiled.append(CompiledPart(name, tuple(_locations(attributes))))


def _locations(attributes: list[Span]) -> Iterator[str]:
    """The files that an ``EPContext`` node names.

    They are in ``onnx_model_filename`` (of TensorRT engines without weights) and, unless
    ``embed_mode`` is set, as it is by default, in ``ep_cache_context``; see onnxruntime,
    docs/ContribOperators.md and the TensorRT provider's ``onnx_ctx_model_helper.cc``.
    """
    modes, contexts, models = [], [], []
    for attribute in attributes:
        name, number, text = "", 0, b""
        for found, _, value in attribute.fields():
            if isinstance(value, int):
                number = value if found == 3 else number
            elif found == 1:
                name = value.text()
            elif found == 4:
                text = value.raw()
        if name == "embed_mode":
            modes.append(number)
        elif name == "ep_cache_context":
            contexts.append(text)
        elif name == "onnx_model_filename":
            models.append(text)
    named = models if all(modes) else models + contexts
    for raw in named:
        if raw:
            yield raw.decode("utf-8", "replace")


def _attribute(span: Span, contents: Contents) -> None:
    known: dict[int, Span | None] = {}
    for number, _, value in span.fields():
        if not isinstance(value, Span):
            continue
        if number in {5, 6, 22}:
            known[number] = _once(known.get(number), value, "value of an attribute")
        if number in {5, 10}:
            _tensor(value, contents)
        elif number in {6, 11}:
            _graph(value, contents)
        elif number in {22, 23}:
            _sparse_tensor(value, contents)


def _sparse_tensor(span: Span, contents: Contents) -> str:
    """Reads a ``SparseTensorProto``; returns the name of its values."""
    known: dict[int, Span | None] = {}
    name = ""
    for number, _, value in span.fields():
        if number in {1, 2} and isinstance(value, Span):
            known[number] = _once(known.get(number), value, "part of a sparse tensor")
            found = _tensor(value, contents)
            name = found if number == 1 else name
    if _elements(span.ints(3), span) > DENSE_LIMIT:
        raise WireError(f"a sparse tensor has more than {DENSE_LIMIT} elements", span.start)
    return name


def _tensor(span: Span, contents: Contents) -> str:
    """Reads a ``TensorProto``; returns its name."""
    name, data_type, is_external = "", 0, False
    dims: list[int] = []
    entries = []
    for number, kind, value in span.fields():
        if isinstance(value, Span):
            if number == 8:
                name = value.text()
            elif number == 13:
                entries.append(_entry(value, strict=True))
            elif number == 1:
                dims.extend(value.varints())
        elif kind == VARINT:
            if number == 1:
                dims.append(value)
            elif number == 2:
                data_type = value & 0xFFFF_FFFF
            elif number == 14:
                # Enums are 32 bits, and unknown values leave the known one in force.
                is_external = is_external or value & 0xFFFF_FFFF == 1
    elements = _elements(dims, span)
    bits = _TYPES[data_type][2] if data_type in _TYPES else 0
    if entries or is_external:
        size = -(-elements * bits // 8) if bits else None
        contents.stored.append(StoredTensor(name, is_external, tuple(entries), size))
    # Four elements of two bits fit a byte, which is the densest type there is.
    if not is_external and elements > max(1, 4 * len(span)):
        raise WireError(
            f"tensor '{name[:200]}' declares {elements} elements and is {len(span)} bytes long",
            span.start,
        )
    return name


def _elements(dims: list[int], span: Span) -> int:
    negative = next((signed(size) for size in dims if signed(size) < 0), None)
    if negative is not None:
        raise WireError(f"a tensor has the dim {negative}", span.start)
    if 0 in dims:
        return 0
    count = 1
    for size in dims:
        count *= size
        if count >> 62:
            raise WireError("a tensor has more elements than 64 bits can count", span.start)
    return count


def _main_graph(span: Span, contents: Contents) -> None:
    input_spans, output_spans, initializers = _graph(span, contents)
    inputs = []
    for item in input_spans:
        spec = _value(item, "input", initializers, contents)
        # Before IR version 4 every initializer had to be an input as well and could not
        # be overridden (onnx, docs/IR.md): no input that a caller could give.
        if contents.ir_version >= 4 or not spec.has_default:
            inputs.append(spec)
    outputs = [_value(item, "output", set(), contents) for item in output_spans]
    try:
        contents.signature = Signature(tuple(inputs), tuple(outputs))
    except ValueError as error:
        raise WireError(str(error).rstrip(".")[:300], span.start) from None


def _value(span: Span, side: str, initializers: set[str], contents: Contents) -> TensorSpec:
    """The spec of a ``ValueInfoProto``."""
    name = ""
    type_: Span | None = None
    for number, _, value in span.fields():
        if isinstance(value, Span):
            if number == 1:
                name = value.text()
            elif number == 2:
                type_ = _once(type_, value, "type of a value")
    dtype: DType | None = None
    shape: tuple[Dim, ...] | None = None
    kind: str | None = "of no stated type"
    for number, _, value in type_.fields() if type_ is not None else ():
        if not isinstance(value, Span):
            continue
        if number == 1:
            label, dtype, shape = _tensor_type(value)
            kind = None if dtype is not None else f"of element type {label}"
        elif number in _VALUE_KINDS:
            dtype = shape = None
            kind = _VALUE_KINDS[number]
    if kind is not None:
        contents.notes.append(
            f"{side} '{name}' is {kind}, for which numpy has no array: its dtype stays open."
        )
    return TensorSpec(name, dtype, shape, native_name=name, has_default=name in initializers)


def _tensor_type(span: Span) -> tuple[str, DType | None, tuple[Dim, ...] | None]:
    code = 0
    shape: Span | None = None
    for number, _, value in span.fields():
        if number == 1 and isinstance(value, int):
            code = value & 0xFFFF_FFFF
        elif number == 2 and isinstance(value, Span):
            shape = _once(shape, value, "shape of a value")
    label, dtype, _ = _TYPES.get(code, (str(code), None, 0))
    return label, dtype, None if shape is None else tuple(_dim(one) for one in shape.spans(1))


def _dim(span: Span) -> Dim:
    found: Dim = None
    for number, _, value in span.fields():
        if number == 1 and isinstance(value, int):
            found = dim(signed(value))
        elif number == 2 and isinstance(value, Span):
            found = dim(value.text())
    return found
