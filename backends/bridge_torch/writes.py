"""Which inputs, weights and buffers a graph writes to, of TorchScript or of torch.export.

Torch's schemas say what an operator writes to and what it returns a view of. Some say
less than the truth: those are named here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["script_writes", "written_placeholders"]

_NORMS = frozenset(
    ("aten::batch_norm", "aten::instance_norm", "aten::native_batch_norm",
     "aten::_batch_norm_impl_index", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")
)  # fmt: skip
"""Operators that write to arguments 3 and 4, the running statistics, if argument 5 is true."""

_VIEWS = frozenset(
    ("aten::alpha_dropout", "aten::atleast_1d", "aten::atleast_2d", "aten::atleast_3d",
     "aten::broadcast_tensors", "aten::cartesian_prod", "aten::conj_physical", "aten::dropout",
     "aten::einsum", "aten::feature_alpha_dropout", "aten::feature_dropout", "aten::meshgrid",
     "aten::sum_to_size", "aten::type_as", "aten::unsafe_chunk", "aten::unsafe_split",
     "aten::unsafe_split_with_sizes")
)  # fmt: skip
"""Operators that may return an argument, or a view of one, and do not declare it.

Source: all operators of torch 2.13's own database whose results share memory with an
argument; ``einsum`` and ``type_as`` by trial.
"""

Roots = frozenset[str]


def script_writes(graph: Any) -> tuple[bool, tuple[int, ...]]:
    """Whether an inlined TorchScript graph changes its module, and which arguments it writes to.

    By torch's own alias analysis, which may see a write where there is none, never the
    reverse. What only training does is left out: the module is in evaluation mode. The
    graph is changed; it is good for nothing else afterwards.
    """
    import torch

    first = next(iter(graph.nodes()), None)
    for node in graph.findAllNodes("prim::GetAttr"):
        if node.s("name") == "training" and first is not None:
            constant = graph.insertConstant(False)  # noqa: FBT003 - positional in C++
            constant.node().moveBefore(first)
            node.output().replaceAllUsesWith(constant)
    for kind in _VIEWS:
        for node in graph.findAllNodes(kind):
            _declare_view(node)
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_dce(graph)
    aliases = graph.alias_db()
    stateful = bool(graph.findAllNodes("prim::SetAttr")) or any(
        aliases.has_writers(node.output()) for node in graph.findAllNodes("prim::GetAttr")
    )
    arguments = list(graph.inputs())[1:]
    return stateful, tuple(
        index for index, item in enumerate(arguments) if aliases.has_writers(item)
    )


def _declare_view(node: Any) -> None:
    """Puts the argument in the place of the result, for the alias analysis.

    Lists of tensors need no help: the analysis takes a list's members for anything.
    """
    given = list(node.inputs())
    argument = given[1] if node.kind() == "aten::einsum" else given[0]
    if argument.node().kind() == "prim::ListConstruct":
        members = list(argument.node().inputs())
        if len(members) > 1:  # a product of several is no view
            return
        argument = members[0]
    if argument.type().kind() == node.output().type().kind() == "TensorType":
        node.output().replaceAllUsesWith(argument)


def written_placeholders(exported: Any) -> Roots:
    """Names of the graph's placeholders whose memory some operator may write to."""
    placeholders = [node.name for node in exported.graph.nodes if node.op == "placeholder"]
    found: set[str] = set()
    _follow(exported.graph_module, [frozenset((name,)) for name in placeholders], found)
    return frozenset(found)


def _follow(module: Any, given: Iterable[Roots], found: set[str]) -> None:
    """Adds the roots of all that a graph writes to; ``given`` are those of its placeholders."""
    roots: dict[Any, Roots] = {}
    remaining = iter(given)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            roots[node] = next(remaining)
        elif node.op == "call_function":
            schema = getattr(node.target, "_schema", None)
            if schema is not None:
                roots[node] = _follow_operator(node, schema, roots, found)
                continue
            # getitem of a result, arithmetic on sizes, or a function that calls other graphs.
            _follow_parts(module, node, roots, found)
            roots[node] = _union(roots, node.all_input_nodes)


def _follow_operator(node: Any, schema: Any, roots: dict[Any, Roots], found: set[str]) -> Roots:
    """Roots of what an operator returns."""
    shared: Roots = frozenset()
    passed = [
        *zip(schema.arguments, node.args, strict=False),
        *((item, node.kwargs[item.name]) for item in schema.arguments if item.name in node.kwargs),
    ]
    for item, value in passed:
        own = _union(roots, _nodes(value))
        if item.alias_info is not None and item.alias_info.is_write:
            found |= own
        if item.alias_info is not None or schema.name in _VIEWS:
            shared |= own
    if schema.name in _NORMS and node.args[5] is not False:
        found |= _union(roots, _nodes(node.args[3:5]))
    return shared


def _follow_parts(module: Any, node: Any, roots: dict[Any, Roots], found: set[str]) -> None:
    """Graphs that a node calls, such as what stands below ``with torch.no_grad()``."""
    from torch.fx import GraphModule

    parts = {}
    for index, value in enumerate(node.args):
        if getattr(value, "op", None) == "get_attr":
            part = getattr(module, value.target, None)
            if isinstance(part, GraphModule):
                parts[index] = part
    if not parts:
        return
    operands = [roots.get(item, frozenset()) for item in _nodes(node.args[max(parts) + 1 :])]
    for part in parts.values():
        count = sum(inner.op == "placeholder" for inner in part.graph.nodes)
        if count != len(operands):  # not known which is which: each may be any
            operands = [frozenset().union(*operands)] * count
        _follow(part, operands, found)


def _nodes(value: Any) -> list[Any]:
    from torch.fx.node import map_arg

    nodes: list[Any] = []
    map_arg(value, nodes.append)
    return nodes


def _union(roots: dict[Any, Roots], nodes: Iterable[Any]) -> Roots:
    return frozenset().union(*(roots.get(node, frozenset()) for node in nodes))
