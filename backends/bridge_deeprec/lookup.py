"""Where the lookups of a graph are, and what has to be computed to know their ids.

A lookup can be cut out where its ids follow from the inputs by operators that are also
done in front of the model (``steps``). The rest of the graph stays as it is, with the rows
as further inputs. Analysed is the graph as read from the bytes, so that ``bridge inspect``
needs no TensorFlow.

Partitioned variables are looked up part by part and put together again::

    ids -> DynamicPartition -> KvResourceGather of each part -> DynamicStitch

Such a diamond is one lookup by the ids in front of it. Source of the pattern:
``serving/processor/framework/graph_optimizer.cc`` of DeepRec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.errors import UnsupportedModel
from bridge.formats.tensorflow.graph import MetaGraph, Node
from bridge.signature import Signature
from bridge_deeprec.operators import GATHERS, HANDLE, foreign, is_own
from bridge_deeprec.steps import STEPS

__all__ = ["Cut", "Lookup", "analyse", "normal", "table_name"]

_STITCHES = frozenset({"DynamicStitch", "ParallelDynamicStitch"})
_PASS_ON = frozenset({"Identity", "StopGradient"})
_STATEFUL = re.compile(r"\w*HashTable\w*|LookupTable\w*|Iterator\w*|\w*Queue\w*")


@dataclass(frozen=True, slots=True)
class Lookup:
    """One lookup.

    Attributes:
        node: The node whose first output is the rows.
        table: The embedding variable, parts not told apart.
        handle: Node of a handle of it: its first part's.
        gather: A node that gathers: ``node`` itself, or that of the first part.
        ids: The tensor of ids, such as ``Unique:0``.
    """

    node: str
    table: str
    handle: str
    gather: str
    ids: str


@dataclass(frozen=True, slots=True)
class Cut:
    """How the lookups of one signature are cut out.

    Attributes:
        lookups: In order of their names.
        steps: Nodes to compute in front of the model, in order; inputs are not among them.
    """

    lookups: tuple[Lookup, ...]
    steps: tuple[str, ...]


def analyse(graph: MetaGraph, signature: Signature, model: str) -> Cut:
    """Finds the lookups that a signature's outputs need.

    Raises:
        UnsupportedModel: One cannot be cut out, or there is an operator that only DeepRec or
            nobody has; the sentence names node and operator.
    """
    search = _Search(graph, signature, model)
    lookups = search.lookups()
    return Cut(tuple(sorted(lookups, key=lambda one: one.node)), search.steps(lookups))


def table_name(variable: str) -> str:
    """Name of an embedding variable without that of its part."""
    return re.sub(r"/part_\d+$", "", variable)


def normal(tensor: str) -> str:
    """A tensor's name with the number of the output."""
    return tensor if ":" in tensor else f"{tensor}:0"


def _name(tensor: str) -> str:
    return tensor.partition(":")[0].removeprefix("^")


def _data(node: Node) -> list[str]:
    """Its inputs without those that only order it behind others."""
    return [one for one in node.inputs if not one.startswith("^")]


class _Search:
    """One walk from the outputs to the inputs."""

    def __init__(self, graph: MetaGraph, signature: Signature, model: str) -> None:
        self.graph = graph
        self.signature = signature
        self.model = model
        self.inputs = {_name(spec.native_name or "") for spec in signature.inputs}

    def lookups(self) -> list[Lookup]:
        """The lookups, each once."""
        found: dict[str, Lookup] = {}
        pending = [_name(spec.native_name or "") for spec in self.signature.outputs]
        seen = set(pending)
        while pending:
            node = self.node(pending.pop())
            if node.name in self.inputs:
                continue
            one = self.stitched(node)
            if one is None and node.op in GATHERS:
                one = self.gathered(node)
            if one is not None:
                found[node.name] = one
                continue
            self.require_stock(node)
            for tensor in _data(node):
                name = _name(tensor)
                if name not in seen:
                    seen.add(name)
                    pending.append(name)
        if not found:
            raise self.refusal(None, "its outputs need no lookup of an embedding variable")
        return list(found.values())

    def steps(self, lookups: list[Lookup]) -> tuple[str, ...]:
        """What leads from the inputs to the ids, in order."""
        order: list[str] = []
        for lookup in lookups:
            order += self.before(lookup, set(order))
        return tuple(order)

    def before(self, lookup: Lookup, done: set[str]) -> Iterator[str]:
        stack = [_name(lookup.ids)]
        opened: set[str] = set()
        while stack:
            name = stack[-1]
            if name in done or name in self.inputs:
                stack.pop()
                continue
            node = self.node(name)
            if name in opened:
                stack.pop()
                done.add(name)
                yield name
                continue
            if node.op not in STEPS:
                raise self.refusal(
                    node, f"the ids of '{lookup.node}' come from it and are not computed in front"
                )
            opened.add(name)
            stack += [_name(one) for one in _data(node)]

    def gathered(self, node: Node) -> Lookup:
        data = _data(node)
        if len(data) < 3:
            raise self.refusal(node, "it has fewer inputs than DeepRec writes")
        handle = self.passed(data[0])
        if handle.op != HANDLE:
            raise self.refusal(handle, f"'{node.name}' gathers from it, which is no variable")
        texts = handle.attrs["shared_name"].texts if "shared_name" in handle.attrs else ()
        variable = next((text for text in texts if text), handle.name)
        return Lookup(node.name, table_name(variable), handle.name, node.name, normal(data[1]))

    def stitched(self, node: Node) -> Lookup | None:
        """The lookup in all parts of a variable that a node puts together, if it does."""
        data = _data(node)
        count = len(data) // 2
        if node.op not in _STITCHES or not count or len(data) % 2:
            return None
        gathers = [self.passed(one) for one in data[count:]]
        if not all(one.op in GATHERS for one in gathers):
            return None
        parts = [self.gathered(one) for one in gathers]
        split = {_name(part.ids) for part in parts}
        places = {_name(one) for one in data[:count]}
        if len({part.table for part in parts}) > 1 or len(split) > 1 or len(places) > 1:
            return None
        by_ids, by_place = self.node(split.pop()), self.node(places.pop())
        is_diamond = (
            by_ids.op == by_place.op == "DynamicPartition"
            and by_ids.inputs[1] == by_place.inputs[1]
            and [part.ids for part in parts] == [f"{by_ids.name}:{at}" for at in range(count)]
            and [normal(one) for one in data[:count]]
            == [f"{by_place.name}:{at}" for at in range(count)]
            and self.counts(by_place.inputs[0], by_ids.inputs[0])
        )
        if not is_diamond:
            return None
        first = parts[0]
        return Lookup(node.name, first.table, first.handle, first.node, normal(by_ids.inputs[0]))

    def counts(self, places: str, ids: str) -> bool:
        """Whether a tensor is the numbers from 0 of the elements of another."""
        node = self.passed(places)
        if node.op != "Range":
            return False
        start, limit, step = (self.passed(one) for one in _data(node))
        sizes = limit.op == "Size" and normal(_data(limit)[0]) == normal(ids)
        return self.number(start) == 0 and self.number(step) == 1 and sizes

    def number(self, node: Node) -> int | None:
        return node.attrs["value"].number if node.op == "Const" and "value" in node.attrs else None

    def passed(self, tensor: str) -> Node:
        """The node that makes a tensor, what only hands it on left out."""
        node = self.node(_name(tensor))
        seen = {node.name}
        while node.op in _PASS_ON and _data(node):
            node = self.node(_name(_data(node)[0]))
            if node.name in seen:
                raise self.refusal(node, "it depends on itself")
            seen.add(node.name)
        return node

    def node(self, name: str) -> Node:
        same = self.graph.nodes.get(name, [])
        if len(same) != 1:
            raise UnsupportedModel(
                f"the graph of {self.model} has {len(same) or 'no'} nodes called '{name}'.",
                fix="The file may be damaged; export it again.",
                model=self.model,
                node=name,
            )
        return same[0]

    def require_stock(self, node: Node) -> None:
        if is_own(node.op):
            raise self.refusal(node, "it is no plain lookup, which is all that is cut out")
        if node.op in self.graph.functions or any(one.functions for one in node.attrs.values()):
            raise self.refusal(node, "it calls a function, into which no lookup is followed")
        if foreign([node.op]):
            raise self.refusal(node, "neither TensorFlow nor DeepRec has it, as far as is known")
        if _STATEFUL.fullmatch(node.op):
            raise self.refusal(node, "it needs a table or queue that is filled outside the graph")

    def refusal(self, node: Node | None, reason: str) -> UnsupportedModel:
        where = "" if node is None else f"node '{node.name}' (operator {node.op}): "
        detail = {} if node is None else {"node": node.name, "operator": node.op}
        return UnsupportedModel(
            f"the lookups of {self.model} cannot be cut out of its graph: {where}{reason}.",
            fix="Serve it with DeepRec's own library, or export it with plain lookups of ids "
            "that are inputs.",
            model=self.model,
            **detail,
        )
