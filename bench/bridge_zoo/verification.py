"""``python -m bridge_zoo verify``: trained models in every format against the oracle.

Prints the table of ``docs/zoo.md``, or writes it there: how good each model is on rows that
no training saw, what its training took, and the largest difference between the scores of
each runtime and those of the oracle, for the same rows and the same weights. The AUC is that
on the rows held out, which ``bridge zoo build`` writes and on which the settings of some
trainings were chosen, and that on as many fresh rows, on which nothing was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.cpus import usable_cpus
from bridge.device import driver_devices
from bridge.errors import nearest
from bridge.machine import versions
from bridge_zoo.clicks import ClickLog, auc
from bridge_zoo.description import MODELS, SIZES, Description, describe, model_of
from bridge_zoo.formats import FORMATS, write
from bridge_zoo.oracle import forward
from bridge_zoo.training import HELD_OUT_ROWS, held_out, trained
from bridge_zoo.weights import Weights

if TYPE_CHECKING:
    from bridge.signature import Signature

__all__ = [
    "BACKENDS",
    "LARGEST_DIFFERENCE",
    "LEAST_AUC",
    "Record",
    "differences",
    "fresh_aucs",
    "main",
    "renewed",
    "signature",
    "verified",
]

BACKENDS = {
    "onnx": ("onnxruntime", "openvino"),
    "torchscript": ("torch",),
    "pt2": ("torch",),
    "saved_model": ("tensorflow",),
}
"""Who reads each format here: the runtime that it was made for, and OpenVINO for ONNX."""

LARGEST_DIFFERENCE = 1e-5
"""What a score may differ by from the oracle's, in float32."""

LEAST_AUC = 0.70
"""What every head has to reach, on rows held out and on fresh ones."""

_FRESH = 2  # first part of the seed of rows; training and held-out rows have 0 and 1
_CHUNK_ROWS = 2048  # of scores by the oracle: what lies between is float64
_BLOCK = re.compile(r"(<!-- equality -->\n).*?(\n<!-- end equality -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one trained model in all of its formats.

    Attributes:
        model: Name of the model.
        size: One of ``SIZES``.
        weight_bytes: All weights in float32.
        inputs: Number of inputs.
        aucs: AUC on the rows held out, by task.
        ceilings: The best AUC that there is on these rows, by task.
        fresh_aucs: The same on fresh rows.
        fresh_ceilings: The same on fresh rows.
        training_s: What training took, when and where it was done.
        differences: Largest difference from the oracle's scores, by format and backend.
    """

    model: str
    size: str
    weight_bytes: int
    inputs: int
    aucs: Mapping[str, float]
    ceilings: Mapping[str, float]
    fresh_aucs: Mapping[str, float]
    fresh_ceilings: Mapping[str, float]
    training_s: float
    differences: Mapping[str, Mapping[str, float]]

    @property
    def is_sound(self) -> bool:
        """Whether all runtimes agree with the oracle, and every head is good enough."""
        gaps = [one for item in self.differences.values() for one in item.values()]
        scores = [*self.aucs.values(), *self.fresh_aucs.values()]
        return all(one <= LARGEST_DIFFERENCE for one in gaps) and min(scores) >= LEAST_AUC


def signature(description: Description) -> Signature:
    """Names, dtypes and shapes, for formats that do not say: TorchScript does not."""
    from bridge.dtypes import DType
    from bridge.signature import Signature, TensorSpec
    from bridge_zoo.description import BATCH

    model = model_of(description)
    inputs = [
        TensorSpec(one.name, DType.INT64, (BATCH, one.length) if one.length else (BATCH,))
        for one in model.id_features
    ]
    inputs += [
        TensorSpec(one.name, DType.FLOAT32, (BATCH, one.width)) for one in model.dense_features
    ]
    outputs = tuple(TensorSpec(task, DType.FLOAT32, (BATCH,)) for task in model.tasks)
    return Signature(tuple(inputs), outputs)


def differences(
    description: Description,
    weights: Weights,
    folder: Path,
    formats: Iterable[str] = FORMATS,
    rows: int = 257,
) -> dict[tuple[str, str], float]:
    """The largest difference from the oracle's scores, by format and backend; NaN if one is.

    Args:
        description: The description.
        weights: The weights to write and to score with.
        folder: Where the model is written.
        formats: Some of ``FORMATS``.
        rows: How many rows of the log are scored; one row is scored as well.

    Raises:
        BridgeError: A backend is not there or does not load the model.
    """
    import bridge

    batch, _ = held_out(description, rows)
    first = {name: value[:1] for name, value in batch.items()}
    wanted = forward(description, weights, batch)
    found: dict[tuple[str, str], float] = {}
    for item, path in write(description, folder=folder, formats=formats, weights=weights).items():
        stated = signature(description) if item == "torchscript" else None
        for backend in BACKENDS[item]:
            with bridge.load(path, backend=backend, signature=stated) as predictor:
                many, one = predictor.predict(batch), predictor.predict(first)
            gaps = [
                np.abs(scores[task] - truth[:count]).max()
                for scores, count in ((many, rows), (one, 1))
                for task, truth in wanted.items()
            ]
            found[item, backend] = float(np.max(gaps))
    return found


def fresh_aucs(
    description: Description, weights: Weights, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """AUC and the best possible AUC by task, on rows on which nothing was learned or chosen.

    Scores are the oracle's; the rows are as many as those held out.

    Args:
        description: The description.
        weights: The weights to score with.
        seed: Another seed draws other rows; none of them is among those held out.
    """
    count = HELD_OUT_ROWS[description.size]
    log = ClickLog(description)
    rows, truth = log.rows(count, [_FRESH, seed])
    chunks = [
        forward(
            description,
            weights,
            {name: value[start : start + _CHUNK_ROWS] for name, value in rows.items()},
        )
        for start in range(0, count, _CHUNK_ROWS)
    ]
    found = {
        task: auc(np.concatenate([chunk[task] for chunk in chunks]), labels)
        for task, labels in truth.items()
    }
    return found, log.ceiling(rows, truth)


def verified(description: Description, seed: int = 0) -> Record:
    """Trains a model where the cache has no weights, writes every format and compares.

    Raises:
        ImportError: A runtime that writes a format, or torch for the training, is missing.
        BridgeError: A backend is not there or does not load the model.
    """
    training = trained(description, seed)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        found = differences(description, training.weights, Path(folder))
    by_format: dict[str, dict[str, float]] = {}
    for (item, backend), gap in found.items():
        by_format.setdefault(item, {})[backend] = gap
    fresh, fresh_ceilings = fresh_aucs(description, training.weights)
    return Record(
        description.name,
        description.size,
        sum(4 * math.prod(value.shape) for value in training.weights.values()),
        len(description.input_names),
        training.aucs,
        training.ceilings,
        fresh,
        fresh_ceilings,
        training.seconds,
        by_format,
    )


def renewed(text: str, table: str) -> str:
    """A page with another table between its marks.

    Raises:
        ValueError: It has not exactly one place for it.
    """
    made, count = _BLOCK.subn(lambda found: f"{found[1]}{table}{found[2]}", text)
    if count != 1:
        raise ValueError(
            f"the page has {count} blocks '<!-- equality -->' ... '<!-- end equality -->', "
            "wanted one."
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a score differs by too much or an AUC is too low."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_zoo verify",
        description="Train models and hold every format of them to the numpy oracle.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--size", action="append", choices=SIZES, help="default: both")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument(
        "--into", type=Path, metavar="PAGE", help="write the table into a page, between its marks"
    )
    given = parser.parse_args(arguments)
    for name in given.models:
        if name not in MODELS:
            parser.error(f"the zoo has no model '{name}'. {nearest(name, MODELS)}")
    if given.into is not None:
        try:
            renewed(given.into.read_text("utf-8"), "")  # before the minutes that it takes
        except (OSError, ValueError) as error:
            parser.error(str(error))
    is_plain = not given.json and given.into is None
    lines = _heading()
    if is_plain:
        print("\n".join(lines))
    records = []
    for size in given.size or SIZES:
        for name in given.models or MODELS:
            records.append(verified(describe(name, size), given.seed))
            lines.append(_row(records[-1]))
            print(lines[-1], file=sys.stdout if is_plain else sys.stderr, flush=True)
    about = _about()
    lines += ["", _sentence(about)]
    if is_plain:
        print("\n".join(lines[-2:]))
    if given.json:
        print(json.dumps({**about, "models": [_plain(one) for one in records]}, indent=2))
    if given.into is not None:
        page = renewed(given.into.read_text("utf-8"), "\n".join(lines))
        given.into.write_text(page, "utf-8")
    return 0 if all(one.is_sound for one in records) else 1


def _arms() -> list[tuple[str, str]]:
    return [(item, backend) for item in FORMATS for backend in BACKENDS[item]]


def _heading() -> list[str]:
    columns = [
        "model",
        "size",
        "weights, MB",
        "inputs",
        "AUC held out (best possible)",
        "AUC on fresh rows (best possible)",
        "training",
        *(f"{item}, {backend}" for item, backend in _arms()),
    ]
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def _row(record: Record) -> str:
    size = record.weight_bytes
    cells = [
        record.model,
        record.size,
        f"{size / 1e6:.2g}" if size < 1e6 else f"{size / 1e6:.1f}",
        str(record.inputs),
        _scores(record.aucs, record.ceilings),
        _scores(record.fresh_aucs, record.fresh_ceilings),
        f"{record.training_s:.0f} s",
        *(f"{record.differences[item][backend]:.1e}" for item, backend in _arms()),
    ]
    return f"| {' | '.join(cells)} |"


def _scores(found: Mapping[str, float], ceilings: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {value:.3f} ({ceilings[task]:.3f})" for task, value in found.items())


def _plain(record: Record) -> dict[str, Any]:
    """JSON form, which has no NaN: a difference that is no number is null."""
    gaps = {
        item: {backend: gap if math.isfinite(gap) else None for backend, gap in found.items()}
        for item, found in record.differences.items()
    }
    return {**dataclasses.asdict(record), "differences": gaps, "is_sound": record.is_sound}


def _about() -> dict[str, Any]:
    """Machine and versions."""
    (_, processor), *_ = driver_devices()
    return {
        "processor": processor,
        "cpus": usable_cpus(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions({backend for _, backend in _arms()}),
    }


def _sentence(about: Mapping[str, Any]) -> str:
    known = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['processor']}, {about['cpus']} CPUs; {about['system']}; {known}."
