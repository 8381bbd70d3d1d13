"""A record's decision in words."""

from __future__ import annotations

from bridge.record import Interval, Measurement, Route, SelectionRecord, Verdict
from bridge_bench.entrant import LATE

__all__ = ["sentence"]

# At which percentile the best latency is known: the one asked for, or with few calls below.
_KINDS = ("", " at the 99th percentile", " at the 90th percentile", " at the median")


def sentence(record: SelectionRecord) -> str:
    """What was decided, in a few sentences without any table beside them."""
    decision = record.decision
    if not decision.routes:
        return _nothing(record)
    arms = list(dict.fromkeys(route.arm for route in decision.routes))
    if len(arms) == 1:
        text = f"{arms[0]} serves all calls."
    else:
        text = f"{len(arms)} arms serve, by rows per call: {_routes(record)}."
    bounds = [bound for one in decision.verdicts if (bound := _bound(record, one)) is not None]
    sure = f"{100 * (1 - record.protocol.delta):g} %"
    if record.limits.objective == "memory":
        told = dict.fromkeys(one.reason for one in decision.verdicts if one.reason)
        text += "".join(f" {reason}" for reason in told)
    elif len(bounds) == len(decision.verdicts):
        is_late = any(one.rule == LATE for one in record.arms)
        other = "No other arm that was measured" if is_late else "No other arm"
        claim = f"{other} is more than {100 * max(bounds):.1f} % faster at any size measured"
        if all(len(one.ranking) < 2 for one in decision.verdicts):
            text += " No other arm was measured." if is_late else " No other arm may serve."
        elif max(bounds) > 0:
            text += f" {claim} ({sure})."
        elif any(one.ties for one in decision.verdicts):
            text += f" {other} is faster at any size measured ({sure})."
        else:
            text += f" {other} is as fast ({sure})."
    text += "".join(f" {_gain(record, one)}" for one in decision.verdicts if one.default_ratio)
    if decision.status == "undecided":
        text += " The budget ended before every race was decided; a longer --budget narrows that."
    if decision.status == "interrupted":
        text += " It was interrupted; --resume goes on from here."
    return text


def _bound(record: SelectionRecord, verdict: Verdict) -> float | None:
    """No other arm is faster by more than this than the one that serves a bucket."""
    route = _serving(record, verdict)
    # Calls are cut only where that was measured to be faster than the winner.
    if route.arm == verdict.winner or route.split_rows is not None or verdict.regret is None:
        return verdict.regret
    slower = _slower(record, route.arm, verdict.rows)
    # The bound is that of the winner, and the arm is at most so much slower than it.
    return None if slower is None else (1 + verdict.regret) * max(1.0, slower.high) - 1


def _serving(record: SelectionRecord, verdict: Verdict) -> Route:
    """What serves a bucket: its winner, or another arm where fewer are kept or calls are cut."""
    routes = record.decision.routes
    return next(one for one in routes if one.to_rows is None or verdict.rows <= one.to_rows)


def _slower(record: SelectionRecord, arm: str, rows: int) -> Interval | None:
    """Time of an arm over that of a bucket's winner."""
    measured = record.arm(arm).bucket(rows)
    return None if measured is None else measured.slower


def _gain(record: SelectionRecord, verdict: Verdict) -> str:
    ratio = verdict.default_ratio
    assert ratio is not None
    default = next((one.id for one in record.arms if one.is_default), "the default")
    route = _serving(record, verdict)
    at = f"With {verdict.rows} row{'' if verdict.rows == 1 else 's'}"
    if len(record.buckets) == 1:
        at = "It"
    if route.split_rows is not None:
        whole = "the default" if verdict.winner == default else verdict.winner
        return f"{at}, pieces of {route.split_rows} for {route.arm} are faster than {whole}."
    if route.arm == default:
        return f"{at}{' is' if at == 'It' else ', that is'} the default, {default}."
    if route.arm != verdict.winner:
        slower = _slower(record, route.arm, verdict.rows)
        times = "" if slower is None else f" in {slower.value:.2f} times its time"
        return f"{at}, {verdict.winner} is the fastest; {route.arm} serves{times}."
    return (
        f"{at}{' is' if at == 'It' else ' it is'} {ratio.value:.2f} times as fast as the default "
        f"{default} ({ratio.low:.2f} to {ratio.high:.2f})."
    )


def _routes(record: SelectionRecord) -> str:
    parts, start = [], 1
    for route in record.decision.routes:
        upper = route.to_rows
        span = f"{start} and more" if upper is None else f"{start} to {upper}"
        cut = "" if route.split_rows is None else f" in pieces of {route.split_rows}"
        parts.append(f"{span}: {route.arm}{cut}")
        start = (upper or 0) + 1
    return ", ".join(parts)


def _nothing(record: SelectionRecord) -> str:
    if record.decision.status == "interrupted":
        return "It was interrupted before anything was decided."
    refused = [one for one in record.arms if one.status == "not_conformant"]
    if all(one.winner is not None for one in record.decision.verdicts):
        return "The arms that are needed for all batch sizes do not fit into the memory allowed."
    # Of the sizes at which no arm is left: at others, those that miss the limit do not matter.
    lost = {one.rows for one in record.decision.verdicts if one.winner is None}
    best: dict[int, tuple[int, float, str]] = {}
    for one in record.arms:
        for m in one.buckets:
            if m.rows in lost and m.status == "infeasible" and m.median_s is not None:
                achieved = (*_achieved(record, m, m.median_s), one.id)
                best[m.rows] = min(achieved, best.get(m.rows, achieved))
    heavy = [one for one in record.arms if one.status == "infeasible" and not one.buckets]
    if best:
        limit = record.limits.sla_s or 0.0
        rows = max(best, key=best.__getitem__)  # the size that is furthest from the limit
        kind, time_s, arm = best[rows]
        at = "" if len(record.buckets) == 1 else f" with {rows} row{'' if rows == 1 else 's'}"
        return (
            f"No arm keeps {limit * 1e3:g} ms{at}; the best achieved is {time_s * 1e3:.3g} ms"
            f"{_KINDS[kind]}, by {arm}."
        )
    if heavy:
        return f"No arm fits into the memory allowed: {heavy[0].id}: {heavy[0].reason}."
    if refused:
        return f"No arm passed the gate: {refused[0].id}: {refused[0].reason}."
    return "No arm ran to the end."


def _achieved(record: SelectionRecord, one: Measurement, median_s: float) -> tuple[int, float]:
    """Index into ``_KINDS``, and the latency at the limit's percentile or one below that."""
    fraction = record.limits.sla_percentile or 0.0
    for kind, (least, time_s) in enumerate(((0.99, one.p99_s), (0.9, one.p90_s)), 1):
        if fraction >= least and time_s is not None:
            return (0 if fraction == least else kind), time_s
    return (0 if fraction == 0.5 else 3), median_s
