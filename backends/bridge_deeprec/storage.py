"""Tables in a folder: arrays as ``.npy``, which can be mapped, and a manifest with digests.

``tables.json`` lists the tables; the ids of the first are ``table-0.keys.npy``, int64, its rows
``table-0.values.npy``, float32, the default rows behind those of the ids. A folder is untrusted
input: nothing is opened by a name that stands in it, and no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import InvalidModel, ModelNotFound
from bridge_deeprec.index import IdIndex
from bridge_deeprec.table import Table

__all__ = ["MANIFEST", "read", "write"]

MANIFEST = "tables.json"
_SCHEMA = 1
_MAX_MANIFEST_BYTES = 16 * 2**20


def write(folder: Path, version: int | None, tables: Mapping[str, Table]) -> None:
    """Write tables into a folder that is new or empty; the manifest comes last.

    Raises:
        OSError: It cannot be written, or holds tables already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, name in enumerate(sorted(tables)):
        table = tables[name].compacted()
        entry: dict[str, Any] = {
            "name": name,
            "key_dtype": str(table.key_dtype),
            "dim": table.dim,
            "rows": len(table.index),
            "defaults": len(table.defaults),
        }
        for kind, array in (("keys", table.index.keys), ("values", table.values)):
            path = folder / f"table-{number}.{kind}.npy"
            with path.open("xb") as file:
                np.save(file, array, allow_pickle=False)
            entry[kind] = _digest(path)
        listed.append(entry)
    text = json.dumps({"schema": _SCHEMA, "version": version, "tables": listed}, indent=2)
    with (folder / MANIFEST).open("x", encoding="utf-8") as file:
        file.write(text + "\n")


def read(folder: Path, *, mmap: bool, verify: bool) -> tuple[int | None, dict[str, Table]]:
    """The version and the tables of a folder; see ``Tables.open``.

    Raises:
        ModelNotFound: A file is missing.
        InvalidModel: A file is truncated, or not what the manifest says.
    """
    manifest = _manifest(folder)
    tables: dict[str, Table] = {}
    for number, entry in enumerate(manifest["tables"]):
        name, rows, dim = entry["name"], entry["rows"], entry["dim"]
        if name in tables:
            raise _invalid(folder, f"its manifest lists the table '{name}' twice")
        arrays = {}
        for kind, dtype, shape in (
            ("keys", np.int64, (rows,)),
            ("values", np.float32, (rows + entry["defaults"], dim)),
        ):
            path = folder / f"table-{number}.{kind}.npy"
            arrays[kind] = _array(path, np.dtype(dtype), shape, mmap=mmap)
            if verify and _digest(path) != entry[kind]:
                raise _invalid(folder, f"'{path.name}' is not the file that was written")
        tables[name] = Table(
            name,
            np.dtype(entry["key_dtype"]),
            IdIndex(arrays["keys"], name, str(folder)),
            arrays["values"],
        )
    return manifest["version"], tables


def _array(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], *, mmap: bool
) -> np.ndarray[Any, Any]:
    if not path.is_file() or path.is_symlink():
        raise ModelNotFound(
            f"'{path}' does not exist or is a link; wanted a file.",
            fix="Copy the whole folder again.",
            model=str(path.parent),
            file=path.name,
        )
    if 0 in shape:
        return np.empty(shape, dtype)  # no elements, which cannot be mapped
    try:
        # Mapped in any case, as this compares the header with the size of the file; and not by
        # numpy.load, which also opens archives.
        mapped = np.lib.format.open_memmap(path, mode="r")
        array = np.asarray(mapped) if mmap else np.array(mapped)
    except (ValueError, OSError, EOFError, tokenize.TokenError) as error:
        raise _invalid(path.parent, f"'{path.name}' is no sound .npy file: {error}") from error
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise _invalid(
            path.parent,
            f"'{path.name}' should be {dtype}{list(shape)} and is {array.dtype}{list(array.shape)}",
        )
    return array


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise _invalid(folder, f"'{MANIFEST}' has more than {_MAX_MANIFEST_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(
            f"there are no tables in '{folder}': '{MANIFEST}' does not exist.",
            fix="Name the folder that the conversion wrote.",
            model=str(folder),
        ) from error
    except (ValueError, RecursionError) as error:
        raise _invalid(folder, f"'{MANIFEST}' is no JSON: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != _SCHEMA:
        raise _invalid(folder, f"'{MANIFEST}' has the schema {schema!r}; wanted {_SCHEMA}")
    version, tables = found.get("version"), found.get("tables")
    if not (version is None or _is_count(version)) or not isinstance(tables, list):
        raise _invalid(folder, f"'{MANIFEST}' has no sound version or list of tables")
    for number, entry in enumerate(tables):
        fine = (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and entry.get("key_dtype") in ("int32", "int64")
            and _is_count(entry.get("rows"))
            and all(_is_count(entry.get(key)) and entry[key] for key in ("dim", "defaults"))
            and isinstance(entry.get("keys"), str)
            and isinstance(entry.get("values"), str)
        )
        if not fine:
            raise _invalid(folder, f"the entry of table {number} in '{MANIFEST}' is not sound")
    manifest: dict[str, Any] = found
    return manifest


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _invalid(folder: Path, what: str) -> InvalidModel:
    return InvalidModel(
        f"the tables in '{folder}' are damaged: {what}.",
        fix="Copy or convert them again.",
        model=str(folder),
    )
