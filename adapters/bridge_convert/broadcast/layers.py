"""Operators on a value in two halves: what can be done on each half is done there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge_convert.broadcast.dense import dense
from bridge_convert.broadcast.dots import dots
from bridge_convert.broadcast.halves import Halves
from bridge_convert.broadcast.rows import ELEMENTWISE, FREE, REDUCTIONS
from bridge_convert.broadcast.source import attribute, normal

if TYPE_CHECKING:
    from bridge_convert.broadcast.rewriting import Rewriting

__all__ = ["attribute", "spread"]

_TOGETHER = {
    "ReduceSum": "Add",
    "ReduceSumSquare": "Add",
    "ReduceL1": "Add",
    "ReduceMax": "Max",
    "ReduceMin": "Min",
    "ReduceProd": "Mul",
}
"""How two reduced halves become one."""


def spread(work: Rewriting, node: Any, axis: int) -> bool:
    """Does a node half by half, if it can be done so.

    Args:
        work: The graph being rewritten.
        node: A node that reads a value in two halves.
        axis: The axis of rows of its outputs.
    """
    op = node.op_type
    first = work.values[node.input[0]]
    if op in ELEMENTWISE:
        return _elementwise(work, node, axis)
    if not isinstance(first, Halves):
        return False
    if op == "MatMul" and isinstance(work.values[node.input[1]], Halves):
        return dots(work, node)
    if op in ("Gemm", "MatMul"):
        return dense(work, node, first, axis)
    if op in REDUCTIONS:
        return _reduce(work, node, first, axis)
    if op in ("Transpose", "Squeeze", "Unsqueeze"):
        along = _moved(work, node, first)
        return along is not None and _both(work, node, first, along, axis)
    return op == "Gather" and _gather(work, node, first, axis)


def _both(work: Rewriting, node: Any, given: Halves, along: int, axis: int) -> bool:
    """The same node on each half, whose columns then are along an axis that may be another."""
    rank = work.source.rank(node.output[0])
    if rank is None:
        return False
    name, rest = node.output[0], [_free(work, one) for one in node.input[1:]]
    one = work.draft.copy_fresh(node, [given.one, *rest], f"{name}.one")
    full = work.draft.copy_fresh(node, [given.full, *rest], f"{name}.full")
    work.once += 1
    work.made(
        name, Halves(name, one, full, given.one_columns, given.full_columns, along, axis, rank)
    )
    return True


def _free(work: Rewriting, name: str) -> str:
    return work.full(name) if name else ""


def _moved(work: Rewriting, node: Any, given: Halves) -> int | None:
    """Where the axis of the columns is after Transpose, Squeeze or Unsqueeze."""
    if node.op_type == "Transpose":
        order = list(attribute(node, "perm") or range(given.rank)[::-1])
        return order.index(given.along)
    over = work.source.axes(node)
    if over is None:
        return None
    if node.op_type == "Squeeze":
        gone = {normal(one, given.rank) for one in over}
        return None if given.along in gone else given.along - sum(one < given.along for one in gone)
    whole = given.rank + len(over)
    added = {normal(one, whole) for one in over}
    return [one for one in range(whole) if one not in added][given.along]


def _elementwise(work: Rewriting, node: Any, axis: int) -> bool:
    """Element by element: what else is read has one column, or as many constant ones."""
    source, draft = work.source, work.draft
    rank = source.rank(node.output[0])
    if rank is None or len(node.output) != 1:
        return False
    all_halves = [one for one in map(work.values.get, node.input) if isinstance(one, Halves)]
    lead = all_halves[0]
    along = lead.along + rank - lead.rank
    names: tuple[list[str], list[str]] = [], []
    for name in node.input:
        value = work.values[name]
        if isinstance(value, Halves):
            columns = (value.one_columns, value.full_columns, value.along + rank - value.rank)
            if columns != (lead.one_columns, lead.full_columns, along):
                return False
            names[0].append(value.one)
            names[1].append(value.full)
            continue
        shape = source.shape(name) if name else ()
        place = along - rank + len(shape or ())
        if shape is None or (value.axis != FREE and not value.is_one):
            return False
        if place < 0 or shape[place] == 1:
            names[0].append(value.name)
            names[1].append(value.name)
            continue
        stated = source.constant(name)
        if stated is None:
            return False
        for listed, chosen in zip(names, (lead.one_columns, lead.full_columns), strict=True):
            listed.append(draft.constant(stated.take(chosen, place), f"{name}.columns"))
    output = node.output[0]
    one, full = (
        draft.copy_fresh(node, listed, f"{output}.{half}")
        for listed, half in zip(names, ("one", "full"), strict=True)
    )
    work.once += 1
    work.made(
        output, Halves(output, one, full, lead.one_columns, lead.full_columns, along, axis, rank)
    )
    return True


def _reduce(work: Rewriting, node: Any, given: Halves, axis: int) -> bool:
    over = work.source.axes(node)
    if not over:
        return False
    normed = {normal(one, given.rank) for one in over}
    if given.along not in normed:
        along = given.along
        if not attribute(node, "keepdims", 1):
            along -= sum(one < along for one in normed)
        return _both(work, node, given, along, axis)
    if node.op_type not in _TOGETHER:
        return False
    draft, name = work.draft, node.output[0]
    rest = [_free(work, one) for one in node.input[1:]]
    one = draft.copy_fresh(node, [given.one, *rest], f"{name}.one")
    full = draft.copy_fresh(node, [given.full, *rest], f"{name}.full")
    work.once += 1
    work.settle(name, draft.add(_TOGETHER[node.op_type], [full, one], f"{name}.both"), axis)
    return True


def _gather(work: Rewriting, node: Any, given: Halves, axis: int) -> bool:
    """Some of the columns, by constant numbers."""
    chosen = work.source.constant(node.input[1])
    if normal(attribute(node, "axis", 0), given.rank) != given.along:
        return False
    if chosen is None or chosen.ndim != 1:
        return False
    count = len(given.one_columns) + len(given.full_columns)
    picked = [normal(int(column), count) for column in chosen]
    draft, name = work.draft, node.output[0]
    found: list[tuple[str, tuple[int, ...]]] = []
    for half, columns in (("one", given.one_columns), ("full", given.full_columns)):
        where = {column: place for place, column in enumerate(columns)}
        places = tuple(place for place, column in enumerate(picked) if column in where)
        if not places:
            return False  # then all of it is in the other half, which is rare
        local = np.array([where[picked[place]] for place in places], np.int64)
        inputs = [
            given.one if half == "one" else given.full,
            draft.constant(local, f"{name}.{half}"),
        ]
        found.append((draft.copy_fresh(node, inputs, f"{name}.{half}"), places))
    work.once += 1
    (one, one_columns), (full, full_columns) = found
    work.made(
        name, Halves(name, one, full, one_columns, full_columns, given.along, axis, given.rank)
    )
    return True
