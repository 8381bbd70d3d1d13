"""A record's decision in words."""

from __future__ import annotations

from bridge.record import SelectionRecord, Verdict

__all__ = ["sentence"]


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
    if record.limits.objective == "memory":
        told = dict.fromkeys(one.reason for one in decision.verdicts)
        return " ".join((text, *filter(None, told)))
    worst = [one.regret for one in decision.verdicts if one.regret is not None]
    sure = f"{100 * (1 - record.protocol.delta):g} %"
    if len(worst) == len(decision.verdicts):
        bound = 100 * max(worst)
        text += (
            f" No other arm is more than {bound:.1f} % faster at any size measured ({sure})."
            if bound > 0
            else f" It is proven that no other arm is as fast ({sure})."
        )
    gains = [(one, ratio) for one in decision.verdicts if (ratio := one.default_ratio) is not None]
    text += "".join(f" {_gain(record, one)}" for one, _ in gains)
    if decision.status == "undecided":
        text += " The budget ended before every race was decided; a longer --budget narrows that."
    if decision.status == "interrupted":
        text += " It was interrupted; --resume goes on from here."
    return text


def _gain(record: SelectionRecord, verdict: Verdict) -> str:
    ratio = verdict.default_ratio
    assert ratio is not None
    default = next((one.id for one in record.arms if one.is_default), "the default")
    at = f"With {verdict.rows} row{'' if verdict.rows == 1 else 's'}"
    if len(record.buckets) == 1:
        at = "It"
    if verdict.winner == default:
        return f"{at}{' is' if at == 'It' else ', that is'} the default, {default}."
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
    over = [one for one in record.arms if any(m.status == "infeasible" for m in one.buckets)]
    heavy = [one for one in record.arms if one.status == "infeasible" and not one.buckets]
    if over:
        limit = record.limits.sla_s or 0.0
        best = min(
            (m.p99_s or m.median_s or 0.0, one.id)
            for one in over
            for m in one.buckets
            if m.median_s is not None
        )
        return (
            f"No arm keeps {limit * 1e3:g} ms; the best achieved is {best[0] * 1e3:.3g} ms, "
            f"by {best[1]}."
        )
    if heavy:
        return f"No arm fits into the memory allowed: {heavy[0].id}: {heavy[0].reason}."
    if refused:
        return f"No arm passed the gate: {refused[0].id}: {refused[0].reason}."
    return "No arm ran to the end."
