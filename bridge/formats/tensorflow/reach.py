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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bridge.formats.tensorflow.graph import Attr, MetaGraph, Node
from bridge.formats.tensorflow.operators import allowed, refused

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


def forbidden(graph: MetaGraph, reached: list[Reached]) -> Iterator[Reached]:
    """Those of the nodes whose operators may not run without trust."""
    callers: dict[str, list[Reached]] = {}
    for item in reached:
        for name in _named(graph, item.node):
            callers.setdefault(name, []).append(item)
    harmless, known = allowed(), refused()
    for item in reached:
        op = item.node.op
        if op in harmless or (op in graph.functions and op not in known):
            continue
        if op in ("ShardedFilename", "ShardedFilespec"):
            continue  # these only make strings
        if op in _RESTORES and _comes_from(graph, callers, item, 0, {graph.filename}):
            continue
        if op in _TABLE_FILES and _comes_from(graph, callers, item, 1, set(graph.assets)):
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
    sources: set[str],
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
        if len(found) != 1 or found[0].op not in _PASS_ON:
            return False
        pending.append((found[0], function, 0))
    return True


def keeps_state(reached: Iterable[Reached]) -> bool:
    """Whether running these nodes changes what later calls compute."""
    return any(_STATE.fullmatch(item.node.op) for item in reached)
