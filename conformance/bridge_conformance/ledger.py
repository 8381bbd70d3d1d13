"""Keeps the outcomes of a run, and makes the certificate of them."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

import bridge
from bridge.cpus import usable_cpus
from bridge.device import driver_devices
from bridge.registry import registry
from bridge_conformance.certificate import (
    Area,
    Certificate,
    Failure,
    KnownFailure,
    NotVerified,
    describe,
)
from bridge_conformance.subject import Subject

__all__ = ["Ledger", "area_of", "id_of"]

SUITE_VERSION = "1"
"""Rises with every test that is added, removed or renamed: ids are what known failures name."""

# Properties in which tests of a foreign set say how the runtime alone did, and why the bridge
# refuses a case that it may refuse: such a test passes, but is no answer.
_NATIVE = "native"
_REFUSED = "refused"
_NOT_CLAIMED = "not claimed: "


def id_of(item: pytest.Item) -> str:
    """The public id of a test, the same wherever the suite is run from."""
    return "::".join(item.nodeid.split("::")[-2:])


def area_of(cls: type) -> tuple[str, str]:
    """Name of the area that a class of the suite certifies, and what it certifies."""
    origin = next(one for one in cls.__mro__ if one.__module__.startswith(__package__ + ".suite"))
    name = origin.__module__.rpartition(".")[2].removeprefix("test_")
    return name, (cls.__doc__ or "").strip().splitlines()[0]


class Ledger:
    """Outcomes of the tests of one backend.

    Args:
        subject: What is under test.
        mode: ``quick`` or ``full``.

    Attributes:
        mode: As given; ``selected`` once it shows that not all of the tests are run.
    """

    def __init__(self, subject: Subject, mode: str) -> None:
        self.subject = subject
        self.mode = mode
        self._started = time.monotonic()
        self._titles: dict[str, str] = {}
        self._areas: dict[str, str] = {}  # test id -> area
        self._outcomes: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._measured: dict[str, dict[str, Any]] = {}
        self._unclaimed: Counter[str] = Counter()
        self._unasked: Counter[str] = Counter()

    def expect(self, test: str, area: tuple[str, str]) -> None:
        """A test that is going to be run."""
        self._titles[area[0]] = area[1]
        self._areas[test] = area[0]

    def leave_out(self, area: tuple[str, str], *, is_claim_missing: bool) -> None:
        """A test that is not for this backend.

        Args:
            area: Its area.
            is_claim_missing: Because of something that the backend does not claim; else it
                is the test for the lack of what the backend does claim.
        """
        self._titles[area[0]] = area[1]
        (self._unclaimed if is_claim_missing else self._unasked)[area[0]] += 1

    def note(self, test: str, report: pytest.TestReport) -> None:
        """One of a test's three reports."""
        before = self._outcomes.get(test)
        if report.failed:
            self._outcomes[test] = "failed"
            text = report.longreprtext.strip()
            self._texts[test] = f"{self._texts[test]}\n{text}" if before == "failed" else text
        elif report.skipped and before != "failed":
            is_known = hasattr(report, "wasxfail")
            text = _text(report)
            is_claim_missing = text.startswith(_NOT_CLAIMED)
            skipped = "not_claimed" if is_claim_missing else "not_verified"
            self._outcomes[test] = "known" if is_known else skipped
            self._texts[test] = _reason(report)
            if is_known and test not in self.subject.known_failures:
                self._outcomes[test] = "failed"
                self._texts[test] = (
                    f"it was marked as failing, but is not listed: {_reason(report)}"
                )
        elif report.when == "call":
            is_refused = any(name == _REFUSED for name, _ in report.user_properties)
            self._outcomes[test] = "refused" if is_refused else "passed"
        if report.user_properties:
            self._measured[test] = {str(name): value for name, value in report.user_properties}

    @property
    def is_begun(self) -> bool:
        """Whether any test has been run."""
        return bool(self._outcomes)

    def certificate(self) -> Certificate:
        """What has been proved, as a certificate of now."""
        backend = self.subject.backend
        listed = self.subject.known_failures
        by_outcome: dict[str, list[str]] = {}
        for test, outcome in self._outcomes.items():
            by_outcome.setdefault(outcome, []).append(test)
        unrun = [
            NotVerified(
                id=test, area=area, reason="the run ended before this test: it was interrupted."
            )
            for test, area in self._areas.items()
            if test not in self._outcomes
        ]
        return Certificate(
            suite_version=SUITE_VERSION,
            bridge_version=bridge.__version__,
            backend=backend.name,
            distribution=registry().backends.source(backend.name),
            runtime_version=backend.probe().version,
            device=str(self.subject.device),
            mode=self.mode,
            date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            hardware=_hardware(),
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            capabilities=describe(self.subject.claims),
            areas=tuple(self._area(name, unrun) for name in sorted(self._titles)),
            failures=tuple(
                Failure(id=test, area=self._areas[test], text=self._texts[test])
                for test in by_outcome.get("failed", [])
            ),
            known_failures=tuple(
                KnownFailure(
                    id=test,
                    area=self._areas[test],
                    reason=listed[test].reason,
                    issue=listed[test].issue or None,
                    since=listed[test].since or None,
                )
                for test in by_outcome.get("known", [])
            ),
            not_verified=(
                *(
                    NotVerified(id=test, area=self._areas[test], reason=self._texts[test])
                    for test in by_outcome.get("not_verified", [])
                ),
                *unrun,
            ),
            counts=self._counts(),
            measured=self._numbers(),
            duration_s=round(time.monotonic() - self._started, 1),
            unrun=len(unrun),
        )

    def _area(self, name: str, unrun: Iterable[NotVerified]) -> Area:
        found = Counter(
            outcome for test, outcome in self._outcomes.items() if self._areas[test] == name
        )
        return Area(
            name=name,
            title=self._titles[name],
            passed=found["passed"],
            failed=found["failed"],
            known=found["known"],
            not_verified=found["not_verified"] + sum(one.area == name for one in unrun),
            refused=found["refused"],
            # An area of which nothing is asked has to be told from one that was not tried.
            not_claimed=found["not_claimed"] + self._unclaimed[name]
            or (0 if name in self._areas.values() else self._unasked[name]),
        )

    def _counts(self) -> dict[str, dict[str, int]]:
        """By area, for tests that also ran the runtime natively: who was right how often."""
        counts: dict[str, Counter[str]] = {}
        for test, values in self._measured.items():
            if values.get(_NATIVE) not in ("passed", "failed"):
                continue
            one = counts.setdefault(self._areas[test], Counter())
            native = values[_NATIVE] == "passed"
            ours = self._outcomes[test] == "passed"
            refused = self._outcomes[test] == "refused"
            one["cases"] += 1
            one["native"] += native
            one["bridge"] += ours
            one["beyond_native"] += ours and not native
            one["refused"] += refused
            one["lost"] += native and not ours and not refused
        names = ("cases", "native", "bridge", "beyond_native", "refused", "lost")
        return {area: {name: one[name] for name in names} for area, one in counts.items()}

    def _numbers(self) -> Mapping[str, Mapping[str, Any]]:
        """What was measured, without what other parts of the certificate tell."""
        told = (_NATIVE, _REFUSED)
        kept = {
            test: {name: value for name, value in values.items() if name not in told}
            for test, values in self._measured.items()
        }
        return {test: values for test, values in kept.items() if values}


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail)
    return _text(report).removeprefix("not verified: ")


def _text(report: pytest.TestReport) -> str:
    """What a test was skipped with."""
    text = report.longrepr[2] if isinstance(report.longrepr, (tuple, list)) else report.longreprtext
    return text.removeprefix("Skipped: ")


def _hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "devices": {str(device): name for device, name in driver_devices()},
        "usable_cpus": usable_cpus(),
        "memory_gib": round(memory / 2**30, 1),
        "byte_order": sys.byteorder,
    }


def suite_version() -> str:
    """Version of the suite, and of the distribution that holds it."""
    return f"{SUITE_VERSION} (inference-bridge {bridge.__version__})"
