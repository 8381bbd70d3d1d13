"""How often calls took longer than a time: distributions, with the tail on a log scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.record import BucketRecord, SelectionRecord
from bridge_bench.report import wording
from bridge_bench.report.axis import Axis, logarithmic
from bridge_bench.report.calls import Calls, key
from bridge_bench.report.markup import Element, section, tag
from bridge_bench.report.palette import Look, legend
from bridge_bench.report.plot import curve, frame
from bridge_bench.units import duration, percent

__all__ = ["distributions", "tail"]

_POINTS = 90
_HEIGHT = 250


def distributions(
    record: SelectionRecord, calls: Calls | None, looks: dict[str, Look]
) -> Element | None:
    """A plot for each bucket; ``None`` where the times of the calls are not known."""
    panels = [
        panel
        for bucket in record.buckets
        if (panel := _panel(record, bucket, calls or {}, looks)) is not None
    ]
    if not panels:
        return None
    default = next((arm.id for arm in record.arms if arm.is_default), None)
    callers = record.limits.concurrency
    who = "Calls were made" if callers == 1 else f"{callers} callers made calls, each"
    return section(
        "The slow calls",
        legend(looks, default),
        tag("div", *panels, class_="panels"),
        lead="The share of calls that took longer than a time. Where a curve crosses 50 % is its "
        "median, where it crosses 1 % its 99th percentile; the further left, the better. "
        f"{who} one after the other, so waiting in a queue is not in them.",
    )


def tail(times_ns: npt.NDArray[Any], points: int = _POINTS) -> list[tuple[float, float]]:
    """Points of the curve: a time in seconds and the share of calls that took longer.

    The last point stands at the slowest call, with the share of one call. Of many calls a
    selection is taken, as many for each tenfold of the share.

    Args:
        times_ns: Times of single calls in nanoseconds, in any order.
        points: Most points to return.
    """
    ordered = np.sort(np.asarray(times_ns, dtype=float), axis=None)
    ordered = ordered[np.isfinite(ordered) & (ordered > 0)]
    count = ordered.size
    if count == 0:
        return []
    shares = np.geomspace(1.0, 1.0 / count, min(points, count))
    # Rank r, from 1, is the least with a share of calls beyond it that is below `share`.
    ranks = np.unique(np.clip(np.ceil((1 - shares) * count).astype(int), 0, count - 1))
    return [(float(ordered[rank]) * 1e-9, float((count - rank) / count)) for rank in ranks]


def _panel(
    record: SelectionRecord, bucket: BucketRecord, calls: Calls, looks: dict[str, Look]
) -> Element | None:
    curves = {
        name: found
        for name in looks
        if (found := tail(calls.get(key(name, bucket.rows), np.empty(0))))
    }
    if not curves:
        return None
    least = min(share for found in curves.values() for _, share in found)
    low = 10.0 ** math.floor(math.log10(least) + 1e-9)
    y = Axis(
        low=min(low, 0.1),
        high=1.0,
        is_log=True,
        ticks=(1.0, 0.5, *(10.0**-power for power in range(1, 7) if 10.0**-power >= low * 0.99)),
        text=percent,
        title="calls that took longer",
    )
    # The slowest few calls would take most of the width: what is slower than ten times the
    # slowest median is drawn at the edge.
    middles = [
        next(time for time, share in found if share <= 0.5) if len(found) > 1 else found[0][0]
        for found in curves.values()
    ]
    edge = 10 * max(middles)
    times = [min(time, edge) for found in curves.values() for time, _ in found]
    x = logarithmic(times, duration, "time of a call", margin=1.02, ticks=5)
    name = wording.number_of_rows(bucket.rows) if record.batch_axes else "Every call"
    total = sum(calls[key(one, bucket.rows)].size for one in curves)
    return tag(
        "div",
        tag("h3", name, tag("small", f" {total:,} calls")),
        frame(
            x,
            y,
            [curve(x, y, found, looks[one], steps=True) for one, found in curves.items()],
            title=f"Share of calls that took longer than a time, {name}",
            height=_HEIGHT,
        ),
        class_="card",
    )
