"""Which nodes of a SavedModel can run, and which of those reach beyond the model.

What runs is what the signature's outputs need, the initialisation and the restoring of
the variables, with every function that those name, and all of its body. The rest, such
as the function that saves the variables again, never runs in a session.

Operators are judged by a list of those that are allowed. A list of those that are
forbidden would be shorter, but each new release of TensorFlow adds operators, and file
access hides in names such as ``RecordInput`` and ``ImmutableConst``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from bridge.formats.operators import allowed, refused
from bridge.formats.tensorflow.graph import Attr, MetaGraph, Node

__all__ = ["Reached", "forbidden", "keeps_state", "reach"]

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_PASS_ON = ("Identity", "PlaceholderWithDefault")
_RESTORES = ("Restore", "RestoreSlice", "RestoreV2")
_TABLE_FILES = ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2")
_TEXT_CONDITIONS = {  # operator -> attribute, its default, and the texts that are harmless
    "PrintV2": ("output_stream", "stderr", r"stderr|stdout|log\((info|warning|error)\)"),
    "FixedUnigramCandidateSampler": ("vocab_file", "", ""),
    "DecodeProtoV2": ("descriptor_source", "local://", r"local://|bytes://.*"),
    "EncodeProto": ("descriptor_source", "local://", r"local://|bytes://.*"),
}
_STATE = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?"
    r"|Resource(Apply|CountUpTo|Scatter|SparseApply|StridedSliceAssign).*"
    r"|(Apply|SparseApply|BoostedTrees(Center|Train|Update)).*|CountUpTo"
    r"|Scatter(Nd)?(Add|Div|Max|Min|Mul|Sub|Update)|StridedSliceAssign"
    r"|LookupTable(Import|Insert|Remove)(V2)?|(Ordered)?Map(Clear|Stage|Unstage|UnstageNoKey)"
    r"|Queue(De|En)queue.*|Stage(Clear)?|Unstage"
    r"|Random(Crop|Gamma|Poisson|PoissonV2|Shuffle|StandardNormal|Uniform|UniformInt)"
    r"|(Parameterized)?TruncatedNormal|Multinomial|NonDeterministicInts|Rng.*|Timestamp"
    r"|Stateful(Random|Standard|Truncated|Uniform).*|(\w+)CandidateSampler"
    r"|SampleDistortedBoundingBox(V2)?"
)


@dataclass(frozen=True, slots=True)
class Reached:
    """A node that can run, and the function it stands in; ``None`` for the graph itself."""

    node: Node
    function: str | None


def reach(graph: MetaGraph, roots: Iterable[str]) -> list[Reached]:
    """Every node that can run when the nodes named by ``roots`` are fetched."""
    implementing: dict[str, set[str]] = {}
    for name, functions in graph.functions.items():
        for function in functions:
            for text in function.interface:
                implementing.setdefault(text, set()).add(name)
    found: list[Reached] = []
    seen_nodes: set[str] = set()
    seen_functions: set[str] = set()
    pending_nodes = list(roots)
    pending_functions: list[str] = []
    while pending_nodes or pending_functions:
        if pending_functions:
            name = pending_functions.pop()
            if name in seen_functions:
                continue
            seen_functions.add(name)
            for function in graph.functions.get(name, ()):
                found += [Reached(node, name) for node in function.nodes]
                for node in function.nodes:
                    pending_functions += _named(graph, node)
                pending_functions += [text for text in function.texts if text in graph.functions]
                # The optimiser may swap functions of one interface (Keras's LSTM has one
                # for each kind of device).
                for text in function.interface:
                    pending_functions += implementing[text]
            continue
        name = pending_nodes.pop()
        if name in seen_nodes:
            continue
        seen_nodes.add(name)
        for node in graph.nodes.get(name, ()):
            found.append(Reached(node, None))
            pending_nodes += [text.partition(":")[0].removeprefix("^") for text in node.inputs]
            pending_functions += _named(graph, node)
    return found


def forbidden(
    graph: MetaGraph,
    reached: list[Reached],
    *,
    checkpoints: Set[str] = frozenset(),
    assets: Set[str] = frozenset(),
) -> Iterator[Reached]:
    """Those of the nodes whose operators may not run without trust.

    Args:
        graph: Where they stand.
        reached: All that runs together, as one step of a session.
        checkpoints: Nodes that hold the path of the model's own variables in that step.
        assets: Nodes that hold the path of one of the model's own assets in that step.
    """
    callers: dict[str, list[Reached]] = {}
    for item in reached:
        for name in _named(graph, item.node):
            callers.setdefault(name, []).append(item)
    harmless, known = allowed("tensorflow"), refused("tensorflow")
    for item in reached:
        op = item.node.op
        if op in harmless or (op in graph.functions and op not in known):
            continue
        if op in ("ShardedFilename", "ShardedFilespec"):
            continue  # these only make strings
        if op in _RESTORES and _comes_from(graph, callers, item, 0, checkpoints):
            continue
        if op in _TABLE_FILES and _comes_from(graph, callers, item, 1, assets):
            continue
        if op in _TEXT_CONDITIONS and _is_harmless_text(item.node):
            continue
        yield item


def _named(graph: MetaGraph, node: Node) -> list[str]:
    """Functions that a node calls or names in any way, be it as a mere string."""
    names = [node.op] if node.op in graph.functions else []
    for attr in node.attrs.values():
        names += attr.functions
        names += [text for text in attr.texts if text in graph.functions]
    return names


def _is_harmless_text(node: Node) -> bool:
    name, default, pattern = _TEXT_CONDITIONS[node.op]
    attr = node.attrs.get(name, Attr((default,), (), is_parameter=False))
    texts = attr.texts or (default,)
    return not attr.is_parameter and all(re.fullmatch(pattern, text) for text in texts)


def _comes_from(
    graph: MetaGraph,
    callers: dict[str, list[Reached]],
    item: Reached,
    position: int,
    sources: Set[str],
) -> bool:
    """Whether an input is, by whatever way, one of these nodes of the graph itself.

    Followed are nodes that pass their first input on, and the arguments of functions, to
    all of their callers. Anything else is "no".
    """
    pending = [(item.node, item.function, position)]
    seen: set[tuple[str | None, str, int]] = set()
    while pending:
        node, function, index = pending.pop()
        inputs = [text for text in node.inputs if not text.startswith("^")]
        if index >= len(inputs):
            return False
        parts = inputs[index].split(":")
        name, output = parts[0], parts[-1] if len(parts) > 1 else "0"
        if (function, node.name, index) in seen:
            continue
        seen.add((function, node.name, index))
        if function is None:
            if name in sources:
                if output != "0":
                    return False
                continue
            found = graph.nodes.get(name, [])
        else:
            bodies = graph.functions.get(function, [])
            if len(bodies) != 1:
                return False
            if name in bodies[0].args and len(parts) == 1:
                argument = bodies[0].args.index(name)
                for caller in callers.get(function, ()):
                    if caller.node.op not in (*_CALLS, function):
                        return False
                    pending.append((caller.node, caller.function, argument))
                if not callers.get(function):
                    return False
                continue
            found = [other for other in bodies[0].nodes if other.name == name]
        if len(found) != 1:
            return False
        if found[0].op == "ReadVariableOp" and function is None:
            assignments = _assignments(graph, found[0])
            if not assignments:
                return False
            pending += [(assignment, None, 1) for assignment in assignments]
        elif found[0].op in _PASS_ON:
            pending.append((found[0], function, 0))
        else:
            return False
    return True


def _assignments(graph: MetaGraph, read: Node) -> list[Node]:
    """The nodes that give a variable the value which is read; empty if that is not certain.

    TensorFlow 2 puts an asset's path into a variable in the very step that reads it.
    """
    name = next(iter(read.inputs), "").partition(":")[0]
    handles = graph.nodes.get(name, [])
    if len(handles) != 1 or handles[0].op != "VarHandleOp":
        return []
    others = [node for node in graph.every_node() if node.op == "VarHandleOp"]
    names = [_resource_name(node) for node in others]
    if None in names or names.count(_resource_name(handles[0])) != 1:
        return []
    found = []
    for nodes in graph.nodes.values():
        for node in nodes:
            if name not in {text.partition(":")[0] for text in node.inputs}:
                continue
            if node.op == "AssignVariableOp" and f"^{node.name}" in read.inputs:
                found.append(node)
            elif node.op not in ("ReadVariableOp", "VarIsInitializedOp"):
                return []
    return found


def _resource_name(handle: Node) -> str | None:
    """What a variable is called at run time; ``None`` if its function's caller decides."""
    attr = handle.attrs.get("shared_name")
    if attr is None:
        return handle.name
    return None if attr.is_parameter else ("".join(attr.texts) or handle.name)


def keeps_state(reached: Iterable[Reached]) -> bool:
    """Whether running these nodes changes what later calls compute."""
    return any(_STATE.fullmatch(item.node.op) for item in reached)
