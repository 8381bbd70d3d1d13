"""Which inputs of an ONNX graph are row numbers of a table, and of how many rows.

A table is a constant of the graph from which ``Gather`` takes rows along axis 0. What is
followed are operators that hand values on or bound them; others end the search,
so that what is found is true of the graph, and not all is found (tables in subgraphs and
in the model's own functions are not).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.wire import Span, signed

__all__ = ["read_vocabularies"]

# Operators whose output holds values of the first input, or bounds them: where those are
# legal, so is what is handed on. Changes of dtype are among them: an id is a whole number
# in any. ``Where`` hands on either of its last two.
_HANDS_ON = frozenset(
    {
        "Cast",
        "Clip",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
_SAME_ROWS = frozenset({"Cast", "DequantizeLinear", "Identity"})


@dataclass(frozen=True, slots=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axis: int
    value: Span | None


@dataclass(slots=True)
class _Graph:
    nodes: list[_Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # of every constant


def read_vocabularies(root: Span) -> dict[str, int]:
    """Rows of the smallest table that each input of the main graph indexes, by its name.

    Args:
        root: A ``ModelProto`` that ``read_model`` has read without an error.

    Raises:
        WireError: The message has too many fields.
    """
    graph = _Graph()
    for span in root.spans(7):
        _read(span, graph)
    # Nodes are in topological order (onnx, docs/IR.md): one pass sees sources before uses.
    source = {name: name for name in graph.inputs if name not in graph.rows}
    rows = graph.rows
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.value is not None and node.outputs:
            count = _rows(node.value)
            if count is not None:
                rows[node.outputs[0]] = count
            continue
        if not node.inputs:
            continue
        first = node.inputs[0]
        if node.operator == "Gather" and len(node.inputs) > 1 and first in rows:
            origin = source.get(node.inputs[1])
            if node.axis == 0 and origin is not None and rows[first] > 0:
                found[origin] = min(rows[first], found.get(origin, rows[first]))
        elif node.operator in _HANDS_ON:
            handed = node.inputs[1:] if node.operator == "Where" else node.inputs[:1]
            origin = next((source[one] for one in handed if one in source), None)
            if origin is not None:
                source.update(dict.fromkeys(filter(None, node.outputs), origin))
        if node.operator in _SAME_ROWS and first in rows:
            rows.update(dict.fromkeys(node.outputs[:1], rows[first]))
    return found


def _read(span: Span, graph: _Graph) -> None:
    for number, _, value in span.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            node = _node(value)
            if node is not None:
                graph.nodes.append(node)
        elif number == 5:
            name = value.texts(8)
            count = _rows(value)
            if name and count is not None:
                graph.rows[name[-1]] = count
        elif number == 11:
            graph.inputs += value.texts(1)[-1:]


def _node(span: Span) -> _Node | None:
    """The node, if it is of an operator that matters."""
    operator, domain = "", ""
    inputs: list[Span] = []
    outputs: list[Span] = []
    attributes: list[Span] = []
    for number, _, value in span.fields():
        if not isinstance(value, Span):
            continue
        if number == 1:
            inputs.append(value)
        elif number == 2:
            outputs.append(value)
        elif number == 4:
            operator = value.text()
        elif number == 5:
            attributes.append(value)
        elif number == 7:
            domain = value.text()
    if domain not in {"", "ai.onnx"} or operator not in _HANDS_ON | _SAME_ROWS | {"Constant"}:
        return None
    axis, tensor = 0, None
    if operator in {"Gather", "Constant"}:
        for attribute in attributes:
            name = ""
            for number, _, value in attribute.fields():
                if number == 1 and isinstance(value, Span):
                    name = value.text()
                elif number == 3 and isinstance(value, int) and name == "axis":
                    axis = signed(value)
                elif number == 5 and isinstance(value, Span) and operator == "Constant":
                    tensor = value
    return _Node(
        operator,
        tuple(one.text() for one in inputs),
        tuple(one.text() for one in outputs),
        axis,
        tensor,
    )


def _rows(tensor: Span) -> int | None:
    """First dim of a ``TensorProto``; ``None`` for scalars."""
    dims = tensor.ints(1)
    return signed(dims[0]) if dims else None
