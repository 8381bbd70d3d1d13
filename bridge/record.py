"""The selection record: which arm won, for which batch, and with what evidence.

These classes are the document ``record.json`` of a record's folder, field by field;
``bridge.recording`` reads and writes it. Times are seconds, sizes are bytes, ratios are
plain factors (1.02 is 2 % more). An *arm* is one model file on one backend, device and
set of options. A *bucket* is a range of rows per call, measured at one size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge import document
from bridge.terms import GateRecord, Limits, Protocol

__all__ = [
    "SCHEMA",
    "ArmRecord",
    "BucketRecord",
    "Canary",
    "Confirmation",
    "Decision",
    "GateRecord",
    "Interval",
    "Limits",
    "LoadRecord",
    "Measurement",
    "MetricRecord",
    "ModelRecord",
    "OutputRecord",
    "Protocol",
    "Route",
    "SelectionRecord",
    "Verdict",
]

SCHEMA = "inference-bridge/selection-record/1"
"""Name and version of the document; a later version has a greater number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its two-sided interval, of the confidence that the text beside it says."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model file or folder that arms ran.

    Attributes:
        name: File name, as people know it.
        format: Name of the format.
        path: Where it is, relative to the record's folder, with ``/``; ``None`` if it was
            not copied (no arm that serves needs it).
        digest: ``ModelRef.digest``: SHA-256 over all its files, external data included;
            empty for a live object.
        size_bytes: Size of all its files.
        signature_key: The signature chosen, for formats with several.
        declared: ``Signature.to_dict()`` that the caller stated, for formats that hold none.
        trust: It was loaded with ``trust=True``, which loading the record asks for again.
        route: Names of the adapters that made it from the first model, joined by ``+``;
            empty for a file of the user's own.
    """

    name: str
    format: str
    path: str | None
    digest: str
    size_bytes: int
    signature_key: str | None = None
    declared: Mapping[str, Any] | None = None
    trust: bool = False
    route: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRecord:
    """How one output of an arm compares with the reference's; see ``bridge_bench.gate``.

    Attributes:
        output: Name in the record's signature.
        max_abs: Largest absolute difference; ``None`` where numbers cannot be compared.
        max_rel: Largest difference relative to a reference value that is not zero.
        p99_abs: 99th percentile of the absolute differences.
        cosine: Cosine of the angle between the two, seen as vectors.
        excess: Largest ``|y - r| / (atol + rtol * |r|)``: at most 1 passes; ``None`` as
            ``max_abs``, or where it is infinite.
        passes: Whether the gate lets it through.
        problem: What differs besides values, or where; one sentence.
    """

    output: str
    passes: bool
    max_abs: float | None = None
    max_rel: float | None = None
    p99_abs: float | None = None
    cosine: float | None = None
    excess: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRecord:
    """One task metric of one output: of the reference, of the arm, and what was allowed.

    Attributes:
        metric: Such as ``auc``, ``top_k`` or ``rank_correlation``.
        output: Name in the record's signature.
        reference: Value for the reference; ``None`` where the metric compares the two
            (overlap, correlation).
        value: Value for the arm.
        limit: Smallest value that passes.
        passes: Whether it does.
    """

    metric: str
    output: str
    reference: float | None
    value: float
    limit: float
    passes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One arm in one bucket.

    Attributes:
        rows: Rows per call, which names the bucket.
        status: ``won`` (proven faster than every other arm), ``tied`` (within epsilon of
            the winner as far as is known, the winner itself included where others tie),
            ``eliminated`` (proven slower), ``undecided`` (the budget ended first),
            ``infeasible`` (over a limit), ``not_conformant``, ``failed``, ``timed_out``,
            ``crashed``: these four for an arm that failed in this bucket only.
        look: The look (number of blocks) at which it was eliminated; 2 is the ratio cut.
        slower: Its time over the winner's, paired by block; ``None`` for the winner, or
            where they share no blocks. For throughput and cost: the winner's rate over its.
        median_s: Median over blocks of the statistic of a slice (the median call), with a
            bootstrap interval in ``median_low_s`` and ``median_high_s``.
        p90_s, p99_s: Nearest-rank percentiles of all calls; ``None`` with too few calls.
        p99_upper_s: Upper 95 % confidence limit of the 99th percentile, by the binomial
            rule; ``None`` with too few calls.
        rows_per_s: Rows per second in the slices, at ``Limits.concurrency`` callers.
        cpu_s: CPU time of the process per call.
        calls: Timed calls.
        blocks: The statistic of each block in which it took part, in order; ``None``
            entries are blocks without it. The unit is seconds (seconds per row for
            throughput and cost).
        mild_outliers, severe_outliers: Calls beyond 1.5 and beyond 3 interquartile ranges.
        first_call_s: Time of the first call at this size (compilation and the like).
        warmup_calls: Calls until it was stable.
        is_stable: Whether the warm-up became stable.
        reason: One sentence that says how it ended.
    """

    rows: int
    status: str
    reason: str = ""
    look: int | None = None
    slower: Interval | None = None
    median_s: float | None = None
    median_low_s: float | None = None
    median_high_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    p99_upper_s: float | None = None
    rows_per_s: float | None = None
    cpu_s: float | None = None
    calls: int = 0
    blocks: tuple[float | None, ...] = ()
    mild_outliers: int = 0
    severe_outliers: int = 0
    first_call_s: float | None = None
    warmup_calls: int = 0
    is_stable: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRecord:
    """One arm, and what became of it.

    Attributes:
        id: Unique in the record and made to be typed, such as
            ``openvino/hint=throughput``; ``options={"arm": id}`` serves this arm.
        model: Index into ``SelectionRecord.models``.
        backend, device: Names.
        options: Options that differ from the backend's defaults, as ``Options.make`` reads.
        tier: ``strict``, ``half`` or ``int8``.
        status: As in ``Measurement``, over all buckets: the best of them; or ``skipped``
            (a rule left it out before anything ran), ``not_conformant``, ``failed``,
            ``timed_out``, ``crashed``, ``planned`` (a dry run).
        reason: One sentence that says why.
        rule: Name of the rule that skipped it.
        is_default: The native backend of the first model with default options.
        is_reference: The others' outputs were compared with this arm's.
        error: ``bridge.message.error_to`` of what ended it.
        info: ``PredictorInfo.to_dict()``.
        inputs: The arm's input names -> the record's, where any differs; else empty.
        outputs: The record's output names -> the arm's, where any differs; else empty.
        prepare_s: Time to convert, compile or build it before the race.
        load_s: Time of ``bridge.load``.
        memory_bytes: Resident memory that serving it needs beyond a bare interpreter, its
            runtime included: after calls of every size, the largest among them. Of arms that
            shared a process while measuring (no memory limit, another objective), what they
            share counts for the first, so that the others may look smaller than they are.
        peak_memory_bytes: The same at the highest moment, while loading it or after.
        agreement, metrics: What the gate saw, the worst over all inputs.
        buckets: One entry per bucket in which it ran.
    """

    id: str
    model: int
    backend: str
    device: str
    options: Mapping[str, Any]
    tier: str
    status: str
    reason: str = ""
    rule: str | None = None
    is_default: bool = False
    is_reference: bool = False
    error: Mapping[str, Any] | None = None
    info: Mapping[str, Any] | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    prepare_s: float | None = None
    load_s: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    agreement: tuple[OutputRecord, ...] = ()
    metrics: tuple[MetricRecord, ...] = ()
    buckets: tuple[Measurement, ...] = ()

    def bucket(self, rows: int) -> Measurement | None:
        """What was measured at this size, if anything."""
        return next((one for one in self.buckets if one.rows == rows), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRecord:
    """A range of rows per call.

    Attributes:
        rows: Size that was measured.
        to_rows: Largest number of rows that belongs to it; ``None`` in the last bucket.
        weight: Share of calls that fall into it, in 0..1; all together 1.
    """

    rows: int
    to_rows: int | None
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A fixed piece of work timed in every block, to notice what others do to the machine.

    Attributes:
        median_s: Its median time.
        times_s: Its time in each block kept.
        redone: Blocks that were measured again because it was off.
        is_noisy: More blocks would have had to be redone than is allowed.
    """

    median_s: float
    times_s: tuple[float, ...]
    redone: int
    is_noisy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided in one bucket.

    Attributes:
        rows: The bucket.
        status: ``proven`` (every other arm eliminated), ``tied`` (no other arm can be more
            than epsilon faster), ``undecided`` (budget or looks ended first), ``default``
            (no measurable gain over the default, which is kept), ``interrupted``, ``none``
            (no arm is left).
        winner: Id of the arm chosen; ``None`` if there is none.
        ties: Ids of the arms that may be as fast, the winner not among them.
        regret: No other arm is faster than the winner by more than this share, at the
            confidence ``1 - delta``; 0 if none can be, ``None`` without a winner and where
            it is not speed that decides.
        default_ratio: Time of the default arm over that of the winner; ``None`` if the
            default did not run.
        ranking: Ids of all arms that may serve, the best first.
        reason: One sentence.
    """

    rows: int
    status: str
    winner: str | None
    ties: tuple[str, ...] = ()
    regret: float | None = None
    default_ratio: Interval | None = None
    ranking: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which arm serves calls up to a number of rows.

    Attributes:
        to_rows: Largest number of rows; ``None`` in the last route.
        arm: Id of the arm.
        split_rows: Calls are cut into pieces of at most this many rows; ``None`` for whole.
    """

    to_rows: int | None
    arm: str
    split_rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """Winner and default, measured again in fresh processes.

    Attributes:
        rows: The bucket.
        arm: Id of the arm.
        launches: Median time in each fresh process.
        ratio: Time of the default over this arm's, over all launches.
    """

    rows: int
    arm: str
    launches: tuple[float, ...]
    ratio: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """A finalist under a load generator, one call after another; see ``bridge_bench.load``.

    Attributes:
        rows: The bucket.
        arm: Id of the arm.
        scenario: ``single_stream``.
        issuer: ``loadgen`` (MLPerf LoadGen) or ``own``.
        status: ``valid``, ``invalid`` or ``failed``.
        queries: Queries answered.
        p50_s, p90_s, p99_s: Nearest-rank percentiles; ``None`` with too few queries.
        p99_upper_s: Upper 95 % confidence limit of the 99th; ``None`` with too few.
        sla: ``met``, ``not_met`` or ``undecided``; ``None`` without a limit.
        reason: Why it is not valid; else empty.
    """

    rows: int
    arm: str
    scenario: str
    issuer: str
    status: str
    queries: int
    p50_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    p99_upper_s: float | None = None
    sla: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What serves, and how sure that is.

    Attributes:
        status: ``decided``, ``undecided``, ``interrupted``, ``none`` or ``planned``.
        summary: The verdict in words, a few sentences.
        verdicts: One per bucket.
        routes: In order of rows; empty if nothing may serve.
        confirmations: Winner and default in fresh processes, where that was done.
        under_load: Winners and default under a load generator, where that was done.
    """

    status: str
    summary: str
    verdicts: tuple[Verdict, ...] = ()
    routes: tuple[Route, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()
    under_load: tuple[LoadRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRecord:
    """The whole document; see the module.

    Attributes:
        schema: ``SCHEMA``.
        created: UTC time, ISO 8601, of the end of the measurement.
        bridge_version: Version of inference-bridge that wrote it.
        command: Words of a command line that repeats it; empty if called from Python.
        seed: Seed of inputs, order and bootstrap.
        models: All models; arms refer to them by index. The first is the user's.
        signature: ``Signature.to_dict()`` that the loaded record has.
        batch_axes: Axis that counts rows, by input name; empty for models without one.
        output_batch_axes: The same for outputs.
        profile: ``InputProfile.to_dict()``: what the inputs were.
        limits, gate, protocol: What was asked for.
        machine: ``bridge.machine.fingerprint()``.
        versions: Versions of Python and of every distribution that mattered, by name.
        variables: Environment variables that change how runtimes run.
        buckets: In order of rows.
        arms: All of them, also those that did not run.
        canary: ``None`` if nothing was measured.
        floor_s: Time of one call of a predictor that does nothing, in the same loop.
        elapsed_s: Wall time of the whole selection.
        decision: What serves.
        warnings: Sentences.
        attachments: SHA-256 of other files of the folder by relative path, such as the
            times of all calls in ``calls.npz``.
        folder: Where it was read from or written to; ``None`` for one that is in memory
            only. Not part of the document.
    """

    schema: str
    created: str
    bridge_version: str
    command: tuple[str, ...]
    seed: int
    models: tuple[ModelRecord, ...]
    signature: Mapping[str, Any]
    batch_axes: Mapping[str, int]
    output_batch_axes: Mapping[str, int]
    profile: Mapping[str, Any]
    limits: Limits
    gate: GateRecord
    protocol: Protocol
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    variables: Mapping[str, str]
    buckets: tuple[BucketRecord, ...]
    arms: tuple[ArmRecord, ...]
    decision: Decision
    canary: Canary | None = None
    floor_s: float | None = None
    elapsed_s: float | None = None
    warnings: tuple[str, ...] = ()
    attachments: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False, metadata={"stored": False})

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it; ``InvalidRecord`` names a field that has none."""
        return document.encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SelectionRecord:
        """Reads the JSON form; ``InvalidRecord`` names the field that does not fit."""
        return document.decode(cls, data)

    def arm(self, id: str) -> ArmRecord:
        """The arm of that id; ``KeyError`` if there is none."""
        for one in self.arms:
            if one.id == id:
                return one
        raise KeyError(id)
