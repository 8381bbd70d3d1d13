"""Weights learned from the click log, and how good they are on rows held out."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.cache import JSON, default_cache
from bridge_zoo.clicks import ClickLog, Labels, auc
from bridge_zoo.description import Description, describe, model_of
from bridge_zoo.torch_module import torch_module, torch_weights
from bridge_zoo.weights import Weights, seeded_weights

__all__ = ["Training", "held_out", "trained", "trained_weights", "write_held_out"]

_Inputs = dict[str, npt.NDArray[np.generic]]

_TRAINING, _HELD_OUT = 0, 1  # first part of the seeds of rows
HELD_OUT_ROWS = {"small": 8_192, "real": 16_384}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to learn; chosen by trial on the models of that size.

    Attributes:
        steps: Number of batches.
        batch: Rows in one.
        rate: Adam's rate for layers, which falls to 0 evenly.
        table_rate: The same for tables.
        table_scale: Deviation of the values in a table before the first step.
    """

    steps: int
    batch: int
    rate: float
    table_rate: float
    table_scale: float


PLANS = {
    "small": Plan(steps=150, batch=1024, rate=5e-3, table_rate=2e-2, table_scale=0.05),
    "real": Plan(steps=120, batch=2048, rate=2e-3, table_rate=5e-3, table_scale=0.02),
}

_REAL_STEPS = {"fm": 240, "wdl": 100}
"""Where the cost of a step, or what it teaches, is far from the other models'."""


@dataclass(frozen=True, slots=True)
class Training:
    """Weights and what is known of them.

    Attributes:
        weights: As ``seeded_weights``, in names, order and shapes.
        aucs: AUC on held-out rows, by task.
        ceilings: The best AUC that any model could have on these rows, by task.
        rows: Rows that were learned from.
        seconds: What learning took, on the machine where it was done.
    """

    weights: Weights
    aucs: dict[str, float]
    ceilings: dict[str, float]
    rows: int
    seconds: float


def trained_weights(model: str, size: str = "small", seed: int = 0) -> Weights:
    """Weights of a model of the zoo learned from its click log; see ``trained``.

    Raises:
        OptionError: No such model or size.
    """
    return trained(describe(model, size), seed).weights


def trained(description: Description, seed: int = 0) -> Training:
    """The model's weights, learned from its click log, from the cache if they are there.

    Adam by torch, on the CPU: seconds for the small size, up to two minutes for the
    real one. Equal for equal description and seed, on one machine with one version of
    torch; other machines may round otherwise.

    Args:
        description: The description.
        seed: Of the first weights and of the rows.

    Raises:
        ImportError: torch is not installed.
    """
    import importlib.metadata

    parts: dict[str, JSON] = {
        "model": description.name,
        "description": hashlib.sha256(repr(model_of(description)).encode()).hexdigest(),
        "seed": seed,
        "code": _code_digest(),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
    }

    def fill(folder: Path) -> None:
        made = _train(description, seed)
        np.savez(folder / "weights.npz", **made.weights)  # type: ignore[arg-type]
        figures = {
            "aucs": made.aucs,
            "ceilings": made.ceilings,
            "rows": made.rows,
            "seconds": made.seconds,
        }
        (folder / "training.json").write_text(json.dumps(figures), encoding="utf-8")

    folder = default_cache().entry("zoo-weights", parts, fill)
    with np.load(folder / "weights.npz", allow_pickle=False) as stored:
        weights = {name: stored[name] for name in stored.files}
    figures = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return Training(weights, **figures)


def held_out(description: Description, rows: int | None = None) -> tuple[_Inputs, Labels]:
    """Rows and labels that no training sees, whatever its seed.

    Args:
        description: The description.
        rows: How many; ``None`` for those on which ``Training.aucs`` were measured.
    """
    count = HELD_OUT_ROWS.get(description.size, 8_192) if rows is None else rows
    return ClickLog(description).rows(count, [_HELD_OUT, 0])


def write_held_out(description: Description, folder: str | Path) -> tuple[Path, Path]:
    """Writes rows and labels that no training saw, for ``bridge select --metric auc``.

    Args:
        description: The description.
        folder: Where to write; made if it is not there.

    Returns:
        ``<model>_samples.npz``, one array per input, and ``<model>_labels.npz``, one of
        zeros and ones per output.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = held_out(description)
    samples_path = folder / f"{description.name}_samples.npz"
    labels_path = folder / f"{description.name}_labels.npz"
    _save(samples_path, rows)
    _save(labels_path, {task: truth.astype(np.int8) for task, truth in labels.items()})
    return samples_path, labels_path


def _save(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    with tempfile.TemporaryDirectory(prefix=".zoo-", dir=path.parent) as scratch:
        written = Path(scratch) / path.name
        with written.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        written.replace(path)


def _train(description: Description, seed: int) -> Training:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads would depend on how many there are
    try:
        return _learned(description, seed)
    finally:
        torch.set_num_threads(threads)


def _learned(description: Description, seed: int) -> Training:
    import torch

    plan = PLANS.get(description.size, PLANS["small"])
    steps = (
        plan.steps if plan is not PLANS["real"] else _REAL_STEPS.get(description.name, plan.steps)
    )
    log = ClickLog(description)
    model = model_of(description)
    first = _first_weights(description, seed, plan.table_scale)
    module = torch_module(model, first)
    tables = [module.get_submodule(name) for name in model.tables()]
    for table in tables:
        table.sparse = True  # a step then costs what its rows cost, not the whole table
    sparse = [table.weight for table in tables]
    known = {id(weight) for weight in sparse}
    layers = [weight for weight in module.parameters() if id(weight) not in known]
    optimizers = [
        (torch.optim.SparseAdam(sparse, lr=plan.table_rate), plan.table_rate),
        (torch.optim.Adam(layers, lr=plan.rate), plan.rate),
    ]
    started = time.perf_counter()
    for step in range(steps):
        batch, labels = log.rows(plan.batch, [_TRAINING, seed, step])
        scores = module(**_tensors(batch))
        losses = [
            torch.nn.functional.binary_cross_entropy(score, torch.tensor(labels[task]).float())
            for task, score in scores.items()
        ]
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
        torch.autograd.backward(losses)
        for optimizer, _ in optimizers:
            optimizer.step()
    seconds = time.perf_counter() - started
    rows, truth = log.rows(HELD_OUT_ROWS.get(description.size, 8_192), [_HELD_OUT, 0])
    with torch.inference_mode():
        found = {task: score.numpy() for task, score in module(**_tensors(rows)).items()}
    return Training(
        weights=torch_weights(module, list(first)),
        aucs={task: auc(found[task], truth[task]) for task in model.tasks},
        ceilings=log.ceiling(rows, truth),
        rows=steps * plan.batch,
        seconds=seconds,
    )


def _first_weights(description: Description, seed: int, table_scale: float) -> Weights:
    """Seeded weights with small tables and no biases, which learn faster."""
    weights = seeded_weights(description, seed)
    tables = model_of(description).tables()
    for name in weights:
        if name in tables:
            weights[name] *= np.float32(table_scale / model_of(description).table_scale)
        elif name.endswith(".bias"):
            weights[name][:] = 0
    return weights


def _tensors(batch: _Inputs) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value) for name, value in batch.items()}


def _code_digest() -> str:
    """Of the modules that weights depend on besides the description."""
    digest = hashlib.sha256()
    for name in ("batches", "clicks", "layers", "torch_module", "training", "weights"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()
