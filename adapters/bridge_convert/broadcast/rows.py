"""Which axis of a value counts rows, after each operator that keeps rows apart.

A value has rows along an axis if each of them depends on that row of the inputs alone, and
there are as many as the inputs have. Operators that are not known to keep that make no
statement, and what reads their results gets no statement either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from bridge_convert.broadcast.source import ROWS, Size, Source, attribute, captured, normal

__all__ = ["ELEMENTWISE", "FREE", "REDUCTIONS", "SIZED", "Axis", "aligned", "new_sizes", "row_axis"]

FREE = -1
"""Instead of an axis: the value has no rows, and is the same however many there are."""
SIZED = -2
"""Instead of an axis: a shape, or a part of one, that holds the number of rows."""

Axis = int | None
"""An axis, ``FREE``, ``SIZED``, or ``None`` where nothing is known."""

_ELEMENTWISE_NAMES = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not
Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub
Sum Tan Tanh ThresholdedRelu Where Xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
"""Operators that work element by element, with broadcasting."""

_REDUCTIONS_NAMES = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare
"""
REDUCTIONS = frozenset(_REDUCTIONS_NAMES.split())

_RANDOM_NAMES = """
Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
"""
_RANDOM = frozenset(_RANDOM_NAMES.split())

_Rule = Callable[[Source, Any, Sequence[Axis]], Axis]


def row_axis(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    """The axis that counts rows in every output of a node.

    Args:
        source: The graph.
        node: The node.
        axes: That of each of its inputs; ``FREE`` for those that are left out.
    """
    if node.domain not in ("", "ai.onnx") or None in axes or captured(node):
        return None
    sized = [index for index, axis in enumerate(axes) if axis == SIZED]
    if sized and not (node.op_type in _TAKE_SIZES and sized == [_TAKE_SIZES[node.op_type]]):
        return None
    if node.op_type in _RANDOM or attribute(node, "training_mode", 0):
        return None
    if not sized and all(axis == FREE for axis in axes):
        return FREE
    if node.op_type in ELEMENTWISE:
        return aligned(source, node.input, axes)
    rule = _RULES.get(node.op_type)
    try:
        return None if rule is None else rule(source, node, axes)
    except (IndexError, TypeError):  # an axis or a shape is not known, or there is none
        return None


def aligned(source: Source, names: Sequence[str], axes: Sequence[Axis], drop: int = 0) -> Axis:
    """The axis of rows after broadcasting, if it is one axis of all that have rows.

    Args:
        source: The graph.
        names: What is broadcast together.
        axes: Their axes of rows.
        drop: So many last axes are no part of it.
    """
    ranks = {name: source.rank(name) for name in names if name}
    if None in ranks.values():
        return None
    rank = max(one for one in ranks.values() if one is not None)
    found = set()
    for name, axis in zip(names, axes, strict=True):
        if axis != FREE:
            found.add((axis or 0) + rank - (ranks[name] or 0))
    if len(found) != 1:
        return None
    (where,) = found
    if where >= rank - drop:
        return None
    for name, axis in zip(names, axes, strict=True):
        place = where - rank + (ranks.get(name) or 0)
        if name and axis == FREE and place >= 0 and (source.shape(name) or ())[place] != 1:
            return None
    return where


def new_sizes(source: Source, node: Any) -> npt.NDArray[Any] | None:
    """The shape that Reshape, Expand or ConstantOfShape is to give, if all of it is known."""
    found = source.sizes(node.input[_TAKE_SIZES[node.op_type]])
    return None if found is None or None in found.tolist() or found.ndim != 1 else found


def _kept(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    """An operator along one axis, which may be any but that of the rows."""
    rank, rows = source.rank(node.input[0]), axes[0]
    if rank is None or any(axis != FREE for axis in axes[1:]):
        return None
    default = _ALONG[node.op_type]
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and source.opset < 13:
        # Of all axes from this one on.
        return rows if (rows or 0) < normal(attribute(node, "axis", 1), rank) else None
    return None if normal(attribute(node, "axis", default), rank) == rows else rows


def _normalised(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, rows = source.rank(node.input[0]), axes[0]
    if rank is None or len(node.output) > 1 or any(axis != FREE for axis in axes[1:]):
        return None
    first = normal(attribute(node, "axis", -1), rank)
    if any((source.rank(one) or rank) > rank - first for one in node.input[1:] if one):
        return None
    return rows if rows is not None and rows < first else None


def _batch_normalised(_source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    if len(node.output) > 1 or any(axis != FREE for axis in axes[1:]):
        return None
    return 0 if axes[0] == 0 else None


def _convolved(_source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    if len(node.output) > 1 or any(axis != FREE for axis in axes[1:]):
        return None
    return 0 if axes[0] == 0 else None


def _reduced(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, rows = source.rank(node.input[0]), axes[0]
    if node.op_type in ("ArgMax", "ArgMin"):
        over: list[int] | None = [attribute(node, "axis", 0)]
    else:
        over = source.axes(node)
    if not over or rank is None or rows is None:
        return None
    normed = {normal(axis, rank) for axis in over}
    if rows in normed:
        return None
    if attribute(node, "keepdims", 1):
        return rows
    return rows - sum(axis < rows for axis in normed)


def _gemm(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    if attribute(node, "transA", 0) or axes[0] != 0 or axes[1] != FREE:
        return None
    if len(node.input) < 3 or not node.input[2]:
        return 0
    return aligned(source, [node.input[0], node.input[2]], [0, axes[2]])


def _multiplied(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    left, right = (source.rank(one) for one in node.input)
    if left is None or right is None:
        return None
    rank = max(left, right)
    if axes[1] == FREE and left >= 2 and axes[0] == left - 2:  # rows of the matrix itself
        return rank - 2 if right >= 2 else (left - 2 if right == 1 else None)
    if right == 1:
        return axes[0] if axes[1] == FREE and axes[0] is not None and axes[0] < left - 1 else None
    if axes[0] == FREE and axes[1] == right - 1 and left >= 2:
        return rank - 1
    if left < 2 or right < 2:
        return None
    return aligned(source, node.input, axes, drop=2)


def _joined(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank = source.rank(node.output[0]) or source.rank(node.input[0])
    if rank is None or len(set(axes)) != 1:
        return None
    return None if normal(attribute(node, "axis", 1), rank) == axes[0] else axes[0]


def _sliced(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, rows = source.rank(node.input[0]), axes[0]
    if rank is None or any(axis != FREE for axis in axes[1:]):
        return None
    if source.opset < 10 or len(node.input) < 4 or not node.input[3]:
        return None
    over = source.numbers(node.input[3])
    return None if over is None or rows in {normal(axis, rank) for axis in over} else rows


def _squeezed(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, over, rows = source.rank(node.input[0]), source.axes(node), axes[0]
    if rank is None or over is None or rows is None:
        return None
    normed = {normal(axis, rank) for axis in over}
    return None if rows in normed else rows - sum(axis < rows for axis in normed)


def _unsqueezed(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, over = source.rank(node.input[0]), source.axes(node)
    if rank is None or over is None or axes[0] is None:
        return None
    whole = rank + len(over)
    added = {normal(axis, whole) for axis in over}
    return [axis for axis in range(whole) if axis not in added][axes[0]]


def _transposed(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    order = attribute(node, "perm")
    if order is None:
        rank = source.rank(node.input[0])
        return None if rank is None or axes[0] is None else rank - 1 - axes[0]
    return list(order).index(axes[0])


def _flattened(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    shape = source.shape(node.input[0])
    if shape is None or axes[0] is None:
        return None
    first = normal(attribute(node, "axis", 1), len(shape))
    others = [size for axis, size in enumerate(shape[:first]) if axis != axes[0]]
    return 0 if axes[0] < first and all(size == 1 for size in others) else None


def _reshaped(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    shape, rows = source.shape(node.input[0]), axes[0]
    wanted = new_sizes(source, node)
    if shape is None or wanted is None or rows is None or rows < 0:
        return None
    if None in [size for axis, size in enumerate(shape) if axis != rows]:
        return None
    old: list[Size] = [ROWS if axis == rows else size for axis, size in enumerate(shape)]
    new: list[Size] = []
    for axis, size in enumerate(wanted.tolist()):
        is_copied = size == 0 and not attribute(node, "allowzero", 0)
        new.append(old[axis] if is_copied else size)
    if new.count(-1) == 1:
        rest = [size for size in new if size != -1]
        left = _count(old) // max(1, _count(rest)) if ROWS in rest or ROWS not in old else 1
        new[new.index(-1)] = left if ROWS in rest else ROWS
    if new.count(ROWS) != 1 or 0 in old:
        return None
    where = new.index(ROWS)
    same = _count(old[:rows]) == _count(new[:where])
    return where if same and _count(old[rows:]) == _count(new[where:]) else None


def _count(sizes: Sequence[Size]) -> int:
    return math.prod(size for size in sizes if isinstance(size, int))


def _expanded(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, wanted = source.rank(node.input[0]), new_sizes(source, node)
    if rank is None or wanted is None or axes[0] is None:
        return None
    listed = wanted.tolist()
    if axes[0] == FREE:  # then the shape has rows
        if listed.count(ROWS) != 1:
            return None
        where = int(listed.index(ROWS))
        place = where - len(listed) + rank
        if place >= 0 and (source.shape(node.input[0]) or ())[place] != 1:
            return None
        return max(where, place)
    where = axes[0] + max(0, len(listed) - rank)
    place = where - max(len(listed), rank) + len(listed)
    if ROWS in [size for axis, size in enumerate(listed) if axis != place]:
        return None
    return where if place < 0 or listed[place] in (ROWS, 1) else None


def _filled(source: Source, node: Any, _axes: Sequence[Axis]) -> Axis:
    wanted = new_sizes(source, node)
    if wanted is None or wanted.tolist().count(ROWS) != 1:
        return None
    return int(wanted.tolist().index(ROWS))


def _gathered(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    table, ids = (source.rank(one) for one in node.input)
    if table is None or ids is None or axes[0] is None or axes[1] is None:
        return None
    along = normal(attribute(node, "axis", 0), table)
    if axes[0] == FREE:
        return along + axes[1]
    if axes[1] != FREE or axes[0] == along:
        return None
    return axes[0] if axes[0] < along else axes[0] - 1 + ids


def _encoded(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank = source.rank(node.input[0])
    if rank is None or axes[0] is None or axes[1] != FREE or axes[2] != FREE:
        return None
    added = normal(attribute(node, "axis", -1), rank + 1)
    return axes[0] + (added <= axes[0])


def _tiled(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    repeats = source.numbers(node.input[1])
    return axes[0] if repeats is not None and repeats[axes[0]] == 1 else None  # type: ignore[index]


def _padded(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, rows = source.rank(node.input[0]), axes[0]
    if rank is None or rows is None or len(node.input) < 2 or any(one != FREE for one in axes[1:]):
        return None
    if len(node.input) > 3 and node.input[3]:  # axes in an order of their own
        return None
    pads = source.numbers(node.input[1])
    if pads is None or len(pads) != 2 * rank or attribute(node, "mode", b"constant") == b"wrap":
        return None
    return rows if pads[rows] == pads[rows + rank] == 0 else None


def _cumulated(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    rank, over = source.rank(node.input[0]), source.numbers(node.input[1])
    if rank is None or not over or normal(over[0], rank) == axes[0]:
        return None
    return axes[0]


def _quantized(source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    if any(axis != FREE for axis in axes[1:]):
        return None
    rank = source.rank(node.input[0])
    if source.rank(node.input[1]) == 0:
        return axes[0]
    is_blocked = attribute(node, "block_size", 0)
    if rank is None or is_blocked or normal(attribute(node, "axis", 1), rank) == axes[0]:
        return None
    return axes[0]


def _dropped(_source: Source, node: Any, axes: Sequence[Axis]) -> Axis:
    return axes[0] if len(node.input) < 3 and len(node.output) == 1 else None


_TAKE_SIZES = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""Operators that take a shape, and where."""

_ALONG = {
    "Softmax": -1,
    "LogSoftmax": -1,
    "Hardmax": -1,
    "LpNormalization": -1,
    "Split": 0,
    "TopK": -1,
}
"""Operators along one axis, and which it is by default."""

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ALONG, _kept),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(("ArgMax", "ArgMin"), _reduced),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool"), _convolved),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _convolved),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantized),
    "BatchNormalization": _batch_normalised,
    "Concat": _joined,
    "ConstantOfShape": _filled,
    "CumSum": _cumulated,
    "Dropout": _dropped,
    "Expand": _expanded,
    "Flatten": _flattened,
    "Gather": _gathered,
    "Gemm": _gemm,
    "LayerNormalization": _normalised,
    "MatMul": _multiplied,
    "OneHot": _encoded,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Slice": _sliced,
    "Squeeze": _squeezed,
    "Tile": _tiled,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
