"""Certificates side by side: one HTML page, and the rows of the README's table.

The page is a tree of elements that the standard library writes out, so that whatever a
certificate says is escaped. It refers to nothing outside itself but issues, and its
content policy lets no other script run than its own.
"""

from __future__ import annotations

import base64
import hashlib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bridge
from bridge.registry import registry
from bridge_conformance.certificate import Certificate
from bridge_conformance.details import (
    SIGNS,
    VERDICT_SIGNS,
    Run,
    badge,
    date,
    details,
    hardware,
    prose,
    slug,
    states,
    words,
)
from bridge_conformance.markup import document, facts, heads, scrolled, tag

__all__ = ["Row", "page", "rows"]

_LEGEND = {
    "passed": "passed",
    "failed": "failed: a defect of the backend or of the bridge",
    "refused": "refused by a typed error, as the test allows",
    "known": "known failure, listed by the backend with its reason",
    "not verified": "not verified: could not be run here, so it says nothing",
    "not claimed": "not claimed by the backend, so not asked of it",
}
_COUNT_TITLES = {"onnx": "ONNX's own suite"}
_COUNT_WORDS = {
    "cases": "cases",
    "native": "native passes",
    "bridge": "bridge passes",
    "beyond_native": "beyond native",
    "refused": "refused by type",
    "lost": "lost",
}

# Browsers that do not open the details around a link's target by themselves need this.
_SCRIPT = """
function show() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", show);
addEventListener("DOMContentLoaded", show);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One backend in the README's table.

    Attributes:
        backend: Its name.
        formats: Titles of the formats it loads, in the core's order.
        devices: Kinds of device it can ever use.
        conformance: Verdict and counts by kind of device; a kind without a certificate
            is "not verified".
    """

    backend: str
    formats: tuple[str, ...]
    devices: tuple[str, ...]
    conformance: str


def rows(certificates: Iterable[Certificate]) -> list[Row]:
    """The README's table: every registered backend, certified or not.

    Of several certificates for one kind of device a full one counts before a quick one,
    then the latest.
    """
    best: dict[tuple[str, str], Certificate] = {}
    for one in sorted(certificates, key=lambda one: (one.mode == "full", one.date)):
        best[one.backend, _kind(one)] = one
    titles = {one.name: one.title for one in registry().formats}
    found = []
    for name, backend in bridge.backends().items():
        kinds = backend.device_kinds
        formats = backend.capabilities(bridge.Device(kinds[0])).formats
        verdicts = []
        for kind in kinds:
            certificate = best.get((name, kind))
            verdict = "not verified"
            if certificate is not None:
                verdict = f"{certificate.verdict} ({certificate.summary})"
            verdicts.append(f"{kind}: {verdict}")
        found.append(
            Row(
                backend=name,
                formats=tuple(title for key, title in titles.items() if key in formats),
                devices=tuple(kinds),
                conformance="; ".join(verdicts),
            )
        )
    return found


def page(certificates: Iterable[Certificate]) -> str:
    """One HTML page, complete in itself, that shows all certificates.

    Args:
        certificates: Any, in any order; rows are sorted by backend and device.
    """
    ordered = sorted(certificates, key=lambda one: (one.backend, _kind(one) != "cpu", one.device))
    twins = Counter((one.backend, one.device) for one in ordered)
    runs = [
        Run(f"run{number}", one, is_alone=twins[one.backend, one.device] == 1)
        for number, one in enumerate(ordered, 1)
    ]
    columns: dict[str, str] = {}
    # The longest list first: others lack areas, but do not order them otherwise.
    for one in sorted(ordered, key=lambda one: -len(one.areas)):
        for area in one.areas:
            columns.setdefault(area.name, area.title)
    main = tag(
        "main",
        _header(ordered),
        _matrix(runs, columns),
        *_counts(runs),
        *_measured(runs),
        *(details(run) for run in runs),
    )
    root = tag("html", _head(), tag("body", main), lang="en")
    return document(root)


def _head() -> ET.Element:
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    style = Path(__file__).with_name("matrix.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", "Conformance of backends"),
        # The serialiser leaves the text of these two as it is.
        tag("style", style),
        tag("script", _SCRIPT),
    )


def _header(certificates: Sequence[Certificate]) -> ET.Element:
    tallies = (
        tag(
            "li",
            tag("b", str(sum(one.verdict == verdict for one in certificates))),
            badge(verdict),
        )
        for verdict in VERDICT_SIGNS
    )
    dates = sorted(date(one) for one in certificates)
    about = {
        "suite": _unique(one.suite_version for one in certificates),
        "inference-bridge": _unique(one.bridge_version for one in certificates),
        "mode": _unique(one.mode for one in certificates),
        "date": _unique([dates[0], dates[-1]], " to ") if dates else "",
        "hardware": _unique((hardware(one.hardware) for one in certificates), "; or "),
        "Python": _unique(one.python for one in certificates),
        "platform": _unique(one.platform for one in certificates),
    }
    return tag(
        "header",
        tag("h1", "Conformance of backends"),
        tag("p", "What each backend of inference-bridge proved, by device and area."),
        tag("ul", *tallies, class_="tallies"),
        facts(about),
    )


def _matrix(runs: Sequence[Run], columns: Mapping[str, str]) -> ET.Element:
    names = (
        tag("th", tag("span", words(name)), scope="col", title=prose(title))
        for name, title in columns.items()
    )
    legend = (
        tag("li", tag("i", sign, class_=slug(state)), " ", _LEGEND[state])
        for state, sign in SIGNS.items()
    )
    body = (tag("tr", _row_head(run), *(_cell(run, name) for name in columns)) for run in runs)
    return tag(
        "section",
        tag("h2", "Matrix"),
        tag("p", "A number is a count of tests. Each cell leads to its details."),
        tag("ul", *legend, class_="legend"),
        scrolled(
            tag("thead", tag("tr", tag("th", "backend and device", scope="col"), *names)),
            tag("tbody", *body),
            class_="matrix",
        ),
    )


def _row_head(run: Run) -> ET.Element:
    one = run.certificate
    return tag(
        "th",
        tag("a", tag("b", one.backend), f" {one.device}", href=f"#{run.anchor}"),
        tag("small", f"{one.runtime_version or 'not installed'}, {one.mode}"),
        "" if run.is_alone else tag("small", f"Python {one.python}"),
        badge(one.verdict),
        scope="row",
    )


def _cell(run: Run, name: str) -> ET.Element:
    area = run.area(name)
    if area is None:
        text = "not verified: not in this run"
        lines = [tag("span", SIGNS["not verified"], tag("em", f" {text}"))]
        return tag(
            "td",
            tag("a", *lines, href=f"#{run.anchor}", title=text, data_area=words(name)),
            class_="not-verified",
        )
    found = states(area)
    lines = [
        tag("span", f"{SIGNS[state]} {count}", tag("em", f" {state}"), class_=slug(state))
        for state, count in found.items()
    ]
    tint = next(state for state in ("failed", "known", *found) if state in found)
    told = ", ".join(f"{count} {state}" for state, count in found.items())
    where = f"#{run.anchor}-{run.place(name)}"
    return tag(
        "td",
        tag("a", *lines, href=where, title=told, data_area=words(name)),
        class_=slug(tint),
    )


def _counts(runs: Sequence[Run]) -> Iterable[ET.Element]:
    """One table for each foreign set of tests, such as ONNX's own."""
    for name in dict.fromkeys(name for run in runs for name in run.certificate.counts):
        having = [run for run in runs if name in run.certificate.counts]
        columns = dict.fromkeys(key for run in having for key in run.certificate.counts[name])
        body = []
        for run in having:
            counts = run.certificate.counts[name]
            cells = []
            for key in columns:
                is_loss = key == "lost" and counts.get(key, 0) > 0
                text = f"{counts[key]:,}" if key in counts else "—"
                cells.append(tag("td", f"✕ {text}" if is_loss else text, class_="number"))
            body.append(tag("tr", _run_head(run), *cells))
        yield tag(
            "section",
            tag("h2", _COUNT_TITLES.get(name, f"Counts of {words(name)}")),
            tag(
                "p",
                "The same cases through the runtime alone and through the bridge. A case is lost "
                "if the runtime passes it and the bridge does not; there may be none.",
            )
            if "lost" in columns
            else "",
            scrolled(
                heads(
                    "backend and device", *(_COUNT_WORDS.get(key, words(key)) for key in columns)
                ),
                tag("tbody", *body),
            ),
        )


def _measured(runs: Sequence[Run]) -> Iterable[ET.Element]:
    """One table of all numbers that tests measured, if there are any."""
    having = [run for run in runs if run.certificate.measured]
    if not having:
        return
    keys = dict.fromkeys(
        (test, name)
        for run in having
        for test, values in run.certificate.measured.items()
        for name in values
    )
    body = []
    for test, name in sorted(keys):
        values = (run.certificate.measured.get(test, {}).get(name) for run in having)
        cells = (tag("td", _number(value), class_="number") for value in values)
        head = tag("th", tag("code", test), tag("small", words(name)), scope="row")
        body.append(tag("tr", head, *cells))
    names = (run.title for run in having)
    yield tag(
        "section",
        tag("h2", "Measured"),
        tag("p", "Numbers that tests measured on the way. They are reported, not judged here."),
        scrolled(heads("test", *names), tag("tbody", *body)),
    )


def _run_head(run: Run) -> ET.Element:
    return tag("th", tag("a", run.title, href=f"#{run.anchor}"), scope="row")


def _number(value: object) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _kind(one: Certificate) -> str:
    return one.device.partition(":")[0]


def _unique(texts: Iterable[str], between: str = ", ") -> str:
    return between.join(dict.fromkeys(texts))
