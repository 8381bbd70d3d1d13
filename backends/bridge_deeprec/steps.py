"""What is computed in front of the model, from its inputs to the ids of its lookups.

Each step is one of TensorFlow's operators, done by numpy with TensorFlow's meaning: whole
numbers stay as wide as they are, ``Unique`` keeps the order of first occurrence, division
rounds down. Steps are data (names, numbers), read from a file that may be hostile: only
the operators below exist.

Source of the meanings: the pages of ``tf.raw_ops``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.errors import InvalidModel, ShapeMismatch

__all__ = ["STEPS", "Step", "run"]

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator to do.

    Attributes:
        name: Its node's.
        op: Its operator, a key of ``STEPS``.
        inputs: Tensors, such as ``x:0``.
        attrs: What of its attributes matters, JSON types.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "op": self.op,
            "inputs": list(self.inputs),
            "attrs": dict(self.attrs),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """Reads the JSON form.

        Raises:
            InvalidModel: There is no such operator.
        """
        if data["op"] not in STEPS:
            raise InvalidModel(
                f"step '{data['name']}' is a {data['op']}, which is not done in front of models.",
                fix="Convert the model again.",
            )
        inputs = tuple(str(one) for one in data["inputs"])
        return cls(str(data["name"]), data["op"], inputs, dict(data["attrs"]))


def run(steps: Sequence[Step], tensors: Arrays) -> Arrays:
    """Does the steps.

    Args:
        steps: In order.
        tensors: The model's inputs by the names of their tensors; what is computed is added.

    Raises:
        ShapeMismatch: The inputs' sizes do not suit a step.
        InvalidModel: A step is not sound.
    """
    with np.errstate(over="ignore", divide="raise", invalid="raise"):
        for step in steps:
            try:
                given = [tensors[name] for name in step.inputs]
                results = STEPS[step.op](*given, **step.attrs)
            except MemoryError:
                raise
            except (KeyError, TypeError) as error:
                raise InvalidModel(
                    f"step '{step.name}' ({step.op}) cannot be done: {error!r}.",
                    fix="Convert the model again.",
                    step=step.name,
                ) from error
            except (ValueError, IndexError, ArithmeticError) as error:
                raise ShapeMismatch(
                    f"the inputs do not suit '{step.name}' ({step.op}): {error}.",
                    fix="Pass sizes that the model takes.",
                    step=step.name,
                ) from error
            for index, result in enumerate(results if isinstance(results, tuple) else (results,)):
                tensors[f"{step.name}:{index}"] = np.asarray(result)
    return tensors


def _constant(*, value: list[Any], dtype: str, shape: list[int]) -> _Array:
    return np.array(value, np.dtype(dtype)).reshape(shape)


def _cast(x: _Array, *, dtype: str) -> _Array:
    return x.astype(np.dtype(dtype))


def _concatenated(*given: _Array) -> _Array:
    return np.concatenate(given[:-1], axis=int(given[-1]))


def _unique(x: _Array, *, dtype: str) -> tuple[_Array, ...]:
    return _unique_counted(x, dtype=dtype)[:2]


def _unique_counted(x: _Array, *, dtype: str) -> tuple[_Array, ...]:
    if x.ndim != 1:
        raise ValueError(f"wanted one dim, got {x.ndim}")
    found, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    kind = np.dtype(dtype)
    return found[order], rank[inverse].astype(kind), counts[order].astype(kind)


def _squeeze(x: _Array, *, axes: list[int]) -> _Array:
    return np.squeeze(x, axis=tuple(axes) or None)


def _strided_slice(x: _Array, begin: _Array, end: _Array, strides: _Array, **masks: int) -> _Array:
    """Masks are those of the operator, one bit for each place."""
    index: list[Any] = []
    for at, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        bit = 1 << at
        if masks["ellipsis_mask"] & bit:
            index.append(Ellipsis)
        elif masks["new_axis_mask"] & bit:
            index.append(np.newaxis)
        elif masks["shrink_axis_mask"] & bit:
            index.append(int(first))
        else:
            stop = None if masks["end_mask"] & bit else int(last)
            index.append(slice(None if masks["begin_mask"] & bit else int(first), stop, int(step)))
    return np.asarray(x[tuple(index)])


def _gather(x: _Array, indices: _Array, axis: _Array | None = None) -> _Array:
    along = 0 if axis is None else int(axis)
    size = x.shape[along]
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise IndexError(f"an index is not within 0 to {size - 1}")
    return np.take(x, indices, axis=along)


def _gather_nd(x: _Array, indices: _Array) -> _Array:
    sizes = np.array(x.shape[: indices.shape[-1]])
    if indices.size and not ((indices >= 0) & (indices < sizes)).all():
        raise IndexError(f"an index is not within {tuple(sizes)}")
    return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])


def _fill_empty_rows(
    indices: _Array, values: _Array, shape: _Array, default: _Array
) -> tuple[_Array, ...]:
    rows, held = int(shape[0]), indices[:, 0]
    if held.size and not 0 <= held.min() <= held.max() < rows:
        raise IndexError(f"a row is not within 0 to {rows - 1}")
    is_empty = np.bincount(held, minlength=rows) == 0 if rows else np.zeros(0, bool)
    empty = np.flatnonzero(is_empty)
    extra = np.zeros((len(empty), indices.shape[1]), indices.dtype)
    extra[:, 0] = empty
    whole = np.concatenate([indices, extra])
    order = np.argsort(whole[:, 0], kind="stable")
    filled = np.concatenate([values, np.full(len(empty), default, values.dtype)])
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return whole[order], filled[order], is_empty, back[: len(indices)]


def _sparse_reshape(indices: _Array, shape: _Array, wanted: _Array) -> tuple[_Array, ...]:
    old, new = _sizes(shape), [int(size) for size in wanted]
    if -1 in new:
        known = math.prod(size for size in new if size != -1)
        new[new.index(-1)] = math.prod(old) // known if known else 0
    if math.prod(old) != math.prod(new) or min(new, default=0) < 0:
        raise ValueError(f"{old} cannot become {_sizes(wanted)}")
    flat = np.zeros(len(indices), np.int64)
    for axis, size in enumerate(old):
        flat = flat * size + indices[:, axis]
    found = np.empty((len(indices), len(new)), np.int64)
    for axis in reversed(range(len(new))):
        flat, found[:, axis] = np.divmod(flat, max(1, new[axis]))
    return found, np.array(new, np.int64)


def _slice(x: _Array, begin: _Array, size: _Array) -> _Array:
    places = []
    for start, count, whole in zip(_sizes(begin), _sizes(size), x.shape, strict=True):
        end = whole if count == -1 else start + count
        if not 0 <= start <= end <= whole:
            raise IndexError(f"{start} to {end} is not within 0 to {whole}")
        places.append(slice(start, end))
    return x[tuple(places)]


def _reduced(call: Callable[..., Any]) -> Callable[..., _Array]:
    def done(x: _Array, axes: _Array, *, keep_dims: bool) -> _Array:
        along = _sizes(axes.reshape(-1))
        return np.asarray(call(x, axis=along, keepdims=keep_dims), x.dtype)

    return done


def _where(condition: _Array) -> _Array:
    return np.argwhere(condition).astype(np.int64)


def _select(condition: _Array, x: _Array, y: _Array) -> _Array:
    if condition.ndim == 1 and x.ndim > 1:  # the older operator chooses whole rows
        condition = condition.reshape(-1, *[1] * (x.ndim - 1))
    return np.where(condition, x, y)


def _range(start: _Array, limit: _Array, delta: _Array) -> _Array:
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _same(x: _Array) -> _Array:
    return x


def _sizes(shape: _Array) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "AddV2": np.add,
    "BitwiseAnd": np.bitwise_and,
    "Equal": np.equal,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "LogicalAnd": np.logical_and,
    "LogicalNot": np.logical_not,
    "LogicalOr": np.logical_or,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "NotEqual": np.not_equal,
    "Sub": np.subtract,
}

STEPS: Mapping[str, Callable[..., Any]] = {
    **_ELEMENTWISE,
    "Cast": _cast,
    "ConcatV2": _concatenated,
    "Const": _constant,
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis.reshape(()))),
    "Fill": lambda shape, value: np.full(_sizes(shape), value),
    "Gather": _gather,
    "GatherNd": _gather_nd,
    "GatherV2": _gather,
    "Identity": _same,
    "Max": _reduced(np.max),
    "OnesLike": np.ones_like,
    "Pack": lambda *given, axis: np.stack(given, axis=axis),
    "Prod": _reduced(np.prod),
    "Range": _range,
    "Reshape": lambda x, shape: x.reshape(_sizes(shape)),
    "Select": _select,
    "SelectV2": np.where,
    "Shape": lambda x, dtype: np.array(x.shape, np.dtype(dtype)),
    "Size": lambda x, dtype: np.array(x.size, np.dtype(dtype)),
    "Slice": _slice,
    "SparseFillEmptyRows": _fill_empty_rows,
    "SparseReshape": _sparse_reshape,
    "Squeeze": _squeeze,
    "StopGradient": _same,
    "StridedSlice": _strided_slice,
    "Sum": _reduced(np.sum),
    "Tile": lambda x, counts: np.tile(x, _sizes(counts)),
    "Transpose": lambda x, order: np.transpose(x, _sizes(order)),
    "Unique": _unique,
    "UniqueWithCounts": _unique_counted,
    "Where": _where,
    "ZerosLike": np.zeros_like,
}
"""What may be done, by TensorFlow's name: tensors and attributes in, one or more tensors out."""
