"""All tables of a model, which deltas renew while others read.

A reader takes ``current`` once and uses nothing else: a ``Snapshot`` never changes. A delta
makes a new one, with the changed rows in front of the tables, and puts it in the old one's place
by one assignment. Why so: docs/decisions/0020-embedding-tables.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from bridge.errors import InvalidModel, UnexpectedInput, UnsupportedModel, nearest
from bridge.logs import logger
from bridge_deeprec.checkpoint import Checkpoint, EmbeddingInfo
from bridge_deeprec.index import IdIndex, Int64s
from bridge_deeprec.table import Floats, Table, default_rows

__all__ = ["Snapshot", "Tables"]

_logger = logger("deeprec")

# Rows in front of a table cost a second look-up for every id; a quarter is where a table is
# made anew, which takes as long as loading its index.
_COMPACT_AT = 4


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All tables as of one version.

    Attributes:
        version: The number of the checkpoint whose rows are the newest; ``None`` if its name
            had none.
        tables: By name.
    """

    version: int | None
    tables: Mapping[str, Table]

    def __getitem__(self, name: str) -> Table:
        """The table of that name.

        Raises:
            UnexpectedInput: There is none.
        """
        table = self.tables.get(name)
        if table is None:
            raise UnexpectedInput(
                f"there is no table '{name}'.", fix=nearest(name, self.tables), table=name
            )
        return table

    def lookup(self, name: str, ids: np.ndarray[Any, Any]) -> Int64s:
        """Row numbers of ids, see ``Table.lookup``; good for this snapshot only."""
        return self[name].lookup(ids)

    def gather(self, name: str, ids: np.ndarray[Any, Any], out: Floats | None = None) -> Floats:
        """The rows of ids, see ``Table.gather``."""
        return self[name].gather(ids, out)


class Tables:
    """The tables of a model. Any threads may read while one applies a delta.

    Args:
        snapshot: What to begin with.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._current = snapshot
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        now = self._current
        return f"{type(self).__name__}({len(now.tables)} tables, version {now.version})"

    @property
    def current(self) -> Snapshot:
        """The newest version; a call takes it once, and uses only that."""
        return self._current

    @classmethod
    def build(
        cls,
        checkpoint: Checkpoint,
        *,
        names: Iterable[str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Self:
        """The tables of a full checkpoint; incremental ones after it are applied by ``apply``.

        Args:
            checkpoint: A full one.
            names: Which EmbeddingVariables; ``None`` is all of them.
            defaults: Rows for ids that have none, by name: one number, or rows of shape
                [n, dim], of which an id gets the one at id modulo n. Zeros where not given.
                With a feature filter, DeepRec gives every id without a row the same one,
                ``default_value_no_permission``; without, the rows of the initializer.
                For a negative id, n is added: DeepRec's own remainder would be negative, and
                read in front of its rows. Source: ``counter_filter_policy.h``,
                ``nullable_filter_policy.h``, ``KvResourceGatherOp``.

        Raises:
            ModelNotFound: A name is not in the checkpoint.
            InvalidModel: It is incremental, damaged, or holds an id twice; or default rows do
                not fit.
        """
        if checkpoint.is_incremental:
            raise InvalidModel(
                f"the checkpoint '{checkpoint.prefix}' is incremental; wanted a full one.",
                fix="Build the tables of the full one before it, then apply this one.",
                model=str(checkpoint.prefix),
            )
        wanted = [info.name for info in checkpoint.variables] if names is None else names
        given = defaults or {}
        tables = {}
        for name in wanted:
            info = checkpoint.info(name)
            rows = default_rows(name, info.dim, given.get(name))
            keys, values = checkpoint.read_embedding(name, spare=len(rows))
            values[len(keys) :] = rows
            index = IdIndex(
                keys.astype(np.int64, copy=False), f"{name}-keys", str(checkpoint.prefix)
            )
            tables[name] = Table(name, info.key_dtype, index, values)
        return cls(Snapshot(checkpoint.version, tables))

    @classmethod
    def open(cls, folder: Path | str, *, mmap: bool = True, verify: bool = True) -> Self:
        """Tables that ``save`` wrote.

        Args:
            folder: Theirs.
            mmap: Map the files, so that processes share them, and do not read them whole.
            verify: Read all of it once, and compare with its digests.

        Raises:
            ModelNotFound: A file is missing.
            InvalidModel: A file is truncated, or not what the manifest says.
        """
        from bridge_deeprec import storage

        return cls(Snapshot(*storage.read(Path(folder), mmap=mmap, verify=verify)))

    def save(self, folder: Path | str) -> None:
        """Write the current version into a folder: arrays as ``.npy``, and a manifest, last.

        Args:
            folder: New or empty; it is made.

        Raises:
            OSError: It cannot be written.
        """
        from bridge_deeprec import storage

        now = self._current
        storage.write(Path(folder), now.version, now.tables)

    def lookup(self, name: str, ids: np.ndarray[Any, Any]) -> Int64s:
        """Row numbers of ids in the current version; see ``Table.lookup``."""
        return self._current.lookup(name, ids)

    def gather(self, name: str, ids: np.ndarray[Any, Any], out: Floats | None = None) -> Floats:
        """The rows of ids in the current version; see ``Table.gather``."""
        return self._current.gather(name, ids, out)

    def apply(self, *deltas: Checkpoint) -> Snapshot:
        """Put the rows of incremental checkpoints in front, all at once.

        Readers go on with the version that they have. Where an error is raised nothing has
        changed. The new version is current before large changes are merged into the tables,
        which may take seconds more and memory for a second table, and does not stop readers.
        Dense variables of a delta, also where it has only some of their rows, are not looked
        at: they are the caller's.

        Args:
            deltas: In the order of their numbers.

        Returns:
            The version that became current.

        Raises:
            InvalidModel: One is no incremental checkpoint, not newer than what there is,
                damaged, or its rows do not fit a table.
            UnsupportedModel: One changes rows, and none of tables that are here.
        """
        with self._lock:
            after = self._current
            for delta in deltas:
                after = _changed(after, delta)
            self._current = after
            if any(_is_large(table) for table in after.tables.values()):
                tables = {
                    name: table.compacted() if _is_large(table) else table
                    for name, table in after.tables.items()
                }
                self._current = Snapshot(after.version, tables)
            return after


def _changed(before: Snapshot, delta: Checkpoint) -> Snapshot:
    """The version after a delta; that before it stays as it is."""
    _check(before, delta)
    tables = dict(before.tables)
    for info in _variables(before, delta):
        if info.name not in tables:
            # A dense variable, or one that this signature does not look up.
            _logger.info("%s: rows of '%s' are left out", delta.prefix, info.name)
            continue
        keys, values = delta.read_embedding(info.name)
        tables[info.name] = tables[info.name].changed_by(
            keys.astype(np.int64, copy=False),
            values,
            f"{info.name}-sparse_incr_keys",
            str(delta.prefix),
        )
    return Snapshot(delta.version, tables)


def _variables(before: Snapshot, delta: Checkpoint) -> list[EmbeddingInfo]:
    """What may change tables: also what only looks like a slot, as it has a table."""
    slots = [delta.info(name) for name in delta.slots if name in before.tables]
    return [*delta.variables, *slots]


def _check(before: Snapshot, delta: Checkpoint) -> None:
    where = f"the incremental checkpoint '{delta.prefix}'"
    if not delta.is_incremental:
        raise InvalidModel(
            f"the checkpoint '{delta.prefix}' is a full one; wanted an incremental one.",
            fix="Build new tables of it.",
            model=str(delta.prefix),
        )
    if delta.version is None or (before.version is not None and delta.version <= before.version):
        raise InvalidModel(
            f"{where} has the version {delta.version}; wanted one above {before.version}.",
            fix="Apply incremental checkpoints in the order of their numbers, each once.",
            model=str(delta.prefix),
            wanted=before.version,
            got=delta.version,
        )
    changed = _variables(before, delta)
    strange = [info.name for info in changed if info.name not in before.tables]
    if len(strange) == len(changed) and not set(strange) <= set(delta.dense_rows):
        raise UnsupportedModel(
            f"{where} changes rows of '{strange[0]}', which has no table here, and no others.",
            fix="Use the checkpoints of one training.",
            model=str(delta.prefix),
            tensor=strange[0],
        )
    for info in changed:
        if info.name in before.tables:
            _check_fit(where, info, before.tables[info.name], str(delta.prefix))


def _check_fit(where: str, info: EmbeddingInfo, table: Table, model: str) -> None:
    if (info.dim, info.key_dtype) == (table.dim, table.key_dtype):
        return
    raise InvalidModel(
        f"{where} has rows of {info.dim} for {info.key_dtype} ids in '{info.name}'; wanted "
        f"{table.dim} for {table.key_dtype}, as in the table.",
        fix="Convert the model again from a full checkpoint.",
        model=model,
        tensor=info.name,
        wanted=table.dim,
        got=info.dim,
    )


def _is_large(table: Table) -> bool:
    return table.changed * _COMPACT_AT > len(table.index)
