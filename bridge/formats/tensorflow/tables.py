"""Which inputs of a SavedModel's signatures are row numbers of a table, and of how many rows.

A table is a variable or a constant of which rows are gathered along axis 0. Values are
followed through operators and into functions that hand them on unchanged; what a function
returns is not followed, so that what is found is true of the graph, and not all is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bridge.formats.tensorflow.graph import MetaGraph, Node

__all__ = ["vocabularies"]

# Operators whose output holds values of these inputs, or bounds them: where the first of
# them that comes from an input of the model is legal, so is what is handed on.
_HANDS_ON: Mapping[str, tuple[int, ...]] = {
    "Cast": (0,),
    "ClipByValue": (0,),
    "EnsureShape": (0,),
    "ExpandDims": (0,),
    "Identity": (0,),
    "Maximum": (0, 1),
    "Minimum": (0, 1),
    "ReadVariableOp": (0,),
    "Reshape": (0,),
    "Select": (1, 2),
    "SelectV2": (1, 2),
    "Squeeze": (0,),
    "StopGradient": (0,),
    "StridedSlice": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unique": (0,),
    "Unpack": (0,),
}
# Position of the table and of the row numbers among the inputs; that of the axis, if any.
_GATHERS: Mapping[str, tuple[int, int, int | None]] = {
    "Gather": (0, 1, None),
    "GatherV2": (0, 1, 2),
    "ResourceGather": (0, 1, None),
}
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_MAX_NODES = 500_000  # looked at, over all signatures and calls; then the search ends
_MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known of a tensor: the inputs that its values come from, or a table's rows."""

    origin: str | None = None
    rows: int | None = None
    number: int | None = None


_UNKNOWN = _Value()


@dataclass(slots=True)
class _Search:
    graph: MetaGraph
    found: dict[str, int] = field(default_factory=dict)
    nodes: int = 0


def vocabularies(graph: MetaGraph) -> dict[str, int]:
    """Rows of the smallest table that each input of any signature indexes, by its name.

    Args:
        graph: The graph to serve.
    """
    search = _Search(graph)
    nodes = [same[0] for same in graph.nodes.values()]
    for signature in graph.signatures.values():
        fed = {
            (spec.native_name or "").partition(":")[0]: _Value(origin=spec.name)
            for spec in signature.inputs
        }
        _follow(search, nodes, fed, 0)
    return search.found


def _follow(search: _Search, nodes: Sequence[Node], fed: Mapping[str, _Value], depth: int) -> None:
    """Looks at every gather in a graph or a function's body, and into what it calls."""
    search.nodes += len(nodes)
    if search.nodes > _MAX_NODES or depth > _MAX_DEPTH:
        return
    by_name = {node.name: node for node in nodes}
    known: dict[str, _Value] = dict(fed)

    def value(tensor: str) -> _Value:
        # With a stack of its own: chains may be longer than Python's.
        wanted = _name(tensor)
        stack, opened = [wanted], set[str]()
        while stack:
            name = stack[-1]
            node = by_name.get(name)
            if name not in known and node is not None:
                places = _HANDS_ON.get(node.op, ())
                sources = [_name(node.inputs[at]) for at in places if at < len(node.inputs)]
                if name not in opened:
                    opened.add(name)
                    stack += [one for one in sources if one not in known and one not in opened]
                    continue
                found = (known[one] for one in sources if known.get(one, _UNKNOWN) != _UNKNOWN)
                known[name] = next(found, _UNKNOWN) if sources else _own(node)
            stack.pop()
        return known.get(wanted, _UNKNOWN)

    for node in nodes:
        if node.op in _GATHERS:
            table_at, ids_at, axis_at = _GATHERS[node.op]
            if len(node.inputs) <= max(table_at, ids_at, axis_at or 0):
                continue
            table, ids = value(node.inputs[table_at]), value(node.inputs[ids_at])
            is_rows = axis_at is None or value(node.inputs[axis_at]).number == 0
            if is_rows and table.rows and ids.origin is not None:
                least = search.found.get(ids.origin, table.rows)
                search.found[ids.origin] = min(table.rows, least)
        elif node.op in _CALLS:
            called = [name for attr in node.attrs.values() for name in attr.functions]
            arguments = [value(one) for one in node.inputs if not one.startswith("^")]
            if not any(one.origin is not None for one in arguments):
                continue  # no input goes in, so nothing can be found
            for function in search.graph.functions.get(called[0], [])[:1] if called else ():
                inner = dict(zip(function.args, arguments, strict=False))
                _follow(search, function.nodes, inner, depth + 1)


def _name(tensor: str) -> str:
    return tensor.partition(":")[0].removeprefix("^")


def _own(node: Node) -> _Value:
    """What a node says by itself."""
    if node.op in {"VarHandleOp", "VariableV2", "Variable"}:
        shape = node.attrs["shape"].shape if "shape" in node.attrs else None
    elif node.op == "Const" and "value" in node.attrs:
        shape = node.attrs["value"].shape
        if not shape:
            return _Value(number=node.attrs["value"].number)
    else:
        return _UNKNOWN
    first = shape[0] if shape else None
    return _Value(rows=first) if isinstance(first, int) else _UNKNOWN
