"""Latency by rows per call, one line for each arm, on two logarithmic axes."""

from __future__ import annotations

from bridge.record import SelectionRecord
from bridge_bench.report import wording
from bridge_bench.report.axis import Axis, logarithmic
from bridge_bench.report.markup import Element, section, tag
from bridge_bench.report.palette import Look, legend, marker
from bridge_bench.report.plot import curve, frame, label, spread
from bridge_bench.units import count, duration

__all__ = ["batches"]

_HEIGHT = 360


def batches(record: SelectionRecord, looks: dict[str, Look]) -> Element | None:
    """The plot; ``None`` with fewer than two buckets measured, where a table says it all."""
    points = {
        arm.id: [
            (float(one.rows), one.median_s)
            for one in sorted(arm.buckets, key=lambda one: one.rows)
            if one.median_s is not None and one.rows > 0
        ]
        for arm in record.arms
    }
    points = {name: found for name, found in points.items() if found}
    sizes = sorted({rows for found in points.values() for rows, _ in found})
    if len(sizes) < 2:
        return None
    span = logarithmic(sizes, lambda value: f"{value:,.0f}", "rows in a call", margin=1.0)
    x = Axis(
        low=span.low / 1.08,
        high=span.high,
        is_log=True,
        ticks=tuple(sizes),
        text=span.text,
        title=span.title,
    )
    times = [time for found in points.values() for _, time in found]
    y = logarithmic(times, duration, "median time of a call")
    grey = [curve(x, y, found, None) for name, found in points.items() if name not in looks]
    drawn = {name: look for name, look in looks.items() if name in points}
    colored = [curve(x, y, points[name], look) for name, look in drawn.items()]
    marks = [
        marker(
            look,
            x.place(rows),
            _HEIGHT * (1 - y.place(time)),
            f"{name}: {duration(time)} at {wording.number_of_rows(int(rows))}",
        )
        for name, look in drawn.items()
        for rows, time in points[name]
    ]
    heights = [_HEIGHT * (1 - y.place(points[name][-1][1])) for name in drawn]
    labels = [
        label(name, height, look)
        for (name, look), height in zip(
            drawn.items(), spread(heights, low=6, high=_HEIGHT - 6), strict=True
        )
    ]
    default = next((arm.id for arm in record.arms if arm.is_default), None)
    return section(
        "Time by rows in a call",
        tag(
            "div",
            frame(
                x,
                y,
                [*grey, *colored, *marks, *labels],
                title="Median time of a call by its rows, one line for each arm",
                height=_HEIGHT,
                class_="labelled",
            ),
            legend(drawn, default, others=len(grey)),
            class_="card",
        ),
        lead="Both axes are logarithmic: a straight line upwards is a constant price per row, a "
        "level one is a constant price per call. "
        f"{count(len(grey), 'other arm')} in grey.",
    )
