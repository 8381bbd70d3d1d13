"""Cache: keys, hits, the size bound, damaged and unsafe entries, ls, rm and verify."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge import locks, staging
from bridge.cache import Cache, default_cache
from bridge.errors import CacheError

PARTS = {"model": "ab12", "versions": {"onnxruntime": "1.32.0"}, "threads": 2}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def leftovers(cache: Cache) -> list[Path]:
    return list((cache.root / "tmp").iterdir())


def age(cache: Cache, parts: dict[str, Any], seconds: float) -> None:
    used = time.time() - seconds
    os.utime(cache.root / "entries" / cache.key("engine", parts), (used, used))


def same_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# Keys


def test_key_ignores_the_order_of_dicts() -> None:
    turned = {"threads": 2, "versions": {"onnxruntime": "1.32.0"}, "model": "ab12"}
    assert Cache.key("engine", PARTS) == Cache.key("engine", turned)
    assert re.fullmatch(r"[0-9a-f]{64}", Cache.key("engine", PARTS))


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("plan", PARTS),
        ("engine", {**PARTS, "model": "ab13"}),
        ("engine", {**PARTS, "versions": {"onnxruntime": "1.32.1"}}),
        ("engine", {**PARTS, "threads": 3}),
        ("engine", {**PARTS, "threads": "2"}),
        ("engine", {**PARTS, "threads": 2.0}),
        ("engine", {**PARTS, "threads": None}),
        ("engine", {**PARTS, "threads": [2]}),
        ("engine", {**PARTS, "more": None}),
        ("engine", {}),
    ],
)
def test_key_changes_with_every_part(kind: str, parts: dict[str, Any]) -> None:
    assert Cache.key(kind, parts) != Cache.key("engine", PARTS)


@pytest.mark.parametrize(
    "kind", ["", "..", "../x", "a/b", "/etc", "A", "a b", "a\n", "a\0", "x" * 65, ".hidden", "-a"]
)
def test_kind_must_be_a_name(kind: str, cache: Cache, build: Any) -> None:
    with pytest.raises(CacheError, match="is not a name"):
        cache.entry(kind, PARTS, build)
    assert build.count == 0
    assert not cache.root.exists()


@pytest.mark.parametrize(
    "value",
    [Path("x"), b"x", {1, 2}, float("nan"), float("inf"), object(), {1: 0}, [{"a": {None: 0}}]],
)
def test_parts_must_be_json(value: Any) -> None:
    with pytest.raises(CacheError, match="cache key part") as caught:
        Cache.key("engine", {"part": value})
    assert caught.value.fix


def test_parts_that_contain_themselves_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CacheError, match="cache key part"):
        Cache.key("engine", {"part": endless})


def test_hostile_parts_stay_inside_the_root(cache: Cache, build: Any, tmp_path: Path) -> None:
    found = cache.entry("engine", {"../../x": "/etc/passwd", "\udcff\0": "é\n"}, build)
    assert found.is_relative_to(cache.root)
    assert [item.name for item in tmp_path.iterdir()] == ["cache"]
    assert cache.entry("engine", {"../../x": "/etc/passwd", "\udcff\0": "é\n"}, build) == found
    assert build.count == 1


# Hits and misses


@pytest.mark.parametrize("executable", [False, True])
def test_builds_once(
    cache: Cache, build: Any, executable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = cache.entry("engine", PARTS, build, executable=executable)
    again = Cache(cache.root).entry("engine", PARTS, build, executable=executable)
    assert first == again
    assert first.is_relative_to(cache.root)
    assert build.read(first) == b"content"
    assert build.count == 1
    assert build.folders[0] != first
    assert warnings(caplog) == []
    assert leftovers(cache) == []


def test_other_parts_are_another_entry(cache: Cache, builder: Any) -> None:
    one = cache.entry("engine", {"n": 1}, builder(b"one"))
    two = cache.entry("engine", {"n": 2}, builder(b"two"))
    assert (builder.read(one), builder.read(two)) == (b"one", b"two")


def test_everything_is_private_whatever_the_umask(cache: Cache, build: Any) -> None:
    before = os.umask(0)
    try:
        folder = cache.entry("engine", PARTS, build)
    finally:
        os.umask(before)
    for path in [cache.root, *cache.root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert cache.entry("engine", PARTS, build) == folder
    assert build.count == 1


def test_programs_stay_programs(cache: Cache) -> None:
    def build(folder: Path) -> None:
        (folder / "tool").write_bytes(b"x")
        (folder / "tool").chmod(0o755)

    found = cache.entry("engine", PARTS, build)
    assert stat.S_IMODE((found / "tool").stat().st_mode) == 0o700


def test_error_of_build_is_raised_and_nothing_kept(cache: Cache, build: Any) -> None:
    def failing(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise FileNotFoundError(errno.ENOENT, "no such operator")

    with pytest.raises(FileNotFoundError, match="no such operator"):
        cache.entry("engine", PARTS, failing)
    assert leftovers(cache) == []
    assert cache.ls() == ()
    assert build.read(cache.entry("engine", PARTS, build)) == b"content"


def test_interrupted_build_leaves_nothing(cache: Cache, build: Any) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("engine", PARTS, interrupted)
    assert leftovers(cache) == []
    cache.entry("engine", PARTS, build)
    assert build.count == 1


def make_nothing(folder: Path) -> None:
    (folder / "empty").mkdir()


def make_link(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "link").symlink_to("/etc/passwd")


def make_fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


@pytest.mark.parametrize("make", [make_nothing, make_link, make_fifo])
@pytest.mark.parametrize("usable", [True, False])
def test_odd_results_are_refused(
    tmp_path: Path, make: Callable[[Path], None], usable: bool
) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / ("cache" if usable else "file"))
    with pytest.raises(CacheError, match="cannot be kept"):
        cache.entry("engine", PARTS, make)
    if usable:
        assert cache.ls() == ()
        assert leftovers(cache) == []


def test_entries_can_nest(cache: Cache, build: Any) -> None:
    def outer(folder: Path) -> None:
        inner = cache.entry("conversion", PARTS, build)
        (folder / "copy").write_bytes(build.read(inner))

    assert (cache.entry("engine", PARTS, outer) / "copy").read_bytes() == b"content"
    assert len(cache.ls()) == 2


def test_no_descriptor_leaks(cache: Cache, build: Any) -> None:
    def failing(folder: Path) -> None:
        raise ValueError("no")

    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    cache.entry("engine", PARTS, build)
    before = opened()
    for _ in range(5):
        cache.entry("engine", PARTS, build)
        with pytest.raises(ValueError, match="no"):
            cache.entry("engine", {"n": 1}, failing)
    assert opened() == before
    for number in range(100):
        cache.entry("engine", {"n": number}, build)
    assert opened() <= before + 64


# The size bound


def test_least_recently_used_goes_first(cache: Cache, builder: Any) -> None:
    small = Cache(cache.root, max_bytes=350)
    for number in range(3):
        small.entry("engine", {"n": number}, builder(b"x" * 100))
        age(small, {"n": number}, 100 - number)
    small.entry("engine", {"n": 0}, builder())  # a hit: now the last used
    small.entry("engine", {"n": 3}, builder(b"x" * 100))
    assert [entry.parts["n"] for entry in small.ls()] == [3, 0, 2]
    assert sum(entry.size_bytes for entry in small.ls()) == 312
    again = builder(b"x" * 100)
    small.entry("engine", {"n": 1}, again)
    assert again.count == 1


def test_removal_leaves_nothing_behind(cache: Cache, builder: Any) -> None:
    small = Cache(cache.root, max_bytes=150)
    for number in range(5):
        small.entry("engine", {"n": number}, builder(b"x" * 100))
    assert len(small.ls()) == 1
    assert leftovers(small) == []
    assert len(list((small.root / "locks").iterdir())) == 1


@pytest.mark.parametrize("max_bytes", [0, 10])
def test_entry_above_the_bound_is_returned_and_not_kept(
    tmp_path: Path, max_bytes: int, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=max_bytes)
    found = cache.entry("engine", PARTS, build)
    assert build.read(found) == b"content"
    assert cache.ls() == ()
    assert len(warnings(caplog)) == 1
    assert "BRIDGE_CACHE_SIZE" in warnings(caplog)[0]
    cache.entry("engine", {"n": 1}, build)  # tidies up, but not what a living process uses
    assert build.read(found) == b"content"


def test_folder_that_cannot_be_tidied_costs_a_warning(
    cache: Cache, build: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(parent: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(staging, "clear", failing)
    found = cache.entry("engine", PARTS, build)
    assert found.is_relative_to(cache.root)
    assert len(warnings(caplog)) == 1
    assert "cannot be tidied" in warnings(caplog)[0]


def test_what_dead_processes_left_is_cleared(cache: Cache, build: Any) -> None:
    cache.entry("engine", PARTS, build)
    tmp = cache.root / "tmp"
    dead, hold = staging.begin(tmp)
    os.close(hold)  # as the kernel does for a killed process
    alive, hold = staging.begin(tmp)
    for name in ("young", "old"):
        (tmp / name).mkdir()
    os.utime(tmp / "old", (1, 1))
    (tmp / "link").symlink_to("/etc")
    os.utime(tmp / "link", (1, 1), follow_symlinks=False)
    cache.entry("engine", {"n": 1}, build)
    os.close(hold)
    assert not dead.exists()
    assert sorted(leftovers(cache)) == sorted([alive, tmp / "young"])
    assert Path("/etc").is_dir()


# ls, verify, rm, entry_of


def test_ls_of_no_cache_makes_none(cache: Cache) -> None:
    assert cache.ls() == cache.verify() == cache.rm() == ()
    assert not cache.root.exists()


def test_ls_tells_what_is_there(cache: Cache, build: Any) -> None:
    before = time.time()
    path = cache.entry("engine", PARTS, build, executable=True)
    (entry,) = cache.ls()
    assert (entry.key, entry.kind, entry.parts) == (cache.key("engine", PARTS), "engine", PARTS)
    assert entry.path == path
    assert entry.size_bytes == 11
    assert entry.is_executable
    assert before - 1 <= entry.created_s <= time.time() + 1
    assert before - 1 <= entry.used_s <= time.time() + 1


def test_ls_ignores_what_is_no_entry(cache: Cache, build: Any) -> None:
    cache.entry("engine", PARTS, build)
    (cache.root / "entries" / "notes.txt").write_bytes(b"x")
    (cache.root / "entries" / ("A" * 64)).mkdir()
    assert len(cache.ls()) == 1
    cache.rm()
    assert (cache.root / "entries" / "notes.txt").exists()


def test_rm_by_key_and_by_its_beginning(cache: Cache, build: Any) -> None:
    for number in range(4):
        cache.entry("engine", {"n": number}, build)
    keys = [cache.key("engine", {"n": number}) for number in range(4)]
    assert [e.key for e in cache.rm([keys[0], keys[1][:20], keys[0]])] == [keys[0], keys[1]]
    assert {entry.key for entry in cache.ls()} == {keys[2], keys[3]}
    assert {entry.key for entry in cache.rm()} == {keys[2], keys[3]}
    assert cache.ls() == ()
    assert leftovers(cache) == []


@pytest.mark.parametrize("key", ["", "..", "../../x", "/etc", "0" * 64, "*"])
def test_rm_of_an_unknown_key(cache: Cache, build: Any, key: str) -> None:
    cache.entry("engine", PARTS, build)
    with pytest.raises(CacheError, match="cache keys") as caught:
        cache.rm([key])
    assert "cache ls" in (caught.value.fix or "")
    assert len(cache.ls()) == 1


def test_rm_of_a_beginning_that_fits_two(cache: Cache, build: Any) -> None:
    for number in range(17):  # 16 first digits: two keys share one
        cache.entry("engine", {"n": number}, build)
    first = [entry.key[0] for entry in cache.ls()]
    shared = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(CacheError, match="wanted one"):
        cache.rm([shared])
    assert len(cache.ls()) == 17


def test_rm_leaves_what_is_being_built(cache: Cache, build: Any) -> None:
    cache.entry("engine", PARTS, build)
    lock = locks.lock(cache.root / "locks" / cache.key("engine", PARTS), wait=False)
    assert lock is not None
    assert cache.rm() == ()
    os.close(lock)
    assert len(cache.rm()) == 1


def test_entry_of_tells_own_files_from_others(cache: Cache, build: Any, tmp_path: Path) -> None:
    folder = cache.entry("engine", PARTS, build)
    stranger = tmp_path / "model.bin"
    stranger.write_bytes(b"content")
    (tmp_path / "link").symlink_to(folder / "model.bin")
    for own in (folder, folder / "model.bin", folder / "variables/data", tmp_path / "link"):
        found = cache.entry_of(own)
        assert found is not None
        assert found.kind == "engine"
    for other in (stranger, tmp_path, cache.root, folder.parent, folder.parent / "manifest.json"):
        assert cache.entry_of(other) is None
    same_times(folder / "model.bin", lambda: (folder / "model.bin").write_bytes(b"CONTENT"))
    assert cache.entry_of(folder / "model.bin") is None


# The environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("BRIDGE_CACHE_DIR", "BRIDGE_CACHE_SIZE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return monkeypatch


def test_default_place(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache().root == tmp_path / "home/.cache/inference-bridge"
    environment.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache().root == tmp_path / "home/.cache/inference-bridge"
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache().root == tmp_path / "xdg/inference-bridge"
    environment.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache().root == tmp_path / "own"
    environment.setenv("BRIDGE_CACHE_DIR", "~/own")
    assert default_cache().root == tmp_path / "home/own"
    assert Cache().root == tmp_path / "home/own"
    assert default_cache() is default_cache()


def test_default_place_without_home(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    environment.setattr(Path, "home", no_home)
    environment.setattr("tempfile.tempdir", str(tmp_path))
    assert default_cache().root == tmp_path / f"inference-bridge-{os.geteuid()}"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("", 10 * 2**30),
        ("0", 0),
        ("1048576", 2**20),
        ("500M", 500 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2gb", 2**31),
        ("3k", 3072),
        ("1T", 2**40),
        ("7B", 7),
    ],
)
def test_default_size(environment: pytest.MonkeyPatch, text: str, size_bytes: int) -> None:
    environment.setenv("BRIDGE_CACHE_SIZE", text)
    assert default_cache().max_bytes == size_bytes


@pytest.mark.parametrize("text", ["x", "-1", "5 apples", "1..2", "G", "1e9", "10 %"])
def test_default_size_that_is_none(environment: pytest.MonkeyPatch, text: str) -> None:
    environment.setenv("BRIDGE_CACHE_SIZE", text)
    with pytest.raises(CacheError, match="BRIDGE_CACHE_SIZE") as caught:
        default_cache()
    assert caught.value.fix
