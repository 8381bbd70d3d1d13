"""A click log with planted structure: what the models of the zoo learn from.

Inputs are those of ``inputs``: ids by Zipf's law. Each id of each feature has an effect
of its own on every task and a few latent values; the latent values of all features of a
side add up to a vector, and the product of the user's vector with the item's, through a
matrix per task, is what makes a user like some items better than others. Some dense
features count as well. The logit is the sum of these three and a bias, set such that
the task has its rate; labels are drawn from its sigmoid, so that no model can be right
about all rows: ``ClickLog.ceiling`` is the best AUC that there is.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bridge_zoo.batches import inputs
from bridge_zoo.description import Description, model_of
from bridge_zoo.layers import PAD_ID
from bridge_zoo.model import IdFeature

__all__ = ["RATES", "ClickLog", "Labels", "auc"]

RATES = {"click": 0.25, "like": 0.1, "share": 0.05, "buy": 0.08}
"""The part of rows that are positive, by task. What is bought was clicked before."""

Labels = dict[str, npt.NDArray[np.bool_]]

_Inputs = dict[str, npt.NDArray[np.generic]]
_Float32 = npt.NDArray[np.float32]

_TRUTH = 20_201  # seed of the structure: one truth, whatever rows are drawn
_RANK = 2  # of the interaction
_MAIN, _CROSS, _DENSE = 1.5, 1.5, 0.5  # deviations of the parts of a logit
_CALIBRATION_ROWS = 20_000


class ClickLog:
    """The log of a model's features, for the tasks that are its outputs.

    Args:
        description: The model. Equal features have equal effects in any model.

    Raises:
        KeyError: A task has no entry in ``RATES``.
    """

    def __init__(self, description: Description) -> None:
        self._model = model_of(description)
        self._effects = {one.name: _effects(one) for one in self._model.id_features}
        self._weights = _feature_weights(self._model.id_features)
        tasks = dict.fromkeys(("click", *self._model.tasks))
        self._biases: dict[str, float] = dict.fromkeys(tasks, 0.0)
        sample = inputs(self._model, _CALIBRATION_ROWS, [_TRUTH])
        is_clicked = np.ones(_CALIBRATION_ROWS)
        for task, logits in self._logits(sample).items():
            # Bought is clicked and wanted: the chance of the second alone is set.
            part = is_clicked if task == "buy" else np.ones(len(logits))
            self._biases[task] = _bias(logits, part, RATES[task])
            if task == "click":
                is_clicked = _sigmoid(logits + self._biases[task])

    def rows(self, count: int, seed: int | Sequence[int]) -> tuple[_Inputs, Labels]:
        """So many rows with their labels, the same for the same arguments.

        Args:
            count: Number of rows.
            seed: Another seed draws other rows of the same truth.
        """
        batch = inputs(self._model, count, seed)
        generator = np.random.default_rng([1, *np.atleast_1d(seed).tolist()])
        labels = {
            task: generator.random(count) < chance for task, chance in self._chances(batch).items()
        }
        return batch, {
            task: labels[task] & labels["click"] if task == "buy" else labels[task]
            for task in self._model.tasks
        }

    def ceiling(self, batch: _Inputs, labels: Labels) -> dict[str, float]:
        """AUC by task of the very chances from which the labels were drawn."""
        chances = self._chances(batch)
        if "buy" in chances:
            chances["buy"] = chances["buy"] * chances["click"]
        return {task: auc(chances[task], truth) for task, truth in labels.items()}

    def _chances(self, batch: _Inputs) -> dict[str, npt.NDArray[np.float64]]:
        logits = self._logits(batch)
        return {task: _sigmoid(logits[task] + bias) for task, bias in self._biases.items()}

    def _logits(self, batch: _Inputs) -> dict[str, npt.NDArray[np.float64]]:
        """Without their biases, of every task and of ``click``."""
        rows = len(batch[self._model.id_features[0].name])
        latent = {side: np.zeros((rows, _RANK)) for side in ("user", "item")}
        mains = {task: np.zeros(rows) for task in self._biases}
        for one in self._model.id_features:
            seen = _looked_up(self._effects[one.name], batch[one.name], one)
            weight = self._weights[one.name]
            latent[one.side] += weight * seen[:, 1:]
            for task in mains:
                mains[task] += weight * _taste(task, one.name) * seen[:, 0]
        logits = {}
        for task, main in mains.items():
            generator = _generator(task)
            matrix = np.linalg.qr(generator.standard_normal((_RANK, _RANK)))[0]
            cross = ((latent["user"] @ matrix) * latent["item"]).sum(axis=1) / math.sqrt(_RANK)
            logits[task] = _MAIN * main / math.sqrt(2) + _CROSS * cross
            for dense in self._model.dense_features:
                slopes = generator.standard_normal(dense.width) / math.sqrt(dense.width)
                logits[task] += _DENSE * (batch[dense.name].astype(np.float64) @ slopes)
        return logits


def auc(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.bool_]) -> float:
    """The chance that a positive row scores higher than a negative one; ties count half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(labels.sum())
    negatives = len(labels) - positives
    lowest = positives * (positives + 1) / 2
    return float((ranks[labels].sum() - lowest) / (positives * negatives))


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng([_TRUTH, zlib.crc32(name.encode())])


def _effects(feature: IdFeature) -> _Float32:
    """For each id its effect and its latent values, of deviation 1 each."""
    shape = (feature.vocabulary, 1 + _RANK)
    return _generator(feature.name).standard_normal(shape, dtype=np.float32)


def _taste(task: str, feature: str) -> float:
    """How much a task cares for a feature: about 1, and different for each task."""
    return float(1 + 0.5 * _generator(f"{task}.{feature}").standard_normal())


def _feature_weights(features: Sequence[IdFeature]) -> Mapping[str, float]:
    """Weights whose squares add up to 1 on each side.

    Each feature of a side, the smallest vocabulary first, weighs 0.8 times the one
    before it: a few features say most, as in real logs, and every table says something.
    """
    weights: dict[str, float] = {}
    for side in ("user", "item"):
        names = [
            one.name for one in sorted(features, key=lambda one: one.vocabulary) if one.side == side
        ]
        raw = 0.8 ** np.arange(len(names))
        weights |= zip(names, (raw / np.sqrt((raw**2).sum())).tolist(), strict=True)
    return weights


def _looked_up(
    effects: _Float32, ids: npt.NDArray[np.generic], feature: IdFeature
) -> npt.NDArray[np.float64]:
    """The effects of one id, or those of a list scaled so that its deviation stays 1."""
    rows = effects[ids.astype(np.int64)].astype(np.float64)
    if not feature.length:
        return rows
    is_there = ids != PAD_ID
    total = (rows * is_there[:, :, None]).sum(axis=1)
    return np.asarray(total / np.sqrt(np.maximum(is_there.sum(axis=1, keepdims=True), 1)))


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _bias(logits: npt.NDArray[np.float64], part: npt.NDArray[np.float64], rate: float) -> float:
    """The bias at which ``part`` times the chance is ``rate`` on average, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if (part * _sigmoid(logits + middle)).mean() < rate:
            low = middle
        else:
            high = middle
    return low
