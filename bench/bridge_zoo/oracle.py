"""The model in numpy, in float64: what every format and runtime is held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bridge_zoo.description import Ranker
from bridge_zoo.weights import Weights

__all__ = ["forward"]

_Float64 = npt.NDArray[np.float64]


def forward(
    ranker: Ranker, weights: Weights, inputs: Mapping[str, npt.NDArray[np.generic]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Scores of every task, computed in float64 and rounded once at the end.

    Args:
        ranker: The description.
        weights: As ``seeded_weights`` makes them.
        inputs: Every input by name, as ``inputs`` makes them.

    Returns:
        float32 ``(batch,)`` for each task.

    Raises:
        KeyError: An input is missing.
        IndexError: An id is outside its vocabulary.
    """

    def dense_layer(values: _Float64, name: str) -> _Float64:
        kernel = weights[f"{name}.kernel"].astype(np.float64)
        return values @ kernel + weights[f"{name}.bias"].astype(np.float64)

    def relu_layers(values: _Float64, name: str, count: int) -> _Float64:
        for index in range(count):
            values = np.maximum(dense_layer(values, f"{name}.{index}"), 0)
        return values

    rows = [weights[f"tables.{item.name}"][inputs[item.name]] for item in ranker.id_features]
    joined = np.concatenate([*rows, inputs["dense"]], axis=1, dtype=np.float64)
    experts = np.stack(
        [
            relu_layers(joined, f"experts.{expert}", len(ranker.expert_widths))
            for expert in range(ranker.expert_count)
        ],
        axis=1,
    )
    scores: dict[str, npt.NDArray[np.float32]] = {}
    for task in ranker.tasks:
        gate = _softmax(dense_layer(joined, f"gates.{task}"))
        mixed = (experts * gate[:, :, None]).sum(axis=1)
        hidden = relu_layers(mixed, f"towers.{task}", len(ranker.tower_widths))
        logit = dense_layer(hidden, f"heads.{task}")[:, 0]
        scores[task] = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return scores


def _softmax(values: _Float64) -> _Float64:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
