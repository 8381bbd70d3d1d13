"""Runs tests in a process of their own: a crash or a hang costs the test that caused it.

The parent has collected the tests; a child, a pytest of the same arguments, runs them and
writes a journal, one JSON line for each test begun and each report. Where the child ends
before its work is done, the test that was running is the culprit: it fails with the
signal or, if it hung, with the stacks of all threads, and a new child goes on with the
next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Journal", "supervise"]

_POLL_S = 0.02
_GRACE_S = 20.0  # beyond a test's deadline, for a child that cannot even end itself
_MAX_IDLE_STARTS = 3  # children in a row that end before any test begins
_TAIL_BYTES = 6000
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Journal:
    """The child's side: what is written for the parent, and the watchdog over each test.

    Args:
        path: The journal; the stacks of a hanging test go to the same name with ``.stacks``.
        config: The child's configuration.
    """

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._config = config
        self._journal = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._stacks = _stacks_of(path).open("w", encoding="utf-8")
        if sys.platform == "linux":
            # A child must not outlive its parent, not even one that is killed.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Notes that a test begins, and ends the process if it takes too long."""
        self._write({"begin": place_of(item)})
        faulthandler.dump_traceback_later(deadline_s(item), exit=True, file=self._stacks)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Passes a report on."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"report": data})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Notes that all is done."""
        self._write({"end": True})

    def _write(self, line: dict[str, Any]) -> None:
        # In one piece: a test's late Ctrl-C must not leave half a line.
        os.write(self._journal, json.dumps(line, default=_plain).encode() + b"\n")


def place_of(item: pytest.Item) -> str:
    """File and name of a test: unlike its node id, they do not depend on pytest's root folder."""
    return f"{item.path}::{item.nodeid.partition('::')[2]}"


def deadline_s(item: pytest.Item) -> float:
    """Seconds that a test may take: ``--bridge-timeout``, or its own ``deadline`` mark."""
    mark = item.get_closest_marker("deadline")
    usual: float = item.config.getoption("bridge_timeout")
    return usual if mark is None else max(usual, float(mark.args[0]))


def supervise(session: pytest.Session, items: Sequence[pytest.Item]) -> None:
    """Runs tests in children and hands their reports to this session.

    Args:
        session: The session that collected them.
        items: What to run, in order.
    """
    left = list(items)
    idle_starts = 0
    with tempfile.TemporaryDirectory(prefix="bridge-conformance-") as folder:
        for number in range(len(items) + _MAX_IDLE_STARTS):
            if not left or session.shouldstop or session.shouldfail:
                return
            child = _Child(session, left, Path(folder) / str(number))
            try:
                done = child.run()
            finally:
                child.end()
            left = [item for item in left if item not in done]
            idle_starts = 0 if done else idle_starts + 1
            if idle_starts == _MAX_IDLE_STARTS:
                for item in left:
                    _report(item, child.last_words, 0.0)
                return


class _Child:
    def __init__(self, session: pytest.Session, items: Sequence[pytest.Item], base: Path) -> None:
        self._session = session
        self._items = items
        self.last_words = ""
        self._is_ended = False
        self._journal = base.with_suffix(".journal")
        self._journal.touch()
        wanted = base.with_suffix(".wanted")
        wanted.write_text(json.dumps([place_of(item) for item in items]), encoding="utf-8")
        self._output = base.with_suffix(".output")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                _command(session.config, self._journal, wanted),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                # A group of its own, so that whatever a test has started ends with it.
                start_new_session=True,
            )

    def run(self) -> set[pytest.Item]:
        """Follows the journal to the child's end; the tests that need not be run again."""
        places = {place_of(item): item for item in self._items}
        usual_s: float = self._session.config.getoption("bridge_timeout")
        running: pytest.Item | None = None
        done: set[pytest.Item] = set()
        since = time.monotonic()  # the beginning of a test, or the end of the last one
        for line in self._lines():
            if line is None:
                patience_s = (usual_s if running is None else deadline_s(running)) + _GRACE_S
                if time.monotonic() - since > patience_s:
                    self._is_ended = True
                    self.end()
            elif "begin" in line:
                running, since = places[line["begin"]], time.monotonic()
                running.ihook.pytest_runtest_logstart(
                    nodeid=running.nodeid, location=running.location
                )
            elif "report" in line:
                assert running is not None
                if self._pass_on(running, line["report"]) == "teardown":
                    done.add(running)
                    running, since = None, time.monotonic()
                if self._session.shouldstop or self._session.shouldfail:
                    return done
            else:
                return done  # whatever it still does, it has nothing more to tell
        self.last_words = self._epitaph("while this test ran" if running else "between tests")
        if running is not None:
            _report(running, self.last_words, time.monotonic() - since)
            done.add(running)
        return done

    def _pass_on(self, item: pytest.Item, data: dict[str, Any]) -> str:
        """Hands one report of the child to this session; which of a test's three it is."""
        report = self._session.config.hook.pytest_report_from_serializable(
            config=self._session.config, data=data
        )
        report.nodeid = item.nodeid
        if isinstance(report.longrepr, list):  # pytest wants the tuple that JSON has not
            report.longrepr = tuple(report.longrepr)
        item.ihook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        when: str = report.when
        return when

    def _lines(self) -> Iterator[dict[str, Any] | None]:
        """Lines of the journal; ``None`` whenever there is no new one."""
        with self._journal.open(encoding="utf-8") as journal:
            part = ""
            while True:
                is_over = self._process.poll() is not None
                part += journal.readline()
                if part.endswith("\n"):
                    yield json.loads(part)
                    part = ""
                elif is_over:
                    return
                else:
                    yield None
                    time.sleep(_POLL_S)

    def _epitaph(self, when: str) -> str:
        """How the child ended, and its last words; it has ended."""
        stacks = _stacks_of(self._journal)
        text = stacks.read_text(encoding="utf-8", errors="replace") if stacks.is_file() else ""
        if text or self._is_ended:
            return f"hung: it did not end in time, and its process was ended.\n{text}"
        status = self._process.wait()
        how = f"exit status {status}"
        if status < 0:
            known = {one.value: one.name for one in signal.Signals}  # all but real-time signals
            how = f"signal {known.get(-status, -status)}"
        tail = self._output.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        return f"crashed: the process ended {when}, with {how}.\n{tail}"

    def end(self) -> None:
        """Ends the child and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _command(config: pytest.Config, journal: Path, wanted: Path) -> list[str]:
    """A pytest that collects what this one has collected, and runs only what is wanted."""
    words = [sys.executable, "-m", "pytest", *config.args]
    words += ["-o", "addopts=", "--rootdir", str(config.rootpath)]
    words += [] if config.inipath is None else ["-c", str(config.inipath)]
    words += ["--import-mode", config.getoption("importmode")]
    words += ["--pyargs"] if config.option.pyargs else []
    words += [word for name in config.option.plugins for word in ("-p", name)]
    words += ["-p", "no:cacheprovider", "-q"]
    # The deadlines are ours: pytest's own would take faulthandler's only timer, and
    # pytest-timeout, where it is there, would have others.
    words += ["-o", "faulthandler_timeout=0"]
    words += ["-o", "timeout=0"] if config.pluginmanager.hasplugin("timeout") else []
    for name in ("bridge_backend", "bridge_device", "bridge_timeout"):
        value = config.getoption(name)
        words += [] if value is None else [f"--{name.replace('_', '-')}={value}"]
    words += ["--bridge-quick"] if config.getoption("bridge_quick") else []
    # With "=": pytest takes a word of its own that is a path for something to collect from.
    return [*words, f"--bridge-journal={journal}", f"--bridge-wanted={wanted}"]


def _environment() -> dict[str, str]:
    # The options of the parent are passed on one by one.
    return {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}


def _report(item: pytest.Item, text: str, duration_s: float) -> None:
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=text,
        when="call",
        duration=duration_s,
    )
    item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _plain(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    return value.item()


def _stacks_of(journal: Path) -> Path:
    return journal.with_suffix(".stacks")
