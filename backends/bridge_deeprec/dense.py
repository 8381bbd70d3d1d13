"""Values of dense variables: a full checkpoint's, renewed by the incremental ones after it.

An incremental checkpoint holds every dense variable whole, but for those of which it holds only
the rows that changed, by their position. Source: ``incremental_save_op`` of DeepRec's
``IncrementalSaverBuilder``, and ``tensorflow/core/kernels/incr_save_restore_ops.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.errors import InvalidModel, UnsupportedModel
from bridge_deeprec.checkpoint import Checkpoint

__all__ = ["DenseValues"]

_Array = np.ndarray[Any, Any]


class DenseValues:
    """The newest values of dense variables.

    Args:
        full: A full checkpoint.
        deltas: The incremental ones after it, in the order of their numbers.
    """

    def __init__(self, full: Checkpoint, deltas: Sequence[Checkpoint] = ()) -> None:
        self._chain = (full, *deltas)

    def __contains__(self, name: str) -> bool:
        return any(name in one.dense for one in self._chain)

    @property
    def version(self) -> int | None:
        """Number of the newest checkpoint with whole ones; ``None`` if its name has none."""
        having = [one for one in self._chain[1:] if one.dense]
        return having[-1].version if having else self._chain[0].version

    def read(self, name: str) -> _Array:
        """The value of one variable, a new array.

        Raises:
            ModelNotFound: There is no such variable.
            InvalidModel: Its data are damaged, or rows do not fit it.
            UnsupportedModel: Its elements are neither numbers nor booleans, or rows of it
                are in parts, of which it is not known where they begin.
        """
        held = [at for at, one in enumerate(self._chain) if name in one.dense]
        newest = held[-1] if held else 0
        value = self._chain[newest].read_dense(name)
        for delta in self._chain[newest + 1 :]:
            if name in delta.dense_rows:
                _renew(value, name, delta)
        return value


def _renew(value: _Array, name: str, delta: Checkpoint) -> None:
    if delta.info(name).partitions > 1:
        raise UnsupportedModel(
            f"the incremental checkpoint '{delta.prefix}' has rows of the dense variable '{name}' "
            "in parts, of which it is not known where they begin.",
            fix="Convert a newer full checkpoint, or leave incremental ones out (deltas=false).",
            model=str(delta.prefix),
            tensor=name,
        )
    places, rows = delta.read_embedding(name)
    fits = value.shape[1:] == rows.shape[1:] and value.dtype == rows.dtype
    if not fits or (places.size and not 0 <= places.min() <= places.max() < len(value)):
        raise InvalidModel(
            f"the incremental checkpoint '{delta.prefix}' has rows of '{name}' that do not fit: "
            f"{rows.dtype}{list(rows.shape)} for {value.dtype}{list(value.shape)}.",
            fix="Use the checkpoints of one training.",
            model=str(delta.prefix),
            tensor=name,
        )
    value[places] = rows
