"""What came of one run under load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import BridgeError
from bridge.message import error_to
from bridge_bench.load.sla import Sla, SlaVerdict
from bridge_bench.stats import percentile, percentile_upper

__all__ = ["Floor", "Latency", "LoadResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Summary of times in seconds; percentiles are nearest-rank.

    A percentile is ``None`` where it would merely be the largest value. The upper limits
    are 95 % confidence limits by the binomial rule, ``None`` with too few values.
    """

    count: int
    mean_s: float
    min_s: float
    p50_s: float
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None
    p999_s: float | None
    max_s: float
    p90_upper_s: float | None
    p99_upper_s: float | None

    @classmethod
    def of(cls, seconds: npt.NDArray[np.float64]) -> Latency | None:
        """The summary; ``None`` of nothing."""
        if not len(seconds):
            return None

        def at(fraction: float, least: int) -> float | None:
            return percentile(seconds, fraction) if len(seconds) >= least else None

        return cls(
            count=len(seconds),
            mean_s=float(seconds.mean()),
            min_s=float(seconds.min()),
            p50_s=percentile(seconds, 0.5),
            p90_s=at(0.9, 10),
            p95_s=at(0.95, 20),
            p99_s=at(0.99, 100),
            p999_s=at(0.999, 1000),
            max_s=float(seconds.max()),
            p90_upper_s=percentile_upper(seconds, 0.9),
            p99_upper_s=percentile_upper(seconds, 0.99),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What the harness itself costs: the same run over a predictor that does nothing.

    Attributes:
        issuer: Who sent the queries.
        scenario: ``single_stream``; ``server`` where that was run.
        p50_s, p99_s: Percentiles of the latency.
        calls: Number of calls.
    """

    issuer: str
    scenario: str
    p50_s: float
    p99_s: float
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """One run under load.

    Attributes:
        target: Path of the model or record.
        scenario: ``single_stream``, ``multi_stream``, ``server`` or ``offline``.
        issuer: ``loadgen`` (MLPerf LoadGen) or ``own`` (the bridge's).
        issuer_reason: Why this one; empty if it was asked for.
        status: ``valid``; ``invalid`` (the run cannot be used, or did not keep up with the
            rate); ``failed`` (calls raised).
        reasons: Why it is not valid, a sentence each.
        error: The first failure of a call, ``None`` if all came back.
        rows: Rows of one call.
        qps: Rate asked for in Server; else ``None``.
        sla, verdict: The promise, and whether it is kept; ``None`` without one.
        sla_latency_s: Nearest-rank percentile of the latency that the promise is about:
            the best that was achieved.
        sla_upper_s: Its upper 95 % confidence limit; ``None`` with too few queries.
        latency: Of queries: from the instant when they were due in Server; from when they
            were sent in SingleStream and MultiStream, where queueing has no part, so that
            it is a service time; of the one query in Offline.
        latency_from: ``due`` or ``issued``, accordingly.
        service: Of calls of the predictor alone.
        lateness: How long after they were due queries were sent; Server only.
        queries: Queries answered.
        calls: Calls of the predictor.
        failed_calls: Calls that raised, or that were left out after one did.
        dropped: Queries refused because ``max_queue`` were waiting already.
        abandoned: Queries never sent because time was up.
        elapsed_s: From the first query to the last answer.
        offered_qps: Queries due per second in Server, as they were drawn.
        achieved_qps: Queries answered per second.
        rows_per_s: Rows answered per second.
        keeps_up: Whether the answers kept pace with the arrivals; Server only.
        concurrency: Threads that called the predictor.
        duration_s: Time asked for.
        seeds: Of samples, their order and the arrivals.
        median_s: Median call while warming up.
        first_call_s, warmup_calls, is_stable: The warm-up.
        load_s: Time of ``bridge.load``.
        floor: The harness's own cost; ``None`` if it was not measured.
        info: ``PredictorInfo.to_dict()``.
        loadgen: What LoadGen's log says; ``None`` for our own issuer.
        warnings: Sentences.
        latencies_s: Latency of every query, in order; not in ``to_dict``.
        services_s: Time of every call; not in ``to_dict``.
    """

    target: str
    scenario: str
    issuer: str
    issuer_reason: str
    status: str
    reasons: tuple[str, ...]
    error: BridgeError | None
    rows: int
    qps: float | None
    sla: Sla | None
    verdict: SlaVerdict | None
    sla_latency_s: float | None
    sla_upper_s: float | None
    latency: Latency | None
    latency_from: str
    service: Latency | None
    lateness: Latency | None
    queries: int
    calls: int
    failed_calls: int
    dropped: int
    abandoned: int
    elapsed_s: float
    offered_qps: float | None
    achieved_qps: float
    rows_per_s: float
    keeps_up: bool | None
    concurrency: int
    duration_s: float
    seeds: Mapping[str, int]
    median_s: float
    first_call_s: float
    warmup_calls: int
    is_stable: bool
    load_s: float
    floor: Floor | None
    info: Mapping[str, Any]
    loadgen: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    latencies_s: npt.NDArray[np.float64] = field(repr=False, compare=False)
    services_s: npt.NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def is_good(self) -> bool:
        """Whether the run is valid and the promise, if there is one, proven to be kept."""
        return self.status == "valid" and (self.verdict is None or self.verdict.status == "met")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; its schema is ``bench.schema.json`` of the command-line package."""

        def plain(one: Any) -> dict[str, Any] | None:
            return None if one is None else asdict(one)

        return {
            "target": self.target,
            "scenario": self.scenario,
            "issuer": self.issuer,
            "issuer_reason": self.issuer_reason,
            "status": self.status,
            "reasons": list(self.reasons),
            "error": None if self.error is None else error_to(self.error),
            "rows": self.rows,
            "qps": self.qps,
            "sla": plain(self.sla),
            "verdict": plain(self.verdict),
            "sla_latency_s": self.sla_latency_s,
            "sla_upper_s": self.sla_upper_s,
            "latency": plain(self.latency),
            "latency_from": self.latency_from,
            "service": plain(self.service),
            "lateness": plain(self.lateness),
            "queries": self.queries,
            "calls": self.calls,
            "failed_calls": self.failed_calls,
            "dropped": self.dropped,
            "abandoned": self.abandoned,
            "elapsed_s": self.elapsed_s,
            "offered_qps": self.offered_qps,
            "achieved_qps": self.achieved_qps,
            "rows_per_s": self.rows_per_s,
            "keeps_up": self.keeps_up,
            "concurrency": self.concurrency,
            "duration_s": self.duration_s,
            "seeds": dict(self.seeds),
            "median_s": self.median_s,
            "first_call_s": self.first_call_s,
            "warmup_calls": self.warmup_calls,
            "is_stable": self.is_stable,
            "load_s": self.load_s,
            "floor": plain(self.floor),
            "info": dict(self.info),
            "loadgen": None if self.loadgen is None else dict(self.loadgen),
            "warnings": list(self.warnings),
        }
