"""native_output: what native code prints becomes log records, and nothing else changes."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.logs import logger, native_output

LOG = logger("made_up")


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="bridge")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def same_descriptors() -> Iterator[None]:
    """Outputs are the same files after each test, and no descriptor is left open."""

    def outputs() -> list[tuple[int, int]]:
        return [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in (1, 2)]

    with native_output(LOG):  # first use loads ctypes
        pass
    before, count = outputs(), open_descriptors()
    yield
    assert outputs() == before
    assert open_descriptors() == count


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, because pytest has its own idea of the outputs."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        **options,  # type: ignore[call-overload]
    )


def test_logger_is_named_after_the_backend() -> None:
    assert logger("onnxruntime").name == "bridge.onnxruntime"
    assert logger("onnxruntime").parent is logging.getLogger("bridge")


def test_bytes_written_to_both_descriptors_become_records(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with native_output(LOG) as native:
        os.write(1, b"one\n")
        os.write(2, b"two\n\n  \nthree")
    assert messages(caplog) == ["one", "two", "three"]
    assert {record.name for record in caplog.records} == {"bridge.made_up"}
    assert native.lines == ("one", "two", "three")
    assert capfd.readouterr() == ("", "")


def test_output_before_and_after_is_left_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    os.write(1, b"before\n")
    with native_output(LOG):
        os.write(1, b"inside\n")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "before\nafter\n"
    assert messages(caplog) == ["inside"]


def test_c_buffers_go_to_the_right_side() -> None:
    """In a process of its own: PYTHONUNBUFFERED switches off C's buffers as well."""
    found = run(
        """
        import ctypes
        from bridge.logs import logger, native_output
        libc = ctypes.CDLL(None)
        libc.printf(b"before ")
        with native_output(logger("x")) as native:
            libc.printf(b"inside")
        libc.printf(b"after %s", repr(native.lines).encode())
        """,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    assert found.stdout == "before after ('inside',)", found.stderr


def test_python_buffers_go_to_the_right_side() -> None:
    found = run(
        """
        import logging, sys
        from bridge.logs import logger, native_output
        logging.basicConfig(level="INFO", stream=sys.stderr, format="%(message)s")
        sys.stdout.write("before ")
        with native_output(logger("x")):
            sys.stdout.write("inside")
        sys.stdout.write("after")
        """,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    assert (found.stdout, found.stderr, found.returncode) == ("before after", "inside\n", 0)


def test_records_reach_a_handler_that_writes_to_the_real_stderr() -> None:
    """Forwarded after restoring: a handler on stderr must not feed the capture."""
    found = run(
        """
        import logging, os, sys
        from bridge.logs import logger, native_output
        logging.basicConfig(level="DEBUG", format="%(levelname)s %(name)s %(message)s")
        with native_output(logger("x")):
            os.write(2, b"[W:onnxruntime:Default, a.cc:1 f] careful\\n")
        with native_output(logger("y")):
            pass
        """
    )
    assert found.stdout == ""
    assert found.stderr == "WARNING bridge.x [W:onnxruntime:Default, a.cc:1 f] careful\n"


def test_without_logging_configured_nothing_is_printed() -> None:
    found = run(
        """
        import os
        from bridge.logs import logger, native_output
        with native_output(logger("x")):
            os.write(1, b"E0000 00:00:1 a.cc:1] bad\\n")
        """
    )
    assert (found.stdout, found.stderr, found.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("I0000 00:00:1732413510.798731 4834 port.cc:153] oneDNN is on", "INFO"),
        ("W0000 00:00:1732413510.798731 4834 a.cc:1] text", "WARNING"),
        ("E0000 00:00:1732413510.798731 4834 a.cc:1] text", "ERROR"),
        ("F1124 01:58:30.123456 17 a.cc:1] text", "CRITICAL"),
        ("[W1124 01:58:30.123456789 a.cpp:12] Warning: text (function f)", "WARNING"),
        ("2024-11-24 01:58:30.123456: W tensorflow/core/a.cc:1] text", "WARNING"),
        ("2024-11-24 01:58:30.123456: E external/a.cc:1] text", "ERROR"),
        ("\x1b[0;93m2024-11-24 01:58:30.1 [W:onnxruntime:, a.cc:1 f] text\x1b[m", "WARNING"),
        ("2024-11-24 01:58:30.1 [V:onnxruntime:Default, a.cc:1 f] text", "DEBUG"),
        ("2024-11-24 01:58:30.1 [E:onnxruntime:Default, a.cc:1 f] text", "ERROR"),
        ("2024-11-24 01:58:30.1 [F:onnxruntime:Default, a.cc:1 f] text", "CRITICAL"),
        ("[ERROR] text", "ERROR"),
        ("[ WARNING ] text", "WARNING"),
        ("[ INFO ] text", "INFO"),
        ("[DEBUG] text", "DEBUG"),
        ("WARNING: text", "WARNING"),
        ("Warning: text", "WARNING"),
        ("[11/24/2024-01:58:30] [TRT] [E] text", "ERROR"),
        ("[11/24/2024-01:58:30] [TRT] [V] text", "DEBUG"),
        ("/a/b.py:20: UserWarning: text", "WARNING"),
        ("Every word here is plain", "INFO"),
        ("Errors: none", "INFO"),
        ("[E] is not at", "ERROR"),
        ("E00 x", "INFO"),
    ],
)
def test_level_is_read_from_the_prefix(
    line: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with native_output(LOG):
        os.write(2, line.encode() + b"\n")
    assert [record.levelname for record in caplog.records] == [level]
    assert "\x1b" not in caplog.records[0].getMessage()


def test_percent_signs_and_bad_bytes_are_kept_harmless(caplog: pytest.LogCaptureFixture) -> None:
    with native_output(LOG):
        os.write(1, b"100%s %d \xff\xfe caf\xc3\xa9\r\n")
    assert messages(caplog) == ["100%s %d \ufffd\ufffd caf\xe9"]


def test_much_output_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with native_output(LOG) as native:
        for number in range(3000):
            os.write(1 + number % 2, b"%04d %s\n" % (number, b"x" * 95))
    assert [text[:4] for text in messages(caplog)] == [f"{n:04d}" for n in range(3000)]
    assert [line[:4] for line in native.lines] == [f"{n:04d}" for n in range(2000, 3000)]


def test_a_line_without_end_is_cut_and_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    with native_output(LOG):
        os.write(1, b"y" * 200_000)
    assert [len(text) for text in messages(caplog)] == [65536, 65536, 65536, 200_000 - 3 * 65536]


def test_exceptions_restore_and_keep_the_lines(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = None
    with pytest.raises(ZeroDivisionError), native_output(LOG) as native:  # noqa: PT012
        os.write(2, b"[ERROR] the reason\n")
        seen = native.lines
        os.write(2, b"later\n")
        _ = 1 / 0
    os.write(2, b"after\n")
    assert seen == ("[ERROR] the reason",)
    assert native.lines == ("[ERROR] the reason", "later")
    assert messages(caplog) == ["[ERROR] the reason", "later"]
    assert capfd.readouterr().err == "after\n"


def test_interrupted_flush_still_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdout:
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1
            if self.flushed == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Stdout())
        with pytest.raises(KeyboardInterrupt), native_output(LOG):
            pass
    # the fixture compares the outputs


@pytest.mark.parametrize("stream", [None, "closed"])
def test_missing_or_closed_python_streams(
    stream: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replacement = None
    if stream == "closed":
        with Path(os.devnull).open("w") as replacement:
            pass
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", replacement)
        with native_output(LOG):
            os.write(1, b"text\n")
    assert messages(caplog) == ["text"]


def test_nested_blocks_log_to_their_own_logger(caplog: pytest.LogCaptureFixture) -> None:
    with native_output(logger("outer")) as outer:
        os.write(1, b"a\n")
        with native_output(logger("inner")) as inner:
            os.write(1, b"b\n")
        assert messages(caplog) == []  # still redirected: a handler would feed the capture
        os.write(1, b"c\n")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("bridge.outer", "a"),
        ("bridge.inner", "b"),
        ("bridge.outer", "c"),
    ]
    assert inner.lines == ("b",)
    assert outer.lines == ("a", "b", "c")


def test_overlapping_threads_first_redirects_last_restores(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    second_began, first_ended = threading.Event(), threading.Event()

    def second() -> None:
        with native_output(logger("second")) as block:
            second_began.set()
            assert first_ended.wait(30)
            os.write(1, b"late\n")
        lines.append(block.lines)

    lines: list[tuple[str, ...]] = []
    thread = threading.Thread(target=second)
    with native_output(logger("first")) as first:
        os.write(1, b"early\n")
        thread.start()
        assert second_began.wait(30)
        os.write(1, b"middle\n")
    os.write(1, b"not yet restored\n")
    first_ended.set()
    thread.join(30)
    os.write(1, b"restored\n")
    assert first.lines == ("early", "middle")
    assert lines == [("middle", "not yet restored", "late")]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("bridge.first", "early"),
        ("bridge.second", "middle"),
        ("bridge.second", "not yet restored"),
        ("bridge.second", "late"),
    ]
    assert capfd.readouterr().out == "restored\n"


def test_many_threads_lose_no_line(caplog: pytest.LogCaptureFixture) -> None:
    def work(name: int) -> None:
        for turn in range(50):
            with native_output(logger(str(name))):
                os.write(1 + turn % 2, f"{name}/{turn}\n".encode())

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wanted = sorted(f"{name}/{turn}" for name in range(8) for turn in range(50))
    assert sorted(messages(caplog)) == wanted


def test_text_that_other_threads_print_is_caught() -> None:
    found = run(
        """
        import os, sys, threading
        from bridge.logs import logger, native_output
        with native_output(logger("x")) as native:
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start(); thread.join()
        os.write(1, repr(native.lines).encode())
        """
    )
    assert found.stdout == "('from a thread',)"


def test_child_process_output_is_caught(caplog: pytest.LogCaptureFixture) -> None:
    with native_output(LOG):
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    assert messages(caplog) == ["from a child"]


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_descriptors_stay_closed(closed: tuple[int, ...], tmp_path: Path) -> None:
    report = tmp_path / "report"
    run(
        f"""
        import os
        from bridge.logs import logger, native_output
        for fd in {closed!r}:
            os.close(fd)
        with native_output(logger("x")) as native:
            os.write(1, b"one\\n")
            os.write(2, b"two\\n")
        is_open = []
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
                is_open.append(fd)
            except OSError:
                pass
        with open({str(report)!r}, "w") as file:
            file.write(repr((native.lines, is_open)))
        os._exit(0)
        """
    )
    still_open = [fd for fd in (0, 1, 2) if fd not in closed]
    assert report.read_text() == repr((("one", "two"), still_open))


def test_failure_to_redirect_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = os.dup2
    calls = []

    def failing(source: int, target: int, inheritable: bool = True) -> int:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(24, "Too many open files")
        return real(source, target, inheritable)

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", failing)
        with pytest.raises(OSError, match="Too many"), native_output(LOG):
            pass
    os.write(1, b"still here\n")
    assert capfd.readouterr().out == "still here\n"
    with native_output(LOG) as native:
        os.write(1, b"works\n")
    assert native.lines == ("works",)


def test_works_without_memory_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with native_output(LOG):
        os.write(1, b"x" * 100_000 + b"\nend\n")
    assert messages(caplog)[-1] == "end"


def test_forked_child_has_its_outputs_back() -> None:
    found = run(
        """
        import os
        from bridge.logs import logger, native_output
        with native_output(logger("x")) as native:
            os.write(1, b"caught\\n")
            child = os.fork()
            if child == 0:
                os.write(1, b"child inside;")
            else:
                os.waitpid(child, 0)
        if child == 0:
            with native_output(logger("x")) as again:
                os.write(1, b"caught in child")
            os.write(1, b"child after %s;" % repr(again.lines).encode())
            os._exit(0)
        os.write(1, b"parent %s" % repr(native.lines).encode())
        """
    )
    wanted = "child inside;child after ('caught in child',);parent ('caught',)"
    assert found.stdout == wanted, found.stderr


def test_redirected_stdout_file_is_written_in_order(tmp_path: Path) -> None:
    """The outputs may be ordinary files: their position survives the detour."""
    code = textwrap.dedent(
        """
        import os
        from bridge.logs import logger, native_output
        print("before")
        with native_output(logger("x")):
            os.write(1, b"inside\\n")
        print("after")
        """
    )
    target = tmp_path / "out"
    with target.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", code], stdout=file, check=True, cwd=Path(__file__).parents[2]
        )
    assert target.read_text() == "before\nafter\n"


def test_a_failing_handler_leaks_nothing() -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("handler")

    handler = Failing()
    LOG.addHandler(handler)
    try:
        with pytest.raises(RuntimeError, match="handler"), native_output(LOG):
            os.write(1, b"text\n")
    finally:
        LOG.removeHandler(handler)
    with contextlib.suppress(RuntimeError), native_output(LOG) as native:
        pass
    assert native.lines == ()
