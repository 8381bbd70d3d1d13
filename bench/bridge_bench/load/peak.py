"""The highest rate of queries that keeps a promise about latency."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bridge.errors import OptionError
from bridge.signature import Signature
from bridge_bench.load.result import LoadResult
from bridge_bench.load.scenario import Scenario
from bridge_bench.load.session import OptionValues, Progress, Session
from bridge_bench.load.sla import Sla, late_to_fail
from bridge_bench.profile import InputProfile
from bridge_bench.stats import samples_needed
from bridge_bench.units import duration

__all__ = ["Peak", "Probe", "find_max_qps"]

PRECISION = 0.05  # the search ends when the rates on both sides differ by less
START = 0.5  # of the rate that back-to-back calls would give
SPARE_MISSES = 3  # late queries that a probe can have and still prove the promise
MIN_PROBE_S = 0.5
MAX_HALVINGS = 8
MAX_DOUBLINGS = 12
MORE = 4.0  # times as many queries where a probe was undecided


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One rate that was tried.

    Attributes:
        qps: The rate.
        passes: Whether the promise is proven to be kept at it, and it kept up.
        verdict: ``met``, ``not_met`` or ``undecided``.
        queries, late: As in ``SlaVerdict``.
        sla_latency_s: The percentile that the promise is about.
        keeps_up: Whether answers kept pace with arrivals.
    """

    qps: float
    passes: bool
    verdict: str
    queries: int
    late: int
    sla_latency_s: float | None
    keeps_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What the search found.

    Attributes:
        status: ``found`` (the rates on both sides differ by 5 % at most), ``undecided``
            (the budget ended first), ``none`` (not even the lowest rate tried passes).
        max_qps: Highest rate that passed; ``None`` if none did.
        failing_qps: Lowest rate above it that did not; ``None`` if none failed.
        sla: The promise.
        probes: All rates tried, in order.
        result: The run at ``max_qps``; without one, the run with the lowest latency.
        elapsed_s: Time of the search, loading included.
        reason: One sentence.
    """

    status: str
    max_qps: float | None
    failing_qps: float | None
    sla: Sla
    probes: tuple[Probe, ...]
    result: LoadResult
    elapsed_s: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form; its schema is within ``bench.schema.json``."""
        return {
            "status": self.status,
            "max_qps": self.max_qps,
            "failing_qps": self.failing_qps,
            "sla": asdict(self.sla),
            "probes": [asdict(one) for one in self.probes],
            "elapsed_s": self.elapsed_s,
            "reason": self.reason,
        }


def find_max_qps(
    target: str | Path,
    sla: Sla | tuple[float, float],
    *,
    budget_s: float = 60.0,
    rows: int | None = None,
    profile: InputProfile | None = None,
    issuer: str = "auto",
    concurrency: int = 1,
    max_queue: int | None = None,
    seed: int = 0,
    backend: str | None = None,
    device: str | None = None,
    options: OptionValues | None = None,
    signature: str | Signature | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Peak:
    """Looks for the highest rate of the Server scenario that keeps the promise.

    It starts at half the rate of back-to-back calls, doubles until a rate fails, then
    bisects to 5 %. A probe is as long as the promise's percentile needs. A rate passes if
    the promise is proven with 95 % confidence in its probe; that many probes are made
    makes a lucky one likelier, so the last rate deserves a longer run of its own.

    Args:
        target: Path of a model or of a record's folder.
        sla: Percentile and seconds.
        budget_s: No probe begins that would end after this time.
        rows: As for ``run``, like all that follow.
        profile: The same.
        issuer: The same.
        concurrency: The same.
        max_queue: The same.
        seed: The same.
        backend: The same.
        device: The same.
        options: The same.
        signature: The same.
        trust: The same.
        progress: The same.

    Raises:
        MeasureError, OptionError, BridgeError: As for ``run``; also if calls fail.
    """
    if isinstance(sla, tuple):
        sla = Sla(*sla)
    if not (math.isfinite(budget_s) and budget_s > 0):
        raise OptionError(
            f"the budget is {budget_s:g} s; wanted more than 0.", fix="Give another number."
        )
    started = perf_counter()
    with Session(
        target,
        rows=rows,
        profile=profile,
        issuer=issuer,
        backend=backend,
        device=device,
        options=options,
        signature=signature,
        trust=trust,
        progress=progress,
    ) as session:
        search = _Search(session, sla, concurrency, max_queue, seed, started + budget_s)
        search.run()
    status, reason = search.conclusion()
    return Peak(
        status=status,
        max_qps=search.low,
        failing_qps=search.high,
        sla=sla,
        probes=tuple(search.probes),
        result=search.best(),
        elapsed_s=perf_counter() - started,
        reason=reason,
    )


class _Search:
    """Rates tried so far: ``low`` is the highest that passed, ``high`` the lowest above."""

    def __init__(
        self,
        session: Session,
        sla: Sla,
        concurrency: int,
        max_queue: int | None,
        seed: int,
        until: float,
    ) -> None:
        self._session = session
        self._sla = sla
        self._concurrency = concurrency
        self._max_queue = max_queue
        self._seed = seed
        self._until = until
        self._queries = samples_needed(sla.percentile, SPARE_MISSES)
        self._results: list[LoadResult] = []
        self._is_out = False
        self.probes: list[Probe] = []
        self.low: float | None = None
        self.high: float | None = None

    def run(self) -> None:
        """Doubles or halves until both sides are known, then bisects."""
        qps = START / max(self._session.warmup.median_s, 1e-7)
        if self._passes(qps):
            for _ in range(MAX_DOUBLINGS):
                qps *= 2
                if self._is_out or not self._passes(qps):
                    break
        else:
            for _ in range(MAX_HALVINGS):
                qps /= 2
                if self._is_out or self._passes(qps):
                    break
        while (
            self.low is not None
            and self.high is not None
            and not self._is_out
            and self.high > self.low * (1 + PRECISION)
        ):
            self._passes(math.sqrt(self.low * self.high))

    def conclusion(self) -> tuple[str, str]:
        """The status and a sentence."""
        what = f"{self._sla.name} of at most {duration(self._sla.latency_s)}"
        if self.low is None:
            best = self.best()
            seen = best.sla_latency_s
            shown = "" if seen is None else f"; the best was {duration(seen)}"
            rates = [one.qps for one in self.probes]
            if self._is_out:
                return "undecided", (
                    f"the budget ended before any rate was proven to keep {what}{shown}."
                )
            return "none", f"not even {min(rates):.4g} queries per second keep {what}{shown}."
        if self.high is None:
            return "undecided", (
                f"{self.low:.4g} queries per second keep {what}; no rate tried is too high."
            )
        if self.high > self.low * (1 + PRECISION):
            return "undecided", (
                f"{self.low:.4g} queries per second keep {what}, {self.high:.4g} do not; the "
                "budget ended before more was known."
            )
        return "found", (
            f"{self.low:.4g} queries per second keep {what}; {self.high:.4g} are not shown to."
        )

    def best(self) -> LoadResult:
        """The run at the highest rate that passed, or else that of the lowest latency."""
        for probe, result in zip(reversed(self.probes), reversed(self._results), strict=True):
            if probe.passes and probe.qps == self.low:
                return result
        return min(self._results, key=lambda one: one.sla_latency_s or math.inf)

    def _passes(self, qps: float) -> bool:
        probe = self._probe(qps, self._queries)
        if probe is not None and probe.verdict == "undecided" and probe.keeps_up:
            probe = self._probe(qps, round(MORE * self._queries)) or probe
        if probe is None:
            return False
        if probe.passes:
            self.low = qps if self.low is None else max(self.low, qps)
        else:
            self.high = qps if self.high is None else min(self.high, qps)
        return probe.passes

    def _probe(self, qps: float, queries: int) -> Probe | None:
        duration_s = max(MIN_PROBE_S, queries / qps)
        if self.probes and perf_counter() + duration_s > self._until:
            self._is_out = True
            return None
        # The first is made in any case, as long as the budget allows.
        duration_s = min(duration_s, max(self._until - perf_counter(), MIN_PROBE_S))
        result = self._session.run(
            scenario=Scenario.SERVER,
            qps=qps,
            sla=self._sla,
            duration_s=duration_s,
            concurrency=self._concurrency,
            max_queue=self._max_queue,
            # What is disproven need not be sent to its end.
            max_late=late_to_fail(self._sla, math.ceil(qps * duration_s)),
            # Equal arrivals would fail or pass alike at rates near each other.
            seed=self._seed + len(self.probes),
        )
        if result.error is not None:
            raise result.error
        assert result.verdict is not None
        probe = Probe(
            qps=qps,
            passes=result.verdict.status == "met" and bool(result.keeps_up),
            verdict=result.verdict.status,
            queries=result.verdict.queries,
            late=result.verdict.late,
            sla_latency_s=result.sla_latency_s,
            keeps_up=bool(result.keeps_up),
        )
        self.probes.append(probe)
        self._results.append(result)
        return probe
