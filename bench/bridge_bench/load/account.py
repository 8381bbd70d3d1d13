"""From what was timed to what is said about it: latencies, validity, reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import BridgeError
from bridge_bench.load.calls import Timed, Warmup
from bridge_bench.load.result import Floor, Latency, LoadResult
from bridge_bench.load.scenario import Order, Scenario
from bridge_bench.load.sla import Sla, judge
from bridge_bench.stats import percentile, percentile_upper
from bridge_bench.units import duration, percent

__all__ = ["Subject", "account"]

KEEPING_UP = 0.95  # least share of the offered rate
MAX_FLOOR = 0.02  # share of the median call up to which the harness may be ignored
MAX_LATENESS = 0.1  # of the latency's 99th percentile, for that of how late queries are sent
LOADGEN_SLACK_S = 20e-6  # between LoadGen's mean latency and ours, and 5 %
LOADGEN_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is put under load, as the result tells it."""

    target: str
    info: Mapping[str, Any]
    load_s: float
    warnings: tuple[str, ...]
    rows: int
    warmup: Warmup


def account(
    subject: Subject,
    order: Order,
    timed: Timed,
    failed: int,
    failure: BridgeError | None,
    *,
    floor: Floor | None,
    issuer_reason: str,
) -> LoadResult:
    """The result of one run.

    Args:
        subject: The predictor.
        order: What was asked for.
        timed: What was timed.
        failed: Number of calls that failed.
        failure: The first failure.
        floor: The harness's own cost, if it was measured.
        issuer_reason: Why this issuer was taken.
    """
    is_server = order.scenario is Scenario.SERVER
    has_schedule = is_server and len(timed.scheduled) == len(timed.issued)
    begun = timed.scheduled if has_schedule else timed.issued
    latencies = (timed.done - begun) / 1e9
    services = (timed.ended - timed.started) / 1e9
    lateness = (timed.issued - timed.scheduled) / 1e9 if has_schedule else np.zeros(0)
    elapsed_s = max((int(timed.done.max()) - int(begun.min())) / 1e9, 1e-9) if len(begun) else 0.0
    queries, calls = len(latencies), len(services)
    offered = achieved = 0.0
    if elapsed_s:
        achieved = queries / elapsed_s
        due_s = (int(begun.max()) - int(begun.min())) / 1e9
        offered = (queries + timed.dropped - 1) / due_s if due_s > 0 else 0.0
        if timed.abandoned and order.qps is not None:
            offered = order.qps  # the time of those that were never sent is not in due_s
    keeps_up = _keeps_up(timed, subject.warmup, elapsed_s, offered) if is_server else None
    sla = None if order.sla_s is None else Sla(order.sla_percentile, order.sla_s)
    verdict = None
    if sla is not None and order.scenario is not Scenario.OFFLINE and failure is None:
        lost = timed.dropped + timed.abandoned
        late = int((latencies > sla.latency_s).sum()) + lost
        verdict = judge(sla, queries + lost, late)
    reasons, warnings = _validity(timed, failed, failure, calls)
    warnings += subject.warnings
    if keeps_up is False and failure is None:
        reasons.append(
            f"it did not keep up: {offered:.4g} queries per second were due and "
            f"{achieved:.4g} answered; {timed.dropped} were dropped and "
            f"{timed.abandoned} never sent"
        )
    warnings += _doubts(order, timed, subject.warmup, latencies, lateness, floor)
    has_tail = sla is not None and queries > 0
    return LoadResult(
        target=subject.target,
        scenario=order.scenario.value,
        issuer=order.issuer.value,
        issuer_reason=issuer_reason,
        status="failed" if failure is not None else "invalid" if reasons else "valid",
        reasons=tuple(reasons),
        error=failure,
        rows=subject.rows,
        qps=order.qps if is_server else None,
        sla=sla,
        verdict=verdict,
        sla_latency_s=percentile(latencies, order.sla_percentile) if has_tail else None,
        sla_upper_s=percentile_upper(latencies, order.sla_percentile) if has_tail else None,
        latency=Latency.of(latencies),
        latency_from="due" if has_schedule else "issued",
        service=Latency.of(services),
        lateness=Latency.of(lateness),
        queries=queries,
        calls=calls,
        failed_calls=failed,
        dropped=timed.dropped,
        abandoned=timed.abandoned,
        elapsed_s=elapsed_s,
        offered_qps=offered if is_server else None,
        achieved_qps=achieved,
        rows_per_s=calls * subject.rows / elapsed_s if elapsed_s else 0.0,
        keeps_up=keeps_up,
        concurrency=1 if order.scenario is Scenario.SINGLE_STREAM else order.concurrency,
        duration_s=order.duration_s,
        seeds=order.seeds,
        median_s=subject.warmup.median_s,
        first_call_s=subject.warmup.first_call_s,
        warmup_calls=subject.warmup.calls,
        is_stable=subject.warmup.is_stable,
        load_s=subject.load_s,
        floor=floor,
        info=subject.info,
        loadgen=timed.loadgen,
        warnings=tuple(warnings),
        latencies_s=latencies,
        services_s=services,
    )


def _keeps_up(timed: Timed, warmup: Warmup, elapsed_s: float, offered: float) -> bool:
    if timed.dropped or timed.abandoned:
        return False
    if any("outstanding" in text for text in (timed.loadgen or {}).get("errors", ())):
        return False
    if not offered:
        return True
    # The last answer comes a call after the last arrival, however fast the rest was.
    spent_s = elapsed_s - warmup.median_s
    return spent_s <= 0 or (len(timed.done) - 1) / spent_s >= KEEPING_UP * offered


def _validity(
    timed: Timed, failed: int, failure: BridgeError | None, calls: int
) -> tuple[list[str], list[str]]:
    """Reasons why the run is not valid, and warnings."""
    if failure is not None:
        return [f"{failed} of {calls} calls failed, the first with: {failure.message}"], []
    log = timed.loadgen
    if log is None or log["validity"] == "VALID":
        return [], []
    reasons = [f"LoadGen: {text}" for text in log["errors"]]
    advice = f" {log['invalid_reason']}" if log["invalid_reason"] else ""
    for key, what in (("min_duration_met", "duration"), ("min_queries_met", "number of queries")):
        if log[key] is False:
            reasons.append(f"LoadGen: the least {what} was not reached.{advice}")
    if reasons or log["perf_constraints_met"] is False:
        return reasons, []  # the latency is what the verdict on the SLA is about
    if log["early_stopping_met"] is False:
        rule = "by its rule of 99 % confidence there are too few queries"
        return [], [f"LoadGen calls the run INVALID: {rule}. {log['early_stopping_result']}"]
    return [f"LoadGen calls the run INVALID.{advice}"], []


def _doubts(
    order: Order,
    timed: Timed,
    warmup: Warmup,
    latencies: npt.NDArray[np.float64],
    lateness: npt.NDArray[np.float64],
    floor: Floor | None,
) -> list[str]:
    warnings = list(timed.notes)
    if not warmup.is_stable:
        warnings.append("the times of calls did not settle during the warm-up")
    if floor is not None and floor.p50_s > MAX_FLOOR * warmup.median_s:
        share = floor.p50_s / warmup.median_s
        warnings.append(
            f"sending a query costs {duration(floor.p50_s)} by itself, {percent(share)} of the "
            "median call"
        )
    late_s = percentile(lateness, 0.99) if len(lateness) else 0.0
    if late_s and late_s > MAX_LATENESS * percentile(latencies, 0.99):
        warnings.append(
            f"queries were sent up to {duration(late_s)} after they were due (99th "
            "percentile), which the latencies include: the machine was busy, or woke up late"
        )
    mean_s = (timed.loadgen or {}).get("mean_latency_s")
    if mean_s is not None and len(latencies) and order.scenario is not Scenario.OFFLINE:
        ours = float(latencies.mean())
        if abs(mean_s - ours) > LOADGEN_SLACK_S + LOADGEN_SHARE * mean_s:
            warnings.append(f"LoadGen's mean latency is {duration(mean_s)}, ours {duration(ours)}")
    return warnings
