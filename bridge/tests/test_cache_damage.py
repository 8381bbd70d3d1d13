"""Cache: an entry that is damaged or unsafe is built again, with one warning."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge import manifest
from bridge.cache import Cache

PARTS = {"model": "ab12", "versions": {"onnxruntime": "1.32.0"}, "threads": 2}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def age(cache: Cache, parts: dict[str, Any], seconds: float) -> None:
    used = time.time() - seconds
    os.utime(cache.root / "entries" / cache.key("engine", parts), (used, used))


# Damage: each of these must be a miss with one warning, never a result


def entry_folder(cache: Cache) -> Path:
    return cache.root / "entries" / cache.key("engine", PARTS)


def same_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewritten(entry: Path, **changes: Any) -> None:
    """A manifest with other fields and the right checksum."""
    path = entry / "manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["checksum"]
    fields.update(changes)
    fields["checksum"] = manifest.hashlib.sha256(manifest.canonical(fields)).hexdigest()
    path.write_bytes(manifest.canonical(fields))


def replaced_by_link(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def garbage(path: Path, data: bytes) -> Callable[[], object]:
    return lambda: path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "file truncated": lambda e: (e / "files/model.bin").write_bytes(b"cont"),
    "file emptied": lambda e: (e / "files/model.bin").write_bytes(b""),
    "file longer": lambda e: (e / "files/model.bin").write_bytes(b"content+"),
    "file of same size changed": lambda e: (e / "files/model.bin").write_bytes(b"CONTENT"),
    "file missing": lambda e: (e / "files/model.bin").unlink(),
    "file added": lambda e: (e / "files/more").write_bytes(b"x"),
    "file added beside files": lambda e: (e / "more").write_bytes(b"x"),
    "file writable by others": lambda e: (e / "files/model.bin").chmod(0o602),
    "file writable by group": lambda e: (e / "files/model.bin").chmod(0o660),
    "folder writable by others": lambda e: (e / "files/variables").chmod(0o777),
    "empty folder writable by others": lambda e: (e / "files/assets").chmod(0o777),
    "files writable by others": lambda e: (e / "files").chmod(0o707),
    "entry writable by others": lambda e: e.chmod(0o777),
    "manifest writable by others": lambda e: (e / "manifest.json").chmod(0o666),
    "lock writable by others": lambda e: (e / "lock").chmod(0o666),
    "file is a link": lambda e: replaced_by_link(e / "files/model.bin", e.parents[1] / "x"),
    "folder is a link": lambda e: replaced_by_link(e / "files/variables", e.parents[1] / "x"),
    "files is a link": lambda e: replaced_by_link(e / "files", e.parents[1] / "x"),
    "entry is a link": lambda e: replaced_by_link(e, e.parents[1] / "x"),
    "manifest is a link": lambda e: replaced_by_link(e / "manifest.json", e.parents[1] / "x"),
    "lock is a link": lambda e: replaced_by_link(e / "lock", e.parents[1] / "x"),
    "link to nothing": lambda e: (
        (e / "files/model.bin").unlink(),
        (e / "files/model.bin").symlink_to("nowhere"),
    ),
    "file is a fifo": lambda e: (
        (e / "files/model.bin").unlink(),
        os.mkfifo(e / "files/model.bin"),
    ),
    "manifest is a fifo": lambda e: (
        (e / "manifest.json").unlink(),
        os.mkfifo(e / "manifest.json"),
    ),
    "lock is a fifo": lambda e: ((e / "lock").unlink(), os.mkfifo(e / "lock")),
    "manifest is a folder": lambda e: (
        (e / "manifest.json").unlink(),
        (e / "manifest.json").mkdir(),
    ),
    "entry is a file": lambda e: (e.rename(e.parents[1] / "x"), e.write_bytes(b"x")),
    "manifest missing": lambda e: (e / "manifest.json").unlink(),
    "lock missing": lambda e: (e / "lock").unlink(),
    "manifest empty": lambda e: (e / "manifest.json").write_bytes(b""),
    "manifest truncated": lambda e: os.truncate(e / "manifest.json", 100),
    "manifest bytes": lambda e: (e / "manifest.json").write_bytes(bytes(range(256))),
    "manifest list": lambda e: (e / "manifest.json").write_bytes(b"[1]"),
    "manifest number": lambda e: (e / "manifest.json").write_bytes(b"1" * 5000),
    "manifest null": lambda e: (e / "manifest.json").write_bytes(b"null"),
    "manifest deep": lambda e: (e / "manifest.json").write_bytes(b"[" * 200_000),
    "manifest huge": lambda e: os.truncate(e / "manifest.json", 2**25),
    "manifest NaN": lambda e: (e / "manifest.json").write_bytes(b'{"checksum": 1, "a": NaN}'),
    "manifest unsigned": lambda e: (e / "manifest.json").write_bytes(
        (e / "manifest.json").read_bytes().replace(b'"kind":"engine"', b'"kind":"enginE"')
    ),
    "manifest of another schema": lambda e: rewritten(e, schema=99),
    "manifest of another key": lambda e: rewritten(e, key="0" * 64),
    "manifest with odd files": lambda e: rewritten(e, files=[1]),
    "manifest with odd file": lambda e: rewritten(e, files={"model.bin": 1}),
    "manifest with odd size": lambda e: rewritten(
        e, files={"model.bin": {"size_bytes": "7", "mtime_ns": 1, "sha256": "x"}}
    ),
    "manifest with odd kind": lambda e: rewritten(e, kind=None),
    "manifest with a path outside": lambda e: rewritten(
        e, files={"../../../x": {"size_bytes": 1, "mtime_ns": 1, "sha256": "x"}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_entry_is_a_miss_with_one_warning(
    cache: Cache,
    build: Any,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.entry("engine", PARTS, build)
    damage(entry_folder(cache))
    before = cache.verify()
    assert [problem is not None for _, problem in before] == [True]
    assert len(cache.ls()) == 1
    found = cache.entry("engine", PARTS, build)
    assert build.count == 2
    assert build.read(found) == b"content"
    assert not found.is_symlink()
    assert len(warnings(caplog)) == 1
    assert "is built again" in warnings(caplog)[0]
    assert [problem for _, problem in cache.verify()] == [None]
    cache.entry("engine", PARTS, build)
    assert build.count == 2
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_entry_can_be_removed(
    cache: Cache, build: Any, damage: Callable[[Path], object]
) -> None:
    cache.entry("engine", PARTS, build)
    damage(entry_folder(cache))
    assert [entry.key for entry in cache.rm()] == [cache.key("engine", PARTS)]
    assert cache.ls() == ()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_entry_does_not_stop_the_size_bound(
    cache: Cache, build: Any, damage: Callable[[Path], object]
) -> None:
    cache.entry("engine", PARTS, build)
    damage(entry_folder(cache))
    age(cache, PARTS, 0) if entry_folder(cache).exists() else None
    small = Cache(cache.root, max_bytes=11)
    found = small.entry("engine", {"n": 1}, build)
    assert build.read(found) == b"content"
    total = sum(entry.size_bytes for entry in small.ls())
    assert total <= 11


def test_change_that_keeps_size_and_time_is_found_for_executables_and_by_verify(
    cache: Cache, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, executable in (("ir", False), ("engine", True)):
        model = cache.entry(kind, PARTS, build, executable=executable) / "model.bin"
        same_times(model, garbage(model, b"CONTENT"))
    problems = {entry.kind: problem for entry, problem in cache.verify()}
    assert problems == dict.fromkeys(("ir", "engine"), "the content of 'model.bin' was changed")
    cache.entry("ir", PARTS, build)
    assert build.count == 2  # the documented limit of the quick check
    cache.entry("engine", PARTS, build)  # marked in the manifest: the flag is not needed again
    assert build.count == 3
    assert len(warnings(caplog)) == 1


def test_asking_for_an_executable_reads_what_was_not_built_as_one(cache: Cache, build: Any) -> None:
    model = cache.entry("engine", PARTS, build) / "model.bin"
    same_times(model, garbage(model, b"CONTENT"))
    cache.entry("engine", PARTS, build, executable=True)
    assert build.count == 2


def test_copied_cache_still_hits(cache: Cache, build: Any, tmp_path: Path) -> None:
    folder = cache.entry("engine", PARTS, build)
    for path in (folder / "model.bin", folder / "variables/data"):
        os.utime(path, (1, 1))  # other times, same content
    cache.root.rename(tmp_path / "moved")
    assert build.read(Cache(tmp_path / "moved").entry("engine", PARTS, build)) == b"content"
    assert build.count == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "files", "files/model.bin", "manifest.json", "lock"])
def test_entry_of_another_user_is_a_miss(
    cache: Cache, build: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache.entry("engine", PARTS, build)
    os.chown(entry_folder(cache) / name, 12345, -1)
    cache.entry("engine", PARTS, build)
    assert build.count == 2
    assert len(warnings(caplog)) == 1
    assert "user 12345" in warnings(caplog)[0]
