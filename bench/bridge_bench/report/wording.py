"""A selection record in words: one place, so that page and terminal say the same."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

from bridge.record import (
    ArmRecord,
    Interval,
    LoadRecord,
    Measurement,
    Route,
    SelectionRecord,
    Verdict,
)
from bridge_bench.units import count, duration, number, percent, ratio, size

__all__ = [
    "STATUSES",
    "bucket_range",
    "canary",
    "confidence",
    "gain",
    "headline",
    "issuer",
    "load_code",
    "machine_name",
    "memory_share",
    "moment",
    "number_of_rows",
    "objective",
    "reason_of",
    "route_range",
    "rules",
    "slower",
    "status",
    "sureness",
    "tally",
    "ties",
    "ties_lead",
    "timing",
    "worst_error",
    "worst_excess",
]

STATUSES: Mapping[str, str] = {
    "won": "won",
    "tied": "tied",
    "undecided": "undecided",
    "eliminated": "slower",
    "infeasible": "over a limit",
    "not_conformant": "wrong output",
    "failed": "failed",
    "timed_out": "timed out",
    "crashed": "crashed",
    "skipped": "skipped",
    "planned": "planned",
}
"""Each status of an arm in words."""

_TIES_SHOWN = 4
_LEADS = {
    "p50": "Fastest",
    "p99": "Lowest 99th percentile",
    "throughput": "Highest throughput",
    "memory": "Least memory",
    "cost": "Cheapest",
}


def status(name: str) -> str:
    """A status in words; one that is not known here as it is written."""
    return STATUSES.get(name, name.replace("_", " "))


def headline(record: SelectionRecord) -> str:
    """The verdict in a few words, such as ``Fastest: openvino/hint=latency``."""
    decision = record.decision
    if decision.status == "planned":
        planned = sum(arm.status == "planned" for arm in record.arms)
        return f"Plan: {count(planned, 'arm')} to measure"
    serving = list(dict.fromkeys(route.arm for route in decision.routes))
    if decision.status == "none" or not serving:
        return "No arm may serve this model"
    names = serving[0] if len(serving) == 1 else f"{count(len(serving), 'arm')}, by rows per call"
    if decision.status == "interrupted":
        return f"Interrupted; ahead so far: {names}"
    if decision.status == "undecided":
        return f"Undecided; ahead so far: {names}"
    if all(one.status == "default" for one in decision.verdicts):
        return f"Keep the default: {names}"
    return f"{_LEADS.get(record.limits.objective, 'Best')}: {names}"


def confidence(record: SelectionRecord) -> str:
    """Confidence of the verdict, such as ``95 %``."""
    return f"{100 * (1 - record.protocol.delta):.4g} %"


def sureness(record: SelectionRecord, verdict: Verdict) -> str:
    """How sure the choice in one bucket is; one sentence."""
    if verdict.winner is None:
        return verdict.reason or "No arm may serve here."
    if record.limits.objective == "memory":  # which is weighed, not raced for
        return verdict.reason
    if verdict.regret is None:
        return verdict.reason or "Nothing bounds how much faster another arm could be."
    sure = confidence(record)
    ran = [arm for arm in record.arms if _is_timed(arm.bucket(verdict.rows))]
    if len(ran) == 1:
        return "It is the only arm that could be measured."
    if verdict.regret <= 0:
        claim = "No other arm is faster" if verdict.ties else "Every other arm is slower"
        return f"{claim} ({sure} confidence)."
    return f"No other arm is more than {percent(verdict.regret)} faster ({sure} confidence)."


def gain(record: SelectionRecord, verdict: Verdict) -> str:
    """The winner against the default; empty where there is nothing to say."""
    if verdict.winner is None:
        return ""
    default = next((arm for arm in record.arms if arm.is_default), None)
    if default is not None and default.id == verdict.winner:
        return "It is the default."
    if record.limits.objective == "memory":
        share = memory_share(record, verdict)
        return "" if share is None else f"It needs {ratio(share)} the memory of the default."
    found = verdict.default_ratio
    if found is None:
        return "The default was not measured." if default is not None else ""
    if found.low <= 1 <= found.high:
        return f"As fast as the default, as far as known ({_factor(found)})."
    if found.value < 1:
        return f"Slower than the default: {_factor(found)} its speed."
    return (
        f"{ratio(found.value)} as fast as the default ({ratio(found.low)} to {ratio(found.high)})."
    )


def memory_share(record: SelectionRecord, verdict: Verdict) -> float | None:
    """Memory of the winner over that of the default; ``None`` if either is unknown."""
    default = next((arm for arm in record.arms if arm.is_default), None)
    winner = next((arm for arm in record.arms if arm.id == verdict.winner), None)
    if default is None or winner is None or winner.memory_bytes is None:
        return None
    return winner.memory_bytes / default.memory_bytes if default.memory_bytes else None


def ties(record: SelectionRecord, verdict: Verdict) -> str:
    """The arms that may be as good as the winner, as one sentence; empty without any."""
    if not verdict.ties:
        return ""
    rest = len(verdict.ties) - _TIES_SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return f"{ties_lead(record)}: {', '.join(verdict.ties[:_TIES_SHOWN])}{more}."


def ties_lead(record: SelectionRecord) -> str:
    """What is said before the names of arms that may be as good as the winner."""
    is_memory = record.limits.objective == "memory"
    return "Need about as little" if is_memory else "May be as fast"


def issuer(one: LoadRecord) -> str:
    """Who sent the queries, in words."""
    return {"loadgen": "MLPerf LoadGen", "own": "own issuer"}.get(one.issuer, one.issuer)


def number_of_rows(rows: int) -> str:
    """Such as ``1 row``."""
    return count(rows, "row")


def bucket_range(record: SelectionRecord, rows: int) -> str:
    """The sizes that belong to a bucket, such as ``5 to 64 rows``."""
    if len(record.buckets) == 1 and record.buckets[0].to_rows is None:
        return "calls of any size" if record.batch_axes else "every call"
    low = 1
    for bucket in record.buckets:
        if bucket.rows == rows:
            return _range(low, bucket.to_rows)
        low = (bucket.to_rows or bucket.rows) + 1
    return number_of_rows(rows)


def route_range(routes: Sequence[Route], index: int) -> str:
    """The sizes that a route serves, such as ``more than 64 rows``."""
    if len(routes) == 1 and routes[0].to_rows is None:
        return "every call"
    before = routes[index - 1].to_rows if index else 0
    return _range((before or 0) + 1, routes[index].to_rows)


def timing(one: Measurement) -> str:
    """The median with its interval, such as ``307 µs (302 to 311)``; a dash for none.

    One block tells nothing of how much blocks vary, so its interval is left out.
    """
    if one.median_s is None:
        return "-"
    middle = duration(one.median_s)
    blocks = sum(block is not None for block in one.blocks)
    if blocks == 1 or one.median_low_s is None or one.median_high_s is None:
        return middle
    low, high = duration(one.median_low_s), duration(one.median_high_s)
    if {text.rpartition(" ")[2] for text in (low, high)} == {middle.rpartition(" ")[2]}:
        low, high = low.rpartition(" ")[0], high.rpartition(" ")[0]
    return f"{middle} ({low} to {high})"


def objective(record: SelectionRecord, arm: ArmRecord, one: Measurement) -> tuple[str, str] | None:
    """What was asked for besides latency: its name, and the arm's value.

    ``None`` where the objective is a latency.
    """
    limits = record.limits
    if limits.objective == "memory":
        return "memory", size(arm.memory_bytes)
    if limits.objective == "throughput":
        return "rows/s", "-" if one.rows_per_s is None else f"{one.rows_per_s:,.0f}"
    if limits.objective == "cost":
        if not one.rows_per_s or limits.price_per_hour is None:
            return "price per million rows", "-"
        return "price per million rows", number(limits.price_per_hour / 3600 / one.rows_per_s * 1e6)
    return None


def slower(one: Measurement, winner: str | None, arm: ArmRecord) -> str:
    """How its time compares with the winner's, such as ``1.25x``."""
    if winner == arm.id:
        return "1.00x"
    return ratio(None if one.slower is None else one.slower.value)


def worst_error(arm: ArmRecord) -> float | None:
    """Largest absolute difference from the reference over all outputs; ``None`` if unknown."""
    found = [one.max_abs for one in arm.agreement]
    known = [one for one in found if one is not None]
    return max(known) if known and len(known) == len(found) else None


def worst_excess(arm: ArmRecord) -> float | None:
    """Largest share of the tolerance that an output used: above 1 misses the gate."""
    found = [one.excess for one in arm.agreement]
    known = [one for one in found if one is not None]
    return max(known) if known and len(known) == len(found) else None


def reason_of(arm: ArmRecord) -> str:
    """Why the arm ended as it did: its own words, or those of its error."""
    if arm.reason:
        return arm.reason
    return str(arm.error.get("message", "")) if arm.error is not None else ""


def rules(record: SelectionRecord) -> dict[str, list[ArmRecord]]:
    """The skipped arms by the rule that left them out, the largest group first."""
    found: dict[str, list[ArmRecord]] = {}
    for arm in record.arms:
        if arm.status == "skipped":
            found.setdefault(arm.rule or "no rule named", []).append(arm)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def tally(record: SelectionRecord) -> str:
    """How many arms ended how, such as ``26: 1 won, 24 slower, 1 failed``."""
    counted: dict[str, int] = {}
    for arm in record.arms:
        counted[arm.status] = counted.get(arm.status, 0) + 1
    known = [name for name in STATUSES if name in counted]
    known += [name for name in counted if name not in STATUSES]
    parts = [f"{counted[name]} {status(name)}" for name in known]
    return f"{len(record.arms)}: {', '.join(parts)}" if parts else "0"


def machine_name(record: SelectionRecord) -> str:
    """The machine in a few words, as far as its fingerprint tells them."""
    machine = record.machine
    parts = [str(machine.get("cpu_model") or machine.get("cpu_vendor") or "")]
    usable = machine.get("usable_cpus")
    if isinstance(usable, int):
        parts.append(f"{count(usable, 'CPU')} usable")
    gpus = machine.get("gpus")
    if isinstance(gpus, (list, tuple)):
        parts += [str(one) for one in gpus]
    return ", ".join(part for part in parts if part)


def moment(created: str) -> str:
    """A time as ISO 8601 has it, easier to read; any other text as it is."""
    try:
        at = dt.datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{at:%Y-%m-%d %H:%M} {at.tzname() or ''}".rstrip()


def canary(record: SelectionRecord) -> str:
    """What the canary says of the machine; one or two sentences."""
    found = record.canary
    if found is None:
        return "Nothing was timed beside the arms."
    limit = percent(record.protocol.canary_tolerance)
    again = (
        f"{count(found.redone, 'block')} measured again because it was more than {limit} off"
        if found.redone
        else f"no block had to be measured again for being more than {limit} off"
    )
    told = f"A fixed piece of work, {duration(found.median_s)}, timed in every block; {again}."
    if found.is_noisy:
        told += " The machine was noisy: more blocks were off than may be measured again."
    return told


def load_code(record: SelectionRecord, folder: Path | None) -> list[str]:
    """Three lines of Python that load what the record decided; none if nothing may serve."""
    if not record.decision.routes:
        return []
    served = {record.arm(route.arm).model for route in record.decision.routes}
    trust = ", trust=True" if any(record.models[one].trust for one in served) else ""
    place = repr("DIR" if folder is None else str(folder))
    return [
        "import bridge",
        f"predictor = bridge.load({place}{trust})",
        "outputs = predictor.predict(inputs)",
    ]


def _is_timed(one: Measurement | None) -> bool:
    return one is not None and one.median_s is not None


def _factor(found: Interval) -> str:
    return f"{ratio(found.value)}, {ratio(found.low)} to {ratio(found.high)}"


def _range(low: int, high: int | None) -> str:
    if high is None:
        return "any number of rows" if low <= 1 else f"{low:,} rows or more"
    return number_of_rows(low) if low == high else f"{low:,} to {high:,} rows"
