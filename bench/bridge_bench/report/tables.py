"""Tables of the page: all arms with what became of them, and the gate by output."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.record import ArmRecord, BucketRecord, Measurement, SelectionRecord
from bridge_bench.report import wording
from bridge_bench.report.markup import Element, folded, heads, name, scrolled, section, tag
from bridge_bench.units import count, duration, number, size

__all__ = ["arms", "details", "gate"]

_TONES = {
    "won": "good",
    "tied": "good",
    "undecided": "warn",
    "infeasible": "warn",
    "eliminated": "calm",
    "skipped": "calm",
    "planned": "calm",
}


def arms(record: SelectionRecord) -> Element:
    """Every arm: status, medians, memory, reason; skipped ones by rule."""
    ran = [arm for arm in record.arms if arm.status != "skipped"]
    groups = wording.rules(record)
    skipped = [_skipped(rule, found) for rule, found in groups.items()]
    left_out = sum(map(len, groups.values()))
    return section(
        "All arms",
        _ran(record, ran) if ran else tag("p", "No arm was tried."),
        tag(
            "div",
            tag("h3", f"Skipped before anything ran: {count(left_out, 'arm')}"),
            *skipped,
            class_="skipped",
        )
        if skipped
        else None,
        lead="Medians of a call. A dash: not measured.",
    )


def _ran(record: SelectionRecord, found: Sequence[ArmRecord]) -> Element:
    reduced = any(arm.tier != "strict" for arm in found)
    peaks = any(arm.peak_memory_bytes is not None for arm in found)
    prepared = any(arm.prepare_s is not None for arm in found)
    timed = [
        bucket
        for bucket in record.buckets
        if any(arm.bucket(bucket.rows) is not None for arm in found)
    ]
    sizes = [_head(record, bucket) for bucket in timed]
    names = ["arm", "status"]
    numbers = [*sizes, *(["prepare"] if prepared else []), "load", "memory"]
    numbers += [*(["peak"] if peaks else []), "max error"]
    names += [*(["tier"] if reduced else []), *numbers]
    body = []
    for arm in found:
        cells = [
            tag("th", name(arm.id), *_marks(arm), scope="row"),
            tag("td", _badge(arm.status)),
        ]
        if reduced:
            cells.append(tag("td", arm.tier))
        cells += [_median(arm.bucket(bucket.rows)) for bucket in timed]
        if prepared:
            cells.append(tag("td", duration(arm.prepare_s), class_="n"))
        error = "-" if arm.is_reference else number(wording.worst_error(arm))
        cells += [
            tag("td", duration(arm.load_s), class_="n"),
            tag("td", size(arm.memory_bytes), class_="n"),
            *([tag("td", size(arm.peak_memory_bytes), class_="n")] if peaks else []),
            tag("td", error, class_="n"),
        ]
        body.append(tag("tr", *cells))
        why = _why(arm)
        if why is not None:
            body.append(tag("tr", tag("td", why, colspan=len(cells)), class_="why"))
    return scrolled(heads(*names, numbers=numbers), tag("tbody", *body), class_="arms")


def _head(record: SelectionRecord, bucket: BucketRecord) -> str:
    return wording.number_of_rows(bucket.rows) if record.batch_axes else "median"


def _marks(arm: ArmRecord) -> list[Element]:
    marks = (("default", arm.is_default), ("reference", arm.is_reference))
    return [tag("span", text, class_="mark") for text, holds in marks if holds]


def _badge(status: str) -> Element:
    return tag("span", wording.status(status), class_=f"badge {_TONES.get(status, 'bad')}")


def _median(one: Measurement | None) -> Element:
    if one is None:
        return tag("td", "-", class_="n")
    if one.median_s is None:
        return tag("td", wording.status(one.status), class_="n")
    leads = one.status in {"won", "tied"}
    text = duration(one.median_s)
    return tag("td", tag("b", text) if leads else text, class_="n")


def _why(arm: ArmRecord) -> Element | None:
    """Reason of an arm that cannot win, and what to do about it."""
    reason = wording.reason_of(arm)
    if not reason or arm.status in {"won", "tied", "undecided", "eliminated"}:
        return None
    if arm.error is None:
        return tag("div", reason)
    message, fix = str(arm.error.get("message", "")), str(arm.error.get("fix", "") or "")
    parts = [text for text in (message if message != reason else "", fix) if text]
    return tag("div", reason, *(tag("div", text) for text in parts))


def _skipped(rule: str, found: Sequence[ArmRecord]) -> Element:
    reasons: dict[str, list[str]] = {}
    for arm in found:
        reasons.setdefault(arm.reason, []).append(arm.id)
    items = []
    for reason, names in reasons.items():
        listed: list[Element | str] = []
        for one in names:
            listed += [name(one), " "]
        items.append(tag("li", f"{reason} " if reason else "", *listed))
    return folded(f"{rule}: {count(len(found), 'arm')}", tag("ul", *items))


def gate(record: SelectionRecord) -> Element | None:
    """What each arm's outputs were, against the reference; ``None`` if none was compared."""
    compared = [arm for arm in record.arms if arm.agreement or arm.metrics]
    if not compared:
        return None
    missed = [arm for arm in compared if _misses(arm)]
    passed = [arm for arm in compared if not _misses(arm)]
    told = record.gate
    rules = [
        f"{tier}: |difference| up to {number(rule.get('atol'))} + {number(rule.get('rtol'))} "
        "of the reference"
        + (
            f", cosine at least {rule['min_cosine']:.6g}"
            if rule.get("min_cosine") is not None
            else ""
        )
        for tier, rule in told.tolerances.items()
    ]
    source = (
        "nothing"
        if not told.reference
        else (
            "the caller's own outputs"
            if told.reference == "arrays"
            else f"the outputs of {told.reference}"
        )
    )
    return section(
        "The gate: are the answers right?",
        tag("ul", *(tag("li", rule) for rule in rules), class_="plain") if rules else None,
        tag("p", tag("b", f"{count(len(missed), 'arm')} missed it")) if missed else None,
        _outputs(missed) if missed else None,
        _metrics(missed),
        folded(f"{count(len(passed), 'arm')} passed", _outputs(passed), _metrics(passed))
        if passed
        else None,
        lead=f"Outputs are compared with {source} before any speed counts. Share of gate: the "
        "largest difference as a share of what is allowed; above 1 misses. The worst over all "
        "inputs.",
    )


def _misses(arm: ArmRecord) -> bool:
    return (
        arm.status == "not_conformant"
        or any(not one.passes for one in arm.agreement)
        or any(not one.passes for one in arm.metrics)
    )


def _outputs(found: Sequence[ArmRecord]) -> Element | None:
    numbers = ("share of gate", "max abs", "p99 abs", "max rel", "cosine")
    body = [
        tag(
            "tr",
            tag("th", name(arm.id), scope="row"),
            tag("td", tag("code", one.output)),
            tag("td", _passed(passes=one.passes)),
            tag("td", number(one.excess), class_="n"),
            tag("td", number(one.max_abs), class_="n"),
            tag("td", number(one.p99_abs), class_="n"),
            tag("td", number(one.max_rel), class_="n"),
            tag("td", "-" if one.cosine is None else f"{one.cosine:.7f}", class_="n"),
            tag("td", one.problem or "", class_="why"),
        )
        for arm in found
        for one in arm.agreement
    ]
    if not body:
        return None
    return scrolled(
        heads("arm", "output", "gate", *numbers, "problem", numbers=numbers), tag("tbody", *body)
    )


def _metrics(found: Sequence[ArmRecord]) -> Element | None:
    numbers = ("reference", "this arm", "at least")
    body = [
        tag(
            "tr",
            tag("th", name(arm.id), scope="row"),
            tag("td", one.metric),
            tag("td", tag("code", one.output)),
            tag("td", _passed(passes=one.passes)),
            tag("td", "-" if one.reference is None else f"{one.reference:.6g}", class_="n"),
            tag("td", f"{one.value:.6g}", class_="n"),
            tag("td", f"{one.limit:.6g}", class_="n"),
        )
        for arm in found
        for one in arm.metrics
    ]
    if not body:
        return None
    return scrolled(
        heads("arm", "metric", "output", "gate", *numbers, numbers=numbers), tag("tbody", *body)
    )


def _passed(*, passes: bool) -> Element:
    return tag(
        "span", "passes" if passes else "misses", class_=f"badge {'good' if passes else 'bad'}"
    )


def details(record: SelectionRecord) -> Element | None:
    """All numbers of each arm in each bucket; ``None`` where nothing was measured."""
    numbers = (
        "median",
        "p90",
        "p99",
        "p99 at most",
        "rows/s",
        "CPU/call",
        "first call",
        "calls",
        "outliers",
    )
    parts = []
    for bucket in record.buckets:
        body = [
            _detail(arm, one) for arm in record.arms if (one := arm.bucket(bucket.rows)) is not None
        ]
        if body:
            table = scrolled(
                heads("arm", "status", *numbers, "how it ended", numbers=numbers),
                tag("tbody", *body),
            )
            title = wording.number_of_rows(bucket.rows) if record.batch_axes else "Every call"
            parts.append(folded(title, table))
    if not parts:
        return None
    return section(
        "All numbers",
        *parts,
        lead="Percentiles are by nearest rank; \u201cat most\u201d is the upper end of a 95 % "
        "interval, a dash where the calls were too few. Outliers are beyond 1.5 and 3 "
        "interquartile ranges; none is dropped.",
    )


def _detail(arm: ArmRecord, one: Measurement) -> Element:
    unstable = " Its warm-up did not become stable." if one.is_stable is False else ""
    values = (
        wording.timing(one),
        duration(one.p90_s),
        duration(one.p99_s),
        duration(one.p99_upper_s),
        "-" if one.rows_per_s is None else f"{one.rows_per_s:,.0f}",
        duration(one.cpu_s),
        duration(one.first_call_s),
        f"{one.calls:,}",
        f"{one.mild_outliers:,} / {one.severe_outliers:,}",
    )
    return tag(
        "tr",
        tag("th", name(arm.id), scope="row"),
        tag("td", _badge(one.status)),
        *(tag("td", value, class_="n") for value in values),
        tag("td", f"{one.reason}{unstable}".strip(), class_="why"),
    )
