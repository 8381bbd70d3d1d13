"""Two selection records compared: is what serves slower than it was?

The records come from different runs, so their blocks are not paired: each side has an
interval from a bootstrap over its blocks, and the interval of the ratio follows from the
two, on the log scale, the distances to the far ends added as squares. It knows how much
the blocks of a run vary, not how much runs differ from each other: the canary, a fixed
piece of work that both runs timed, tells something of that.

Source: Zou, Donner: "Construction of confidence limits about effect measures: a general
approach", Statistics in Medicine 27 (2008), for the interval from two intervals.

The rule: a regression is proven where the lower end of the 95 % interval of
``after / before`` is above ``1 + limit``. Only what serves can fail the comparison, one
ratio per bucket; arms that lost are shown, since among many of them some would look worse
by chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import machine
from bridge.errors import MeasureError, OptionError
from bridge.record import ArmRecord, Interval, Measurement, Route, SelectionRecord
from bridge_bench.report.calls import Calls, key
from bridge_bench.stats import bootstrap_median, percentile, percentile_upper, samples_needed
from bridge_bench.units import count

__all__ = ["METRICS", "Change", "RecordComparison", "compare_records", "parse_limits"]

METRICS = ("median", "p99")

MIN_BLOCKS = 6
"""Fewest blocks on both sides for an interval: of fewer, resamples hardly differ."""

_P99_RESAMPLES = 200
_RATES = frozenset({"throughput", "cost"})
_OF_BLOCKS = _RATES | {"p99"}  # objectives whose blocks hold something else than medians of calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One number of both records.

    Attributes:
        rows: The bucket.
        metric: ``median`` or ``p99``.
        before, after: Ids of the arms; ``None`` where nothing serves. They differ only
            where another arm serves than before.
        before_s, after_s: The numbers, in seconds; ``None`` if unknown. What the median is of
            follows from the objective: of calls, of seconds per row for throughput and
            cost, of the 99th percentiles of slices for p99.
        ratio: After over before, with its 95 % interval; ``None`` if it cannot be told.
        limit: Share by which it may grow; ``None`` if nobody asked.
        verdict: ``slower`` or ``faster`` (the interval excludes 1), ``same``,
            ``regression`` (proven beyond the limit), ``lost`` (served before and not
            after), or ``unknown``.
        reason: Why it is unknown or lost; else empty.
    """

    rows: int
    metric: str
    before: str | None
    after: str | None
    before_s: float | None = None
    after_s: float | None = None
    ratio: Interval | None = None
    limit: float | None = None
    verdict: str = "unknown"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordComparison:
    """What became of the numbers of a record.

    Attributes:
        serving: What serves each bucket, which decides.
        arms: Every arm that both measured, which decides nothing.
        obstacles: Why the numbers cannot be compared, such as another machine; sentences.
        notes: What else differs: versions, models, inputs, arms; sentences.
        limits: Largest growth by metric, as a share.
        canary: Time of the fixed piece of work after over before; ``None`` if unknown.
    """

    serving: tuple[Change, ...]
    arms: tuple[Change, ...]
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]
    limits: Mapping[str, float]
    canary: float | None

    @property
    def is_comparable(self) -> bool:
        """Nothing stands against comparing the numbers."""
        return not self.obstacles

    @property
    def is_telling(self) -> bool:
        """Some number of what serves could be compared, or something serves no more."""
        return any(one.verdict != "unknown" for one in self.serving)

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What serves and is proven slower than its limit allows, or serves no more."""
        return tuple(one for one in self.serving if one.verdict in {"regression", "lost"})

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "comparable": self.is_comparable,
            "regression": bool(self.regressions),
            "limits": {name: self.limits.get(name) for name in METRICS},
            "canary": self.canary,
            "obstacles": list(self.obstacles),
            "notes": list(self.notes),
            "serving": [asdict(one) for one in self.serving],
            "arms": [asdict(one) for one in self.arms],
        }


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """Limits from texts such as ``median:5%`` and ``median:5%,p99:10%``, as shares.

    Raises:
        OptionError: A text has another form, or names a metric twice.
    """
    limits: dict[str, float] = {}
    for text in (part.strip() for given in texts for part in given.split(",")):
        found = re.fullmatch(r"([a-z0-9]+):(\d+(?:\.\d+)?)%", text)
        if found is None or found[1] not in METRICS:
            raise OptionError(
                f"{text!r} is no limit; wanted a metric of {', '.join(METRICS)} and percent.",
                fix="Write for example median:5% or median:5%,p99:10%.",
            )
        if found[1] in limits:
            raise OptionError(
                f"the limit of {found[1]} is given twice.", fix="Give one limit for each metric."
            )
        limits[found[1]] = float(found[2]) / 100
    return limits


def compare_records(
    before: SelectionRecord,
    after: SelectionRecord,
    *,
    limits: Mapping[str, float] | None = None,
    before_calls: Calls | None = None,
    after_calls: Calls | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> RecordComparison:
    """Compares what serves, and each arm, bucket by bucket.

    Args:
        before: The record to compare with.
        after: The record in question.
        limits: Largest growth by metric (``median``, ``p99``) as a share; empty proves
            nothing and only shows.
        before_calls: Times of single calls of ``before``, needed for ``p99``.
        after_calls: The same of ``after``.
        resamples: Resamples of the bootstrap of medians.
        seed: Seed of the bootstrap.

    Raises:
        MeasureError: No bucket is in both records.
    """
    limits = dict(limits or {})
    shared = [one.rows for one in before.buckets if one.rows in {b.rows for b in after.buckets}]
    if not shared:
        raise MeasureError(
            "the records have no number of rows in common, so nothing can be compared: "
            f"{_sizes(before)} and {_sizes(after)}.",
            fix="Select both with the same --batch.",
        )
    sides = (_Side(before, before_calls, 0), _Side(after, after_calls, 1))
    draw = _Draw(resamples, seed)
    metrics = ["median", *(name for name in METRICS[1:] if name in limits)]
    serving = [_served(sides, rows, metric, limits, draw) for rows in shared for metric in metrics]
    known = {arm.id for arm in after.arms}
    arms = [
        _change(sides, rows, metric, arm.id, arm.id, {}, draw)
        for arm in before.arms
        if arm.id in known
        for rows in shared
        for metric in metrics
        if arm.bucket(rows) is not None and after.arm(arm.id).bucket(rows) is not None
    ]
    return RecordComparison(
        serving=tuple(serving),
        arms=tuple(arms),
        obstacles=tuple(_obstacles(before, after)),
        notes=tuple(_notes(before, after)),
        limits=limits,
        canary=after.canary.median_s / before.canary.median_s
        if before.canary is not None and after.canary is not None and before.canary.median_s > 0
        else None,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    record: SelectionRecord
    calls: Calls | None
    index: int


@dataclass(frozen=True, slots=True)
class _Draw:
    resamples: int
    seed: int


def _serving(record: SelectionRecord, rows: int) -> Route | None:
    """The route that a call of this many rows takes."""
    return next(
        (one for one in record.decision.routes if one.to_rows is None or rows <= one.to_rows), None
    )


def _served(
    sides: tuple[_Side, _Side],
    rows: int,
    metric: str,
    limits: Mapping[str, float],
    draw: _Draw,
) -> Change:
    """What became of calls of this many rows."""
    before, after = (_serving(side.record, rows) for side in sides)
    if before is not None and after is not None:
        for when, route in (("before", before), ("after", after)):
            # Blocks are of whole calls: what the pieces take together is not in the record.
            if route.split_rows is not None and route.split_rows < rows:
                return Change(
                    rows=rows,
                    metric=metric,
                    before=before.arm,
                    after=after.arm,
                    limit=limits.get(metric),
                    reason=f"{route.arm} served it in pieces of {route.split_rows} rows {when}, "
                    "and the record does not say how long these take together.",
                )
    arms = [None if route is None else route.arm for route in (before, after)]
    return _change(sides, rows, metric, arms[0], arms[1], limits, draw)


def _change(
    sides: tuple[_Side, _Side],
    rows: int,
    metric: str,
    before: str | None,
    after: str | None,
    limits: Mapping[str, float],
    draw: _Draw,
) -> Change:
    limit = limits.get(metric)
    known: dict[str, Any] = {
        "rows": rows, "metric": metric, "before": before, "after": after, "limit": limit,
    }  # fmt: skip
    if before is None or after is None:
        lost = before is not None
        reason = "Nothing serves it any more." if lost else "Nothing served it before."
        return Change(**known, verdict="lost" if lost else "unknown", reason=reason)
    ones = [
        _measured(side.record, arm, rows) for side, arm in zip(sides, (before, after), strict=True)
    ]
    values = [
        _value(one, metric, of_blocks=side.record.limits.objective in _OF_BLOCKS)
        for one, side in zip(ones, sides, strict=True)
    ]
    known |= {"before_s": values[0], "after_s": values[1]}
    samples = []
    for one, side, arm in zip(ones, sides, (before, after), strict=True):
        found = "it was not measured" if one is None else _sample(one, metric, side, arm, draw)
        if isinstance(found, str):
            return Change(**known, reason=f"{arm} at {rows} rows: {found}.")
        samples.append(found)
    ratio = _ratio(samples[0], samples[1])
    verdict = "slower" if ratio.low > 1 else "faster" if ratio.high < 1 else "same"
    if limit is not None and ratio.low > 1 + limit:
        verdict = "regression"
    return Change(**known, ratio=ratio, verdict=verdict)


def _measured(record: SelectionRecord, arm: str, rows: int) -> Measurement | None:
    found: ArmRecord = record.arm(arm)
    return found.bucket(rows)


def _value(one: Measurement | None, metric: str, *, of_blocks: bool) -> float | None:
    if one is None:
        return None
    if metric == "p99":
        return one.p99_s
    if of_blocks:
        blocks = [block for block in one.blocks if block is not None]
        return float(np.median(blocks)) if blocks else None
    return one.median_s


def _ratio(before: Interval, after: Interval) -> Interval:
    """After over before, from two independent intervals of positive numbers."""
    value = after.value / before.value
    down = math.hypot(math.log(after.value / after.low), math.log(before.high / before.value))
    up = math.hypot(math.log(after.high / after.value), math.log(before.value / before.low))
    return Interval(value=value, low=value * math.exp(-down), high=value * math.exp(up))


def _sample(one: Measurement, metric: str, side: _Side, arm: str, draw: _Draw) -> Interval | str:
    """The metric with its interval; or why there is none, in words."""
    blocks = [block for block in one.blocks if block is not None]
    if len(blocks) < MIN_BLOCKS:
        return f"it has {count(len(blocks), 'block')}, and an interval takes {MIN_BLOCKS}"
    if min(blocks) <= 0:
        return "a block has a time that is not above zero"
    seed = 2 * draw.seed + side.index  # the two sides have draws of their own
    if metric == "median":
        return bootstrap_median(blocks, resamples=draw.resamples, seed=seed)
    times = None if side.calls is None else side.calls.get(key(arm, one.rows))
    if times is None:
        return "the record does not hold the times of its calls"
    seconds = times.astype(float) * 1e-9
    found = _p99(seconds, len(blocks), min(draw.resamples, _P99_RESAMPLES), seed)
    if found is None:
        needed = samples_needed(0.99, 0, 0.975)
        return f"it has {count(times.size, 'call')}, and an interval of p99 takes {needed}"
    return found


def _p99(
    seconds: npt.NDArray[np.float64], blocks: int, resamples: int, seed: int
) -> Interval | None:
    """The 99th percentile of calls with its interval; ``None`` where the calls are too few.

    Of two intervals the wider ends: by the binomial rule, which is exact for calls that do
    not depend on each other, and by a bootstrap over runs of blocks, which is too narrow so
    far out in the tail, but knows that calls of a block are alike.

    Source: Kuensch, Annals of Statistics 17 (1989): runs as long as the cube root of their
    number.
    """
    from scipy.stats import binom

    upper = percentile_upper(seconds, 0.99, 0.975)
    if upper is None:
        return None
    lower = float(np.sort(seconds)[max(0, int(binom.ppf(0.025, seconds.size, 0.99)) - 1)])
    # Calls are in order, and slices of nearly equal length: these are about the blocks.
    pieces = np.array_split(seconds, blocks)
    length = math.ceil(blocks ** (1 / 3))
    generator = np.random.default_rng(seed)
    starts = generator.integers(blocks, size=(resamples, math.ceil(blocks / length)))
    picks = ((starts[:, :, None] + np.arange(length)) % blocks).reshape(resamples, -1)[:, :blocks]
    drawn = [percentile(np.concatenate([pieces[pick] for pick in row]), 0.99) for row in picks]
    return Interval(
        value=percentile(seconds, 0.99),
        low=min(lower, percentile(drawn, 0.025)),
        high=max(upper, percentile(drawn, 0.975)),
    )


def _obstacles(before: SelectionRecord, after: SelectionRecord) -> list[str]:
    found = [
        f"The machine differs: {text}"
        for text in machine.differences(before.machine, after.machine)
    ]
    kinds = [
        "rows"
        if one.limits.objective in _RATES
        else one.limits.objective
        if one.limits.objective == "p99"
        else "calls"
        for one in (before, after)
    ]
    if kinds[0] != kinds[1]:
        found.append(
            f"The objectives {before.limits.objective} and {after.limits.objective} measure "
            "different things."
        )
    if before.limits.concurrency != after.limits.concurrency:
        found.append(
            f"The number of callers changed from {before.limits.concurrency} to "
            f"{after.limits.concurrency}."
        )
    return found


def _notes(before: SelectionRecord, after: SelectionRecord) -> list[str]:
    found = []
    digests = [one.models[0].digest if one.models else None for one in (before, after)]
    if digests[0] != digests[1]:
        found.append("The model is not the same.")
    if before.profile != after.profile:
        found.append("The inputs are not the same.")
    for name in sorted({*before.versions, *after.versions}):
        old, new = before.versions.get(name), after.versions.get(name)
        if old != new:
            found.append(f"{name} changed from {old or 'not there'} to {new or 'not there'}.")
    for name in sorted({*before.variables, *after.variables}):
        old, new = before.variables.get(name), after.variables.get(name)
        if old != new:
            texts = ["unset" if text is None else repr(text) for text in (old, new)]
            found.append(f"{name} changed from {texts[0]} to {texts[1]}.")
    ids = [[arm.id for arm in one.arms if arm.buckets] for one in (before, after)]
    gone = [arm for arm in ids[0] if arm not in ids[1]]
    more = [arm for arm in ids[1] if arm not in ids[0]]
    if gone:
        found.append(f"Measured only before: {', '.join(gone)}.")
    if more:
        found.append(f"Measured only after: {', '.join(more)}.")
    sizes = [{bucket.rows for bucket in one.buckets} for one in (before, after)]
    alone = sorted(sizes[0] ^ sizes[1])
    if alone:
        found.append(f"Only one record has {', '.join(map(str, alone))} rows.")
    if before.canary is not None and after.canary is not None and before.canary.median_s > 0:
        ratio = after.canary.median_s / before.canary.median_s
        if abs(ratio - 1) > before.protocol.canary_tolerance / 2:
            found.append(
                f"The machine itself was not equally fast: the canary took {ratio:.2f} times as "
                "long as before."
            )
    return found


def _sizes(record: SelectionRecord) -> str:
    return ", ".join(str(one.rows) for one in record.buckets) or "none"
