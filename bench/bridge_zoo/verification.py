"""``python -m bridge_zoo verify``: trained models in every format against the oracle.

Prints the table of ``docs/zoo.md``: how good each model is on rows held out, what its
training took, and the largest difference between the scores of each runtime and those
of the oracle, for the same rows and the same weights.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bridge_zoo.description import MODELS, SIZES, Description, describe, model_of
from bridge_zoo.formats import FORMATS, write
from bridge_zoo.oracle import forward
from bridge_zoo.training import Training, held_out, trained
from bridge_zoo.weights import Weights

if TYPE_CHECKING:
    from bridge.signature import Signature

__all__ = ["BACKENDS", "LARGEST_DIFFERENCE", "LEAST_AUC", "differences", "main", "signature"]

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
"""What every head has to reach on rows held out."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a score differs by too much or an AUC is too low."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_zoo verify",
        description="Train models and hold every format of them to the numpy oracle.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--size", action="append", choices=SIZES, help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    arms = [(item, backend) for item in FORMATS for backend in BACKENDS[item]]
    headings = [
        "model",
        "size",
        "weights, MB",
        "inputs",
        "AUC held out (best possible)",
        "training",
    ]
    headings += [f"{item}, {backend}" for item, backend in arms]
    print(f"| {' | '.join(headings)} |")
    print(f"|{'---|' * len(headings)}")
    is_sound = True
    for size in given.size or SIZES:
        for name in given.models or MODELS:
            description = describe(name, size)
            training = trained(description, given.seed)
            with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
                found = differences(description, training.weights, Path(folder))
            cells = [*_facts(description, training), *(f"{found[arm]:.1e}" for arm in arms)]
            print(f"| {' | '.join(cells)} |", flush=True)
            is_sound &= all(one <= LARGEST_DIFFERENCE for one in found.values())
            is_sound &= min(training.aucs.values()) >= LEAST_AUC
    return 0 if is_sound else 1


def _facts(description: Description, training: Training) -> list[str]:
    size = sum(4 * math.prod(value.shape) for value in training.weights.values())
    aucs = (
        f"{task} {value:.3f} ({training.ceilings[task]:.3f})"
        for task, value in training.aucs.items()
    )
    return [
        description.name,
        description.size,
        f"{size / 1e6:.2g}" if size < 1e6 else f"{size / 1e6:.1f}",
        str(len(description.input_names)),
        ", ".join(aucs),
        f"{training.seconds:.0f} s",
    ]
