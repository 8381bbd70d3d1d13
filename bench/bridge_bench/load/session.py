"""Putting a model or a record under load: ``run`` does it once, ``Session`` often."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bridge.errors import OptionError
from bridge.options import Options
from bridge.signature import Signature
from bridge_bench.load import floor as floors
from bridge_bench.load import loadgen
from bridge_bench.load.account import MAX_FLOOR, Subject, account
from bridge_bench.load.calls import Warmup
from bridge_bench.load.process import Process
from bridge_bench.load.result import Floor, LoadResult
from bridge_bench.load.scenario import MIN_QUEUE, Issuer, Order, Scenario, scenario_of
from bridge_bench.load.sla import Sla
from bridge_bench.profile import InputProfile
from bridge_bench.units import duration, percent

__all__ = ["Session", "run"]

SAMPLES = 8
LOAD_TIMEOUT_S = 300.0
WARMUP_S = 0.2  # at least
WARM_TIMEOUT_S = 120.0
SPARE_S = 30.0  # what a run may take beyond its plan before it counts as hung
SPARE_FACTOR = 4.0

Progress = Callable[[str], None]
OptionValues = Options | Mapping[str, Any] | Sequence[str]


def run(
    target: str | Path,
    *,
    scenario: str = "single_stream",
    qps: float | None = None,
    sla: Sla | tuple[float, float] | None = None,
    rows: int | None = None,
    profile: InputProfile | None = None,
    duration_s: float = 10.0,
    min_queries: int = 1,
    samples_per_query: int = 8,
    issuer: str = "auto",
    concurrency: int = 1,
    max_queue: int | None = None,
    seed: int = 0,
    backend: str | None = None,
    device: str | None = None,
    options: OptionValues | None = None,
    signature: str | Signature | None = None,
    trust: bool = False,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> LoadResult:
    """One run of one scenario, in a process of its own with a watchdog.

    Args:
        target: Path of a model or of a record's folder.
        scenario: ``single_stream``: one call after another. ``multi_stream``: the same,
            ``samples_per_query`` calls at a time. ``server``: queries arrive at random, at a
            mean rate of ``qps``, whether or not earlier ones are answered. ``offline``: all
            at once.
        qps: Queries per second, for ``server``.
        sla: Percentile and seconds, such as ``(0.99, 0.005)``.
        rows: Rows per call; ``None`` as in the profile.
        profile: How to make inputs, real samples included; eight variants are used in
            random order.
        duration_s: Time to send queries for.
        min_queries: Queries to send, at least.
        samples_per_query: For ``multi_stream``.
        issuer: ``loadgen``, ``own``, or ``auto``: LoadGen where it is installed and its own
            cost does not matter.
        concurrency: Threads that call the predictor, except in ``single_stream``.
        max_queue: Queries of ``server`` that may wait; ``None`` means 64, or four times as
            many as arrive within the SLA.
        seed: Of the order of samples and of the arrivals.
        backend: As for ``bridge.load``.
        device: The same.
        options: The same.
        signature: The same.
        trust: The same.
        timeout_s: When the run counts as hung; ``None`` means well beyond its plan.
        progress: Called with one line of text now and then.

    Raises:
        MeasureError: The process crashed or hung, a call never came back, or LoadGen is
            asked for and missing, or did not start.
        OptionError: An argument makes no sense.
        BridgeError: What ``bridge.load``, the making of inputs, or a call of the warm-up
            raises. A call that fails later makes the status of the result ``failed``.
    """
    kind = scenario_of(scenario)
    if isinstance(sla, tuple):
        sla = Sla(*sla)
    # What makes no sense is told before a model is loaded, which may take minutes.
    Order(
        scenario=kind,
        issuer=Issuer.OWN,
        qps=qps,
        duration_s=duration_s,
        min_queries=min_queries,
        samples_per_query=samples_per_query,
        concurrency=concurrency,
        max_queue=MIN_QUEUE if max_queue is None else max_queue,
        seed=seed,
        timeout_s=1.0 if timeout_s is None else timeout_s,
    )
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
        return session.run(
            scenario=kind,
            qps=qps,
            sla=sla,
            duration_s=duration_s,
            min_queries=min_queries,
            samples_per_query=samples_per_query,
            concurrency=concurrency,
            max_queue=max_queue,
            seed=seed,
            timeout_s=timeout_s,
        )


class Session:
    """One predictor, loaded and warm in a process of its own, for runs one by one.

    Attributes:
        warmup: How the warm-up went; its median is what rates are chosen by.
    """

    warmup: Warmup

    def __init__(
        self,
        target: str | Path,
        *,
        rows: int | None = None,
        profile: InputProfile | None = None,
        issuer: str = "auto",
        backend: str | None = None,
        device: str | None = None,
        options: OptionValues | None = None,
        signature: str | Signature | None = None,
        trust: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Loads and warms; arguments and errors as for ``run``."""
        self._tell = progress or (lambda _: None)
        self._issuer = _issuer_asked(issuer)
        profile = profile or InputProfile()
        if rows is not None:
            profile = dataclasses.replace(profile, rows=rows)
        self._floors: dict[tuple[Issuer, Scenario, int], Floor] = {}
        self._process = Process()
        try:
            self._tell(f"loading {target}")
            self._process.load(
                Path(target).absolute(),
                backend=backend,
                device=device,
                options=options,
                signature=signature,
                trust=trust,
                timeout_s=LOAD_TIMEOUT_S,
            )
            for variant in range(SAMPLES):
                self._process.keep(profile.make(self._process.signature, variant))
            self._tell("warming up")
            self.warmup = self._process.warm(WARMUP_S, timeout_s=WARM_TIMEOUT_S)
            self._subject = Subject(
                target=str(target),
                info=self._process.info,
                load_s=self._process.load_s,
                warnings=self._process.warnings,
                rows=profile.rows,
                warmup=self.warmup,
            )
        except BaseException:
            self._process.close()
            raise

    def run(
        self,
        *,
        scenario: Scenario,
        qps: float | None = None,
        sla: Sla | tuple[float, float] | None = None,
        duration_s: float = 10.0,
        min_queries: int = 1,
        samples_per_query: int = 8,
        concurrency: int = 1,
        max_queue: int | None = None,
        max_late: int | None = None,
        seed: int = 0,
        timeout_s: float | None = None,
    ) -> LoadResult:
        """One run; arguments and errors as for ``bridge_bench.load.run``.

        ``max_late`` ends a run of our own issuer in ``server`` after so many late queries.
        """
        if isinstance(sla, tuple):
            sla = Sla(*sla)
        issuer, reason = self._choose(scenario, qps, sla, concurrency)
        if max_queue is None:
            # As many as arrive while one may wait, four times over, for bursts.
            waiting = 0.0 if qps is None or sla is None else 4 * qps * sla.latency_s
            max_queue = max(MIN_QUEUE, math.ceil(min(waiting, 1e6)))
        order = Order(
            scenario=scenario,
            issuer=issuer,
            duration_s=duration_s,
            min_queries=min_queries,
            qps=qps,
            sla_percentile=0.99 if sla is None else sla.percentile,
            sla_s=None if sla is None else sla.latency_s,
            samples_per_query=samples_per_query,
            concurrency=concurrency,
            max_queue=max_queue,
            max_late=max_late,
            seed=seed,
        )
        order = dataclasses.replace(order, timeout_s=timeout_s or self._timeout_s(order))
        floor = self._floor(issuer, scenario, qps, concurrency)
        self._tell(_announcement(order))
        timed, failed, failure = self._process.run(order, self.warmup.median_s)
        return account(
            self._subject, order, timed, failed, failure, floor=floor, issuer_reason=reason
        )

    def close(self) -> None:
        """Ends the process; may be called twice."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _choose(
        self, scenario: Scenario, qps: float | None, sla: Sla | None, concurrency: int
    ) -> tuple[Issuer, str]:
        if self._issuer is not None:
            return self._issuer, ""
        if not loadgen.is_installed():
            return Issuer.OWN, "MLPerf LoadGen is not installed"
        if scenario is not Scenario.SERVER:
            return Issuer.LOADGEN, "MLPerf LoadGen is installed"
        floor = self._floor(Issuer.LOADGEN, scenario, qps, concurrency)
        # The median: a busy machine is in the tail, and would be with any issuer.
        cost_s = floor.p50_s
        limits = [("median call", self.warmup.median_s)]
        if sla is not None:
            limits.append(("latency allowed", sla.latency_s))
        for what, limit_s in limits:
            if cost_s > MAX_FLOOR * limit_s:
                share = f"{percent(cost_s / limit_s)} of the {what}"
                return Issuer.OWN, (
                    f"LoadGen's server scenario adds {duration(cost_s)}, {share}; at most "
                    f"{percent(MAX_FLOOR)} is let pass"
                )
        return Issuer.LOADGEN, (
            f"LoadGen's server scenario adds {duration(cost_s)}, less than "
            f"{percent(MAX_FLOOR)} of the median call"
        )

    def _floor(
        self, issuer: Issuer, scenario: Scenario, qps: float | None, concurrency: int
    ) -> Floor:
        """Measured once in a session: in Server at the first rate, which matters little."""
        key = (issuer, scenario, concurrency)
        if key not in self._floors:
            self._tell(f"measuring what sending queries costs, by {issuer}")
            self._floors[key] = (
                floors.server_floor(issuer, qps or 0.0, concurrency)
                if scenario is Scenario.SERVER
                else floors.single_stream_floor(issuer)
            )
        return self._floors[key]

    def _timeout_s(self, order: Order) -> float:
        """Well beyond the time that the run should take."""
        call_s = self.warmup.median_s
        query_s = {
            Scenario.SINGLE_STREAM: call_s,
            Scenario.MULTI_STREAM: call_s * order.samples_per_query,
            Scenario.SERVER: 1 / (order.qps or 1.0),
            Scenario.OFFLINE: call_s,
        }[order.scenario]
        planned_s = max(order.duration_s, order.min_queries * query_s)
        if order.scenario is Scenario.OFFLINE:
            planned_s *= order.concurrency  # which need not make it faster
        if order.scenario is Scenario.SERVER:
            planned_s += (order.max_queue + order.concurrency) * call_s
        return SPARE_S + SPARE_FACTOR * planned_s


def _issuer_asked(name: str) -> Issuer | None:
    if name == "auto":
        return None
    try:
        found = Issuer(name)
    except ValueError:
        raise OptionError(
            f"there is no issuer '{name}'.", fix="Valid are: 'auto', 'loadgen', 'own'."
        ) from None
    if found is Issuer.LOADGEN:
        loadgen.require()
    return found


def _announcement(order: Order) -> str:
    rate = f" at {order.qps:.4g} queries per second" if order.qps is not None else ""
    return f"{order.scenario}{rate}, {order.duration_s:g} s, by {order.issuer}"
