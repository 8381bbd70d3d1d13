"""The times of single calls that lie beside a record."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import recording
from bridge.errors import InvalidRecord
from bridge.record import SelectionRecord

__all__ = ["NAME", "Calls", "key", "read"]

Calls = Mapping[str, npt.NDArray[Any]]
"""Nanoseconds of each timed call, in order, by ``key``."""

_MOST_BYTES = 2**31  # unpacked; 48 arms, 6 sizes and 45 blocks of 500 calls take 52 MB

NAME = "calls.npz"
"""Name of the attachment."""


def key(arm: str, rows: int) -> str:
    """Name of an arm's calls in one bucket."""
    return f"{arm}|{rows}"


def read(record: SelectionRecord) -> Calls | None:
    """The calls of a record; ``None`` if it has none, or is in memory only.

    Raises:
        InvalidRecord: The file was changed, or holds something else.
        ModelNotFound: The record names it, and it is not there.
    """
    data = recording.attachment(record, NAME)
    if data is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(one.file_size for one in file.infolist()) > _MOST_BYTES:
                raise ValueError("a small file that unpacks to a huge one")
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            calls = {name: found[name] for name in found.files}
    # What zipfile, zlib and numpy's parser of headers raise is of no common class.
    except Exception as error:
        raise InvalidRecord(
            f"'{NAME}' of the record in '{record.folder}' is no archive of plain arrays.",
            fix="Select again.",
            path=str(record.folder),
        ) from error
    for name, times in calls.items():
        if times.ndim != 1 or times.dtype.kind not in "iu":
            raise InvalidRecord(
                f"'{NAME}' of the record in '{record.folder}' should hold whole nanoseconds, but "
                f"{name!r} has dtype {times.dtype} and {times.ndim} axes.",
                fix="Select again.",
                path=str(record.folder),
            )
    return calls
