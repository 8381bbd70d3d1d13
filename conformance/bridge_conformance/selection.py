"""Which of the collected tests one backend has to pass, and which of them it is known to fail."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

from bridge_conformance import suite
from bridge_conformance.claims import applies, is_full, lacks
from bridge_conformance.known_failures import KnownFailuresError
from bridge_conformance.ledger import Ledger, area_of, id_of
from bridge_conformance.subject import Subject, subject_of

__all__ = [
    "choose",
    "collected_ids",
    "is_whole",
    "require_whole_suites",
    "suite_classes",
    "suite_for",
]

_FOREIGN = ("skip", "skipif", "xfail")  # no test of the suite has one before it is chosen
_ids = pytest.StashKey[dict[str, set[str]]]()
_kept = pytest.StashKey[frozenset[pytest.Item]]()


def suite_classes() -> dict[str, type]:
    """The classes of the suite by name."""
    modules = [
        importlib.import_module(f"{suite.__name__}.{info.name}")
        for info in pkgutil.iter_modules(suite.__path__)
    ]
    return {
        name: found
        for module in modules
        for name, found in vars(module).items()
        if name.startswith("Test") and found.__module__ == module.__name__
    }


def suite_for(backend: str) -> dict[str, type]:
    """The suite's classes for one backend, by name, to be put into a test file's globals.

    Args:
        backend: Name of the backend, as ``bridge.load`` takes it.

    Returns:
        All classes; a file in which one is missing or replaced is refused.
    """
    said = {"bridge_backend": backend}
    made = {
        name: type(name, (found,), {"__doc__": found.__doc__, **said})
        for name, found in suite_classes().items()
    }
    for one in made.values():
        one.bridge_suite = tuple(made.values())  # type: ignore[attr-defined]
    return made


def collected_ids(config: pytest.Config, subject: Subject) -> set[str]:
    """Ids of all tests that were collected for a backend, whether chosen or not."""
    return config.stash[_ids][subject.backend.name]


def is_whole(config: pytest.Config, items: list[pytest.Item]) -> bool:
    """Whether these are all tests of the suite that are to be run, as far as can be told."""
    is_quick = config.getoption("bridge_quick")
    wanted = {name for name, cls in suite_classes().items() if not (is_quick and is_full(cls))}
    classes = {test.partition("::")[0] for ids in config.stash[_ids].values() for test in ids}
    is_cut = any("::" in word for word in config.args)
    return not is_cut and wanted <= classes and config.stash[_kept] <= set(items)


def choose(
    config: pytest.Config, items: list[pytest.Item], ledgers: dict[str, Ledger]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those to be run, known failures marked, and those left out.

    Args:
        config: Its options say how much to run.
        items: Tests of the suite, in order.
        ledgers: Ledgers by backend; missing ones are added.

    Raises:
        pytest.UsageError: A backend cannot be tested, or its known failures be read.
    """
    is_quick = config.getoption("bridge_quick")
    if _ids not in config.stash:
        config.stash[_ids] = {}
    ids = config.stash[_ids]
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        cls: type = item.cls  # type: ignore[attr-defined]
        subject = subject_of(config, cls)
        test = id_of(item)
        ids.setdefault(subject.backend.name, set()).add(test)
        ledger = ledgers.get(subject.backend.name)
        if ledger is None:
            ledger = Ledger(subject, "quick" if is_quick else "full")
            ledgers[subject.backend.name] = ledger
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        marks = list(item.iter_markers())
        if any("empty parameter set" in one.kwargs.get("reason", "") for one in marks):
            left_out.append(item)  # pytest's stand-in for what there is none of, such as writers
            continue
        foreign = next((one.name for one in marks if one.name in _FOREIGN), None)
        if foreign is not None:
            raise pytest.UsageError(
                f"{test} of the conformance suite was given the mark '{foreign}'; wanted none. "
                "List what fails in known_failures.toml."
            )
        if not applies(subject.claims, marks, parameters):
            is_claim_missing = lacks(subject.claims, marks, parameters)
            ledger.leave_out(area_of(cls), is_claim_missing=is_claim_missing)
            left_out.append(item)
        elif is_quick and item.get_closest_marker("full") is not None:
            left_out.append(item)
        else:
            _mark(item, subject, test)
            kept.append(item)
    config.stash[_kept] = frozenset(kept)
    return kept, left_out


def require_whole_suites(items: list[pytest.Item]) -> None:
    """Refuses a test file in which a class of ``suite_for`` was replaced or deleted.

    Raises:
        pytest.UsageError: One is missing, or is another class now.
    """
    for cls in {item.cls for item in items}:  # type: ignore[attr-defined]
        module = sys.modules.get(_home(items, cls))
        for sibling in getattr(cls, "bridge_suite", ()):
            # A class of suite_for has no tests of its own, only those that it inherits.
            own = [name for name in vars(sibling) if name.startswith(("test_", "pytest_"))]
            if own or getattr(module, sibling.__name__, None) is not sibling:
                raise pytest.UsageError(
                    f"{sibling.__name__} of the conformance suite was replaced or deleted; wanted "
                    "the suite as suite_for returns it. List what fails in known_failures.toml."
                )


def _home(items: list[pytest.Item], cls: type) -> str:
    name: str = next(
        item.module.__name__  # type: ignore[attr-defined]
        for item in items
        if item.cls is cls  # type: ignore[attr-defined]
    )
    return name


def _mark(item: pytest.Item, subject: Subject, test: str) -> None:
    if not subject.claims.predicts and item.get_closest_marker("builds") is None:
        reason = f"not verified: {subject.backend.name} cannot run models on this machine."
        item.add_marker(pytest.mark.skip(reason=reason))
        return
    try:
        known = subject.known_failures.get(test)
    except KnownFailuresError as error:
        raise pytest.UsageError(str(error)) from error
    if known is not None:
        item.add_marker(pytest.mark.xfail(reason=known.reason, strict=True, run=known.is_run))
