"""The pytest plugin of the suite: options, which tests are for whom, and the certificate.

It is loaded into every pytest of an environment that has this distribution, so it
imports pytest and the standard library only, until a test of the suite is collected.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import bridge
    from bridge_conformance.ledger import Ledger
    from bridge_conformance.subject import Subject

__all__: list[str] = []

_SUITE = "bridge_conformance.suite."
_DEADLINE_S = 120.0

_ledgers = pytest.StashKey[dict[str, "Ledger"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all but the child's own shown by ``--help``."""
    group = parser.getgroup("bridge", "conformance of an inference-bridge backend")
    add = group.addoption
    add("--bridge-backend", metavar="NAME", help="backend under test")
    add("--bridge-device", metavar="DEVICE", help="device under test; default: its first kind")
    add("--bridge-quick", action="store_true", help="leave out what takes long")
    add("--bridge-certificate", metavar="FILE", type=Path, help="write the certificate here")
    add(
        "--bridge-timeout",
        metavar="SECONDS",
        type=float,
        default=_DEADLINE_S,
        help="a test that takes longer has failed, and its process is ended (%(default)g)",
    )
    add(
        "--bridge-in-process",
        action="store_true",
        help="run the suite in this very process: for debuggers; a crash then ends it all",
    )
    add("--bridge-progress", type=Path, help=_HIDDEN)
    # Between the process that collects and the one that runs; see supervision.py.
    add("--bridge-journal", type=Path, help=_HIDDEN)
    add("--bridge-wanted", type=Path, help=_HIDDEN)


_HIDDEN = "==SUPPRESS=="  # argparse.SUPPRESS


def pytest_configure(config: pytest.Config) -> None:
    """Marks; the journal where this is the child; plugins that are tried uninstalled."""
    for line in (
        "requires(capability, value=True): runs where the backend claims this",
        "refuses(capability, value=True): runs where the backend does not claim this",
        "full: left out by --bridge-quick",
        "deadline(seconds): may take this long, if that is more than --bridge-timeout",
        "builds: about building, so runs on machines that cannot run the result",
    ):
        config.addinivalue_line("markers", line)
    path: Path | None = config.getoption("bridge_certificate")
    if path is not None and not path.parent.is_dir():
        raise pytest.UsageError(
            f"--bridge-certificate={path}: there is no folder '{path.parent}'; wanted one."
        )
    if path is not None and config.getoption("numprocesses", None):
        raise pytest.UsageError("--bridge-certificate needs a run without pytest-xdist's -n.")
    journal = config.getoption("bridge_journal")
    if journal is not None:
        from bridge_conformance.supervision import Journal

        config.pluginmanager.register(Journal(journal, config), "bridge-journal")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """Loads plugins that are tried uninstalled, before anything looks for them."""
    import os

    if os.environ.get("BRIDGE_CONFORMANCE_PLUGINS"):
        from bridge_conformance.writing import load_test_plugins

        try:
            load_test_plugins()
        except ImportError as error:
            raise pytest.UsageError(
                f"BRIDGE_CONFORMANCE_PLUGINS names a module that cannot be imported: {error}."
            ) from error


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, obj: object
) -> list[pytest.Item] | None:
    """Does not even collect, in quick mode, a class of the suite that takes long as a whole."""
    if not (isinstance(obj, type) and collector.config.getoption("bridge_quick")):
        return None
    if not _is_suite_class(obj):
        return None
    from bridge_conformance.claims import is_full

    return [] if is_full(obj) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Chooses the tests that a backend has to pass, and marks its known failures."""
    ours = [item for item in items if _is_of_suite(item)]
    if not ours:
        return
    from bridge_conformance.selection import choose, require_whole_suites

    require_whole_suites(ours)
    ledgers: dict[str, Ledger] = {}
    kept, left_out = choose(config, ours, ledgers)
    config.stash[_ledgers] = ledgers  # only now: without a choice there is nothing to certify
    config.hook.pytest_deselected(items=left_out)
    wanted = config.getoption("bridge_wanted")
    if wanted is not None:
        from bridge_conformance.supervision import place_of

        places = set(json.loads(wanted.read_text(encoding="utf-8")))
        items[:] = [item for item in kept if place_of(item) in places]
        return
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Runs other tests as ever, then those of the suite, each backend in a child."""
    config = session.config
    items = session.items
    ours = [item for item in items if _is_of_suite(item)]
    if not ours or not _is_supervised(config):
        return (yield)
    from bridge_conformance.subject import subject_of
    from bridge_conformance.supervision import supervise

    session.items = [item for item in items if not _is_of_suite(item)]
    result = yield
    groups: dict[str, list[pytest.Item]] = {}
    for item in ours:
        groups.setdefault(subject_of(config, _class_of(item)).backend.name, []).append(item)
    for group in groups.values():
        supervise(session, group)
    session.items = items
    return result


class _Recorder:
    """Hands reports to the ledger of their backend."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        from bridge_conformance.ledger import id_of
        from bridge_conformance.subject import subject_of

        ledgers = config.stash[_ledgers]
        self._places = {
            item.nodeid: (id_of(item), ledgers[subject_of(config, _class_of(item)).backend.name])
            for item in items
        }
        self._progress: Path | None = config.getoption("bridge_progress")
        self._done = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._places:
            test, ledger = self._places[report.nodeid]
            ledger.note(test, report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._progress is not None and nodeid in self._places:
            self._done += 1
            test, _ = self._places[nodeid]
            with self._progress.open("a", encoding="utf-8") as file:
                print(f"{self._done} of {len(self._places)}, {test}", file=file)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tells the ledgers what to expect."""
    ours = [item for item in session.items if _is_of_suite(item)]
    if not ours or _ledgers not in session.config.stash:
        return
    from bridge_conformance.ledger import area_of, id_of
    from bridge_conformance.selection import is_whole
    from bridge_conformance.subject import subject_of

    ledgers = session.config.stash[_ledgers]
    if not is_whole(session.config, session.items):
        for ledger in ledgers.values():
            ledger.mode = "selected"
    for item in ours:
        cls = _class_of(item)
        ledgers[subject_of(session.config, cls).backend.name].expect(id_of(item), area_of(cls))
    recorder = _Recorder(session.config, ours)
    session.config.pluginmanager.register(recorder, "bridge-recorder")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the certificate, also after an interruption."""
    path: Path | None = session.config.getoption("bridge_certificate")
    ledgers = session.config.stash.get(_ledgers, {})
    if path is None or not ledgers or session.config.option.collectonly:
        return
    if session.testsfailed and not any(ledger.is_begun for ledger in ledgers.values()):
        return  # something could not be collected, so nothing was run: nothing to certify
    for name, ledger in ledgers.items():
        where = path if len(ledgers) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        ledger.certificate().write(where)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is under test, as one wants to read it in a report of a defect."""
    if config.getoption("bridge_backend") is None:
        return []
    from bridge_conformance.ledger import suite_version
    from bridge_conformance.subject import subject_of

    subject = subject_of(config, None)
    found = subject.backend.probe()
    claims = subject.claims
    yes = [
        name
        for name in ("dynamic_dims", "zero_rows", "bind", "dlpack", "deterministic", "predicts")
        if getattr(claims, name)
    ]
    runtime = f"{found.distribution or 'runtime'} {found.version or 'of no version'}"
    formats = ", ".join(sorted(claims.formats)) or "none"
    dtypes = ", ".join(sorted(str(dtype) for dtype in claims.dtypes)) or "none"
    return [
        f"suite {suite_version()}, backend {subject.backend.name} on {subject.device}, {runtime}",
        f"claims: {', '.join(yes) or 'nothing'}; threads {claims.thread_safety.value}",
        f"formats: {formats}; dtypes: {dtypes}",
    ]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The verdict on each backend."""
    for ledger in config.stash.get(_ledgers, {}).values():
        certificate = ledger.certificate()
        name = f"{certificate.backend} on {certificate.device}"
        terminalreporter.write_line(f"{name}: {certificate.headline}")


@pytest.fixture(scope="class")
def subject(request: pytest.FixtureRequest) -> Subject:
    """The backend under test, on its device."""
    from bridge_conformance.subject import subject_of

    return subject_of(request.config, request.cls)


@pytest.fixture
def load(subject: Subject) -> Iterator[Any]:
    """``load(network, format=None, **arguments)``: a predictor, closed after the test."""
    made: list[bridge.Predictor] = []

    def load_one(network: str, format: str | None = None, **arguments: Any) -> bridge.Predictor:
        made.append(subject.load(network, format, **arguments))
        return made[-1]

    yield load_one
    for predictor in made:
        predictor.close()


def _is_of_suite(item: pytest.Item) -> bool:
    cls = getattr(item, "cls", None)
    return cls is not None and _is_suite_class(cls)


def _is_suite_class(cls: type) -> bool:
    return any(one.__module__.startswith(_SUITE) for one in cls.__mro__)


def _class_of(item: pytest.Item) -> type:
    found: type = item.cls  # type: ignore[attr-defined]
    return found


def _is_supervised(config: pytest.Config) -> bool:
    option = config.option
    return not (
        option.collectonly
        or config.getoption("bridge_in_process")
        or config.getoption("bridge_journal") is not None
        or getattr(option, "usepdb", False)
        or hasattr(config, "workerinput")  # a worker of pytest-xdist is a child already
    )
