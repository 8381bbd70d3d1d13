"""What a DeepRec checkpoint holds: EmbeddingVariables, their slots, dense variables.

For an EmbeddingVariable ``n`` the tensors are ``n-keys``, ``n-values`` and more, for one in parts
those of ``n/part_0`` and so on, for an optimizer's slot those of ``n/Adagrad``. An incremental
checkpoint has the rows that changed since the full one, as ``n-sparse_incr_keys`` and so on.
Source: ``tensorflow/core/framework/embedding/embedding_var_ckpt_data.cc``,
``embedding_var_restore.h`` and ``tensorflow/core/kernels/incr_save_restore_ops.h`` of DeepRec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from bridge.dtypes import DType
from bridge.errors import InvalidModel, ModelNotFound, UnsupportedModel
from bridge_deeprec.bundle import Bundle, Tensor
from bridge_deeprec.location import INCREMENTAL, SSD_RECORD, located, number_of, numbered

__all__ = ["Checkpoint", "EmbeddingInfo"]

# Of each part of an EmbeddingVariable: what a tensor is, by the end of its name.
_FULL = {
    "-keys": "keys",
    "-values": "values",
    "-versions": "versions",
    "-freqs": "freqs",
    "-keys_filtered": "filtered",
    "-versions_filtered": "filtered_versions",
    "-freqs_filtered": "filtered_freqs",
    "-partition_offset": "offsets",
    "-partition_filter_offset": "filtered_offsets",
}
_INCREMENTAL = {
    "-sparse_incr_keys": "keys",
    "-sparse_incr_values": "values",
    "-sparse_incr_versions": "versions",
    "-sparse_incr_freqs": "freqs",
    "-incr_partition_offset": "offsets",
}
_ROLES = {**_FULL, **_INCREMENTAL}
_BUCKETS = 1000  # in which keys are saved; kSavedPartitionNum of DeepRec
_FINITE_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """One EmbeddingVariable, its parts together.

    Attributes:
        name: Without parts.
        key_dtype: int32 or int64.
        dim: Numbers in a row.
        rows: Ids that have a row.
        partitions: Parts that it was saved in; 1 where it was saved whole.
        filtered: Ids that the feature filter had not admitted when it was saved.
    """

    name: str
    key_dtype: np.dtype[Any]
    dim: int
    rows: int
    partitions: int
    filtered: int


@dataclass(frozen=True, slots=True)
class _Part:
    stem: str
    tensors: Mapping[str, Tensor]  # by what they are

    @property
    def rows(self) -> int:
        return self.tensors["keys"].shape[0]


class Checkpoint:
    """A checkpoint, full or incremental: what is in it, and its data on request.

    Args:
        prefix: Path of its index without ``.index``; see ``open`` for other paths.

    Attributes:
        prefix: The same.
        version: The number at the end of its name; ``None`` if there is none.
        is_incremental: Whether it holds the rows that changed, and not all.
        variables: The EmbeddingVariables, by name.
        slots: Names of what is an optimizer's, saved like EmbeddingVariables.
        dense: Names of all other tensors.
        dense_rows: Those of ``variables`` that may be dense variables: an incremental checkpoint
            has rows of these too, by their position, without versions, counts and offsets.

    Raises:
        ModelNotFound: The index, or a file with data, is not there.
        InvalidModel: A file is truncated or corrupt; parts of an EmbeddingVariable are missing
            or do not fit each other.
        UnsupportedModel: Ids that are strings, rows that are not float32, rows on SSD.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._bundle = Bundle(prefix)
        self.version = number_of(prefix)
        parts, dense = self._classify()
        slots = _slots(parts)
        self._parts = self._merged({stem: parts[stem] for stem in parts if stem not in slots})
        self._slots = self._merged({stem: parts[stem] for stem in slots})
        self.is_incremental = prefix.parent.name == INCREMENTAL or any(
            tensor.name.endswith(tuple(_INCREMENTAL))
            for found in parts.values()
            for tensor in found.tensors.values()
        )
        self.variables = tuple(self._info(name, self._parts[name]) for name in sorted(self._parts))
        self.slots = tuple(sorted(self._slots))
        self.dense = tuple(sorted(dense))
        self.dense_rows = tuple(
            info.name
            for info in self.variables
            if self.is_incremental
            and all(part.tensors.keys() == {"keys", "values"} for part in self._parts[info.name])
        )
        self._refuse_ssd()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.prefix)!r}, {len(self.variables)} variables)"

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The checkpoint at a path.

        Args:
            path: The checkpoint (``model.ckpt-7``), its index, its folder, the folder above
                (the newest by the time of its file ``checkpoint`` is taken, as DeepRec does),
                or a SavedModel with variables. Of several in a folder, the one with the
                highest number is taken. Source: ``serving/processor/storage/model_store.cc``.

        Raises:
            ModelNotFound: There is none.
            InvalidModel: See the class.
            UnsupportedModel: See the class.
        """
        return cls(located(Path(path)))

    def info(self, name: str) -> EmbeddingInfo:
        """What there is of one EmbeddingVariable, or slot.

        Raises:
            ModelNotFound: There is none of that name.
        """
        return self._info(name, self._named(name))

    def deltas(self, *, after: int | None = None) -> tuple[Path, ...]:
        """The incremental checkpoints that come after this one, oldest first.

        Args:
            after: Only those of a higher number than this; ``None`` is this one's.

        Returns:
            Paths for ``open``. All of them have to be applied, in this order.
        """
        least = self.version if after is None else after
        return numbered(self.prefix.parent / INCREMENTAL, after=least)

    def read_dense(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor that is no EmbeddingVariable; one in slices is put together.

        Raises:
            ModelNotFound: There is no such tensor.
            InvalidModel: The data are truncated or corrupt.
            UnsupportedModel: Its elements are neither numbers nor booleans.
        """
        return self._bundle.read(name)

    def read_embedding(
        self, name: str, *, spare: int = 0
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.float32]]]:
        """Ids and rows of an EmbeddingVariable, or of a slot, its parts one after another.

        Args:
            name: Without parts.
            spare: Rows to leave room for behind the last; their content is not defined.

        Returns:
            ids: Of shape [rows], int32 or int64, in the order in which they were saved.
            rows: Of shape [rows + spare, dim], float32.

        Raises:
            ModelNotFound: There is none of that name.
            InvalidModel: The data are truncated or corrupt, or a row is not finite.
        """
        parts = self._named(name)
        info = self._info(name, parts)
        keys = np.empty(info.rows, info.key_dtype)
        values = np.empty((info.rows + spare, info.dim), np.float32)
        at = 0
        for part in parts:
            end = at + part.rows
            self._bundle.read_into(part.tensors["keys"].name, keys[at:end])
            self._bundle.read_into(part.tensors["values"].name, values[at:end])
            self._check_finite(part, keys[at:end], values[at:end])
            self._check_offsets(part)
            at = end
        return keys, values

    def read_filtered(self, name: str) -> np.ndarray[Any, Any]:
        """Ids that the feature filter had not admitted: they have no row.

        Returns:
            Of shape [filtered], of the dtype of the ids.

        Raises:
            ModelNotFound: There is no EmbeddingVariable of that name.
            InvalidModel: The data are truncated or corrupt.
        """
        parts = self._named(name)
        found = [
            self._bundle.read(part.tensors["filtered"].name)
            for part in parts
            if "filtered" in part.tensors
        ]
        if not found:
            return np.empty(0, self._info(name, parts).key_dtype)
        return np.concatenate(found)

    def _named(self, name: str) -> Sequence[_Part]:
        parts = self._parts.get(name) or self._slots.get(name)
        if parts is None:
            raise ModelNotFound(
                f"the checkpoint '{self.prefix}' has no EmbeddingVariable '{name}'.",
                fix=f"It has: {', '.join(sorted(self._parts)) or 'none'}.",
                model=str(self.prefix),
                tensor=name,
            )
        return parts

    def _classify(self) -> tuple[dict[str, _Part], list[str]]:
        """What is a part of an EmbeddingVariable, by the beginning of its name, and the rest."""
        groups: dict[str, dict[str, Tensor]] = {}
        dense = []
        for name, tensor in self._bundle.tensors.items():
            stem, dash, end = name.rpartition("-")
            role = _ROLES.get(dash + end)
            if role is None or not stem:
                dense.append(name)
            elif role in groups.setdefault(stem, {}):
                self._fail(f"'{stem}' is in it both in full and incrementally", stem)
            else:
                groups[stem][role] = tensor
        parts = {}
        for stem, tensors in groups.items():
            if {"keys", "values"} <= tensors.keys():
                parts[stem] = _Part(stem, tensors)
                self._check(parts[stem])
            elif len(tensors) == 1:  # a variable whose name happens to end so
                dense.extend(tensor.name for tensor in tensors.values())
            else:
                missing = " and ".join(sorted({"keys", "values"} - tensors.keys()))
                self._fail(f"'{stem}' has {len(tensors)} of its tensors, but no {missing}", stem)
        return parts, dense

    def _check(self, part: _Part) -> None:
        keys, values = part.tensors["keys"], part.tensors["values"]
        if keys.dtype is DType.STRING:
            raise UnsupportedModel(
                f"the ids of '{part.stem}' in the checkpoint '{self.prefix}' are strings; "
                "wanted int32 or int64.",
                fix="Turn them into numbers as the training did, and save the model so.",
                model=str(self.prefix),
                tensor=keys.name,
            )
        if keys.dtype not in {DType.INT32, DType.INT64} or len(keys.shape) != 1:
            self._fail(
                f"'{keys.name}' should be int32[N] or int64[N] and is "
                f"{keys.dtype}{list(keys.shape)}",
                keys.name,
            )
        if values.dtype is not DType.FLOAT32:
            raise UnsupportedModel(
                f"the rows '{values.name}' in the checkpoint '{self.prefix}' are {values.dtype}; "
                "wanted float32.",
                fix="Save them as float32, as DeepRec does.",
                model=str(self.prefix),
                tensor=values.name,
            )
        if len(values.shape) != 2 or values.shape[0] != part.rows or not values.shape[1]:
            self._fail(
                f"'{values.name}' should be float32[{part.rows}, dim], as there are {part.rows} "
                f"ids, and is float32{list(values.shape)}",
                values.name,
                wanted=part.rows,
                got=values.shape[0] if values.shape else None,
            )
        for role, wanted in (("versions", part.rows), ("freqs", part.rows)):
            tensor = part.tensors.get(role)
            if tensor is not None and tensor.shape not in {(wanted,), (0,)}:
                self._fail(
                    f"'{tensor.name}' should have {wanted} or no elements and has the shape "
                    f"{list(tensor.shape)}",
                    tensor.name,
                )
        filtered = part.tensors.get("filtered")
        if filtered is not None and (len(filtered.shape) != 1 or filtered.dtype != keys.dtype):
            self._fail(
                f"'{filtered.name}' should be {keys.dtype}[M] and is "
                f"{filtered.dtype}{list(filtered.shape)}",
                filtered.name,
            )
        offsets = part.tensors.get("offsets")
        if offsets is not None and (
            offsets.shape != (_BUCKETS + 1,) or offsets.dtype is not DType.INT32
        ):
            self._fail(
                f"'{offsets.name}' should be int32[{_BUCKETS + 1}] and is "
                f"{offsets.dtype}{list(offsets.shape)}",
                offsets.name,
            )

    def _merged(self, parts: Mapping[str, _Part]) -> dict[str, Sequence[_Part]]:
        """The parts of each variable, by its name without parts."""
        groups: dict[str, dict[int, _Part]] = {}
        for stem, part in parts.items():
            name, number = _without_part(stem)
            group = groups.setdefault(name, {})
            if number in group or (group and (-1 in group) != (number == -1)):
                self._fail(f"'{name}' is in it both whole and in parts", name)
            group[number] = part
        merged: dict[str, Sequence[_Part]] = {}
        for name, group in groups.items():
            numbers = sorted(group)
            if -1 not in group and numbers != list(range(len(numbers))):
                gap = next(n for n in range(numbers[-1]) if n not in group)
                self._fail(f"'{name}' lacks its part {gap} of at least {numbers[-1] + 1}", name)
            merged[name] = [group[number] for number in numbers]
            kinds = {
                (part.tensors["keys"].dtype, part.tensors["values"].shape[1])
                for part in merged[name]
            }
            if len(kinds) > 1:
                shown = " and ".join(sorted(f"{dtype} ids with dim {dim}" for dtype, dim in kinds))
                self._fail(f"the parts of '{name}' differ: {shown}", name)
        return merged

    def _info(self, name: str, parts: Sequence[_Part]) -> EmbeddingInfo:
        keys, values = parts[0].tensors["keys"], parts[0].tensors["values"]
        assert keys.dtype is not None
        return EmbeddingInfo(
            name=name,
            key_dtype=keys.dtype.numpy,
            dim=values.shape[1],
            rows=sum(part.rows for part in parts),
            partitions=len(parts),
            filtered=sum(
                part.tensors["filtered"].shape[0] for part in parts if "filtered" in part.tensors
            ),
        )

    def _check_finite(
        self, part: _Part, keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
    ) -> None:
        step = max(1, _FINITE_ELEMENTS // values.shape[1])
        for at in range(0, len(values), step):
            fine = np.isfinite(values[at : at + step])
            if not fine.all():
                row = at + int(np.argmin(fine.all(axis=1)))
                self._fail(
                    f"row {row} of '{part.tensors['values'].name}', of the id {keys[row]}, holds "
                    "NaN or infinity",
                    part.tensors["values"].name,
                    row=row,
                    id=int(keys[row]),
                )

    def _check_offsets(self, part: _Part) -> None:
        tensor = part.tensors.get("offsets")
        if tensor is None:
            return
        offsets = self._bundle.read(tensor.name)
        if offsets[0] != 0 or offsets[-1] != part.rows or (np.diff(offsets) < 0).any():
            self._fail(
                f"'{tensor.name}' should go from 0 to {part.rows}, the number of ids, without "
                f"going down, and goes from {offsets[0]} to {offsets[-1]}",
                tensor.name,
            )

    def _refuse_ssd(self) -> None:
        for path in self.prefix.parent.iterdir():
            if path.name.startswith(f"{self.prefix.name}-") and path.name.endswith(SSD_RECORD):
                raise UnsupportedModel(
                    f"some rows of the checkpoint '{self.prefix}' are in files of DeepRec's "
                    f"storage on SSD: '{path.name}'.",
                    fix="Save it with embeddings in memory only.",
                    model=str(self.prefix),
                    file=path.name,
                )

    def _fail(self, what: str, tensor: str, **detail: Any) -> NoReturn:
        raise InvalidModel(
            f"the checkpoint '{self.prefix}' is damaged: {what}.",
            fix="Copy or save it again.",
            model=str(self.prefix),
            tensor=tensor,
            **detail,
        )


def _without_part(stem: str) -> tuple[str, int]:
    """The name without its part, and the number of the part, or -1.

    A slot of a part is ``n/part_0/Adagrad``; together they are ``n/Adagrad``.
    """
    pieces = stem.split("/")
    for at in range(len(pieces) - 1, 0, -1):
        match = re.fullmatch(r"part_(\d{1,9})", pieces[at])
        if match:
            return "/".join(pieces[:at] + pieces[at + 1 :]), int(match[1])
    return stem, -1


def _slots(parts: Mapping[str, _Part]) -> set[str]:
    """Of what is saved like an EmbeddingVariable, what is a slot of another one.

    A slot lies one step below its variable and has a row for each of the same ids.
    """
    return {
        stem
        for stem in parts
        if (above := parts.get(stem.rpartition("/")[0])) is not None
        and above.rows == parts[stem].rows
    }
