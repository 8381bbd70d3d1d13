"""One table of embedding rows: what an id's row is, and the rows of many ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from bridge.errors import DTypeMismatch, InvalidModel, ShapeMismatch
from bridge_deeprec.index import IdIndex, Int64s

__all__ = ["Floats", "Table", "default_rows"]

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class _Changes:
    """Rows that are new, or newer than those of the table, and in front of them.

    Attributes:
        index: From their ids to positions in ``values``.
        values: Of shape [rows, dim].
        added: How many of them are of ids that the table does not have.
        is_behind: For each position in the table whether there is a newer row, and behind the
            last, where -1 points to, whether there are new ids: a second look-up for every id
            would halve the rate, and a byte per row is cheap.
    """

    index: IdIndex
    values: Floats
    added: int
    is_behind: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows by id, as of one version: nothing of it ever changes.

    Attributes:
        name: Of the EmbeddingVariable.
        key_dtype: Of the ids in the checkpoint; int32 or int64.
        index: From ids to positions in ``values``.
        values: Of shape [ids + defaults, dim], float32: a row for each id, then the default
            rows; an id that has no row gets the one at id modulo their number.
        changes: Rows of later versions, if there are any.
    """

    name: str
    key_dtype: np.dtype[Any]
    index: IdIndex
    values: Floats
    changes: _Changes | None = None

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return int(self.values.shape[1])

    def __len__(self) -> int:
        """Ids that have a row."""
        return len(self.index) + (self.changes.added if self.changes else 0)

    @property
    def changed(self) -> int:
        """Rows that stand in front of the table, and not in it."""
        return len(self.changes.index) if self.changes else 0

    @property
    def defaults(self) -> Floats:
        """The default rows, of shape [at least 1, dim]."""
        return self.values[len(self.index) :]

    def lookup(self, ids: np.ndarray[Any, Any]) -> Int64s:
        """Row numbers of ids, good for ``gather_rows`` of this very table.

        Args:
            ids: Of any shape, int32 or int64; they may repeat.

        Returns:
            Of the same shape, int64. An id without a row gets the number of a default row.

        Raises:
            DTypeMismatch: They are of another type.
        """
        if ids.dtype != np.int64:
            if ids.dtype != np.int32:
                raise DTypeMismatch(
                    f"ids of '{self.name}' should be int32 or int64 and are {ids.dtype}.",
                    fix="Convert them with `ids.astype(np.int64)`.",
                    table=self.name,
                )
            ids = ids.astype(np.int64)
        flat = ids.reshape(-1)
        rows = self.index.positions(flat)
        if self.changes is not None:
            behind = np.flatnonzero(self.changes.is_behind[rows])
            newer = self.changes.index.positions(flat[behind])
            rows[behind] = np.where(newer >= 0, newer + len(self.values), -1)
        absent = np.flatnonzero(rows < 0)
        if absent.size:
            count = len(self.values) - len(self.index)
            rows[absent] = len(self.index) + flat[absent] % count
        return rows.reshape(ids.shape)

    def gather(self, ids: np.ndarray[Any, Any], out: Floats | None = None) -> Floats:
        """The rows of ids.

        Args:
            ids: Of any shape, int32 or int64; they may repeat.
            out: Where to write them: C-contiguous, float32, of shape [*ids.shape, dim].

        Returns:
            ``out``, or a new array of that shape.

        Raises:
            DTypeMismatch: The ids are neither int32 nor int64, or ``out`` is not float32.
            ShapeMismatch: ``out`` is of another shape, or not contiguous.
        """
        return self.gather_rows(self.lookup(ids), out)

    def gather_rows(self, rows: Int64s, out: Floats | None = None) -> Floats:
        """The rows of the numbers that ``lookup`` gave; see ``gather``."""
        shape = (*rows.shape, self.dim)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.dtype != np.float32:
            raise DTypeMismatch(
                f"the array for rows of '{self.name}' should be float32 and is {out.dtype}.",
                fix="Allocate it as float32.",
                table=self.name,
            )
        elif out.shape != shape or not out.flags.c_contiguous:
            raise ShapeMismatch(
                f"the array for rows of '{self.name}' should be contiguous and of the shape "
                f"{list(shape)}, and is of the shape {list(out.shape)}.",
                fix="Allocate it with np.empty.",
                table=self.name,
            )
        flat, target = rows.reshape(-1), out.reshape(-1, self.dim)
        # "clip" as numpy would else go through a buffer; rows in front follow.
        self.values.take(flat, axis=0, out=target, mode="clip")
        if self.changes is not None:
            newer = np.flatnonzero(flat >= len(self.values))
            target[newer] = self.changes.values[flat[newer] - len(self.values)]
        return out

    def changed_by(self, keys: Int64s, values: Floats, name: str, model: str) -> Self:
        """This table with other or more rows; itself it stays as it is.

        Args:
            keys: Ids, each once, of shape [n].
            values: Their rows, of shape [n, dim].
            name: The tensor that the ids come from, for errors.
            model: The checkpoint that this is in, for errors.

        Raises:
            InvalidModel: An id is there twice.
        """
        if not len(keys):
            return self
        index = IdIndex(keys, name, model)
        in_table = self.index.positions(keys)
        if self.changes is None:
            is_behind = np.zeros(len(self.index) + 1, np.bool_)
        else:
            is_behind = self.changes.is_behind.copy()
        is_behind[in_table] = True  # also the last, for ids that the table does not have
        added = int(np.count_nonzero(in_table < 0))
        if self.changes is not None:
            earlier = self.changes
            at = earlier.index.positions(keys)
            fresh = at < 0
            if fresh.any():
                index = IdIndex(np.concatenate([earlier.index.keys, keys[fresh]]), name, model)
            else:
                index = earlier.index
            merged = np.concatenate([earlier.values, values[fresh]])
            merged[at[~fresh]] = values[~fresh]
            values = merged
            added = earlier.added + int(np.count_nonzero(fresh & (in_table < 0)))
        return replace(self, changes=_Changes(index, values, added, is_behind))

    def compacted(self) -> Self:
        """The same rows with none in front; needs as much memory again while it is made."""
        if self.changes is None:
            return self
        count, changes = len(self.index), self.changes
        at = self.index.positions(changes.index.keys)
        fresh = at < 0
        values = np.empty((len(self) + len(self.defaults), self.dim), np.float32)
        values[:count] = self.values[:count]
        values[at[~fresh]] = changes.values[~fresh]
        values[count : len(self)] = changes.values[fresh]
        values[len(self) :] = self.defaults
        index = self.index
        if changes.added:
            index = IdIndex(np.concatenate([index.keys, changes.index.keys[fresh]]), self.name, "")
        return replace(self, index=index, values=values, changes=None)


def default_rows(name: str, dim: int, given: Any) -> Floats:
    """Default rows as a table needs them.

    Args:
        name: Of the table, for errors.
        dim: Numbers in a row.
        given: ``None`` for zeros, one number for rows of it, or rows of shape [n, dim].

    Returns:
        Of shape [at least 1, dim].

    Raises:
        InvalidModel: They are of another shape, or not finite.
    """
    rows = np.asarray(0.0 if given is None else given, np.float32)
    if rows.ndim == 0:
        rows = np.full((1, dim), rows, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim or not len(rows) or not np.isfinite(rows).all():
        raise InvalidModel(
            f"the default rows of '{name}' should be finite and of the shape [n, {dim}], and are "
            f"of the shape {list(rows.shape)}.",
            fix="Give one number, or rows as long as those of the table.",
            table=name,
        )
    return rows
