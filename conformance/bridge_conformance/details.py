"""The part of the page that tells, for one certificate, which tests did what and why."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bridge_conformance.certificate import Area, Certificate, KnownFailure, NotVerified
from bridge_conformance.markup import facts, link, tag

__all__ = [
    "SIGNS",
    "VERDICT_SIGNS",
    "Run",
    "badge",
    "date",
    "details",
    "hardware",
    "prose",
    "slug",
    "states",
    "words",
]

SIGNS = {
    "passed": "✓",
    "failed": "✕",
    "refused": "⊘",
    "known": "△",
    "not verified": "○",
    "not claimed": "—",
}
VERDICT_SIGNS = {"certified": "✓", "failed": "✕", "not verified": "○"}
_ORDER = ("failed", "passed", "refused", "known", "not verified")
_HARDWARE_WORDS = {"usable_cpus": "{} CPUs usable", "memory_gib": "{} GiB of memory"}
_MANY = 6  # longer lists are folded
Test = TypeVar("Test", KnownFailure, NotVerified)


@dataclass(frozen=True, slots=True)
class Run:
    """A certificate on the page.

    Attributes:
        anchor: Anchor of its details, and the beginning of those of its areas.
        certificate: What is shown.
        is_alone: Whether no other on the page is of this backend and device.
    """

    anchor: str
    certificate: Certificate
    is_alone: bool

    @property
    def title(self) -> str:
        """Backend and device, and the Python where only that tells runs apart."""
        one = self.certificate
        rest = "" if self.is_alone else f", Python {one.python}"
        return f"{one.backend} {one.device}{rest}"

    def area(self, name: str) -> Area | None:
        """An area by its name, if this run has tests of it."""
        return next((area for area in self.certificate.areas if area.name == name), None)

    def place(self, name: str) -> int:
        """Number of an area within this run: the end of its anchor, as a name may be anything."""
        return [area.name for area in self.certificate.areas].index(name)


def details(run: Run) -> ET.Element:
    """All about one certificate: its facts, then each area."""
    one = run.certificate
    claims = one.capabilities
    flags = {name: value for name, value in claims.items() if isinstance(value, bool)}
    about = {
        "runtime": one.runtime_version or "not installed",
        "registered by": one.distribution,
        "inference-bridge": one.bridge_version,
        "suite": f"{one.suite_version}, {one.mode}",
        "date": f"{date(one)}, took {one.duration_s:.0f} s",
        "hardware": hardware(one.hardware),
        "Python": f"{one.python} on {one.platform}",
        "claims": ", ".join(words(name) for name, value in flags.items() if value) or "nothing",
        "does not claim": ", ".join(words(name) for name, value in flags.items() if not value),
        "threads": str(claims.get("thread_safety", "")),
        "formats": ", ".join(map(str, claims.get("formats", ()))) or "none",
        "dtypes": ", ".join(map(str, claims.get("dtypes", ()))) or "none",
    }
    return tag(
        "section",
        tag("h2", f"{one.backend} ", tag("small", one.device)),
        tag("p", badge(one.verdict), f" {one.headline.partition(': ')[2]}"),
        ""
        if one.predicts
        else tag("p", "Build only: this backend does not claim to run models on this machine."),
        facts(about),
        *(_area_details(run, area) for area in one.areas),
        id=run.anchor,
        class_="run",
    )


def _area_details(run: Run, area: Area) -> ET.Element:
    one = run.certificate
    failures = [test for test in one.failures if test.area == area.name]
    parts: list[ET.Element | str] = [
        tag(
            "details",
            tag("summary", tag("code", test.id)),
            tag("pre", test.text),
            open="open" if len(failures) <= _MANY else None,
        )
        for test in failures
    ]
    known = [test for test in one.known_failures if test.area == area.name]
    parts += _groups("known", known, lambda test: (test.reason, test.issue, test.since))
    unknown = [test for test in one.not_verified if test.area == area.name]
    parts += _groups("not verified", unknown, lambda test: (test.reason, None, None))
    if area.passed:
        parts.append(tag("p", f"{SIGNS['passed']} {area.passed} passed.", class_="passed"))
    if area.refused:
        text = f"{SIGNS['refused']} {area.refused} refused by a typed error, as these tests allow."
        parts.append(tag("p", text, class_="refused"))
    if area.not_claimed:
        text = (
            f"{SIGNS['not claimed']} {area.not_claimed} not asked: what they test is not claimed."
        )
        parts.append(tag("p", text, class_="not-claimed"))
    outcomes = (
        tag("span", f"{SIGNS[state]} {count} {state}", class_=slug(state))
        for state, count in states(area).items()
    )
    return tag(
        "details",
        tag("summary", tag("b", words(area.name)), tag("span", prose(area.title)), *outcomes),
        # The target is inside, so that a browser opens what is around it.
        tag("div", *parts, id=f"{run.anchor}-{run.place(area.name)}"),
        class_="area",
    )


def _groups(
    state: str,
    tests: Sequence[Test],
    cause: Callable[[Test], tuple[str, str | None, str | None]],
) -> list[ET.Element]:
    """Tests that share a cause, told once with their ids."""
    groups: dict[tuple[str, str | None, str | None], list[str]] = {}
    for test in tests:
        groups.setdefault(cause(test), []).append(test.id)
    found = []
    for (reason, issue, since), ids in groups.items():
        listed = tag("ul", *(tag("li", tag("code", one)) for one in ids), class_="ids")
        found.append(
            tag(
                "div",
                tag(
                    "p",
                    tag("span", f"{SIGNS[state]} {len(ids)} {state}", class_=slug(state)),
                    f" {reason} ",
                    link(issue, "Issue.") if issue else "",
                    f" Seen since {since}." if since else "",
                ),
                listed
                if len(ids) <= _MANY
                else tag("details", tag("summary", f"{len(ids)} tests"), listed),
                class_="group",
            )
        )
    return found


def states(area: Area) -> dict[str, int]:
    """Counts that are not zero, by state; an area without any test is not verified."""
    counts = (area.failed, area.passed, area.refused, area.known, area.not_verified)
    found = {state: count for state, count in zip(_ORDER, counts, strict=True) if count}
    if not found and area.not_claimed:
        return {"not claimed": area.not_claimed}
    return found or {"not verified": 0}


def badge(verdict: str) -> ET.Element:
    """A verdict with its sign."""
    text = f"{VERDICT_SIGNS[verdict]} {verdict}"
    return tag("span", text, class_=f"badge {slug(verdict)}")


def hardware(facts: Mapping[str, Any]) -> str:
    """Facts about a machine, in one line."""
    parts = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            parts += [f"{name}: {text}" for name, text in value.items()]
        else:
            parts.append(_HARDWARE_WORDS.get(key, words(key) + " {}").format(value))
    return ", ".join(parts)


def date(one: Certificate) -> str:
    """When a certificate was made, to the minute."""
    return one.date[:16].replace("T", " ") + " UTC"


def words(name: str) -> str:
    """A name of the certificate as one reads it."""
    return name.replace("_", " ")


def prose(text: str) -> str:
    """A sentence of a docstring without its markup."""
    return text.replace("``", "")


def slug(state: str) -> str:
    """The class of a state or verdict in the style sheet."""
    return state.replace(" ", "-")
