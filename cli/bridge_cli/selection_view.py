"""A selection record on the terminal: the verdict, the arms, and how to load it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bridge.record import ArmRecord, BucketRecord, Measurement, SelectionRecord, Verdict
from bridge_bench import units
from bridge_bench.report import wording
from bridge_cli.render import facts, print_code, print_line, print_table

__all__ = ["show"]

_ARMS_SHOWN = 8
_NAMES_SHOWN = 4
_REASONS_SHOWN = 5

_FALLEN = frozenset({"not_conformant", "failed", "timed_out", "crashed"})
_HINDRANCES = _FALLEN | {"infeasible"}

_COLUMNS = ("arm", "status", "median", "p99", "relative", "max error")
_STYLES = {
    "won": "bold green",
    "tied": "green",
    "undecided": "yellow",
    "over a limit": "yellow",
    "wrong output": "bold red",
    "failed": "bold red",
    "timed out": "bold red",
    "crashed": "bold red",
}
_HEADLINES = {"decided": "bold green", "none": "bold red"}


def show(record: SelectionRecord, folder: Path | None) -> None:
    """Prints the verdict, a table for each bucket, what was left out, and how to load it.

    Args:
        record: What was decided, or planned.
        folder: Where the record lies; ``None`` if it was not written.
    """
    _show_head(record)
    verdicts = {one.rows: one for one in record.decision.verdicts}
    for bucket in record.buckets:
        _show_bucket(record, bucket, verdicts.get(bucket.rows))
    _show_load(record)
    _show_planned(record)
    _show_fallen(record)
    _show_skipped(record)
    for warning in record.warnings:
        print_line()
        print_line(f"warning: {warning}", "yellow")
    _show_verdict(record, folder)


def _show_head(record: SelectionRecord) -> None:
    model = record.models[0] if record.models else None
    limits = record.limits
    told = {
        "model": "-" if model is None else f"{model.name} ({units.size(model.size_bytes)})",
        "arms": wording.tally(record),
        "objective": limits.objective,
    }
    if limits.sla_percentile is not None and limits.sla_s is not None:
        told["limit"] = f"p{100 * limits.sla_percentile:g} within {units.duration(limits.sla_s)}"
    if limits.max_memory_bytes is not None:
        told["memory"] = f"at most {units.size(limits.max_memory_bytes)}"
    if limits.concurrency > 1:
        told["callers"] = str(limits.concurrency)
    if record.elapsed_s is not None:
        told["took"] = units.duration(record.elapsed_s)
    facts(told)


def _show_bucket(record: SelectionRecord, bucket: BucketRecord, verdict: Verdict | None) -> None:
    measured = [(arm, one) for arm in record.arms if (one := arm.bucket(bucket.rows)) is not None]
    if not measured:
        return
    winner = None if verdict is None else verdict.winner
    ranking = () if verdict is None else verdict.ranking
    places = {name: place for place, name in enumerate(ranking)}
    measured.sort(
        key=lambda pair: (
            pair[0].id != winner,
            pair[1].median_s is None,
            places.get(pair[0].id, len(places)),
            pair[1].median_s or 0.0,
        )
    )
    named = {arm.id for arm, _ in measured[:_ARMS_SHOWN]}
    named |= {arm.id for arm, _ in measured if arm.is_default}
    folded = [one for arm, one in measured if arm.id not in named]
    if len(folded) == 1:
        named, folded = {arm.id for arm, _ in measured}, []
    # The column of an objective that is no latency, such as rows/s.
    wanted = wording.objective(record, *measured[0])
    columns = (*_COLUMNS[:2], wanted[0], *_COLUMNS[2:]) if wanted else _COLUMNS
    print_table(
        columns,
        [_row(record, arm, one, winner) for arm, one in measured if arm.id in named],
        title=_title(record, bucket),
        right=columns[2:],
        styles=_STYLES,
    )
    if folded:
        counted = Counter(wording.status(one.status) for one in folded)
        told = ", ".join(f"{number} {status}" for status, number in counted.most_common())
        print_line(f"and {len(folded)} more: {told}", "dim")
    explained = [
        (arm, one)
        for arm, one in measured
        if one.reason and one.status in _HINDRANCES and arm.status not in _FALLEN
    ]
    for arm, one in explained[:_REASONS_SHOWN]:
        print_line(f"{arm.id}: {one.reason}", indent=2)
    if len(explained) > _REASONS_SHOWN:
        print_line(f"and {len(explained) - _REASONS_SHOWN} more", "dim", indent=2)
    if verdict is not None:
        parts = [
            wording.gain(record, verdict),
            wording.sureness(record, verdict),
            wording.ties(record, verdict),
        ]
        print_line(" ".join(part for part in parts if part), indent=2)


def _title(record: SelectionRecord, bucket: BucketRecord) -> str:
    if not record.batch_axes:
        return "Every call"
    about = wording.bucket_range(record, bucket.rows)
    name = wording.number_of_rows(bucket.rows)
    return name if about == name else f"{name} a call (stands for {about})"


def _row(
    record: SelectionRecord, arm: ArmRecord, one: Measurement, winner: str | None
) -> tuple[object, ...]:
    wanted = wording.objective(record, arm, one)
    marks = [
        text for text, holds in (("default", arm.is_default), ("ref", arm.is_reference)) if holds
    ]
    return (
        f"{arm.id} ({', '.join(marks)})" if marks else arm.id,
        wording.status(one.status),
        *([wanted[1]] if wanted else []),
        wording.timing(one),
        units.duration(one.p99_s),
        wording.slower(one, winner, arm),
        "-" if arm.is_reference else units.number(wording.worst_error(arm)),
    )


def _show_load(record: SelectionRecord) -> None:
    """Winners and default under a load generator."""
    found = record.decision.under_load
    if not found:
        return
    print_table(
        ("arm", "rows", "run", "limit", "queries", "p50", "p99", "p99 at most"),
        [
            (
                one.arm,
                one.rows,
                one.status,
                (one.sla or "-").replace("_", " "),
                one.queries,
                units.duration(one.p50_s),
                units.duration(one.p99_s),
                units.duration(one.p99_upper_s),
            )
            for one in found
        ],
        title=f"Under load, by {', '.join(dict.fromkeys(wording.issuer(one) for one in found))}",
        right=("rows", "queries", "p50", "p99", "p99 at most"),
        styles={**_STYLES, "invalid": "yellow", "not met": "bold red", "met": "green"},
    )
    for one in found:
        if one.reason:
            print_line(f"{one.arm} at {one.rows} rows: {one.reason}", indent=2)


def _show_planned(record: SelectionRecord) -> None:
    planned = [arm for arm in record.arms if arm.status == "planned"]
    if planned:
        print_table(
            ("arm", "tier", "why"),
            [
                (f"{arm.id} (default)" if arm.is_default else arm.id, arm.tier, arm.reason or "-")
                for arm in planned
            ],
            title="Would be measured",
        )


def _show_fallen(record: SelectionRecord) -> None:
    """The arms that ran nowhere, with the reason of each."""
    fallen = [arm for arm in record.arms if arm.status in _FALLEN]
    if fallen:
        print_table(
            ("arm", "status", "max error", "why"),
            [
                (
                    arm.id,
                    wording.status(arm.status),
                    units.number(wording.worst_error(arm)),
                    wording.reason_of(arm) or "-",
                )
                for arm in fallen
            ],
            title="Cannot win",
            right=("max error",),
            styles=_STYLES,
        )


def _show_skipped(record: SelectionRecord) -> None:
    groups = wording.rules(record)
    if groups:
        print_table(
            ("rule", "arms", "which", "why (the first)"),
            [(rule, len(arms), _names(arms), arms[0].reason) for rule, arms in groups.items()],
            title="Skipped before anything ran",
            right=("arms",),
        )


def _names(arms: list[ArmRecord]) -> str:
    shown = ", ".join(arm.id for arm in arms[:_NAMES_SHOWN])
    rest = len(arms) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _show_verdict(record: SelectionRecord, folder: Path | None) -> None:
    decision = record.decision
    print_line()
    print_line(wording.headline(record), _HEADLINES.get(decision.status, "bold yellow"))
    if decision.summary:
        print_line(decision.summary)
    if len(decision.routes) > 1:
        facts(
            {
                wording.route_range(decision.routes, index): (
                    route.arm
                    if route.split_rows is None
                    else f"{route.arm}, in pieces of {wording.number_of_rows(route.split_rows)}"
                )
                for index, route in enumerate(decision.routes)
            }
        )
    code = wording.load_code(record, folder)
    if code:
        print_line(
            "To load it:"
            if folder is not None
            else "The record was not written. With -o DIR it is, and these lines load it:"
        )
        print_code(f"    {line}" for line in code)
