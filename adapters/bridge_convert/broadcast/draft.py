"""The graph as it becomes: nodes in the order in which they run, and constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge_convert.broadcast.source import captured, names_in

__all__ = ["Draft"]


class Draft:
    """Nodes and constants, added one by one.

    Args:
        taken: Names that are in use.
        rows_of: The input whose first dim is the number of rows.
    """

    def __init__(self, taken: Iterable[str], rows_of: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._taken = set(taken)
        self._rows_of = rows_of
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._expanding: dict[tuple[int, int], str] = {}
        self._count = ""

    def fresh(self, hint: str) -> str:
        """A name that nobody has, made from another."""
        name, number = hint, 1
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    def add(self, op: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """A new node of one output; the output's name."""
        from onnx import helper

        name = self.fresh(hint)
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def copy(
        self, node: Any, inputs: Sequence[str], outputs: Sequence[str], inner: Mapping[str, str]
    ) -> None:
        """A node with other inputs and outputs, and other names read by graphs inside it."""
        made = type(node)()
        made.CopyFrom(node)
        made.input[:], made.output[:] = list(inputs), list(outputs)
        for graph in captured(made):
            _rename(graph, inner)
        self.nodes.append(made)

    def copy_fresh(self, node: Any, inputs: Sequence[str], hint: str) -> str:
        """A node of one output with other inputs, under a new name."""
        name = self.fresh(hint)
        self.copy(node, inputs, [name], {})
        self.nodes[-1].name = name
        return name

    def divide(self, name: str, sizes: str, hints: Sequence[str]) -> list[str]:
        """A value cut along its axis 1; the names of the pieces."""
        from onnx import helper

        pieces = [self.fresh(hint) for hint in hints]
        self.nodes.append(helper.make_node("Split", [name, sizes], pieces, axis=1))
        return pieces

    def constant(self, value: npt.NDArray[Any], hint: str) -> str:
        """A constant; equal ones are there once. The name."""
        from onnx import numpy_helper

        value = np.ascontiguousarray(value)
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= 64 else None
        if key is not None and key in self._known:
            return self._known[key]
        name = self.fresh(hint)
        self.constants.append(numpy_helper.from_array(value, name))
        if key is not None:
            self._known[key] = name
        return name

    def count(self) -> str:
        """The number of rows, int64 ``(1,)``."""
        if not self._count:
            shape = self.add("Shape", [self._rows_of], "rows.shape")
            first = self.constant(np.array([0]), "rows.axis")
            self._count = self.add("Gather", [shape, first], "rows.count", axis=0)
        return self._count

    def sizes(self, sizes: npt.NDArray[Any], rows: Any, dtype: type, hint: str) -> str:
        """A shape in which the size ``rows`` stands for the number of rows."""
        from onnx import helper

        flat = sizes.ravel().tolist()
        if rows not in flat:
            return self.constant(np.array(sizes.tolist(), dtype).reshape(sizes.shape), hint)
        parts: list[str] = []
        run: list[int] = []
        for size in [*flat, None]:
            if size != rows and size is not None:
                run.append(size)
                continue
            if run:
                parts.append(self.constant(np.array(run, np.int64), hint))
                run = []
            if size == rows:
                parts.append(self.count())
        name = parts[0] if len(parts) == 1 else self.add("Concat", parts, hint, axis=0)
        if sizes.ndim == 0:
            name = self.add("Reshape", [name, self.constant(np.array([], np.int64), hint)], hint)
        if dtype is not np.int64:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            name = self.add("Cast", [name], hint, to=kind)
        return name

    def expand(self, name: str, axis: int, rank: int) -> str:
        """A value of one row, repeated for all of them."""
        if (axis, rank) not in self._expanding:
            sizes = np.full(rank, 1, object)
            sizes[axis] = "rows"
            shape = self.sizes(sizes, "rows", np.int64, f"rows.shape_{axis}_{rank}")
            self._expanding[axis, rank] = shape
        return self.add("Expand", [name, self._expanding[axis, rank]], f"{name}.rows")

    def prune(self, outputs: Iterable[str], constants: Iterable[Any]) -> list[Any]:
        """Drops what leads to no output; the constants that are left, those given among them."""
        needed = set(outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.isdisjoint(node.output):
                continue
            kept.append(node)
            needed.update(names_in(node))
        self.nodes = kept[::-1]
        names: set[str] = set()
        for node in self.nodes:  # names of nodes need not be those of values
            if node.name in names:
                node.name = ""
            elif node.name:
                names.add(node.name)
        return [one for one in (*constants, *self.constants) if one.name in needed]


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(one, one) for one in node.input]
        for inner in captured(node):
            _rename(inner, names)
    for output in graph.output:  # a branch may pass on what is outside
        output.name = names.get(output.name, output.name)
