"""What was promised about latency, and whether a run proves that it is kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bridge.errors import OptionError
from bridge_bench.stats import samples_needed

__all__ = ["Sla", "SlaVerdict", "judge", "late_to_fail"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Sla:
    """At most ``1 - percentile`` of all queries may take longer than ``latency_s``.

    Attributes:
        percentile: Such as 0.99.
        latency_s: The limit.

    Raises:
        OptionError: The percentile is not between 0 and 1, or the limit not above 0.
    """

    percentile: float
    latency_s: float

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 1 or not 0 < self.latency_s < math.inf:
            raise OptionError(
                f"an SLA of percentile {self.percentile:g} and {self.latency_s:g} s has no "
                "meaning; wanted a share between 0 and 1, and a time above 0.",
                fix="Give (0.99, 0.005) for a 99th percentile of 5 ms.",
            )

    @property
    def name(self) -> str:
        """The percentile as people write it, such as ``p99`` or ``p99.9``."""
        return f"p{100 * self.percentile:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlaVerdict:
    """Whether the true percentile is below the limit, as far as the queries show.

    Attributes:
        status: ``met`` (proven), ``not_met`` (disproven), or ``undecided``.
        queries: Queries that count.
        late: Those over the limit; dropped and abandoned ones are among them.
        more: Further queries, none of them late, after which it would be ``met``; 0 if it
            is, ``None`` if it is not met.
        confidence: Of the verdict.
    """

    status: str
    queries: int
    late: int
    more: int | None
    confidence: float = CONFIDENCE

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def judge(sla: Sla, queries: int, late: int, *, confidence: float = CONFIDENCE) -> SlaVerdict:
    """The verdict by the binomial rule, as LoadGen's early stopping has it.

    With ``p = 1 - sla.percentile``: met if at most ``late`` of ``queries`` would be late
    with a probability of at most ``1 - confidence`` were the true share ``p``; not met if
    at least ``late`` would. Queries count as independent, which queueing ones are only
    roughly: a verdict of one short run is about that run.

    Args:
        sla: The promise.
        queries: Queries in all.
        late: Those over the limit.
        confidence: Of each of the two conclusions.
    """
    needed = samples_needed(sla.percentile, late, confidence)
    if queries >= needed:
        return SlaVerdict(status="met", queries=queries, late=late, more=0, confidence=confidence)
    if _at_least(late, queries, sla) <= 1 - confidence:
        return SlaVerdict(
            status="not_met", queries=queries, late=late, more=None, confidence=confidence
        )
    return SlaVerdict(
        status="undecided",
        queries=queries,
        late=late,
        more=needed - queries,
        confidence=confidence,
    )


def late_to_fail(sla: Sla, queries: int, *, confidence: float = CONFIDENCE) -> int:
    """Fewest late queries among ``queries`` that disprove the promise.

    Among fewer queries they disprove it all the more, so that a run may end there.
    ``queries + 1`` if no number of them does.
    """
    low, high = 0, queries + 1  # low is too few
    while high - low > 1:
        middle = (low + high) // 2
        if _at_least(middle, queries, sla) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def _at_least(late: int, queries: int, sla: Sla) -> float:
    """Probability of so many late queries or more, if the promise were just kept."""
    from scipy.special import bdtrc

    # bdtrc(k, n, p) is P(Binomial(n, p) > k).
    return float(bdtrc(late - 1, queries, 1 - sla.percentile)) if late else 1.0
