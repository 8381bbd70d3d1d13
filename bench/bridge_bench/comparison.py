"""One network on several backends, or in several formats: who agrees, how fast is each?

Each arm is one model file on one backend in a worker process of its own. The parent
hands out turns: in every round each arm runs once, in fresh random order, for a short
slice of calls, while the others are stopped. Drift of the machine then falls on all
arms alike, and the figures to compare are medians over rounds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.check import Arrays
from bridge.errors import BridgeError, UnsupportedModel
from bridge.isolation import Worker
from bridge.loading import open_model
from bridge.message import error_to
from bridge.model import ModelRef
from bridge.options import Options
from bridge.registry import registry
from bridge.signature import Signature
from bridge_bench.agreement import Agreement, agreement, match_inputs, match_outputs
from bridge_bench.profile import InputProfile
from bridge_bench.stats import MIN_P99_SAMPLES, median, percentile

__all__ = ["Arm", "Comparison", "compare"]

SLICE_S = 0.05  # one turn of an arm; long against a context switch, short against drift
QUICK_CALL_S = 0.1  # an arm this quick makes the calls that a 99th percentile needs
MAX_CALLS = 500  # per turn, so that a microsecond model does not fill memory with timings
SLOW_CALL_S = 0.5  # an arm this slow takes part in the first rounds only
SLOW_ROUNDS = 3
VARIANTS = 4  # sets of inputs used in turn, because equal inputs flatter caches
WARMUP_CALLS = 3

Progress = Callable[[str], None]


@dataclass(kw_only=True)
class Arm:
    """One model file on one backend, and what came of it.

    Attributes:
        model: Path of the model.
        backend: Name of the backend.
        format: Name of the model's format.
        is_reference: The others' outputs are compared with this arm's.
        error: Why it has no figures, ``None`` if it has.
        info: ``PredictorInfo.to_dict()``.
        agreement: One entry per output of the reference.
        load_s: Time to import the runtime and load the model.
        first_call_s: Time of the first call.
        peak_rss_bytes: Peak resident memory of its process, interpreter included.
        median_s: Median over rounds of the round's median call.
        p99_s: Nearest-rank 99th percentile of all calls; ``None`` for fewer than 100.
        calls: Number of timed calls.
        relative: ``median_s`` divided by that of the fastest arm that agrees.
    """

    model: Path
    backend: str
    format: str
    is_reference: bool = False
    error: BridgeError | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    agreement: tuple[Agreement, ...] = ()
    load_s: float | None = None
    first_call_s: float | None = None
    peak_rss_bytes: int | None = None
    median_s: float | None = None
    p99_s: float | None = None
    calls: int = 0
    relative: float | None = None

    @property
    def name(self) -> str:
        """Backend and model, as tables show it."""
        return f"{self.backend} · {self.model.name}"

    def agrees(self, tolerance: float) -> bool:
        """Whether it ran and every output is within the tolerance of the reference."""
        return self.error is None and all(one.passes(tolerance) for one in self.agreement)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "model": str(self.model),
            "backend": self.backend,
            "format": self.format,
            "is_reference": self.is_reference,
            "error": None if self.error is None else error_to(self.error),
            "info": dict(self.info) or None,
            "agreement": [
                {
                    "output": one.output,
                    "other": one.other,
                    "max_abs": _finite(one.max_abs),
                    "max_rel": _finite(one.max_rel),
                    "cosine": _finite(one.cosine),
                    "tolerance": _finite(one.tolerance),
                    "problem": one.problem
                    or ("not finite in one of the two" if one.tolerance == float("inf") else None),
                }
                for one in self.agreement
            ],
            "load_s": self.load_s,
            "first_call_s": self.first_call_s,
            "peak_rss_bytes": self.peak_rss_bytes,
            "median_s": self.median_s,
            "p99_s": self.p99_s,
            "calls": self.calls,
            "relative": self.relative,
        }


@dataclass(kw_only=True)
class Comparison:
    """All arms, and the fastest of those that agree with the reference.

    Attributes:
        arms: In the order in which they were named.
        tolerance: Largest tolerance that counts as agreement.
        rounds: Rounds of measurement.
        rows: Rows per call.
    """

    arms: list[Arm]
    tolerance: float
    rounds: int
    rows: int

    @property
    def fastest(self) -> Arm | None:
        """The arm with the lowest median among those that agree."""
        sound = [arm for arm in self.arms if arm.median_s and arm.agrees(self.tolerance)]
        return min(sound, key=lambda arm: arm.median_s or 0.0, default=None)

    @property
    def all_agree(self) -> bool:
        """Whether every arm that ran agrees, and each model ran on some backend."""
        ran = [arm for arm in self.arms if arm.error is None]
        is_covered = {arm.model for arm in ran} == {arm.model for arm in self.arms}
        return bool(ran) and is_covered and all(arm.agrees(self.tolerance) for arm in ran)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; its schema is ``compare.schema.json`` of the command-line package."""
        best = self.fastest
        return {
            "tolerance": self.tolerance,
            "rounds": self.rounds,
            "rows": self.rows,
            "all_agree": self.all_agree,
            "fastest": None
            if best is None
            else {"backend": best.backend, "model": str(best.model)},
            "arms": [arm.to_dict() for arm in self.arms],
        }


@dataclass
class _Running:
    arm: Arm
    worker: Worker
    signature: Signature
    outputs: list[Arrays]
    call_s: float = 0.0
    calls_per_turn: int = 1
    slices: list[float] = field(default_factory=list)
    durations: list[Any] = field(default_factory=list)


def compare(
    models: Sequence[str | Path],
    *,
    backends: Sequence[str] | None = None,
    profile: InputProfile | None = None,
    samples: Arrays | None = None,
    signature: str | Signature | None = None,
    options: Mapping[str, Options | Mapping[str, Any]] | None = None,
    output_map: Mapping[str, str] | None = None,
    trust: bool = False,
    tolerance: float = 1e-3,
    rounds: int = 15,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Runs every capable backend on every model and compares them.

    The reference is the first model on its native backend, or else the first arm that
    runs. One arm's failure is recorded in it and ends nothing.

    Args:
        models: Paths of the same network, in one or several formats.
        backends: Names to try; ``None`` means all that are installed and capable.
        profile: How to make inputs; ignored where ``samples`` are given.
        samples: One set of real inputs, named as the reference names them.
        signature: A signature key, or a whole signature for those models that hold none.
        options: Options by backend name.
        output_map: Outputs of the reference -> outputs of the others, where names differ.
        trust: As for ``bridge.load``.
        tolerance: Largest tolerance that counts as agreement; see ``Agreement``.
        rounds: Rounds of measurement; 0 compares outputs only.
        seed: Seed of the order of turns.
        progress: Called with one line of text now and then.

    Raises:
        ModelError: A model cannot be opened at all, or no backend takes it.
        BackendNotFound: A name in ``backends`` is unknown.
    """
    tell = progress or (lambda _: None)
    key = signature if isinstance(signature, str) else None
    found = [open_model(model, signature=key, trust=trust) for model in models]
    # A whole signature is for the models that hold none; the others refuse it.
    declared = {
        model.file: signature
        for model in found
        if isinstance(signature, Signature) and not model.facts.tells_inputs
    }
    arms = _plan(found, backends)
    rows = profile.rows if profile is not None else 1
    comparison = Comparison(arms=arms, tolerance=tolerance, rounds=rounds, rows=rows)
    with ExitStack() as stack:
        running: list[_Running] = []
        inputs: list[Arrays] = []
        for index, arm in enumerate(arms, 1):
            if arm.error is not None:
                continue
            tell(f"[{index}/{len(arms)}] {arm.name}: loading")
            worker = stack.enter_context(Worker())
            try:
                loaded = worker.load(
                    arm.model,
                    backend=arm.backend,
                    options=(options or {}).get(arm.backend),
                    signature=declared.get(arm.model, key),
                    trust=trust,
                )
                arm.info, arm.load_s = dict(loaded.info), loaded.load_s
                if not inputs:
                    inputs = _inputs(loaded.signature, profile or InputProfile(), samples)
                    arm.is_reference = True
                reference = running[0] if running else None
                running.append(
                    _start(arm, worker, loaded.signature, inputs, reference, output_map, rounds)
                )
                worker.pause()
            except BridgeError as error:
                arm.error = error
                if arm.is_reference:
                    arm.is_reference, inputs = False, []
                worker.close()
        _race(running, rounds, random.Random(seed), tell)  # noqa: S311 - an order, no secret
        for one in running:
            _finish(one)
    best = comparison.fastest
    for arm in arms:
        if best is not None and best.median_s and arm.median_s:
            arm.relative = arm.median_s / best.median_s
    return comparison


def _plan(models: Sequence[ModelRef], backends: Sequence[str] | None) -> list[Arm]:
    arms: list[Arm] = []
    refusals = []
    for model in models:
        known = registry().backends
        named = [known.get(name) for name in backends] if backends is not None else list(known)
        named.sort(key=lambda backend: backend.name != model.format.native_backend)
        for backend in named:
            device = backend.default_device(model.served)
            refusal = backend.refuse(model.served, device)
            error: BridgeError | None = None
            if refusal is not None:
                refusals.append(refusal.reason)
                error = UnsupportedModel(refusal.reason, fix=refusal.fix, backend=backend.name)
            is_usable = backend.probe().installed and backend.capabilities(device).predicts
            if backends is None and (error is not None or not is_usable):
                continue
            arms.append(
                Arm(model=model.file, backend=backend.name, format=model.format.name, error=error)
            )
    covered = {arm.model for arm in arms}
    left = [model.name for model in models if model.file not in covered]
    if left:
        raise UnsupportedModel(
            f"no installed backend takes {' or '.join(left)}.",
            fix="'bridge inspect MODEL' says why each one refuses.",
            refusals=refusals,
        )
    return arms


def _inputs(signature: Signature, profile: InputProfile, samples: Arrays | None) -> list[Arrays]:
    if samples is not None:
        return [samples]
    return [profile.make(signature, variant) for variant in range(VARIANTS)]


def _start(
    arm: Arm,
    worker: Worker,
    signature: Signature,
    inputs: list[Arrays],
    reference: _Running | None,
    output_map: Mapping[str, str] | None,
    rounds: int,
) -> _Running:
    """First call, agreement with the reference, warm-up, and the number of calls a turn."""
    ours = {name: name for name in inputs[0]}
    if reference is not None:
        ours = match_inputs(reference.signature, signature, tuple(inputs[0]))
    renamed = [{name: one[source] for name, source in ours.items()} for one in inputs]
    results, arm.first_call_s = worker.predict(renamed[0], timeout_s=120.0)
    outputs = [results] + [worker.predict(one, timeout_s=120.0)[0] for one in renamed[1:]]
    names = {name: name for name in signature.output_names}
    base = outputs
    if reference is not None:
        base = reference.outputs
        names = match_outputs(reference.signature, signature, base[0], results, output_map)
    arm.agreement = _worst(base, outputs, names)
    if not rounds:
        return _Running(arm, worker, signature, outputs)
    worker.keep_inputs("", renamed, timeout_s=120.0)
    warm = worker.measure(WARMUP_CALLS, discard=0, timeout_s=120.0).ns
    call_s = max(float(warm.min()) / 1e9, 1e-7)
    calls = max(1, min(MAX_CALLS, round(SLICE_S / call_s)))
    if call_s <= QUICK_CALL_S:
        calls = max(calls, math.ceil(MIN_P99_SAMPLES / rounds))
    return _Running(arm, worker, signature, outputs, call_s, calls)


def _worst(
    reference: list[Arrays], others: list[Arrays], names: Mapping[str, str]
) -> tuple[Agreement, ...]:
    """Per output, the agreement over all sets of inputs that is hardest to accept."""
    worst = []
    for output in reference[0]:
        other_name = names.get(output)
        each = [
            agreement(output, mine[output], other_name, theirs[other_name] if other_name else None)
            for mine, theirs in zip(reference, others, strict=True)
        ]
        worst.append(max(each, key=lambda one: (one.problem is not None, one.tolerance or 0.0)))
    return tuple(worst)


def _race(running: Sequence[_Running], rounds: int, order: random.Random, tell: Progress) -> None:
    for round_ in range(rounds):
        turn = [
            one
            for one in running
            if one.arm.error is None and (one.call_s < SLOW_CALL_S or round_ < SLOW_ROUNDS)
        ]
        order.shuffle(turn)
        tell(f"round {round_ + 1}/{rounds}")
        for one in turn:
            one.worker.resume()
            try:
                durations = one.worker.measure(one.calls_per_turn, discard=0, timeout_s=300.0).ns
            except BridgeError as error:
                one.arm.error = error
                one.worker.close()
                continue
            one.worker.pause()
            one.slices.append(median(durations))
            one.durations.append(durations)


def _finish(one: _Running) -> None:
    arm = one.arm
    if arm.error is not None:
        return
    one.worker.resume()
    try:
        arm.peak_rss_bytes = one.worker.memory()["peak_rss_bytes"]
    except BridgeError as error:
        arm.error = error
        return
    if one.slices:
        every = np.concatenate(one.durations)
        arm.calls = len(every)
        arm.median_s = median(one.slices) / 1e9
        if len(every) >= MIN_P99_SAMPLES:
            arm.p99_s = percentile(every, 0.99) / 1e9


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; the problem text says it instead."""
    return value if value is not None and np.isfinite(value) else None
