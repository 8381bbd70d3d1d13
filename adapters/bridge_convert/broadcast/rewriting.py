"""A graph rewritten such that what depends on marked inputs alone is computed for one row.

Every value of the old graph has a counterpart in the new one: the value itself, or one row
of it where all rows are equal, or two halves of columns of which one has one row. Wherever
an operator needs the value itself, the row is repeated first, so that it computes what it
always did: what is not known to keep rows apart costs speed, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge_convert.broadcast import layers
from bridge_convert.broadcast.draft import Draft
from bridge_convert.broadcast.halves import Halves, Piece, joined
from bridge_convert.broadcast.rows import ELEMENTWISE, FREE, SIZED, Axis, new_sizes, row_axis
from bridge_convert.broadcast.source import ROWS, Source, captured, names_in, normal

__all__ = ["Rewriting", "Value"]


@dataclass(frozen=True, slots=True)
class Value:
    """The counterpart of a value.

    Attributes:
        name: What it is called in the new graph; empty for a shape that nobody needs yet.
        axis: Which axis counts its rows.
        is_one: It has one row, which stands for all.
    """

    name: str
    axis: Axis
    is_one: bool = False


class Rewriting:
    """One graph being rewritten; ``run`` does it.

    Args:
        source: The graph.
        marked: Inputs that will have one row.
        rows: Inputs whose first dim counts rows, the marked ones among them.

    Attributes:
        once: How many nodes are computed for one row.
        split: Names of the layers whose weights are split.
        expanded: Names of the values that are repeated.
        shared: For values in halves, what layers over them have computed together.
    """

    def __init__(self, source: Source, marked: Sequence[str], rows: Sequence[str]) -> None:
        self.source = source
        self.once = 0
        self.split: list[str] = []
        self.expanded: list[str] = []
        self.draft = Draft(source.names, next(one for one in rows if one not in marked))
        self.shared: dict[str, dict[str, str]] = {}
        self._full: dict[str, str] = {}
        self._done: set[str] = set()
        self.values: dict[str, Value | Halves] = {"": Value("", FREE)}
        sparse = (one.values for one in source.graph.sparse_initializer)
        for tensor in (*source.graph.initializer, *sparse):
            self.values[tensor.name] = Value(tensor.name, FREE)
        for item in source.graph.input:
            name = item.name
            self.values[name] = Value(name, 0 if name in rows else FREE, is_one=name in marked)

    def run(self) -> list[Any]:
        """Rewrites it; the constants that the new graph needs. Its nodes are in ``draft``."""
        for node in self.source.graph.node:
            if not self._done.issuperset(filter(None, node.output)):
                self._rewrite(node)
        for output in self.source.graph.output:
            found = self.full(output.name)
            if found != output.name:
                from onnx import helper

                self.draft.nodes.append(
                    helper.make_node("Identity", [found], [output.name], name=output.name)
                )
        return self.draft.prune(
            [one.name for one in self.source.graph.output], self.source.graph.initializer
        )

    def full(self, name: str) -> str:
        """The name of a value with all its rows."""
        value = self.values[name]
        if isinstance(value, Value) and not value.is_one and value.axis != SIZED:
            return value.name
        if name in self._full:
            return self._full[name]
        if isinstance(value, Halves):
            self.expanded.append(name)
            found = value.whole(self.draft)
        elif value.axis == SIZED:
            from onnx import helper

            dtype = helper.tensor_dtype_to_np_dtype(self.source.element(name) or 7)
            found = self.draft.sizes(self.source.sizes(name), ROWS, dtype.type, f"{name}.sizes")  # type: ignore[arg-type]
        else:
            rank, axis = self.source.rank(name), value.axis
            assert rank is not None
            assert axis is not None
            self.expanded.append(name)
            found = self.draft.expand(value.name, axis, rank)
        self._full[name] = found
        return found

    def made(self, output: str, value: Value | Halves) -> None:
        """Notes what became of an output of a node, which is not to be looked at again."""
        self.values[output] = value
        self._done.add(output)

    def settle(self, output: str, name: str, axis: int) -> None:
        """Notes that an output has all its rows, under a name of the new graph."""
        self.made(output, Value(name, axis))

    def one_name(self, name: str) -> str:
        """What one row of a value is called: as the value, unless users ask for that."""
        return self.draft.fresh(f"{name}.one") if name in self.source.outputs else name

    def _rewrite(self, node: Any) -> None:
        if self._is_shape(node):
            return
        values = [self.values[name] for name in node.input]
        axis = row_axis(self.source, node, [value.axis for value in values])
        halves = [value for value in values if isinstance(value, Halves)]
        if axis is not None and axis >= 0:
            if halves and layers.spread(self, node, axis):
                return
            plain = [value for value in values if isinstance(value, Value)]
            flags = {value.is_one for value in plain if (value.axis or 0) >= 0}
            if node.op_type == "Concat" and (halves or len(flags) == 2):
                if self._join(node, axis):
                    return
            elif not halves and False not in flags:
                self._copy_one(node, axis)
                return
            elif not halves and self._broadcasts(node):
                self._copy(node, [value.name for value in plain], axis)
                return
        self._copy(node, [self.full(name) for name in node.input], axis)

    def _is_shape(self, node: Any) -> bool:
        """Whether a node makes a shape that is known: it is written anew where it is needed."""
        if len(node.output) != 1 or node.output[0] in self.source.outputs:
            return False
        name = node.output[0]
        sizes = self.source.sizes(name)
        if sizes is None or None in sizes.ravel().tolist():
            return False
        self.made(name, Value("", SIZED))
        if ROWS not in sizes.ravel().tolist():
            self.made(name, Value(self.full(name), FREE))
        return True

    def _broadcasts(self, node: Any) -> bool:
        """Whether one row beside all rows is as good as all rows beside all rows."""
        if node.op_type in ELEMENTWISE:
            return True
        first, *others = (self.values[name] for name in node.input)
        if node.op_type == "MatMul":  # of stacks of matrices
            return all((one.axis or 0) >= 0 for one in (first, *others))
        is_one = isinstance(first, Value) and first.is_one
        return node.op_type == "Gemm" and not is_one  # what is added may have one row

    def _copy(self, node: Any, inputs: Sequence[str], axis: Axis) -> None:
        # What graphs inside it read may be what it reads itself as well, under a new name.
        read = names_in(node) if captured(node) else ()
        inner = {name: self.full(name) for name in read if name in self.values}
        self.draft.copy(node, inputs, node.output, inner)
        for name in filter(None, node.output):
            self.made(name, Value(name, axis))

    def _copy_one(self, node: Any, axis: int) -> None:
        inputs = []
        for name in node.input:
            value = self.values[name]
            if value.axis == SIZED:  # one row instead of all
                sizes = new_sizes(self.source, node)
                assert sizes is not None
                listed = [1 if size == ROWS else size for size in sizes.tolist()]
                inputs.append(self.draft.constant(np.array(listed, np.int64), f"{name}.one"))
            else:
                assert isinstance(value, Value)
                inputs.append(value.name)
        outputs = [self.one_name(name) if name else "" for name in node.output]
        self.draft.copy(node, inputs, outputs, {})
        self.once += 1
        for name, new in zip(node.output, outputs, strict=True):
            if name:
                self.made(name, Value(new, axis, is_one=True))

    def _join(self, node: Any, axis: int) -> bool:
        """Keeps values side by side in two halves, those of one row and the others."""
        rank = self.source.rank(node.output[0]) or self.source.rank(node.input[0])
        assert rank is not None
        along = normal(layers.attribute(node, "axis", 1), rank)
        pieces: list[Piece] = []
        start = 0
        for name in node.input:
            width = (self.source.shape(name) or (None,) * rank)[along]
            if not isinstance(width, int):
                return False
            columns = range(start, start + width)
            start += width
            value = self.values[name]
            if isinstance(value, Halves) and value.along == along:
                pieces += [
                    Piece(one.name, one.is_one, tuple(columns[place] for place in one.columns))
                    for one in value.parts
                ]
            elif isinstance(value, Halves):
                pieces.append(Piece(self.full(name), is_one=False, columns=tuple(columns)))
            else:
                pieces.append(Piece(value.name, value.is_one, tuple(columns)))
        if not any(one.is_one for one in pieces):
            return False
        self.made(node.output[0], joined(self.draft, pieces, node.output[0], along, axis, rank))
        return True
