"""The graph as it was, read only: shapes, constants, who reads what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ROWS", "Size", "Source", "attribute", "captured", "names_in", "normal"]

ROWS = "bridge.rows"
"""The dim that counts rows, wherever it appears in a shape or as a size."""

Size = int | str | None
"""A size: a number, ``ROWS``, or ``None`` where it is not known."""

_MOST_SIZES = 64  # elements of a tensor that may be a shape


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of an attribute of a node, or the default."""
    from onnx import helper

    for one in node.attribute:
        if one.name == name:
            return helper.get_attribute_value(one)
    return default


def captured(node: Any) -> list[Any]:
    """The graphs that a node holds: branches, bodies of loops."""
    from onnx import AttributeProto

    found = []
    for one in node.attribute:
        if one.type == AttributeProto.GRAPH:
            found.append(one.g)
        found += one.graphs
    return found


def names_in(node: Any) -> list[str]:
    """All values that a node reads, also those that graphs inside it do."""
    inner = [name for graph in captured(node) for one in graph.node for name in names_in(one)]
    inner += [one.name for graph in captured(node) for one in graph.output]
    return [name for name in (*node.input, *inner) if name]


def normal(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


class Source:
    """What the rewriting asks of the graph that it rewrites.

    Args:
        model: An ``onnx.ModelProto`` with value infos, whose rows are the dim ``ROWS``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.graph = model.graph
        self.opset: int = next(
            one.version for one in model.opset_import if one.domain in ("", "ai.onnx")
        )
        self.outputs = {one.name for one in self.graph.output}
        self._inputs = {one.name for one in self.graph.input}
        self._tensors = {one.name: one for one in self.graph.initializer}
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._sizes: dict[str, npt.NDArray[Any] | None] = {}
        self._makers = {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def uses(self) -> Counter[str]:
        """How many nodes read a value, once for each time; outputs of the graph count too."""
        return Counter(
            [name for node in self.graph.node for name in names_in(node)] + list(self.outputs)
        )

    @cached_property
    def names(self) -> set[str]:
        """All names of values that are taken."""
        found = {*self._inputs, *self._tensors, *self._makers}
        return found | {name for node in self.graph.node for name in names_in(node)}

    @cached_property
    def _infos(self) -> dict[str, Any]:
        graph = self.graph
        return {one.name: one.type for one in (*graph.value_info, *graph.output, *graph.input)}

    def maker(self, name: str) -> Any | None:
        """The node that makes a value; ``None`` for inputs and constants."""
        return self._makers.get(name)

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if name in names_in(node)]

    def is_constant(self, name: str) -> bool:
        """Whether a value is a constant that no caller can replace."""
        return name in self._tensors and name not in self._inputs

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The elements of a constant; ``None`` if it is none."""
        if not self.is_constant(name):
            return None
        if name not in self._arrays:
            from onnx import numpy_helper

            self._arrays[name] = numpy_helper.to_array(self._tensors[name])
        return self._arrays[name]

    def element(self, name: str) -> int:
        """ONNX's number of the element type; 0 if it is not known."""
        if name in self._tensors:
            return int(self._tensors[name].data_type)
        info = self._infos.get(name)
        return int(info.tensor_type.elem_type) if info is not None else 0

    def shape(self, name: str) -> tuple[Size, ...] | None:
        """The shape of a value; ``None`` if its rank is not known."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        info = self._infos.get(name)
        if info is None or not info.tensor_type.HasField("shape"):
            return None
        return tuple(_size(dim) for dim in info.tensor_type.shape.dim)

    def rank(self, name: str) -> int | None:
        """The rank of a value, if it is known."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def numbers(self, name: str) -> list[int] | None:
        """The elements of a constant of whole numbers, flat."""
        found = self.constant(name) if name else None
        return None if found is None else [int(one) for one in found.ravel()]

    def axes(self, node: Any, position: int = 1) -> list[int] | None:
        """Axes that a node names, as an attribute or an input; ``None`` if none are known."""
        stated = attribute(node, "axes")
        if stated is not None:
            return list(stated)
        return self.numbers(node.input[position]) if len(node.input) > position else None

    def sizes(self, name: str) -> npt.NDArray[Any] | None:
        """The elements of a value that is made of shapes: a 0-d or 1-d array of ``Size``."""
        if name not in self._sizes:
            self._sizes[name] = None  # a graph has no loops, but a file may pretend
            self._sizes[name] = self._found_sizes(name)
        return self._sizes[name]

    def _found_sizes(self, name: str) -> npt.NDArray[Any] | None:
        stated = self.constant(name)
        if stated is not None:
            is_small = stated.ndim <= 1 and stated.size <= _MOST_SIZES
            return stated.astype(object) if is_small and stated.dtype.kind == "i" else None
        node = self.maker(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Shape":
            shape = self.shape(node.input[0])
            if shape is None:
                return None
            start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
            return _array(shape[slice(start, end)])
        if node.op_type not in _SIZES:
            return None
        given = [self.sizes(one) for one in node.input if one]
        if not given or any(one is None for one in given):
            return None
        return _SIZES[node.op_type](self, node, given)


def _size(dim: Any) -> Size:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return ROWS if dim.dim_param == ROWS else None


def _array(items: Iterable[Size]) -> npt.NDArray[Any]:
    listed = list(items)
    found = np.empty(len(listed), object)
    found[:] = listed
    return found


def _gathered(source: Source, node: Any, given: Sequence[Any]) -> npt.NDArray[Any] | None:
    where = source.constant(node.input[1])
    if where is None or given[0].ndim != 1 or where.ndim > 1:
        return None
    if where.size and not -given[0].size <= where.min() <= where.max() < given[0].size:
        return None
    return np.array(given[0][where], object)


def _joined(_source: Source, _node: Any, given: Sequence[Any]) -> npt.NDArray[Any] | None:
    if any(one.ndim != 1 for one in given):
        return None
    return np.concatenate(given)


def _flat(source: Source, node: Any, given: Sequence[Any]) -> npt.NDArray[Any] | None:
    rank = source.rank(node.output[0])
    if rank not in (0, 1):
        return None
    if rank == 0:
        return np.array(given[0].ravel()[0], object) if given[0].size == 1 else None
    return _array(given[0].ravel())


def _same(_source: Source, node: Any, given: Sequence[Any]) -> npt.NDArray[Any] | None:
    from onnx import TensorProto

    whole = (TensorProto.INT64, TensorProto.INT32)
    if node.op_type == "Cast" and attribute(node, "to") not in whole:
        return None
    return given[0]  # type: ignore[no-any-return]


def _cut(source: Source, node: Any, given: Sequence[Any]) -> npt.NDArray[Any] | None:
    if len(node.input) < 3 or given[0].ndim != 1:  # older ones name their numbers as attributes
        return None
    numbers = [source.numbers(one) for one in node.input[1:]]
    if any(one is None or len(one) != 1 for one in numbers):
        return None
    start, end, *rest = [one[0] for one in numbers if one]
    step = rest[1] if len(rest) > 1 else 1  # between end and step are the axes: there is one
    return np.array(given[0][slice(start, end, step)], object)


def _product(_source: Source, _node: Any, given: Sequence[Any]) -> npt.NDArray[Any] | None:
    """Of numbers; a size that is no number survives only beside a 1."""
    left, right = np.broadcast_arrays(*given)

    def times(one: Size, other: Size) -> Size:
        if isinstance(one, int) and isinstance(other, int):
            return one * other
        return one if other == 1 else other if one == 1 else None

    found = [times(one, other) for one, other in zip(left.ravel(), right.ravel(), strict=True)]
    return _array(found).reshape(left.shape)


_SIZES = {
    "Gather": _gathered,
    "Concat": _joined,
    "Squeeze": _flat,
    "Unsqueeze": _flat,
    "Reshape": _flat,
    "Identity": _same,
    "Cast": _same,
    "Slice": _cut,
    "Mul": _product,
}
