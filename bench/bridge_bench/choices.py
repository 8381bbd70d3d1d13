"""What takes part in the headline table: what was replaced, and what ``select`` chooses.

The choices are those of ``select`` on the zoo's own files of a model, each written as a
record and served from there, so that what is measured is what a service would load:
under the strict gate and under the AUC gate, for the model as it is and for the model
that takes the user of a request once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import bridge_zoo
from bridge import recording
from bridge.check import Arrays
from bridge.conversion import convert
from bridge.device import CPU
from bridge.errors import MeasureError
from bridge.record import ArmRecord, MetricRecord, Protocol, SelectionRecord
from bridge.registry import registry
from bridge_bench.contender import Contender, Field
from bridge_bench.gate import Gate
from bridge_bench.metrics import MetricRule
from bridge_bench.profile import InputProfile
from bridge_bench.samples import Samples
from bridge_bench.selection import select
from bridge_bench.subject import cpu_backends
from bridge_zoo.requests import RequestLog, user_inputs

__all__ = [
    "CHOICES",
    "Choice",
    "Files",
    "Judge",
    "arm_contender",
    "beaten",
    "best_of_each",
    "build",
    "choose",
    "served",
    "stock",
]

RULE = MetricRule.parse("auc:max_drop=0.0005")
"""What reduced precision may lose, of every output."""
FORMATS = ("saved_model", "onnx", "pt2")
"""The zoo's files of a model; the first is what is replaced."""
ONCE = "onnx-broadcast"
"""The adapter that makes a model take the user once."""
_SERVES = frozenset({"won", "tied", "eliminated", "undecided"})
_SKIPPED = (
    *("*pinning=*", "*hint=*", "*memory_pattern=*", "*arena=*", "*graph_optimiz*"),
    *("*inter_threads=*", "*/spinning=true*", "*execution_mode=*", "*/*<onnx-int8-embeddings"),
    *("*execution=compiled*", "*execution=*,*"),
)
"""Arms that are left out: options that change little here, and what compiles for a minute
to be another arm's equal."""
_LEAST_SHARE = 0.02  # of labels that are positive, below which one user says little
_SEEDS = range(10_000, 10_064)  # of requests that nothing else uses


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One use of ``select``.

    Attributes:
        name: As tables call it.
        tier: Of the gate.
        takes_user_once: On the model that takes the user of a request once.
    """

    name: str
    tier: str
    takes_user_once: bool


CHOICES = (
    Choice(name="strict", tier="strict", takes_user_once=False),
    Choice(name="AUC gate", tier="int8", takes_user_once=False),
    Choice(name="strict, user once", tier="strict", takes_user_once=True),
    Choice(name="AUC gate, user once", tier="int8", takes_user_once=True),
)
"""All four, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """A model of the zoo as it was written, and rows to judge it by.

    Attributes:
        model, size: Names in the zoo.
        folder: Where the files are, and where records go.
        weights: ``trained`` or ``seeded``.
        models: Paths in the order of ``FORMATS``.
        samples: Rows.
        labels: Truth for them, by output.
        aucs: AUC of each output on them, as far as training told.
    """

    model: str
    size: str
    folder: Path
    weights: str
    models: tuple[Path, ...]
    samples: Arrays
    labels: Mapping[str, npt.NDArray[Any]]
    aucs: Mapping[str, float] = field(default_factory=dict)


def build(model: str, size: str, folder: Path, *, weights: str, rows: int | None = None) -> Files:
    """Writes the model in every format, unless it is there already.

    With seeded weights the labels are drawn from the model's own scores, so that an AUC
    means something there as well.

    Args:
        model: Name in the zoo.
        size: One of its sizes.
        folder: Where to write.
        weights: ``trained`` (learned now, unless they are in the cache) or ``seeded``.
        rows: How many rows to judge by; ``None`` is the zoo's number.
    """
    description = bridge_zoo.describe(model, size)
    folder = folder / f"{model}-{size}-{weights}"
    aucs: dict[str, float] = {}
    if weights == "trained":
        training = bridge_zoo.trained(description)
        learned, aucs = training.weights, training.aucs
    else:
        learned = bridge_zoo.seeded_weights(description)
    names = {"saved_model": f"{model}_saved_model", "onnx": f"{model}.onnx", "pt2": f"{model}.pt2"}
    missing = [one for one in FORMATS if not (folder / names[one]).exists()]
    if missing:
        bridge_zoo.write(description, folder=folder, formats=missing, weights=learned)
    samples, labels = bridge_zoo.held_out(description, rows)
    truth: dict[str, npt.NDArray[Any]] = dict(labels)
    if weights != "trained":
        scores = bridge_zoo.forward(description, learned, samples)
        generator = np.random.default_rng(0)
        truth = {task: generator.random(len(one)) < one for task, one in scores.items()}
    return Files(
        model=model,
        size=size,
        folder=folder,
        weights=weights,
        models=tuple(folder / names[one] for one in FORMATS),
        samples=dict(samples),
        labels=truth,
        aucs=aucs,
    )


def stock(files: Files, threads: int | None = None) -> Contender:
    """What is replaced: the native call of the first file's own runtime.

    Args:
        files: The model.
        threads: Of each operator; ``None`` leaves the runtime's default.
    """
    return Contender(
        name="stock" if threads is None else f"stock, {threads} thread",
        path=files.models[0],
        backend=registry().formats.get(FORMATS[0]).native_backend,
        options={} if threads is None else {"threads": threads},
        is_native=True,
    )


def choose(
    files: Files,
    choice: Choice,
    *,
    rows: Sequence[int],
    budget_s: float,
    prepare_s: float,
    skip: Sequence[str] = (),
    is_fresh: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> SelectionRecord:
    """The record of a choice; read from the folder of the files where it is there already.

    Args:
        files: The model.
        choice: Which choice.
        rows: Sizes to decide for.
        budget_s: For starting and measuring.
        prepare_s: For converting and compiling before that.
        skip: Patterns of further arms to leave out.
        is_fresh: Choose anew where there is a record already.
        tell: Called with one line of text now and then.

    Raises:
        BridgeError: As ``select``, and as ``convert`` for a model that takes the user once.
    """
    out = files.folder / choice.name.replace(", ", "-").replace(" ", "-").lower()
    if recording.is_record(out) and not is_fresh:
        return recording.read(out)
    models: list[Path] = list(files.models)
    samples, labels = files.samples, files.labels
    if choice.takes_user_once:
        models = [_once(files, tell)]
        samples, labels = _one_user(files)
    is_strict = choice.tier == "strict"
    gate = Gate(tier=choice.tier) if is_strict else Gate(tier=choice.tier, metrics=(RULE,))
    return select(
        models,
        out=out,
        batches=tuple(rows),
        profile=InputProfile(samples=Samples.of(samples)),
        gate=gate,
        labels=None if is_strict else dict(labels),
        protocol=Protocol(
            budget_s=budget_s, prepare_budget_s=prepare_s, load_timeout_s=120, slice_s=0.03
        ),
        skip=(*_SKIPPED, *_twice(files), *skip),
        # The table is measured in fresh processes afterwards. And each size is measured by
        # itself there: how arms get along on a mixture of sizes is another question.
        launches=0,
        progress=tell,
    )


def beaten(files: Files, record: SelectionRecord) -> list[str]:
    """Arms that ran and are at no size the best of their backend, nor serve: patterns of ids."""
    kept = {route.arm for route in record.decision.routes}
    for bucket in record.buckets:
        kept |= {arm.id for arm in best_of_each(files, record, bucket.rows).values()}
    return [arm.id for arm in record.arms if arm.buckets and arm.id not in kept]


def served(record: SelectionRecord, choice: Choice) -> Contender:
    """What a service would load.

    Raises:
        MeasureError: The record decided for nothing.
    """
    if record.folder is None or not record.decision.routes:
        raise MeasureError(
            f"nothing may serve '{choice.name}': {record.decision.summary}",
            fix="Give the selection more time.",
        )
    return Contender(name=choice.name, path=record.folder, takes_user_once=choice.takes_user_once)


def best_of_each(files: Files, record: SelectionRecord, rows: int) -> dict[str, ArmRecord]:
    """The fastest arm of each backend on the model's own files, by backend.

    Args:
        files: The model.
        record: With these files.
        rows: Rows of a call; the bucket that they belong to counts.
    """
    found: dict[str, tuple[float, ArmRecord]] = {}
    covering = [one.rows for one in record.buckets if one.to_rows is None or rows <= one.to_rows]
    for arm in record.arms:
        seen = arm.bucket(covering[0])
        is_own = arm.model < len(files.models) and not record.models[arm.model].route
        if not is_own or seen is None or seen.status not in _SERVES or seen.median_s is None:
            continue
        best = found.get(arm.backend)
        if best is None or seen.median_s < best[0]:
            found[arm.backend] = (seen.median_s, arm)
    return {name: arm for name, (_, arm) in found.items()}


def arm_contender(files: Files, arm: ArmRecord) -> Contender:
    """An arm on one of the model's own files."""
    return Contender(
        name=f"best {arm.backend}",
        path=files.models[arm.model],
        backend=arm.backend,
        options=dict(arm.options),
    )


class Judge:
    """AUC over requests of many users, against the scores of a reference.

    Args:
        files: The model.
        field: Where contenders are asked.
        reference: Whose scores are right.
        rows: Items of a request.
        users: How many requests.
    """

    def __init__(
        self, files: Files, field: Field, reference: Contender, rows: int, users: int
    ) -> None:
        self._field, self._rows = field, rows
        self._seeds = _SEEDS[:users]
        self._right = self._answers(reference)
        log = RequestLog(bridge_zoo.describe(files.model, files.size))
        if files.weights == "trained":
            truths = [log.request(rows, seed)[1] for seed in self._seeds]
            self._truth = {
                name: np.concatenate([one[name] for one in truths]) for name in self._right
            }
        else:
            generator = np.random.default_rng(1)
            self._truth = {
                name: generator.random(len(one)) < one for name, one in self._right.items()
            }

    def of(self, contender: Contender) -> list[MetricRecord]:
        """AUC of each output, with what was allowed."""
        scores = self._answers(contender)
        return [
            RULE.measure(name, right, scores[name], self._truth[name])
            for name, right in self._right.items()
        ]

    def _answers(self, contender: Contender) -> dict[str, npt.NDArray[Any]]:
        found = [self._field.answer(contender, self._rows, seed) for seed in self._seeds]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _twice(files: Files) -> list[str]:
    """Patterns of arms on the other files of backends that take ONNX: they are no faster."""
    able = [one.name for one in cpu_backends() if "onnx" in one.capabilities(CPU).formats]
    others = [one.name for one in files.models if one.suffix != ".onnx"]
    return [f"{name}:{backend}*" for name in others for backend in able]


def _once(files: Files, tell: Callable[[str], None]) -> Path:
    names = user_inputs(bridge_zoo.describe(files.model, files.size))
    model = files.models[FORMATS.index("onnx")]
    options = {ONCE: {"inputs": names}}
    return convert(model, "onnx", route=(ONCE,), options=options, tell=tell).path


def _one_user(files: Files) -> tuple[Arrays, dict[str, npt.NDArray[Any]]]:
    """Many items of one user of whom the log tells enough, for a model that takes a user once."""
    log = RequestLog(bridge_zoo.describe(files.model, files.size))
    rows = len(next(iter(files.labels.values())))
    for seed in range(100):
        batch, labels = log.request(rows, seed, is_broadcast=True)
        if all(one.mean() >= _LEAST_SHARE for one in labels.values()):
            return dict(batch), dict(labels)
    raise MeasureError(
        "no user of the click log has enough positive labels.", fix="Take more rows."
    )
