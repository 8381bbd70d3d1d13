"""Cache: where the disk or the folder cannot be used, the result is there all the same."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.cache import Cache
from bridge.errors import CacheError

PARTS = {"model": "ab12", "versions": {"onnxruntime": "1.32.0"}, "threads": 2}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def leftovers(cache: Cache) -> list[Path]:
    return list((cache.root / "tmp").iterdir())


# A cache that cannot be used: the result is there, with one warning


def assert_uncached(
    cache: Cache, build: Any, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    found = cache.entry("engine", PARTS, build)
    assert build.read(found) == b"content"
    assert not found.is_relative_to(cache.root)
    assert len(warnings(caplog)) == 1, warnings(caplog)
    assert reason in warnings(caplog)[0]


@pytest.mark.parametrize("name", ["", "entries", "locks", "tmp"])
@pytest.mark.parametrize("mode", [0o777, 0o722, 0o720, 0o1777])
def test_folder_writable_by_others(
    cache: Cache, build: Any, name: str, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.entry("engine", PARTS, build)
    (cache.root / name).chmod(mode)
    assert_uncached(cache, build, caplog, "is not safe")
    assert build.count == 2
    for ask in (cache.ls, cache.verify, cache.rm):
        with pytest.raises(CacheError, match="not safe") as caught:
            ask()
        assert "chmod 700" in (caught.value.fix or "")
    assert cache.entry_of(cache.root / "entries" / cache.key("engine", PARTS)) is None


def test_root_of_another_user(
    cache: Cache,
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.entry("engine", PARTS, build)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert_uncached(cache, build, caplog, f"belongs to user {uid}")


@pytest.mark.parametrize("name", ["entries", "locks", "tmp"])
def test_linked_folder(
    cache: Cache, build: Any, name: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    cache.entry("engine", PARTS, build)
    (cache.root / name).rename(tmp_path / "elsewhere")
    (cache.root / name).symlink_to(tmp_path / "elsewhere")
    assert_uncached(cache, build, caplog, "is not safe")


def test_root_may_be_a_link_of_its_user(tmp_path: Path, build: Any) -> None:
    (tmp_path / "disk").mkdir(0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    cache = Cache(tmp_path / "cache")
    found = cache.entry("engine", PARTS, build)
    assert cache.entry("engine", PARTS, build) == found
    assert build.count == 1
    assert cache.entry_of(tmp_path / "disk" / found.relative_to(cache.root) / "model.bin")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
def test_root_must_not_be_a_link_of_another_user(
    tmp_path: Path, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk").mkdir(0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    os.chown(tmp_path / "cache", 12345, -1, follow_symlinks=False)
    assert_uncached(Cache(tmp_path / "cache"), build, caplog, "link belongs to user 12345")


@pytest.mark.parametrize("make", ["file", "dangling"])
def test_root_that_is_no_folder(
    tmp_path: Path, build: Any, make: str, caplog: pytest.LogCaptureFixture
) -> None:
    if make == "file":
        (tmp_path / "cache").write_bytes(b"")
    else:
        (tmp_path / "cache").symlink_to("nowhere")
    assert_uncached(Cache(tmp_path / "cache"), build, caplog, "exists")
    assert Cache(tmp_path / "cache").ls() == ()


def refuse(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    number: int,
    names: tuple[str, ...] = ("open", "mkdir", "rename", "utime", "unlink", "rmdir"),
) -> None:
    """Let system calls that write below a folder fail, as a read-only disk does."""

    def wrap(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            flags = args[0] if name == "open" and args else 0
            writes = name != "open" or flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY)
            is_there = isinstance(path, (str, os.PathLike)) and str(path).startswith(str(root))
            if writes and is_there and not (name == "mkdir" and os.path.lexists(path)):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **options)

        return call

    for name in names:
        monkeypatch.setattr(os, name, wrap(getattr(os, name), name))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_unwritable_root(
    cache: Cache,
    build: Any,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Root passes permission bits, so that the calls themselves are made to fail."""
    refuse(monkeypatch, cache.root.parent / "cache", number)
    assert_uncached(cache, build, caplog, os.strerror(number))


def test_read_only_cache_serves_hits_and_builds_the_rest_elsewhere(
    cache: Cache,
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = cache.entry("engine", PARTS, build)
    refuse(monkeypatch, cache.root, errno.EROFS)
    assert cache.entry("engine", PARTS, build) == found
    assert build.count == 1
    assert warnings(caplog) == []
    other = cache.entry("engine", {"n": 1}, build)
    assert not other.is_relative_to(cache.root)
    assert len(warnings(caplog)) == 1


STEPS = {
    "first folder": ("os.mkdir", 1),
    "second folder": ("os.mkdir", 2),
    "lock folder": ("os.mkdir", 3),
    "tmp folder": ("os.mkdir", 4),
    "staging folder": ("os.mkdir", 5),
    "files folder": ("os.mkdir", 6),
    "lock file": ("os.open", 1),
    "staging lock": ("os.open", 2),
    "locking": ("fcntl.flock", 1),
    "locking the staging folder": ("fcntl.flock", 2),
    "sync of a file": ("os.fsync", 1),
    "sync of a folder": ("os.fsync", 2),
    "sync of the last folder": ("os.fsync", 7),
    "checking modes": ("os.chmod", 1),
    "rename": ("os.rename", 1),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("name", "nth"), STEPS.values(), ids=STEPS.keys())
def test_disk_error_at_each_step(
    cache: Cache,
    build: Any,
    name: str,
    nth: int,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = os if name.startswith("os.") else fcntl
    attribute = name.split(".")[1]
    real = getattr(module, attribute)
    calls = 0

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, attribute, failing)
        assert_uncached(cache, build, caplog, os.strerror(number))
    assert calls >= nth
    assert cache.ls() == ()
    assert not (cache.root / "tmp").exists() or leftovers(cache) == []
    assert cache.entry("engine", PARTS, build).is_relative_to(cache.root)


def test_disk_error_while_the_manifest_is_written(
    cache: Cache, build: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Path.open

    def failing(self: Path, mode: str = "r", **options: Any) -> Any:
        if self.name == "manifest.json" and "x" in mode:
            real(self, mode).close()  # half written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        assert_uncached(cache, build, caplog, "No space left")
    assert leftovers(cache) == []
    assert cache.ls() == ()


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_disk_full_inside_build(
    cache: Cache, build: Any, is_wrapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def full(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        if folder.is_relative_to(cache.root):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                if is_wrapped:
                    raise RuntimeError("No space left: conversion failed") from error
                raise
        (folder / "half").unlink()
        build(folder)

    found = cache.entry("engine", PARTS, full)
    assert build.read(found) == b"content"
    assert not found.is_relative_to(cache.root)
    assert len(warnings(caplog)) == 1
    assert "No space left" in warnings(caplog)[0]
    assert leftovers(cache) == []


def test_neither_cache_nor_temporary_folder(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(CacheError, match="neither the cache nor a temporary folder") as caught:
        Cache(tmp_path / "file").entry("engine", PARTS, build)
    assert "TMPDIR" in (caught.value.fix or "")
    assert build.count == 0


def test_failed_uncached_build_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def failing(folder: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Cache(tmp_path / "file").entry("engine", PARTS, failing)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_rm_that_fails_says_so(cache: Cache, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.entry("engine", PARTS, build)
    refuse(monkeypatch, cache.root, errno.EROFS)
    with pytest.raises(CacheError, match="cannot be removed: Read-only") as caught:
        cache.rm()
    assert caught.value.fix
