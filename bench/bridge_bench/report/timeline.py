"""How the race went: in how many blocks each arm ran, and when it was eliminated."""

from __future__ import annotations

from bridge.record import ArmRecord, Canary, Measurement, SelectionRecord
from bridge_bench.report import wording
from bridge_bench.report.axis import linear
from bridge_bench.report.markup import Element, name, scrolled, section, tag
from bridge_bench.report.palette import Look
from bridge_bench.report.plot import curve, frame
from bridge_bench.units import count, duration, percent

__all__ = ["timeline"]

_MIDDLE = 9.0  # pixels
_MOST_OFF = 1e6  # times the canary's median; drawn there if more
_INSET = 0.94  # share of the width for the longest race, so that its end mark has room


def timeline(record: SelectionRecord, looks: dict[str, Look]) -> Element | None:
    """A row for each arm, a bar for each bucket, the canary beneath; ``None`` without a race."""
    raced = [arm for arm in record.arms if any(_length(one) for one in arm.buckets)]
    if not raced:
        return None
    raced.sort(key=lambda arm: -sum(_length(one) for one in arm.buckets))
    longest = max(
        *(_length(one) for arm in raced for one in arm.buckets), *record.protocol.looks[:1], 1
    )
    buckets = [
        bucket
        for bucket in record.buckets
        if any((one := arm.bucket(bucket.rows)) is not None and _length(one) for arm in raced)
    ]
    titles = [
        wording.number_of_rows(bucket.rows) if record.batch_axes else "every call"
        for bucket in buckets
    ]
    head = tag(
        "thead",
        tag(
            "tr",
            tag("th", "arm", scope="col"),
            *(tag("th", title, scope="col") for title in titles),
        ),
    )
    body = [
        tag(
            "tr",
            tag("th", name(arm.id), scope="row"),
            *(
                tag("td", _bar(record, arm, arm.bucket(bucket.rows), longest, looks.get(arm.id)))
                for bucket in buckets
            ),
        )
        for arm in raced
    ]
    looks_at = ", ".join(str(look) for look in record.protocol.looks)
    return section(
        "How the race went",
        scrolled(head, tag("tbody", *body), class_="timeline"),
        None if record.canary is None else _canary(record, record.canary),
        lead="In each block the arms still in the race take turns in a new random order, and "
        "again in the reverse order; those that cannot change the verdict rest. A bar is as long "
        "as the number of blocks in which the arm ran; it ends with a cross where the "
        f"arm was proven slower, with a disc where it stayed to the end. Arms more than "
        f"{record.protocol.cut_ratio:g} times slower leave after two blocks; others are judged "
        f"after {looks_at} blocks.",
    )


def _length(one: Measurement) -> int:
    return sum(block is not None for block in one.blocks)


def _bar(
    record: SelectionRecord,
    arm: ArmRecord,
    one: Measurement | None,
    longest: int,
    look: Look | None,
) -> Element | str:
    if one is None or not _length(one):
        return "-"
    blocks = _length(one)
    told = f"{arm.id}: {wording.status(one.status)} after {count(blocks, 'block')}"
    end = f"{100 * _INSET * blocks / longest:.2f}%"
    class_ = "grey" if look is None else look.class_
    parts: list[Element] = [
        tag(
            "line",
            x1=f"{100 * _INSET * look_at / longest:.2f}%",
            x2=f"{100 * _INSET * look_at / longest:.2f}%",
            y1="0",
            y2="100%",
            class_="grid",
        )
        for look_at in record.protocol.looks
        if look_at <= longest
    ]
    parts.append(tag("rect", x="0", y=_MIDDLE - 2.5, height="5", width=end, class_=f"bar {class_}"))
    if one.status == "eliminated":
        cross = tag("path", d="M-3.5,-3.5 L3.5,3.5 M-3.5,3.5 L3.5,-3.5", class_="cross")
    elif one.status in {"won", "tied", "undecided", "infeasible"}:
        cross = tag("circle", r="4.5", class_=f"end {class_}")
    else:
        cross = tag("path", d="M-1,-6 H1 V6 H-1 Z", class_="cross")
    parts.append(tag("svg", cross, x=end, y=_MIDDLE, class_="marker"))
    return tag(
        "div",
        tag(
            "svg",
            tag("title", told),
            *parts,
            width="100%",
            height=2 * int(_MIDDLE),
            role="img",
            aria_label=told,
        ),
        tag("span", str(blocks), class_="soft"),
        class_="run",
    )


def _canary(record: SelectionRecord, canary: Canary) -> Element | None:
    shares = [
        min(max(time / canary.median_s, 0.0), _MOST_OFF)
        for time in canary.times_s
        if canary.median_s > 0
    ]
    if not shares:
        return None
    tolerance = record.protocol.canary_tolerance
    low = min(1 - 1.5 * tolerance, *shares)
    high = max(1 + 1.5 * tolerance, *shares)
    y = linear(low, high, lambda value: percent(value - 1), "off its median", ticks=4)
    x = linear(0, len(shares), lambda value: f"{value:.0f}", "block")
    height = 110
    top, bottom = height * (1 - y.place(1 + tolerance)), height * (1 - y.place(1 - tolerance))
    band = tag(
        "rect",
        x="0",
        width="100%",
        y=f"{top:.1f}",
        height=f"{bottom - top:.1f}",
        class_="band",
    )
    dots = [
        tag(
            "circle",
            tag("title", f"block {index + 1}: {percent(share - 1)} off"),
            cx=f"{100 * x.place(index + 0.5):.2f}%",
            cy=f"{height * (1 - y.place(share)):.1f}",
            r="2.5" if len(shares) <= 120 else "1.5",
            class_="dot",
        )
        for index, share in enumerate(shares)
    ]
    line = curve(x, y, [(index + 0.5, share) for index, share in enumerate(shares)], None)
    return tag(
        "div",
        tag("h3", "The canary: how quiet was the machine?"),
        tag("p", wording.canary(record), class_="soft"),
        frame(
            x,
            y,
            [band, line, *dots],
            title=f"A fixed piece of work in each block, median {duration(canary.median_s)}",
            height=height,
        ),
        class_="card",
    )
