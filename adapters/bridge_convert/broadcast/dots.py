"""Products of all pairs of rows of a stack, of which some are the same for all rows.

``MatMul(x, transposed x)``, flattened, then some columns by number: what factorisation
machines and DLRM do with embeddings. Pairs of two embeddings of one row are multiplied once,
and of a mixed pair only one of the two orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge_convert.broadcast.halves import Halves, Piece, joined
from bridge_convert.broadcast.rows import FREE, row_axis
from bridge_convert.broadcast.source import attribute, normal

if TYPE_CHECKING:
    from bridge_convert.broadcast.rewriting import Rewriting

__all__ = ["dots"]


def dots(work: Rewriting, node: Any) -> bool:
    """Rewrites the three nodes, if these are they.

    Args:
        work: The graph being rewritten.
        node: A MatMul whose inputs are both in two halves.
    """
    found = _pattern(work, node)
    if found is None:
        return False
    left, right = (work.values[name] for name in node.input)
    assert isinstance(left, Halves)
    assert isinstance(right, Halves)
    draft, name = work.draft, found.output
    ours = {column: place for place, column in enumerate(left.one_columns)}
    theirs = {column: place for place, column in enumerate(left.full_columns)}
    # Of each group: where its products go, and which they are in its flat matrix.
    both: dict[str, tuple[list[int], list[int]]] = {
        key: ([], []) for key in ("one", "mixed", "full")
    }
    for place, column in enumerate(found.columns):
        pair = divmod(column, found.width)
        if pair[0] in ours and pair[1] in ours:
            key, first, second, width = "one", ours[pair[0]], ours[pair[1]], len(ours)
        elif pair[0] in theirs and pair[1] in theirs:
            key, first, second, width = "full", theirs[pair[0]], theirs[pair[1]], len(theirs)
        else:  # a product of two vectors is the same both ways round
            one, other = pair if pair[0] in ours else pair[::-1]
            key, first, second, width = "mixed", theirs[other], ours[one], len(ours)
        both[key][0].append(place)
        both[key][1].append(first * width + second)
    zero = draft.constant(np.array([0]), "rows.axis")
    matrix = draft.add("Squeeze", [right.one, zero], f"{right.name}.matrix")
    pieces = []
    for key, first_name, second_name in (
        ("one", left.one, right.one),
        ("mixed", left.full, matrix),  # one large product, because the right side has no rows
        ("full", left.full, right.full),
    ):
        places, chosen = both[key]
        if not places:
            continue
        made = draft.add("MatMul", [first_name, second_name], f"{name}.{key}.square")
        made = draft.add("Flatten", [made], f"{name}.{key}.flat", axis=1)
        rows, columns = (
            len(ours if key == "one" else theirs),
            len(theirs if key == "full" else ours),
        )
        if sorted(chosen) == list(range(rows * columns)):  # all of them, in an order of their own
            places = [place for _, place in sorted(zip(chosen, places, strict=True))]
        else:
            numbers = draft.constant(np.array(chosen), f"{name}.{key}.numbers")
            made = draft.add("Gather", [made, numbers], f"{name}.{key}", axis=1)
        pieces.append(Piece(made, key == "one", tuple(places)))
    if not both["one"][0] or len(pieces) == 1:
        return False
    work.once += 1
    for passed in found.passed:
        work.made(passed, left)  # nobody else reads them
    work.made(name, joined(draft, pieces, name, 1, 0, 2))
    return True


@dataclass(frozen=True, slots=True)
class _Pattern:
    output: str
    columns: Sequence[int]
    width: int
    passed: tuple[str, str]


def _pattern(work: Rewriting, node: Any) -> _Pattern | None:
    source = work.source
    left, right = (work.values[name] for name in node.input)
    if not isinstance(left, Halves) or not isinstance(right, Halves):
        return None
    if (left.rank, left.axis, left.along) != (3, 0, 1) or (right.axis, right.along) != (0, 2):
        return None
    maker = source.maker(node.input[1])
    if maker is None or maker.op_type != "Transpose" or maker.input[0] != node.input[0]:
        return None
    width = len(left.one_columns) + len(left.full_columns)
    flat = _reader(work, node.output[0])
    if flat is None or flat.op_type not in ("Flatten", "Reshape"):
        return None
    if row_axis(source, flat, [0, *[FREE] * (len(flat.input) - 1)]) != 0:
        return None
    if source.rank(flat.output[0]) != 2:
        return None
    gather = _reader(work, flat.output[0])
    if gather is None or gather.op_type != "Gather" or gather.input[0] != flat.output[0]:
        return None
    columns = source.constant(gather.input[1])
    if columns is None or columns.ndim != 1 or normal(attribute(gather, "axis", 0), 2) != 1:
        return None
    chosen = [normal(int(column), width * width) for column in columns]
    return _Pattern(gather.output[0], chosen, width, (node.output[0], flat.output[0]))


def _reader(work: Rewriting, name: str) -> Any | None:
    """The one node that reads a value."""
    if work.source.uses[name] != 1 or name in work.source.outputs:
        return None
    (node,) = work.source.readers(name)
    return node if node.domain in ("", "ai.onnx") else None
