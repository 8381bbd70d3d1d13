"""A value in two halves of columns: of one row that stands for all, and of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from bridge_convert.broadcast.draft import Draft

__all__ = ["Halves", "Piece", "joined"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of such a value.

    Attributes:
        name: What it is called in the new graph.
        is_one: It has one row.
        columns: Where its columns are in the value.
    """

    name: str
    is_one: bool
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Halves:
    """The counterpart of a value whose columns are apart.

    Attributes:
        name: What the value is called in the old graph.
        one: Name of the half of one row, in the new graph.
        full: Name of the other half.
        one_columns: Where the columns of the first half are in the value, in its order.
        full_columns: The same for the other half.
        along: The axis of the columns.
        axis: The axis that counts rows.
        rank: Rank of the value and of both halves.
        pieces: What it is made of; empty where that is the two halves.
    """

    name: str
    one: str
    full: str
    one_columns: tuple[int, ...]
    full_columns: tuple[int, ...]
    along: int
    axis: int
    rank: int
    pieces: tuple[Piece, ...] = ()

    @property
    def parts(self) -> tuple[Piece, ...]:
        """The pieces, or the halves where there are no smaller ones."""
        return self.pieces or (
            Piece(self.one, is_one=True, columns=self.one_columns),
            Piece(self.full, is_one=False, columns=self.full_columns),
        )

    def whole(self, draft: Draft) -> str:
        """Puts the columns together again, with all rows; the name of the result."""
        order = [*self.one_columns, *self.full_columns]
        columns = [column for piece in self.pieces for column in piece.columns]
        if columns and columns == sorted(columns):
            parts: list[str] = []
            for is_one, run in groupby(self.pieces, lambda piece: piece.is_one):
                names = [piece.name for piece in run]
                if is_one:
                    names = [self._rows(draft, _side_by_side(draft, names, self))]
                parts += names
            return draft.add("Concat", parts, f"{self.name}.whole", axis=self.along)
        parts = [self._rows(draft, self.one), self.full]
        whole = draft.add("Concat", parts, f"{self.name}.whole", axis=self.along)
        if order == sorted(order):
            return whole
        places = draft.constant(np.argsort(order), f"{self.name}.order")
        return draft.add("Gather", [whole, places], f"{self.name}.sorted", axis=self.along)

    def _rows(self, draft: Draft, name: str) -> str:
        return draft.expand(name, self.axis, self.rank)


def joined(
    draft: Draft, pieces: Sequence[Piece], name: str, along: int, axis: int, rank: int
) -> Halves:
    """Two halves made of pieces: those of one row side by side, and the others."""
    found = {}
    for is_one in (True, False):
        chosen = [piece for piece in pieces if piece.is_one == is_one]
        hint = f"{name}.one" if is_one else f"{name}.full"
        names = [piece.name for piece in chosen]
        found[is_one] = (
            names[0] if len(names) == 1 else draft.add("Concat", names, hint, axis=along),
            tuple(column for piece in chosen for column in piece.columns),
        )
    return Halves(
        name,
        found[True][0],
        found[False][0],
        found[True][1],
        found[False][1],
        along,
        axis,
        rank,
        tuple(pieces),
    )


def _side_by_side(draft: Draft, names: Sequence[str], of: Halves) -> str:
    if len(names) == 1:
        return names[0]
    if names == [piece.name for piece in of.pieces if piece.is_one]:
        return of.one
    return draft.add("Concat", names, f"{of.name}.run", axis=of.along)
