"""Whether an arm computes what the reference computes; only then may it win."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.errors import InputError, OptionError, nearest
from bridge.record import GateRecord, MetricRecord, OutputRecord
from bridge.signature import Signature
from bridge_bench.agreement import differences, misfit
from bridge_bench.metrics import MetricRule
from bridge_bench.profile import InputProfile

__all__ = ["TIERS", "TOLERANCES", "Gate", "GateResult", "Tolerance", "gate_inputs"]

TIERS = ("strict", "half", "int8")
"""From full precision to the most reduced."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far from the reference numbers may be.

    Attributes:
        atol, rtol: ``|y - r| <= atol + rtol * |r|`` has to hold for every element.
        min_cosine: Smallest cosine of the angle between the two as vectors, of each call.
    """

    atol: float
    rtol: float
    min_cosine: float | None = None


TOLERANCES: Mapping[str, Tolerance] = {
    # float32 sums in another order, over some thousand terms.
    "strict": Tolerance(1e-5, 1e-4),
    # bfloat16 and tf32 keep 8 and 11 bits; a mantissa of 8 bits rounds by 1/512 at most.
    "half": Tolerance(1e-2, 1e-2, 0.9999),
    # A step of 8 bits is 1/255 of a tensor's range, 0.4 %; the errors of some hundred such
    # roundings add up like their root, to 4 %. A cosine of 0.999 is a relative error of
    # 4.5 % in the whole. Whether a task bears that, only a metric tells.
    "int8": Tolerance(5e-2, 5e-2, 0.999),
}
"""Tolerances by tier, chosen by the reasons beside them; floats only: integers, booleans
and strings have to be equal in every tier."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate says of one arm.

    Attributes:
        passes: Whether it may win.
        outputs: Each output against the reference, the worst over all calls.
        metrics: Each metric of each output that has one.
        reason: One sentence: why it passes, or by how much it missed and where.
    """

    passes: bool
    outputs: tuple[OutputRecord, ...]
    metrics: tuple[MetricRecord, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What an arm's outputs have to fulfil.

    An arm of the tier ``strict`` has to stay within the tolerance. One of a reduced tier
    may instead keep the metrics, for the outputs that have one. Dtypes, shapes and the
    pattern of NaN and infinity have to be the reference's in any case.

    Attributes:
        tier: Most reduced precision that is admitted.
        tolerances: By tier; the tiers left out keep their defaults.
        metrics: The metrics to keep.

    Raises:
        OptionError: There is no such tier, or a tolerance is negative.
    """

    tier: str = "strict"
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    metrics: tuple[MetricRule, ...] = ()

    def __post_init__(self) -> None:
        for tier in (self.tier, *self.tolerances):
            if tier not in TIERS:
                raise OptionError(f"there is no precision tier '{tier}'.", fix=nearest(tier, TIERS))
        for tier, one in self.tolerances.items():
            if not (one.atol >= 0 and one.rtol >= 0 and -1 <= (one.min_cosine or 0) <= 1):
                raise OptionError(
                    f"the tolerance of the tier '{tier}' is out of range: {one}.",
                    fix="Give atol and rtol from 0 on, and a cosine from -1 to 1.",
                )
        object.__setattr__(self, "tolerances", {**TOLERANCES, **self.tolerances})

    def admits(self, tier: str) -> bool:
        """Whether arms of that precision may take part at all."""
        return tier in TIERS and TIERS.index(tier) <= TIERS.index(self.tier)

    def to_record(self, reference: str) -> GateRecord:
        """What a selection record says of this gate.

        Args:
            reference: Id of the reference arm, or ``arrays``.
        """
        admitted = [tier for tier in TIERS if self.admits(tier)]
        return GateRecord(
            tier=self.tier,
            reference=reference,
            tolerances={tier: dataclasses.asdict(self.tolerances[tier]) for tier in admitted},
            metrics=tuple(rule.to_dict() for rule in self.metrics),
        )

    def check(
        self,
        reference: Sequence[Arrays],
        outputs: Sequence[Arrays],
        names: Mapping[str, str],
        *,
        tier: str,
        labels: Mapping[str, npt.NDArray[Any]] | None = None,
        has_metrics: bool = True,
        scored: int | None = None,
        keys: Sequence[str] = (),
    ) -> GateResult:
        """Compares an arm's outputs with the reference's, call by call.

        Args:
            reference: Outputs of each call, by the reference's names.
            outputs: Outputs of the same calls, by the arm's names.
            names: The reference's output names -> the arm's; those left out have no
                counterpart, and fail.
            tier: Precision of the arm.
            labels: Truth for each row of the scored calls, by output or under ``""``.
            has_metrics: Whether the metrics are computed, and decide for reduced tiers.
            scored: How many calls, from the first on, hold the rows that metrics are
                computed over, in order; ``None`` for all.
            keys: What each call is called in ``reason``; else its number.

        Raises:
            InputError: Labels or samples do not suit the metrics, or a metric names an
                output that the reference does not have.
            OptionError: There is no such tier.
        """
        if tier not in TIERS:
            raise OptionError(f"there is no precision tier '{tier}'.", fix=nearest(tier, TIERS))
        if len(reference) != len(outputs) or not reference:
            raise InputError(
                f"{len(outputs)} calls of the arm cannot be compared with {len(reference)} of "
                "the reference.",
                fix="Pass the outputs of the same calls, at least one.",
            )
        tolerance = self.tolerances[tier]
        found = [
            _output(name, reference, outputs, names.get(name), tolerance, keys)
            for name in reference[0]
        ]
        records = tuple(one.record for one in found)
        metrics: list[MetricRecord] = []
        if has_metrics and self.metrics and not any(one.is_fatal for one in found):
            count = len(reference) if scored is None else scored
            metrics = self._metrics(reference[:count], outputs[:count], names, labels or {})
        decided = {one.output for one in metrics} if tier != "strict" else set()
        misses = [one.miss for one in found if one.miss and one.record.output not in decided]
        if decided:
            misses += [_missed(one) for one in metrics if not one.passes]
        if misses:
            more = f" (and {len(misses) - 1} more)" if len(misses) > 1 else ""
            reason = f"{misses[0]}{more}"
        elif all(one.passes for one in records):
            reason = f"all outputs are within {_wanted(tolerance)} of the reference"
        else:
            shown = ", ".join(_kept(one) for one in metrics[:3])
            numeric = next(one.miss for one in found if one.miss)
            reason = f"admitted by its metrics ({shown}), not by its numbers: {numeric}"
        return GateResult(not misses, records, tuple(metrics), reason)

    def _metrics(
        self,
        reference: Sequence[Arrays],
        outputs: Sequence[Arrays],
        names: Mapping[str, str],
        labels: Mapping[str, npt.NDArray[Any]],
    ) -> list[MetricRecord]:
        found = []
        for rule in self.metrics:
            heads = _heads(rule, reference[0], labels)
            for name in heads:
                right = _joined([one[name] for one in reference])
                left = _joined([one[names[name]] for one in outputs])
                truth = labels.get(_label(rule, name, labels)) if rule.needs_labels else None
                found.append(rule.measure(name, right, left, truth))
        return found


def gate_inputs(
    profile: InputProfile, signature: Signature, sizes: Sequence[int], variants: int = 2
) -> list[tuple[str, Arrays]]:
    """Inputs on which arms are compared with the reference, each with a key for people.

    They are some variants of each size, one row, and zeros of the smallest size (key
    ``edge/...``): legal, but unlike the rest, so that a reference that fails on an edge
    only means that this edge is left out.

    Args:
        profile: How to make inputs.
        signature: What they are for.
        sizes: Rows of each bucket.
        variants: Variants of each size.

    Raises:
        InputError: As for ``InputProfile.make``.
    """
    found = [
        (f"{rows} row{'s' * (rows != 1)}/{variant}", profile.make(signature, variant, rows))
        for rows in sizes
        for variant in range(variants)
    ]
    has_rows = bool(signature.batch_axes(profile.batch_dim))
    if has_rows and 1 not in sizes:
        found.append(("edge/1 row", profile.make(signature, variants, 1)))
    found.append(("edge/zeros", profile.zeros(signature, min(sizes, default=1))))
    return found


@dataclass(frozen=True, slots=True)
class _Output:
    """The record of one output; what it missed, if it did; whether no metric mends that."""

    record: OutputRecord
    miss: str | None
    is_fatal: bool


def _output(
    name: str,
    reference: Sequence[Arrays],
    outputs: Sequence[Arrays],
    theirs: str | None,
    tolerance: Tolerance,
    keys: Sequence[str],
) -> _Output:
    worst = _Worst()
    for call, right in enumerate(reference):
        left = None if theirs is None else outputs[call].get(theirs)
        problem = "no output could be matched with it"
        if left is not None:
            problem = misfit(right[name], left) or ""
        if left is None or problem:
            record = OutputRecord(output=name, passes=False, problem=problem)
            return _Output(record, f"output '{name}': {problem}", is_fatal=True)
        where = keys[call] if call < len(keys) else f"call {call}"
        worst.add(right[name], left, tolerance, where)
    record = OutputRecord(
        output=name,
        passes=worst.miss is None,
        max_abs=_finite(worst.max_abs),
        max_rel=_finite(worst.max_rel),
        p99_abs=_finite(worst.p99_abs),
        cosine=worst.cosine,
        excess=_finite(worst.excess),
        problem=worst.miss or worst.note,
    )
    return _Output(record, worst.miss and f"output '{name}' {worst.miss}", worst.is_fatal)


@dataclass(slots=True)
class _Worst:
    """The worst of one output over calls; ``None`` where nothing could be compared."""

    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    excess: float | None = None
    miss: str | None = None
    note: str | None = None
    is_fatal: bool = False
    absolute: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(
        self, right: npt.NDArray[Any], left: npt.NDArray[Any], tolerance: Tolerance, where: str
    ) -> None:
        if right.dtype.kind in "OSUT":
            unequal = np.asarray(right != left)
            if unequal.any() and not self.is_fatal:
                self.miss = f"has {int(unequal.sum())} of {right.size} strings unequal in {where}"
                self.is_fatal = True
            return
        found = differences(right, left)
        kind = DType.of(right.dtype)
        is_exact = kind.is_integer or kind is DType.BOOL
        allowed = np.zeros_like(found.size)
        if not is_exact:
            allowed = tolerance.atol + tolerance.rtol * found.size
        # Where nothing is allowed, no difference is right and any other is infinitely wrong.
        ratio = np.full(allowed.shape, np.inf)
        with np.errstate(over="ignore"):
            np.divide(found.absolute, allowed, out=ratio, where=allowed > 0)
        ratio[found.absolute == 0] = 0.0
        excess = float(ratio.max(initial=0.0))
        # What no metric mends counts even where an earlier call was infinitely wrong.
        is_worst = found.has_odd or excess > max(1.0, self.excess or 0.0)
        if is_worst and not self.is_fatal:
            self.is_fatal = found.has_odd
            self.miss = _place(
                right, left, ratio, found.absolute, where, None if is_exact else tolerance
            )
        if not is_exact and right.size and not np.isfinite(right).any():
            self.note = f"the reference has no finite value in {where}"
        self.max_abs = max(self.max_abs or 0.0, found.max_abs)
        self.max_rel = max(self.max_rel or 0.0, found.max_rel)
        self.excess = max(self.excess or 0.0, excess)
        self.absolute.append(found.absolute.ravel())
        if found.cosine is None or is_exact:
            return
        if self.cosine is None or found.cosine < self.cosine:
            self.cosine = found.cosine
            # A vector that the tolerance takes for zero has no direction.
            has_one = found.size.max(initial=0.0) > tolerance.atol
            limit = tolerance.min_cosine if has_one else None
            if limit is not None and found.cosine < limit and self.miss is None:
                self.miss = (
                    f"has a cosine of {found.cosine:.6f} with the reference in {where}, "
                    f"below {limit:g}"
                )

    @property
    def p99_abs(self) -> float | None:
        """Over the elements of all calls, so that small calls tell something, too."""
        every = np.concatenate(self.absolute) if self.absolute else np.empty(0)
        if not every.size:
            return None
        return float(np.quantile(every, 0.99, method="inverted_cdf"))


def _place(
    right: npt.NDArray[Any],
    left: npt.NDArray[Any],
    ratio: npt.NDArray[np.float64],
    absolute: npt.NDArray[np.float64],
    where: str,
    tolerance: Tolerance | None,
) -> str:
    """What is worst, by how much, and where."""
    flat = int(np.argmax(ratio))
    index = tuple(int(one) for one in np.unravel_index(flat, right.shape))
    shown = f" at [{', '.join(map(str, index))}]" if index else ""
    got, wanted = left[index], right[index]
    place = f"{shown} of {where}: {_value(got)}, the reference {_value(wanted)}"
    if tolerance is None:
        return f"has {int((absolute > 0).sum())} of {right.size} values unequal, the first{place}"
    if not np.isfinite(absolute[index]):
        return f"is finite where the reference is not, or the reverse,{place}"
    times = f"{ratio[index]:.3g}" if ratio[index] < 1000 else f"{ratio[index]:,.0f}"
    allowed = f"what is allowed ({tolerance.atol:g} + {tolerance.rtol:g} |r|)"
    return f"differs by {absolute[index]:.3g}, {times} times {allowed},{place}"


def _value(value: Any) -> str:
    if isinstance(value, (complex, np.complexfloating)):
        return f"{complex(value):.6g}"
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return str(value)
    return f"{float(value):.6g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _wanted(tolerance: Tolerance) -> str:
    text = f"{tolerance.atol:g} + {tolerance.rtol:g} |r|"
    return text if tolerance.min_cosine is None else f"{text} and cosine {tolerance.min_cosine:g}"


def _missed(one: MetricRecord) -> str:
    return f"{_kept(one)}, which is {one.limit - one.value:.3g} below {one.limit:.6g}"


def _kept(one: MetricRecord) -> str:
    base = "" if one.reference is None else f" (the reference's is {one.reference:.6g})"
    return f"{one.metric} of output '{one.output}' is {one.value:.6g}{base}"


def _heads(rule: MetricRule, outputs: Arrays, labels: Mapping[str, Any]) -> list[str]:
    """The outputs that a rule is about."""
    if rule.needs_labels and not labels:
        raise InputError(
            f"the metric {rule} needs labels, and there are none.",
            fix="Pass labels, one for each row of the samples.",
        )
    if rule.output is not None:
        if rule.output not in outputs:
            raise InputError(
                f"the metric {rule} names output '{rule.output}', which is not there.",
                fix=nearest(rule.output, outputs),
                output=rule.output,
            )
        return [rule.output]
    heads = [name for name, array in outputs.items() if DType.of(array.dtype).is_float]
    # One array of labels is for the one output that there is, whatever it is called.
    is_single = len(labels) == 1 and len(heads) == 1
    if rule.needs_labels and rule.labels is None and not is_single:
        heads = [name for name in heads if name in labels]
    if not heads:
        raise InputError(
            f"no output suits the metric {rule}"
            + (
                f"; there are labels for: {', '.join(filter(None, labels)) or 'no output'}."
                if rule.needs_labels
                else "."
            ),
            fix="Name the output (auc:output=NAME), or pass labels under the names of outputs."
            if rule.needs_labels
            else "Name an output with one value, or several, for each row.",
        )
    return heads


def _label(rule: MetricRule, output: str, labels: Mapping[str, Any]) -> str:
    wanted = rule.labels or output
    if wanted not in labels and rule.labels is None and len(labels) == 1:
        return next(iter(labels))
    if wanted not in labels:
        raise InputError(
            f"the metric {rule} needs labels '{wanted}', which are not there.",
            fix=nearest(wanted, labels),
            output=output,
        )
    return wanted


def _joined(pieces: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The rows of all calls, in order; a value without rows is one row."""
    return np.concatenate([piece if piece.ndim else piece[np.newaxis] for piece in pieces])
