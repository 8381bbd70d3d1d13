"""The manifest of a cache entry: what was written, and whether it is still that.

An entry folder holds ``lock``, ``manifest.json`` and ``files/``. Nothing is opened by a
name that stands in a manifest: the folder's own names are compared with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bridge.errors import CacheError

__all__ = [
    "JSON",
    "READ",
    "SCHEMA",
    "Damaged",
    "Entry",
    "canonical",
    "check",
    "check_private",
    "look",
    "read",
    "reason",
    "seal",
    "sync",
    "write",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

SCHEMA = 1
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO in place of a file must not block
_NAMES = {"lock", "manifest.json", "files"}
_LIMIT_BYTES = 16 * 2**20  # far above any real one: about 100,000 files


class Damaged(Exception):
    """Why an entry must not be used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, as ``ls`` and ``verify`` show it.

    Attributes:
        key: 64 hexadecimal digits.
        kind: What it is, such as ``"engine"``; ``"?"`` if the manifest cannot be read.
        parts: What the key was made of; empty if the manifest cannot be read.
        path: The folder with its files.
        size_bytes: Sum of its files' sizes.
        created_s: When it was built, in seconds since 1970.
        used_s: When it was last asked for, in seconds since 1970.
        is_executable: Whether it is read in full at each hit.
    """

    key: str
    kind: str
    parts: Mapping[str, Any]
    path: Path
    size_bytes: int
    created_s: float
    used_s: float
    is_executable: bool


def canonical(value: JSON) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII.

    Raises:
        CacheError: The value is not made of JSON types alone.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
        odd = _odd_key(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise CacheError(
            f"a cache key part is not a JSON value: {error}.",
            fix="Use None, bool, int, finite float, str, list and dict with str keys.",
        ) from error
    if odd is not None:  # json would turn it into a text: {1: 0} and {"1": 0} would be one
        raise CacheError(
            f"a cache key part has a dict with the key {odd!r}; wanted str keys.",
            fix="Turn the keys into str.",
        )
    return text.encode("ascii")


def seal(files: Path) -> int:
    """Make a built folder private, whatever the umask was; its size in bytes.

    Raises:
        Damaged: It is empty, or holds a link, a device or the like.
    """
    count = size_bytes = 0
    for path, about in _tree(files):
        if stat.S_ISDIR(about.st_mode):
            path.chmod(0o700)
        elif stat.S_ISREG(about.st_mode):
            path.chmod(stat.S_IMODE(about.st_mode) & 0o700 | 0o600)
            count += 1
            size_bytes += about.st_size
        else:
            raise Damaged(f"'{path.relative_to(files)}' is neither a file nor a folder")
    if not count:
        raise Damaged("there is no file")
    return size_bytes


def write(folder: Path, about: Mapping[str, Any]) -> None:
    """Bring all files of a sealed entry to the disk, then their manifest.

    Args:
        folder: The entry's folder, not yet in its final place.
        about: ``key``, ``kind``, ``parts`` and ``executable``.
    """
    files: dict[str, dict[str, Any]] = {}
    for path, found in _tree(folder / "files"):
        if stat.S_ISDIR(found.st_mode):
            sync(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
            files[path.relative_to(folder / "files").as_posix()] = {
                "size_bytes": found.st_size,
                "mtime_ns": found.st_mtime_ns,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    manifest = {**about, "schema": SCHEMA, "created_s": time.time(), "files": files}
    manifest["checksum"] = hashlib.sha256(canonical(manifest)).hexdigest()
    with (folder / "manifest.json").open("xb") as file:
        (folder / "manifest.json").chmod(0o600)
        file.write(canonical(manifest))
        file.flush()
        os.fsync(file.fileno())
    sync(folder / "files")
    sync(folder)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of an entry, itself checked in every field.

    Raises:
        Damaged: It is not what ``write`` wrote.
        OSError: It is missing, a link, or cannot be read.
    """
    descriptor = os.open(folder / "manifest.json", READ)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        check_private(os.fstat(descriptor), "the manifest", stat.S_ISREG)
        data = file.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise Damaged("the manifest is too large")
    try:
        manifest = json.loads(data)
        checksum = manifest.pop("checksum")
        digest = hashlib.sha256(canonical(manifest)).hexdigest()
        if checksum != digest or manifest["schema"] != SCHEMA:
            raise Damaged("the manifest was changed")
        kinds = {"key": str, "kind": str, "parts": dict, "executable": bool, "created_s": float}
        is_sound = all(isinstance(manifest[name], kind) for name, kind in kinds.items()) and all(
            isinstance(file["sha256"], str)
            and isinstance(file["size_bytes"], int)
            and isinstance(file["mtime_ns"], int)
            for file in manifest["files"].values()
        )
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, CacheError):
        raise Damaged("the manifest is not one") from None
    if not is_sound:
        raise Damaged("the manifest is not one")
    assert isinstance(manifest, dict)
    return manifest


def look(folder: Path) -> Entry:
    """What an entry says of itself, unchecked; a damaged one says little.

    Raises:
        FileNotFoundError: It was removed.
    """
    used_s = folder.lstat().st_mtime
    try:
        known = read(folder)
    except (OSError, Damaged):
        known = {}
    return Entry(
        key=folder.name,
        kind=known.get("kind", "?"),
        parts=known.get("parts", {}),
        path=folder / "files",
        size_bytes=_total_bytes(folder / "files"),
        created_s=known.get("created_s", used_s),
        used_s=used_s,
        is_executable=known.get("executable", False),
    )


def check(folder: Path, *, in_full: bool) -> dict[str, Any]:
    """The manifest of an entry, after its files were compared with it.

    Args:
        folder: The entry's folder.
        in_full: Whether to read every file; else only those whose time stamp changed.
            Entries marked ``executable`` are always read.

    Raises:
        Damaged: Something is missing, changed, added, a link, or others may write to it.
        OSError: Something cannot be read.
    """
    check_private(folder.lstat(), "the entry", stat.S_ISDIR)
    if {item.name for item in folder.iterdir()} != _NAMES:
        raise Damaged("it does not consist of lock, manifest.json and files")
    check_private((folder / "lock").lstat(), "'lock'", stat.S_ISREG)
    manifest = read(folder)
    if manifest["key"] != folder.name:
        raise Damaged("it belongs to another key")
    check_private((folder / "files").lstat(), "'files'", stat.S_ISDIR)
    wanted = dict(manifest["files"])
    for path, about in _tree(folder / "files"):
        name = path.relative_to(folder / "files").as_posix()
        if stat.S_ISDIR(about.st_mode):
            check_private(about, f"'{name}'", stat.S_ISDIR)
            continue
        check_private(about, f"'{name}'", stat.S_ISREG)
        fact = wanted.pop(name, None)
        if fact is None:
            raise Damaged(f"'{name}' was added")
        if about.st_size != fact["size_bytes"]:
            raise Damaged(f"'{name}' has {about.st_size} bytes, not {fact['size_bytes']}")
        must_read = in_full or manifest["executable"] or about.st_mtime_ns != fact["mtime_ns"]
        if must_read and _digest(path) != fact["sha256"]:
            raise Damaged(f"the content of '{name}' was changed")
    if wanted:
        raise Damaged(f"'{min(wanted)}' is missing")
    return manifest


def check_private(about: os.stat_result, name: str, is_kind: Callable[[int], bool]) -> None:
    """Raise ``Damaged`` if this is of the wrong kind, or another user may write to it."""
    if not is_kind(about.st_mode):
        raise Damaged(f"{name} is not a plain {'file' if is_kind is stat.S_ISREG else 'folder'}")
    if about.st_uid != os.geteuid():
        raise Damaged(f"{name} belongs to user {about.st_uid}, not {os.geteuid()}")
    if about.st_mode & 0o022:
        raise Damaged(f"{name} can be written by others (mode {stat.S_IMODE(about.st_mode):o})")


def reason(error: BaseException) -> str:
    """What went wrong, without an error number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": '{error.filename}'" if error.filename else "")
    return str(error)


def sync(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _total_bytes(folder: Path) -> int:
    """Sum of the sizes of all files in a folder that may be changing; 0 if it is none."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return found


def _tree(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a folder; links are shown, not followed."""
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            about = path.lstat()
            yield path, about
            if stat.S_ISDIR(about.st_mode):
                pending.append(path)


def _digest(path: Path) -> str:
    with open(os.open(path, READ), "rb") as file:  # noqa: PTH123 - a descriptor
        return hashlib.file_digest(file, "sha256").hexdigest()


def _odd_key(value: JSON) -> object:
    """The first dict key inside that is not a text, or None (never a legal key)."""
    inner: list[Any] = [value]
    while inner:
        item = inner.pop()
        if isinstance(item, Mapping):
            for key in item:
                if not isinstance(key, str):
                    return repr(key) if key is None else key
            inner.extend(item.values())
        elif isinstance(item, (list, tuple)):
            inner.extend(item)
    return None
