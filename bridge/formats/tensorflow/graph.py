"""The graph of a SavedModel, read from ``saved_model.pb`` without TensorFlow.

Protobuf merges a message field that occurs twice and lets the last of two scalars win.
What is read here is the union of all occurrences wherever safety depends on it, so that
no parser can see a node, a function or a root that this one overlooks.

Source of the field numbers: ``saved_model.proto``, ``meta_graph.proto``, ``saver.proto``,
``graph.proto``, ``node_def.proto``, ``attr_value.proto``, ``function.proto``,
``op_def.proto``, ``types.proto`` and ``tensor_shape.proto`` of TensorFlow 2.21.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bridge.dtypes import DType
from bridge.errors import UnsupportedModel
from bridge.signature import Dim, Signature, TensorSpec, dim
from bridge.wire import Span, opened, signed

__all__ = [
    "DTYPES",
    "INIT_KEY",
    "Attr",
    "Function",
    "MetaGraph",
    "Node",
    "read_meta_graphs",
    "serving",
]

INIT_KEY = "__saved_model_init_op"
_TRAIN_KEY = "__saved_model_train_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
_TEXT_BYTES = 4096

DTYPES = {
    1: DType.FLOAT32,
    2: DType.FLOAT64,
    3: DType.INT32,
    4: DType.UINT8,
    5: DType.INT16,
    6: DType.INT8,
    7: DType.STRING,
    8: DType.COMPLEX64,
    9: DType.INT64,
    10: DType.BOOL,
    14: DType.BFLOAT16,
    17: DType.UINT16,
    18: DType.COMPLEX128,
    19: DType.FLOAT16,
    22: DType.UINT32,
    23: DType.UINT64,
    24: DType.FLOAT8_E5M2,
    25: DType.FLOAT8_E4M3FN,
    26: DType.FLOAT8_E4M3FNUZ,
    28: DType.FLOAT8_E5M2FNUZ,
}
"""TensorFlow's numbers of element types that have a counterpart here.

Source: tensorflow/core/framework/types.proto.
"""


@dataclass(frozen=True, slots=True)
class Attr:
    """What of a node's attribute matters here.

    Attributes:
        texts: Its short strings.
        functions: Functions that it names, at any depth.
        is_parameter: Its value comes from the caller of the function it stands in.
        shape: The shape that it is, or that of the tensor that it is.
        number: The one element of an integer tensor, where it is written in the usual ways.
    """

    texts: tuple[str, ...]
    functions: tuple[str, ...]
    is_parameter: bool
    shape: tuple[Dim, ...] | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph or of a function's body."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Attr]


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the library.

    Attributes:
        args: Names of its arguments, in order.
        nodes: Its body.
        texts: Strings among its attributes, which may name other functions.
        interface: What it implements; functions of one interface stand in for each other.
    """

    args: tuple[str, ...]
    nodes: tuple[Node, ...]
    texts: tuple[str, ...]
    interface: tuple[str, ...]


@dataclass(slots=True)
class MetaGraph:
    """One graph of a SavedModel with what belongs to it.

    Attributes:
        tags: The words that select it.
        version: Version of the TensorFlow that wrote it.
        nodes: All nodes by name; a sound graph has one of each.
        functions: The function library by name; a sound one has one of each.
        signatures: Signatures by key; ``native_name`` is the tensor's name, ``None`` for
            sparse and composite tensors; dtype ``None`` where it has no counterpart here.
        init: Names of the nodes run after the variables are restored.
        restore: Names of the nodes that restore the variables.
        filename: Tensor through which the saver gets the checkpoint's path, without ``:0``.
        assets: File name by the tensor, without ``:0``, that gets its path.
    """

    tags: frozenset[str] = frozenset()
    version: str = ""
    nodes: dict[str, list[Node]] = field(default_factory=dict)
    functions: dict[str, list[Function]] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    init: list[str] = field(default_factory=list)
    restore: list[str] = field(default_factory=list)
    filename: str = ""
    assets: dict[str, str] = field(default_factory=dict)

    def every_node(self) -> Iterator[Node]:
        """The nodes of the graph and of all functions."""
        for same in self.nodes.values():
            yield from same
        for functions in self.functions.values():
            for function in functions:
                yield from function.nodes


def read_meta_graphs(path: Path) -> list[MetaGraph]:
    """All graphs in a ``saved_model.pb``.

    Raises:
        WireError: The bytes are truncated or corrupt.
        OSError: The file cannot be read.
    """
    with opened(path) as message:
        return [_meta_graph(span) for span in message.spans(2)]


def serving(graphs: list[MetaGraph], model: str) -> MetaGraph:
    """The graph to serve: that with the one tag ``serve``, else the only one.

    Raises:
        UnsupportedModel: There is none, or no telling which.
    """
    for graph in graphs:
        if graph.tags == {"serve"}:
            return graph
    if len(graphs) == 1:
        return graphs[0]
    found = "; ".join(", ".join(sorted(graph.tags)) or "no tag" for graph in graphs) or "none"
    raise UnsupportedModel(
        f"SavedModel {model} has {len(graphs)} graphs and none with the one tag 'serve'; "
        f"their tags are: {found}.",
        fix="Save the model again with the tag 'serve'.",
        tags=[sorted(graph.tags) for graph in graphs],
    )


def _meta_graph(message: Span) -> MetaGraph:
    graph = MetaGraph()
    tags: list[str] = []
    older: dict[str, str] = {}
    for number, _, value in message.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            tags += value.texts(4)
            graph.version = _last(value, 5) or graph.version
        elif number == 2:
            _read_graph(value, graph)
        elif number == 3:
            graph.filename = _node_name(_last(value, 1)) or graph.filename
            graph.restore += [_node_name(text) for text in value.texts(3)]
        elif number == 4:
            key, content = _entry(value)
            if key in _INIT_COLLECTIONS:
                for span in content:
                    graph.init += [_node_name(t) for one in span.spans(1) for t in one.texts(1)]
            elif key == "saved_model_assets":
                packed = [one for span in content for one in span.spans(5)]
                for one in (one for span in packed for one in span.spans(1)):
                    older.update(_asset(message) for message in one.spans(2))
        elif number == 5:
            _read_signature(value, graph)
        elif number == 6:
            graph.assets.update([_asset(value)])
    graph.assets = graph.assets or older  # TensorFlow looks at the older place only then
    graph.tags = frozenset(tags)
    return graph


def _asset(message: Span) -> tuple[str, str]:
    """The node that gets an asset's path, and the asset's file name."""
    return _node_name("".join(_last(span, 1) for span in message.spans(1))), _last(message, 2)


def _read_graph(message: Span, graph: MetaGraph) -> None:
    for number, _, value in message.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            node = _node(value)
            graph.nodes.setdefault(node.name, []).append(node)
        elif number == 2:
            for span in value.spans(1):
                name, function = _function(span)
                graph.functions.setdefault(name, []).append(function)


def _node(message: Span) -> Node:
    name = op = ""
    inputs: list[str] = []
    attrs: dict[str, Attr] = {}
    for number, _, value in message.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            name = value.text()
        elif number == 2:
            op = value.text()
        elif number == 3:
            inputs.append(value.text())
        elif number == 5:
            key, content = _entry(value)
            attrs[key] = _attr(content)
    return Node(name, op, tuple(inputs), attrs)


def _attr(values: list[Span]) -> Attr:
    texts: list[str] = []
    functions: list[str] = []
    is_parameter = False
    shape: tuple[Dim, ...] | None = None
    element: int | None = None
    pending = list(values)
    while pending:
        for number, _, value in pending.pop().fields():
            if not isinstance(value, Span):
                continue
            if number == 2 and len(value) <= _TEXT_BYTES:
                texts.append(value.text())
            elif number == 9:
                is_parameter = True
            elif number == 7:
                shape = _shape(value)
            elif number == 8:
                shape, element = _constant(value)
            elif number == 10:
                pending += _name_attr_list(value, functions)
            elif number == 1:
                texts += [span.text() for span in value.spans(2) if len(span) <= _TEXT_BYTES]
                for span in value.spans(9):
                    pending += _name_attr_list(span, functions)
    return Attr(tuple(texts), tuple(functions), is_parameter, shape, element)


def _constant(message: Span) -> tuple[tuple[Dim, ...] | None, int | None]:
    """Shape of a ``TensorProto``, and its element if it is one integer."""
    shape: tuple[Dim, ...] | None = None
    dtype: DType | None = None
    content = b""
    numbers: list[int] = []
    for number, _, value in message.fields():
        if isinstance(value, int):
            dtype = DTYPES.get(value) if number == 1 else dtype
            numbers += [value] if number in (7, 10) else []
        elif number == 2:
            shape = _shape(value)
        elif number == 4 and len(value) <= 8:
            content = value.raw()
        elif number in (7, 10) and len(value) <= 10:
            numbers += value.varints()
    if dtype not in (DType.INT32, DType.INT64) or shape is None or shape.count(1) < len(shape):
        return shape, None
    if content:
        return shape, int.from_bytes(content, "little", signed=True)
    return shape, signed(numbers[0]) if numbers else None


def _name_attr_list(message: Span, functions: list[str]) -> list[Span]:
    """Notes the function's name; gives the attribute values that it is called with."""
    functions += message.texts(1)
    return [span for entry in message.spans(2) for span in _entry(entry)[1]]


def _function(message: Span) -> tuple[str, Function]:
    name = ""
    args: list[str] = []
    nodes: list[Node] = []
    texts: list[str] = []
    interface: list[str] = []
    for number, _, value in message.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            name = _last(value, 1) or name
            args += [_last(span, 1) for span in value.spans(2)]
        elif number == 3:
            nodes.append(_node(value))
        elif number == 5:
            key, content = _entry(value)
            found = _attr(content).texts
            texts += found
            interface += found if key == "api_implements" else ()
    return name, Function(tuple(args), tuple(nodes), tuple(texts), tuple(interface))


def _read_signature(entry: Span, graph: MetaGraph) -> None:
    key, content = _entry(entry)
    if key in (INIT_KEY, _TRAIN_KEY):
        if key == INIT_KEY:
            specs = [spec for span in content for spec in _tensors(span, 2)]
            graph.init += [_node_name(spec.native_name or "") for spec in specs]
        return
    defaults = {_entry(one)[0] for span in content for one in span.spans(4)}
    inputs = [spec for span in content for spec in _tensors(span, 1, defaults)]
    outputs = [spec for span in content for spec in _tensors(span, 2)]
    graph.signatures[key] = Signature(_unique(inputs), _unique(outputs))


def _tensors(
    message: Span, number: int, defaults: set[str] | frozenset[str] = frozenset()
) -> Iterator[TensorSpec]:
    for entry in message.spans(number):
        name, content = _entry(entry)
        native_name: str | None = None
        dtype: DType | None = None
        shape: tuple[Dim, ...] | None = None
        for span in content:
            for field_number, _, value in span.fields():
                if field_number == 1 and isinstance(value, Span):
                    native_name = value.text()
                elif field_number == 2 and isinstance(value, int):
                    dtype = DTYPES.get(value)
                elif field_number == 3 and isinstance(value, Span):
                    shape = _shape(value)
        yield TensorSpec(name, dtype, shape, native_name, name in defaults)


def _shape(message: Span) -> tuple[Dim, ...] | None:
    dims: list[Dim] = []
    for number, _, value in message.fields():
        if number == 3 and value:
            return None
        if number == 2 and isinstance(value, Span):
            sizes = value.ints(1)
            dims.append(dim(signed(sizes[-1])) if sizes else 0)
    return tuple(dims)


def _unique(specs: list[TensorSpec]) -> tuple[TensorSpec, ...]:
    """By name, as TensorFlow orders a signature; of two of one name the last one counts."""
    named = {spec.name: spec for spec in specs}
    return tuple(named[name] for name in sorted(named))


def _entry(message: Span) -> tuple[str, list[Span]]:
    """Key and value of one entry of a map, whose value may come in pieces."""
    key, values = "", []
    for number, _, value in message.fields():
        if isinstance(value, Span):
            if number == 1:
                key = value.text()
            elif number == 2:
                values.append(value)
    return key, values


def _last(message: Span, number: int) -> str:
    texts = message.texts(number)
    return texts[-1] if texts else ""


def _node_name(tensor: str) -> str:
    return tensor.partition(":")[0].removeprefix("^")
