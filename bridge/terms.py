"""What a selection was asked for: limits, gate, and the numbers of the measurement.

Parts of the selection record; see ``bridge.record``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GateRecord", "Limits", "Protocol"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the caller asked for.

    Attributes:
        objective: ``p50``, ``p99``, ``throughput``, ``memory`` or ``cost``.
        sla_percentile: Such as 0.99; with ``sla_s`` the latency that it may not exceed.
        max_memory_bytes: Most memory of all arms kept loaded together.
        concurrency: Calls in flight at once while measuring.
        price_per_hour: Price of this machine for an hour, in any currency, for ``cost``.
    """

    objective: str = "p50"
    sla_percentile: float | None = None
    sla_s: float | None = None
    max_memory_bytes: int | None = None
    concurrency: int = 1
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRecord:
    """What an arm's outputs had to fulfil.

    Attributes:
        tier: Most reduced precision that was admitted: ``strict``, ``half`` or ``int8``.
        reference: Id of the reference arm, ``arrays`` for the caller's own outputs, or
            empty where there is none.
        tolerances: ``{tier: {"atol": ..., "rtol": ..., "min_cosine": ... or None}}``.
        metrics: The metric rules as JSON, such as ``{"metric": "auc", "max_drop": 0.0005}``.
    """

    tier: str
    reference: str
    tolerances: Mapping[str, Mapping[str, float | None]]
    metrics: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The numbers of the measurement; see ``docs/selection.md`` for the reasons."""

    epsilon: float = 0.02
    delta: float = 0.05
    looks: tuple[int, ...] = (6, 9, 14, 20, 30, 45)
    cut_ratio: float = 2.0
    margin: float = 0.005
    slice_s: float = 0.05
    min_calls: int = 3
    max_calls: int = 500
    discarded_calls: int = 2
    variants: int = 4
    budget_s: float = 120.0
    prepare_budget_s: float = 300.0
    load_timeout_s: float = 60.0
    call_timeout_s: float = 60.0
    bootstrap: int = 2000
    canary_tolerance: float = 0.1
    canary_redo_share: float = 0.2
