"""Output arrays as summaries, and as ``.npz`` files that need no pickle."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import BridgeError

__all__ = ["summary", "write_npz"]

_FIRST = 4


def summary(name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    """What there is to say about an output, in JSON types.

    ``min``, ``max`` and ``mean`` are over the finite values, ``None`` where there are
    none or where there is no order (strings, complex numbers).
    """
    is_text = array.dtype.kind in "OUT"
    found: dict[str, Any] = {
        "name": name,
        "dtype": "string" if is_text else str(array.dtype),
        "shape": list(array.shape),
        "min": None,
        "max": None,
        "mean": None,
        "nan_count": 0,
        "infinite_count": 0,
        "first": [_plain(value) for value in array.reshape(-1)[:_FIRST]],
    }
    if is_text:
        return found
    values = _widened(array)
    found["nan_count"] = int(np.isnan(values).sum())
    found["infinite_count"] = int(np.isinf(values).sum())
    finite = values[np.isfinite(values)]
    if finite.size and finite.dtype.kind != "c":
        exact = array if array.dtype.kind in "iu" else finite
        found["min"], found["max"] = _plain(exact.min()), _plain(exact.max())
        # Divided first: a sum of large values may overflow where their mean does not.
        found["mean"] = float((finite / finite.size).sum())
    return found


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Writes arrays by name; the file appears whole or not at all.

    Strings become numpy's fixed-width Unicode. What ``.npy`` files cannot hold, such as
    bfloat16, float8 and int4, becomes float32 or int8, which hold each value exactly.

    Returns:
        Sentences about what was changed.

    Raises:
        BridgeError: The file cannot be written.
    """
    notes = []
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Written by hand: numpy.savez takes names as keyword arguments, and so cannot
        # write an output called 'file'.
        with scratch.open("xb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, array in arrays.items():
                kept = _storable(array)
                if kept.dtype != array.dtype and kept.dtype.kind in "fi":
                    notes.append(f"output '{name}' is {array.dtype}, written as {kept.dtype}.")
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, kept, allow_pickle=False)
        scratch.replace(path)
    except OSError as error:
        raise BridgeError(
            f"'{path}' cannot be written: {error.strerror or error}.",
            fix="Choose a folder that you may write to and that has space left.",
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    return notes


def _storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind in "OT":
        return np.asarray(array, dtype=object).astype(str)
    if array.dtype.isbuiltin != 2:  # a type that was registered with numpy, by ml_dtypes
        return array
    # int8 holds every value of the integers among them.
    return array.astype(np.int8 if DType.of(array.dtype).is_integer else np.float32)


def _widened(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (str, bool, np.bool_, int, np.integer)):
        return value if isinstance(value, (str, bool, int)) else value.item()
    if isinstance(value, (complex, np.complexfloating)):
        return str(value)
    number = float(value)
    return number if np.isfinite(number) else str(number)
