"""What sending queries costs by itself, measured on a predictor that does nothing."""

from __future__ import annotations

from functools import lru_cache

from bridge_bench.load.process import Process
from bridge_bench.load.result import Floor
from bridge_bench.load.scenario import Issuer, Order, Scenario
from bridge_bench.stats import percentile

__all__ = ["server_floor", "single_stream_floor"]

CALL_S = 1e-6  # expected; LoadGen generates queries for twice as many
SINGLE_STREAM_S = 0.05
SERVER_S = 0.5
MIN_QPS = 200.0  # so that there are enough calls; slower arrivals wake up no sooner


@lru_cache(maxsize=4)
def single_stream_floor(issuer: Issuer) -> Floor:
    """SingleStream over nothing, once in a process.

    With LoadGen the percentiles are its own: its cost is outside what the callback sees.

    Raises:
        MeasureError: It could not be measured.
    """
    order = Order(
        scenario=Scenario.SINGLE_STREAM, issuer=issuer, duration_s=SINGLE_STREAM_S, timeout_s=30
    )
    return _measure(order)


def server_floor(issuer: Issuer, qps: float, concurrency: int) -> Floor:
    """Server over nothing at about this rate: wake-ups and hand-overs.

    Raises:
        MeasureError: It could not be measured.
    """
    return _server_floor(issuer, max(MIN_QPS, float(f"{qps:.1g}")), concurrency)


@lru_cache(maxsize=16)
def _server_floor(issuer: Issuer, qps: float, concurrency: int) -> Floor:
    order = Order(
        scenario=Scenario.SERVER,
        issuer=issuer,
        qps=qps,
        concurrency=concurrency,
        duration_s=SERVER_S,
        max_queue=100_000,
        timeout_s=30,
    )
    return _measure(order)


def _measure(order: Order) -> Floor:
    with Process() as process:
        process.load_nothing()
        timed, _, _ = process.run(order, CALL_S)
    begun = timed.scheduled if len(timed.scheduled) else timed.issued
    latencies = (timed.done - begun) / 1e9
    p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
    if timed.loadgen is not None and order.scenario is Scenario.SINGLE_STREAM:
        logged = timed.loadgen["percentiles_s"]
        p50, p99 = logged.get("50.00", p50), logged.get("99.00", p99)
    return Floor(
        issuer=order.issuer.value,
        scenario=order.scenario.value,
        p50_s=p50,
        p99_s=p99,
        calls=len(latencies),
    )
