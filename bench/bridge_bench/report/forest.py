"""Forest plot: each arm's time relative to the winner's, with its interval, per bucket.

It is a table whose second column is drawn, so that long names wrap and numbers can be
read and copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.record import ArmRecord, BucketRecord, Measurement, SelectionRecord, Verdict
from bridge_bench.report import wording
from bridge_bench.report.axis import Axis, logarithmic
from bridge_bench.report.markup import Element, folded, name, section, tag
from bridge_bench.report.palette import Look, marker
from bridge_bench.units import ratio

__all__ = ["forest"]

_SHOWN = 10
_FACTOR = 2.5  # times the middle arm's; what is slower is said to be beyond the plot
_MIDDLE = 11.0  # pixels


def forest(record: SelectionRecord, looks: dict[str, Look]) -> Element | None:
    """The plots of all buckets; ``None`` where nothing was measured."""
    verdicts = {one.rows: one for one in record.decision.verdicts}
    panels = [
        panel
        for bucket in record.buckets
        if (panel := _panel(record, bucket, verdicts.get(bucket.rows), looks)) is not None
    ]
    if not panels:
        return None
    rate = record.limits.objective in {"throughput", "cost"}
    what = "The winner's rate over each arm's" if rate else "Each arm's time over the winner's"
    return section(
        "How much slower is each arm?",
        *panels,
        lead=f"{what}, compared block by block, with 95 % intervals. Left is better; the "
        "vertical line is the winner, the shaded band is the margin within which arms count as "
        "equal.",
    )


def _panel(
    record: SelectionRecord, bucket: BucketRecord, verdict: Verdict | None, looks: dict[str, Look]
) -> Element | None:
    winner = None if verdict is None else verdict.winner
    rows = [
        (arm, one)
        for arm in record.arms
        if (one := arm.bucket(bucket.rows)) is not None
        and (arm.id == winner or one.slower is not None)
    ]
    if not any(one.slower is not None for _, one in rows):
        return None  # a single arm, or too few blocks to compare
    rows.sort(
        key=lambda row: (row[0].id != winner, 1.0 if row[1].slower is None else row[1].slower.value)
    )
    margin = 1 + record.protocol.epsilon
    # Few arms are worth a look in the end: those that lead, and the default.
    keep = {arm.id for arm, _ in rows[:_SHOWN]} | {arm.id for arm, _ in rows if arm.is_default}
    keep |= {arm.id for arm, one in rows if one.status in {"won", "tied"}}
    first = [row for row in rows if row[0].id in keep]
    rest = [row for row in rows if row[0].id not in keep]
    if len(rest) == 1:
        first, rest = rows, []
    more = f"{len(rest)} more"
    if all(one.status == "eliminated" for _, one in rest):
        more += ", all slower"
    title = wording.number_of_rows(bucket.rows) if record.batch_axes else "Every call"
    return tag(
        "div",
        tag("h3", title),
        _table(first, winner, margin, looks),
        folded(more, _table(rest, winner, margin, looks)) if rest else None,
        class_="card",
    )


def _table(
    rows: Sequence[tuple[ArmRecord, Measurement]],
    winner: str | None,
    margin: float,
    looks: dict[str, Look],
) -> Element:
    axis = _axis(rows, margin)
    body = [_row(arm, one, winner, axis, margin, looks.get(arm.id)) for arm, one in rows]
    scale = tag(
        "tr",
        tag("td", ""),
        tag("td", _scale(axis)),
        tag("td", ""),
        class_="scale",
    )
    head = tag(
        "thead",
        tag(
            "tr",
            tag("th", "arm", scope="col"),
            tag("th", "relative time", scope="col"),
            tag("th", "ratio (interval)", scope="col", class_="n"),
        ),
        class_="unseen",
    )
    return tag("table", head, tag("tbody", *body, scale), class_="forest")


def _axis(rows: Sequence[tuple[ArmRecord, Measurement]], margin: float) -> Axis:
    """Wide enough for most: a few far slower ones do not press the others together."""
    known = sorted(
        (one.slower for _, one in rows if one.slower is not None), key=lambda one: one.value
    )
    values = [1.0, margin**2]
    if known:
        floor = min(1.0, known[0].value) / _FACTOR
        ceiling = _FACTOR * max(1.0, known[len(known) // 2].value)
        if known[-1].value <= 2 * ceiling:  # so little more is worth no arrow
            ceiling = known[-1].high
        for one in known:
            if one.value <= ceiling:
                values += [one.value, max(one.low, floor), min(one.high, ceiling)]
    return logarithmic(values, lambda value: f"{value:.3g}x", margin=1.01, ticks=5)


def _row(
    arm: ArmRecord,
    one: Measurement,
    winner: str | None,
    axis: Axis,
    margin: float,
    look: Look | None,
) -> Element:
    is_winner = arm.id == winner
    marks = ["winner"] if is_winner else []
    if arm.is_default:
        marks.append("default")
    if one.status in {"tied", "undecided", "infeasible"} and not is_winner:
        marks.append(wording.status(one.status))
    return tag(
        "tr",
        tag(
            "th",
            name(arm.id),
            *(tag("span", text, class_="mark") for text in marks),
            scope="row",
        ),
        tag("td", _interval(arm, one, axis, margin, look)),
        tag("td", _words(one), class_="n"),
        class_="leads" if is_winner else None,
    )


def _words(one: Measurement) -> str:
    if one.slower is None:
        return ratio(1.0)
    found = one.slower
    return f"{ratio(found.value)} ({ratio(found.low)} to {ratio(found.high)})"


def _interval(
    arm: ArmRecord, one: Measurement, axis: Axis, margin: float, look: Look | None
) -> Element:
    told = f"{arm.id}: {_words(one)}"
    left, right = 100 * axis.place(1.0), 100 * axis.place(margin)
    parts: list[Element] = [
        tag(
            "rect",
            x=f"{left:.2f}%",
            width=f"{right - left:.2f}%",
            y="-3",
            height=2 * _MIDDLE + 6,
            class_="band",
        ),
        tag(
            "line",
            x1=f"{left:.2f}%",
            x2=f"{left:.2f}%",
            y1="-3",
            y2=2 * _MIDDLE + 3,
            class_="origin",
        ),
    ]
    class_ = "grey" if look is None else look.class_
    value = 1.0 if one.slower is None else one.slower.value
    if value > axis.high:
        parts.append(
            tag("text", "beyond \u2192", x="100%", y=_MIDDLE, dy=".35em", class_="tick beyond")
        )
    else:
        if one.slower is not None:
            ends = [f"{100 * axis.place(end):.2f}%" for end in (one.slower.low, one.slower.high)]
            parts.append(
                tag(
                    "line",
                    x1=ends[0],
                    x2=ends[1],
                    y1=_MIDDLE,
                    y2=_MIDDLE,
                    class_=f"whisker {class_}",
                )
            )
        at = axis.place(value)
        if look is None:
            parts.append(tag("circle", cx=f"{100 * at:.2f}%", cy=_MIDDLE, r="3.5", class_="grey"))
        else:
            parts.append(marker(look, at, _MIDDLE))
    return tag(
        "svg",
        tag("title", told),
        *parts,
        width="100%",
        height=2 * int(_MIDDLE),
        role="img",
        aria_label=told,
    )


def _scale(axis: Axis) -> Element:
    parts = []
    for value in axis.ticks:
        at = f"{100 * axis.place(value):.2f}%"
        parts.append(tag("line", x1=at, x2=at, y1="0", y2="4", class_="origin"))
        parts.append(tag("text", axis.text(value), x=at, y="17", class_="tick x"))
    return tag("svg", *parts, width="100%", height="22", aria_hidden="true")
