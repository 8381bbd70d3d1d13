"""One arm on its way through a selection: what is known of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import message
from bridge.errors import BridgeError, PredictTimeout, WorkerDied
from bridge.record import ArmRecord, MetricRecord, OutputRecord
from bridge.signature import Signature
from bridge_bench.plan import PlannedArm

__all__ = ["ENDED", "INTERRUPTED", "LATE", "Entrant", "Trial"]

ENDED = frozenset({"skipped", "not_conformant", "failed", "timed_out", "crashed", "infeasible"})
"""States of an arm that takes no further part."""

INTERRUPTED = "interrupted"
"""Rule that leaves out an arm whose turn to be loaded never came, as the user ended it."""

LATE = "budget"
"""The same where the budget ended before."""


@dataclass
class Trial:
    """One arm in one bucket.

    Attributes:
        rows: Rows per call.
        call_s: Rough time of a call, from the warm-up; sets the calls of a slice.
        calls: Calls in a slice.
        blocks: Statistic of each block, ``None`` where it took no part.
        durations: Nanoseconds of every call, one array per slice.
        elapsed_ns, cpu_ns: Over all slices.
        status, reason, look: Set where it ended early or was decided.
        first_call_s, warmup_calls, is_stable: See ``bridge.record.Measurement``.
    """

    rows: int
    call_s: float = 0.0
    calls: int = 1
    blocks: list[float | None] = field(default_factory=list)
    durations: list[npt.NDArray[np.int64]] = field(default_factory=list)
    elapsed_ns: int = 0
    cpu_ns: int = 0
    status: str = "undecided"
    reason: str = ""
    first_call_s: float | None = None
    warmup_calls: int = 0
    is_stable: bool | None = None


@dataclass
class Entrant:
    """One arm; its fields are those of ``bridge.record.ArmRecord`` while they come to be."""

    plan: PlannedArm
    slot: int
    status: str = "planned"
    reason: str = ""
    rule: str | None = None
    is_reference: bool = False
    error: BridgeError | None = None
    signature: Signature | None = None
    info: Mapping[str, Any] | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    prepare_s: float | None = None
    load_s: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    agreement: tuple[OutputRecord, ...] = ()
    metrics: tuple[MetricRecord, ...] = ()
    trials: dict[int, Trial] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: PlannedArm, slot: int) -> Entrant:
        """The arm as planned; one that a rule left out has ended already."""
        if plan.rule is not None:
            return cls(plan, slot, status="skipped", reason=plan.reason, rule=plan.rule)
        return cls(plan, slot)

    @property
    def id(self) -> str:
        """The arm's id."""
        return self.plan.id

    def takes_part(self) -> bool:
        """Whether it is still to be measured."""
        return self.status not in ENDED

    def fail(self, error: BridgeError, doing: str) -> None:
        """Ends the arm with the status that the error means."""
        self.error = error
        self.status = status_of(error)
        self.reason = f"{doing}: {error.message}"

    def end(self, status: str, reason: str, rule: str | None = None) -> None:
        """Ends the arm for a reason of ours."""
        self.status, self.reason, self.rule = status, reason, rule

    def calls_ns(self, rows: int) -> npt.NDArray[np.int64]:
        """Nanoseconds of every timed call in a bucket."""
        trial = self.trials.get(rows)
        if trial is None or not trial.durations:
            return np.zeros(0, np.int64)
        return np.concatenate(trial.durations)

    def to_record(self, status: str, reason: str, buckets: tuple[Any, ...]) -> ArmRecord:
        """The arm as the record holds it."""
        options = self.plan.options
        return ArmRecord(
            id=self.id,
            model=self.plan.model,
            backend=self.plan.backend,
            device=str(self.plan.device),
            options={} if options is None else options.to_dict(),
            tier=self.plan.tier,
            status=status,
            reason=reason,
            rule=self.rule,
            is_default=self.plan.is_default,
            is_reference=self.is_reference,
            error=None if self.error is None else message.error_to(self.error),
            info=self.info,
            inputs=dict(self.inputs),
            outputs=dict(self.outputs),
            prepare_s=self.prepare_s,
            load_s=self.load_s,
            memory_bytes=self.memory_bytes,
            peak_memory_bytes=self.peak_memory_bytes,
            agreement=self.agreement,
            metrics=self.metrics,
            buckets=buckets,
        )


def status_of(error: BridgeError) -> str:
    """The status of an arm that ended with this error."""
    if isinstance(error, PredictTimeout):
        return "timed_out"
    if isinstance(error, WorkerDied):
        return "crashed"
    return "failed"
