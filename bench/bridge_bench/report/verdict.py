"""The top of the page: what to use, how much it gains, how sure that is, how to load it."""

from __future__ import annotations

import shlex

from bridge.record import BucketRecord, SelectionRecord, Verdict
from bridge_bench.report import wording
from bridge_bench.report.markup import Element, facts, heads, name, scrolled, section, tag
from bridge_bench.units import duration, percent, ratio, size

__all__ = ["commands", "confirmations", "header", "routes", "under_load"]

_SIGNS = {
    "proven": ("good", "\u2713", "proven"),
    "tied": ("good", "\u2248", "tied"),
    "default": ("calm", "=", "default kept"),
    "undecided": ("warn", "?", "undecided"),
    "interrupted": ("warn", "?", "interrupted"),
    "none": ("bad", "\u2715", "no arm may serve"),
}
_TIES_SHOWN = 2
_TONES = {"decided": "good", "none": "bad", "planned": "calm"}


def header(record: SelectionRecord) -> Element:
    """The verdict in words, a card for each bucket, and what to type."""
    decision = record.decision
    model = record.models[0] if record.models else None
    kind = "Plan of a selection" if decision.status == "planned" else "Selection"
    about = kind if model is None else f"{kind} for {model.name}"
    verdicts = {one.rows: one for one in decision.verdicts}
    cards = [
        _card(record, bucket, verdicts[bucket.rows])
        for bucket in record.buckets
        if bucket.rows in verdicts
    ]
    code = wording.load_code(record, None)
    return tag(
        "header",
        tag("p", about, class_="kicker"),
        tag("h1", wording.headline(record), class_=_TONES.get(decision.status, "warn")),
        tag("p", decision.summary, class_="summary") if decision.summary else None,
        tag("ul", *cards, class_="cards") if any(one.winner for one in decision.verdicts) else None,
        tag(
            "div",
            tag("p", "To use it, with DIR the folder of this record:"),
            tag("pre", tag("code", "\n".join(code))),
            class_="load",
        )
        if code
        else None,
        _notes(record),
        _about(record),
    )


def _card(record: SelectionRecord, bucket: BucketRecord, verdict: Verdict) -> Element:
    tone, sign, words = _SIGNS.get(verdict.status, ("calm", "", wording.status(verdict.status)))
    winner = None
    if verdict.winner is not None:
        winner = next((arm for arm in record.arms if arm.id == verdict.winner), None)
    one = None if winner is None else winner.bucket(bucket.rows)
    big, small = _gain(record, verdict)
    timed = None
    wanted = None
    if winner is not None and one is not None:
        wanted = wording.objective(record, winner, one)
    if one is not None and one.median_s is not None:
        timed = f"{wording.timing(one)} a call"
        if record.batch_axes:
            timed += f" of {wording.number_of_rows(bucket.rows)}"
    return tag(
        "li",
        tag("p", wording.bucket_range(record, bucket.rows), class_="range"),
        tag("p", name(verdict.winner or "no arm"), class_="arm"),
        tag("p", tag("b", big), f" {small}", class_="gain"),
        tag("p", f"{wanted[1]} {wanted[0]}") if wanted else None,
        tag("p", timed) if timed else None,
        tag("p", tag("span", f"{sign} {words}", class_=f"badge {tone}"), class_="state"),
        _other_server(record, bucket, verdict),
        tag("p", wording.sureness(record, verdict), class_="soft"),
        tag("p", f"{wording.ties_lead(record)}: ", *_listed(verdict.ties), class_="soft")
        if verdict.ties
        else None,
    )


def _other_server(
    record: SelectionRecord, bucket: BucketRecord, verdict: Verdict
) -> Element | None:
    """Says so where another arm than the fastest serves these calls."""
    for route in record.decision.routes:
        if route.to_rows is None or bucket.rows <= route.to_rows:
            if verdict.winner in {None, route.arm}:
                return None
            return tag("p", "Served by ", name(route.arm), " all the same.", class_="state")
    return None


def _listed(arms: tuple[str, ...]) -> list[Element | str]:
    """Names of arms after one another, the first few."""
    parts: list[Element | str] = []
    for arm in arms[:_TIES_SHOWN]:
        parts += [", " if parts else "", name(arm)]
    rest = len(arms) - _TIES_SHOWN
    return [*parts, f" and {rest} more" if rest > 0 else ""]


def _gain(record: SelectionRecord, verdict: Verdict) -> tuple[str, str]:
    """The gain over the default as a large number and the words after it."""
    if verdict.winner is None:
        return "\u2013", ""
    default = next((arm for arm in record.arms if arm.is_default), None)
    if default is not None and default.id == verdict.winner:
        return "1\u00d7", "it is the default"
    if record.limits.objective == "memory":
        share = wording.memory_share(record, verdict)
        told = "?" if share is None else ratio(share).replace("x", "\u00d7")
        return told, "the memory of the default"
    found = verdict.default_ratio
    if found is None:
        return "?", "the default was not measured"
    big = ratio(found.value).replace("x", "\u00d7")
    span = f"{ratio(found.low)} to {ratio(found.high)}".replace("x", "\u00d7")
    if found.low <= 1 <= found.high:
        return big, f"the default's speed, not proven to differ ({span})"
    return big, f"as fast as the default ({span})"


def _notes(record: SelectionRecord) -> Element | None:
    notes = list(record.warnings)
    canary = record.canary
    if canary is not None and canary.is_noisy:
        notes.append(
            "The machine was noisy: more blocks were disturbed than may be measured again, "
            "so intervals may be too narrow."
        )
    if not notes:
        return None
    return tag(
        "div",
        tag("p", tag("b", "Take care" if len(notes) == 1 else f"Take care: {len(notes)} warnings")),
        tag("ul", *(tag("li", f"{note[:1].upper()}{note[1:]}") for note in notes)),
        class_="notes",
        role="note",
    )


def _about(record: SelectionRecord) -> Element:
    limits = record.limits
    told = {
        "objective": limits.objective,
        "measured": wording.moment(record.created),
        "took": "" if record.elapsed_s is None else duration(record.elapsed_s),
        "arms": wording.tally(record),
        "machine": wording.machine_name(record),
        "inference-bridge": record.bridge_version,
    }
    if limits.sla_percentile is not None and limits.sla_s is not None:
        told["latency limit"] = (
            f"{100 * limits.sla_percentile:g} % of calls within {duration(limits.sla_s)}"
        )
    if limits.max_memory_bytes is not None:
        told["memory limit"] = size(limits.max_memory_bytes)
    if limits.concurrency > 1:
        told["callers at once"] = str(limits.concurrency)
    if limits.price_per_hour is not None:
        told["price per hour"] = f"{limits.price_per_hour:g}"
    return facts(told)


def routes(record: SelectionRecord) -> Element | None:
    """Which arm serves calls of which size; ``None`` where one serves all."""
    found = record.decision.routes
    if len(found) < 2 and not any(route.split_rows for route in found):
        return None
    body = []
    for index, route in enumerate(found):
        arm = record.arm(route.arm)
        pieces = "whole"
        if route.split_rows is not None:
            pieces = f"in pieces of {wording.number_of_rows(route.split_rows)}"
        body.append(
            tag(
                "tr",
                tag("th", wording.route_range(found, index), scope="row"),
                tag("td", name(route.arm)),
                tag("td", pieces),
                tag("td", size(arm.memory_bytes), class_="n"),
                tag("td", duration(arm.load_s), class_="n"),
            )
        )
    names = ("rows in a call", "served by", "calls are run", "memory", "load")
    return section(
        "Routes",
        scrolled(heads(*names, numbers=names[3:]), tag("tbody", *body)),
        lead="One predictor sends each call to an arm by its number of rows.",
    )


def confirmations(record: SelectionRecord) -> Element | None:
    """The finalists in fresh processes; ``None`` where that was not done."""
    found = record.decision.confirmations
    if not found:
        return None
    body = []
    for one in found:
        launches = ", ".join(duration(time) for time in one.launches) or "-"
        told = "-"
        if one.ratio is not None:
            told = f"{ratio(one.ratio.value)} ({ratio(one.ratio.low)} to {ratio(one.ratio.high)})"
        body.append(
            tag(
                "tr",
                tag("th", name(one.arm), scope="row"),
                tag("td", wording.number_of_rows(one.rows)),
                tag("td", launches, class_="n"),
                tag("td", told, class_="n"),
            )
        )
    names = ("arm", "rows", "median of each launch", "speed against the default")
    return section(
        "Confirmed in fresh processes",
        scrolled(heads(*names, numbers=names[2:]), tag("tbody", *body)),
        lead="The same inputs again, each time in a process that was just started.",
    )


def under_load(record: SelectionRecord) -> Element | None:
    """Winners and default under a load generator; ``None`` where that was not done."""
    found = record.decision.under_load
    if not found:
        return None
    tones = {"valid": "good", "invalid": "warn"}
    body = []
    for one in found:
        body.append(
            tag(
                "tr",
                tag("th", name(one.arm), scope="row"),
                tag("td", wording.number_of_rows(one.rows)),
                tag("td", tag("span", one.status, class_=f"badge {tones.get(one.status, 'bad')}")),
                tag("td", (one.sla or "-").replace("_", " ")),
                tag("td", wording.issuer(one)),
                tag("td", f"{one.queries:,}", class_="n"),
                *(
                    tag("td", duration(time), class_="n")
                    for time in (one.p50_s, one.p90_s, one.p99_s, one.p99_upper_s)
                ),
            )
        )
        if one.reason:
            why = tag("td", tag("div", one.reason), colspan=10)
            body.append(tag("tr", why, class_="why"))
    numbers = ("queries", "p50", "p90", "p99", "p99 at most")
    return section(
        "Under a load generator",
        scrolled(
            heads("arm", "rows", "run", "limit", "issued by", *numbers, numbers=numbers),
            tag("tbody", *body),
        ),
        lead="Winners and default in a process of their own, each query sent when the one before "
        "was answered. \u201cAt most\u201d is the upper end of a 95 % interval.",
    )


def commands(record: SelectionRecord) -> Element:
    """What to type to repeat, check, or look again."""
    lines = []
    if record.command:
        lines += ["# the same selection again", shlex.join(record.command), ""]
    else:
        lines += [f"# selected from Python, with seed {record.seed}", ""]
    lines += [
        "# is it still true on this machine? a short duel of winner and default",
        "bridge verify DIR",
        "",
        "# this page",
        "bridge report DIR -o report.html",
    ]
    second = _runner_up(record)
    if second is not None:
        lines += [
            "",
            "# another arm, in Python",
            f"bridge.load('DIR', options={{'arm': {second!r}}})",
        ]
    bound = percent(record.protocol.epsilon)
    return section(
        "Repeat it",
        tag("pre", tag("code", "\n".join(lines))),
        lead=f"The same seed makes the same inputs and order; times differ, arms within {bound} "
        "of each other may change places.",
    )


def _runner_up(record: SelectionRecord) -> str | None:
    serving = {route.arm for route in record.decision.routes}
    for verdict in record.decision.verdicts:
        for arm in verdict.ranking:
            if arm not in serving:
                return arm
    return None
