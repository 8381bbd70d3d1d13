"""The four ways to ask, and what one run of one of them is asked to do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from bridge.errors import OptionError, nearest

__all__ = ["Issuer", "Order", "Scenario"]

MIN_QUEUE = 64  # queries that may wait, however low the rate
MAX_ARRIVALS = 20_000_000  # of one run: all are drawn before it begins, and kept
_MAX_SEED = 2**32 - 1


class Scenario(StrEnum):
    """How queries arrive; names and meaning as in MLPerf Inference."""

    SINGLE_STREAM = "single_stream"
    MULTI_STREAM = "multi_stream"
    SERVER = "server"
    OFFLINE = "offline"


class Issuer(StrEnum):
    """Who sends the queries."""

    LOADGEN = "loadgen"
    OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run, as the child process is asked for it.

    A *sample* is one set of inputs of some rows, and one call of the predictor; a query
    is one sample, or ``samples_per_query`` of them in MultiStream, or all in Offline.

    Attributes:
        scenario: How queries arrive.
        issuer: Who sends them.
        duration_s: Time to send queries for, at least.
        min_queries: Queries to send, at least.
        qps: Mean rate of the queries in Server.
        sla_percentile: Such as 0.99: the percentile that the run is about.
        sla_s: Latency that it may not exceed; ``None`` for no limit.
        samples_per_query: Samples of one MultiStream query.
        concurrency: Threads that call the predictor, except in SingleStream.
        max_queue: Queries of Server that may wait; a further one ends or fails.
        max_late: Queries of Server over ``sla_s`` after which our own issuer stops; the
            rest is not sent, and counts as nothing.
        seed: Of samples and arrivals.
        timeout_s: After this time the child gives up.
    """

    scenario: Scenario
    issuer: Issuer
    duration_s: float
    min_queries: int = 1
    qps: float | None = None
    sla_percentile: float = 0.99
    sla_s: float | None = None
    samples_per_query: int = 8
    concurrency: int = 1
    max_queue: int = MIN_QUEUE
    max_late: int | None = None
    seed: int = 0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("duration_s", "timeout_s"):
            _check(name, getattr(self, name), above=0)
        for name in ("min_queries", "samples_per_query", "concurrency", "max_queue"):
            _check(name, getattr(self, name), least=1)
        if not 0 <= self.seed <= _MAX_SEED:
            raise OptionError(
                f"seed is {self.seed}; wanted a number from 0 to {_MAX_SEED}.",
                fix="Give another seed.",
            )
        if not 0 < self.sla_percentile < 1:
            raise OptionError(
                f"the percentile is {self.sla_percentile:g}; wanted a share between 0 and 1.",
                fix="Give 0.99 for the 99th.",
            )
        if self.sla_s is not None:
            _check("the latency of the SLA", self.sla_s, above=0)
        if self.scenario is Scenario.SERVER:
            if self.qps is None:
                raise OptionError(
                    "the server scenario has no rate of queries.",
                    fix="Give qps, or look for the highest with find_max_qps.",
                )
            _check("qps", self.qps, above=0)
            arrivals = self.qps * self.duration_s
            if arrivals > MAX_ARRIVALS:
                raise OptionError(
                    f"{self.qps:g} queries per second for {self.duration_s:g} s are "
                    f"{arrivals:.3g} queries; at most {MAX_ARRIVALS:,} can be kept.",
                    fix="Give a lower rate, or a shorter duration.",
                )

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds that follow from ``seed``, by what they are for; each below 2**32."""
        names = ("qsl", "sample_index", "schedule")
        state = np.random.SeedSequence(self.seed).generate_state(len(names))
        return dict(zip(names, state.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Order:
        """The order that ``to_dict`` described."""
        return cls(
            **{
                **data,
                "scenario": Scenario(data["scenario"]),
                "issuer": Issuer(data["issuer"]),
            }
        )


def scenario_of(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        OptionError: There is none.
    """
    try:
        return Scenario(name)
    except ValueError:
        raise OptionError(f"there is no scenario '{name}'.", fix=nearest(name, Scenario)) from None


def _check(name: str, value: float, *, least: float = -math.inf, above: float = -math.inf) -> None:
    if not (math.isfinite(value) and value >= least and value > above):
        wanted = f"more than {above:g}" if above > -math.inf else f"at least {least:g}"
        raise OptionError(f"{name} is {value:g}; wanted {wanted}.", fix="Give another number.")
