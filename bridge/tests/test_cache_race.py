"""Cache: processes and threads that race, hold entries in use, or are killed."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from bridge import locks, staging
from bridge.cache import Cache

PARTS = {"n": 1}

BUILDER = """
    import os, sys, time
    from pathlib import Path
    from bridge.cache import Cache

    def build(folder):
        with open(builds, "ab", buffering=0) as file:
            file.write(b"x")
        (folder / "a").write_bytes(b"a" * 50_000)
        time.sleep(0.05)
        (folder / "b").write_bytes(b"b" * 50_000)

    root, builds = Path(sys.argv[1]), sys.argv[2]
"""


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            textwrap.dedent(BUILDER) + textwrap.dedent(code),
            *map(str, arguments),
        ],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert err == b""
    return out.decode().strip()


def line(process: subprocess.Popen[bytes]) -> str:
    """One line of a process that goes on; its error text if it says nothing."""
    assert process.stdout is not None
    text = process.stdout.readline().decode().strip()
    assert text, process.communicate(timeout=60)[1].decode()
    return text


def write(folder: Path) -> None:
    (folder / "a").write_bytes(b"x" * 100)


@pytest.mark.parametrize("count", [2, 16])
def test_racing_processes_build_once(tmp_path: Path, count: int) -> None:
    code = """
        sys.stdin.read(1)
        found = Cache(root).entry("engine", {"n": 1}, build, executable=True)
        assert (found / "a").read_bytes() == b"a" * 50_000
        assert (found / "b").read_bytes() == b"b" * 50_000
        print(found)
    """
    processes = [start(code, tmp_path / "cache", tmp_path / "builds") for _ in range(count)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"g")
        process.stdin.flush()
    assert len({finish(process) for process in processes}) == 1
    assert (tmp_path / "builds").read_bytes() == b"x"
    cache = Cache(tmp_path / "cache")
    assert [problem for _, problem in cache.verify()] == [None]
    assert list((cache.root / "tmp").iterdir()) == []


def test_racing_processes_under_a_tight_bound_always_get_whole_entries(tmp_path: Path) -> None:
    """The bound lets two of five entries stay: processes remove what others want."""
    code = """
        for turn in range(10):
            cache = Cache(root, max_bytes=250_000)
            number = (turn * 3 + os.getpid()) % 5
            found = cache.entry("engine", {"n": number}, build)
            assert (found / "a").read_bytes() == b"a" * 50_000
            assert (found / "b").read_bytes() == b"b" * 50_000
    """
    processes = [start(code, tmp_path / "cache", tmp_path / "builds") for _ in range(4)]
    for process in processes:
        finish(process)
    assert all(problem is None for _, problem in Cache(tmp_path / "cache").verify())


def test_threads_build_once(tmp_path: Path) -> None:
    builds = []

    def build(folder: Path) -> None:
        builds.append(folder)
        write(folder)

    def work() -> None:
        barrier.wait(30)
        found.append(Cache(tmp_path / "cache").entry("engine", PARTS, build))

    barrier, found = threading.Barrier(8), []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(builds) == 1


def test_killed_builder_blocks_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
        def stuck(folder):
            (folder / "half").write_bytes(b"x")
            print("building", flush=True)
            time.sleep(600)

        Cache(root).entry("engine", {"n": 1}, stuck)
    """
    cache = Cache(tmp_path / "cache")
    process = start(code, cache.root, "")
    assert line(process) == "building"
    assert locks.lock(cache.root / "locks" / cache.key("engine", PARTS), wait=False) is None
    assert len(list((cache.root / "tmp").iterdir())) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    found = cache.entry("engine", PARTS, write)
    assert (found / "a").read_bytes() == b"x" * 100
    assert list((cache.root / "tmp").iterdir()) == []


def test_waiting_process_takes_over_when_the_builder_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="bridge.cache")
    code = """
        def stuck(folder):
            print("building", flush=True)
            time.sleep(600)

        Cache(root).entry("engine", {"n": 1}, stuck)
    """
    cache = Cache(tmp_path / "cache")
    process = start(code, cache.root, "")
    assert line(process) == "building"
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(cache.entry("engine", PARTS, write)))
    thread.start()
    while not caplog.records and thread.is_alive():
        thread.join(0.01)
    assert "waiting for another process" in caplog.records[0].getMessage()
    assert found == []
    process.kill()
    process.communicate(timeout=60)
    thread.join(60)
    assert (found[0] / "a").exists()


def test_failed_builder_lets_the_next_one_build(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    began, go_on = threading.Event(), threading.Event()
    failures = []

    def failing(folder: Path) -> None:
        began.set()
        assert go_on.wait(30)
        raise ValueError("no")

    def work() -> None:
        try:
            cache.entry("engine", PARTS, failing)
        except ValueError as error:
            failures.append(error)

    first = threading.Thread(target=work)
    first.start()
    assert began.wait(30)
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.append(cache.entry("engine", PARTS, write)))
    second.start()
    go_on.set()
    first.join(60)
    second.join(60)
    assert len(failures) == 1
    assert (found[0] / "a").exists()


def test_entries_in_use_by_another_process_stay(tmp_path: Path) -> None:
    code = """
        found = Cache(root).entry("engine", {"n": 1}, build)
        print(found, flush=True)
        sys.stdin.read(1)
    """
    small = Cache(tmp_path / "cache", max_bytes=150)
    process = start(code, small.root, tmp_path / "builds")
    used = Path(line(process))
    small.entry("engine", {"n": 2}, write)
    small.entry("engine", {"n": 3}, write)
    assert (used / "a").exists()
    assert {entry.parts["n"] for entry in small.ls()} == {1, 3}
    finish(process)
    small.entry("engine", {"n": 4}, write)
    assert [entry.parts["n"] for entry in small.ls()] == [4]


def test_own_hold_comes_back_when_another_process_holds_too(tmp_path: Path) -> None:
    code = """
        Cache(root).entry("engine", {"n": 1}, build)
        print("held", flush=True)
        sys.stdin.read(1)
    """
    small = Cache(tmp_path / "cache", max_bytes=150)
    process = start(code, small.root, tmp_path / "builds")
    assert line(process) == "held"
    folder = Cache(small.root).entry("engine", PARTS, write).parent  # held here as well
    small.entry("engine", {"n": 2}, write)  # tries to remove it
    finish(process)
    with (folder / "lock").open("r+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_rm_removes_what_is_in_use_and_open_files_survive(tmp_path: Path) -> None:
    code = """
        found = Cache(root).entry("engine", {"n": 1}, build)
        with (found / "a").open("rb") as file:
            print("held", flush=True)
            sys.stdin.read(1)
            assert file.read() == b"a" * 50_000
    """
    cache = Cache(tmp_path / "cache")
    process = start(code, cache.root, tmp_path / "builds")
    assert line(process) == "held"
    assert len(cache.rm()) == 1
    finish(process)
    assert cache.ls() == ()


def test_temporary_results_go_when_their_process_ends(tmp_path: Path) -> None:
    code = """
        import logging
        logging.disable()
        found = Cache(root).entry("engine", {"n": 1}, build)
        big = Cache(root.parent / "small", max_bytes=1).entry("engine", {"n": 1}, build)
        child = os.fork()
        if child == 0:
            sys.exit()  # runs the exit functions that it shares with its parent
        os.waitpid(child, 0)
        assert (found / "a").exists() and (big / "a").exists()
        print(found, big, sep="|")
    """
    (tmp_path / "file").touch()
    for text in finish(start(code, tmp_path / "file", tmp_path / "builds")).split("|"):
        assert not Path(text).parent.exists()


def test_lock_whose_file_was_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    first = locks.lock(path, wait=True)
    assert first is not None
    real = fcntl.flock
    removed = []

    def flock(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX:  # the second one, about to wait
            path.unlink()
            os.close(first)
            removed.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = locks.lock(path, wait=True)
    assert second is not None
    assert len(removed) == 1
    assert locks.is_at(second, path)
    assert locks.lock(path, wait=False) is None
    os.close(second)


def test_staging_folder_cleared_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    cleared: list[Path] = []

    def flock(descriptor: int, how: int) -> None:
        if not cleared:
            cleared.extend(tmp_path.iterdir())
            staging.delete(cleared[0])
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    folder, hold = staging.begin(tmp_path)
    os.close(hold)
    assert cleared
    assert folder not in cleared
    assert (folder / "files").is_dir()
