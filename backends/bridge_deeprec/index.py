"""Ids to row numbers, many at a time, through the hash index of pandas.

Why pandas: docs/decisions/0020-embedding-tables.md. It is imported when the first index is built.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.errors import BackendUnavailable, InvalidModel

__all__ = ["IdIndex", "Int64s"]

Int64s = np.ndarray[Any, np.dtype[np.int64]]


class IdIndex:
    """A map from ids to their positions, fixed once it is built; any threads may use it.

    Args:
        keys: The ids, of shape [rows], int64; kept, not copied, and not to be changed.
        name: Of the tensor, for errors.
        model: What it belongs to, for errors.

    Attributes:
        keys: The same.

    Raises:
        InvalidModel: An id is there twice.
        BackendUnavailable: pandas is not installed.
    """

    __slots__ = ("_index", "keys")

    def __init__(self, keys: Int64s, name: str, model: str) -> None:
        try:
            import pandas as pd
        except ImportError as error:
            raise BackendUnavailable(
                "pandas is not installed, and tables of ids need it.",
                fix="Install it with: pip install 'inference-bridge[deeprec]'.",
            ) from error

        self.keys = keys
        # A view, as pandas would keep the subclass of mapped arrays.
        self._index = pd.Index(np.asarray(keys), dtype=np.int64, copy=False)
        if not self._index.is_unique:  # which also builds the hash table
            twice = int(self._index[self._index.duplicated()][0])
            raise InvalidModel(
                f"the id {twice} is in '{name}' more than once; wanted each id once.",
                fix="Save the checkpoint again.",
                model=model,
                tensor=name,
                id=twice,
            )

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, ids: Int64s) -> Int64s:
        """The position of each id among the keys, -1 where it is none of them.

        Args:
            ids: Of shape [n], int64.

        Returns:
            Of shape [n], int64, the caller's own.
        """
        found: Int64s = self._index.get_indexer(ids)
        return found
