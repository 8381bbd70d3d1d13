"""The models in numpy, in float64: what every format and runtime is held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bridge_zoo.description import Description, model_of
from bridge_zoo.layers import (
    PAD_ID,
    Activate,
    Bag,
    Concat,
    Dense,
    Dots,
    Embed,
    Function,
    Layer,
    Mix,
    Normalise,
    PairSum,
    Product,
    RowSum,
    pairs,
)
from bridge_zoo.weights import Weights

__all__ = ["forward"]

_Array = npt.NDArray[np.generic]
_Float64 = npt.NDArray[np.float64]


def forward(
    description: Description, weights: Weights, inputs: Mapping[str, _Array]
) -> dict[str, npt.NDArray[np.float32]]:
    """Scores of every task, computed in float64 and rounded once at the end.

    Args:
        description: The description.
        weights: As ``seeded_weights`` makes them.
        inputs: Every input by name, as ``inputs`` makes them.

    Returns:
        float32 ``(batch,)`` for each task.

    Raises:
        KeyError: An input is missing.
        IndexError: An id is outside its vocabulary.
    """
    model = model_of(description)
    values: dict[str, _Float64] = {
        one.name: inputs[one.name].astype(np.float64) for one in model.dense_features
    }
    for layer in model.layers:
        if isinstance(layer, Embed | Bag):
            ids = inputs[layer.inputs[0]].astype(np.int64, casting="safe")
            values[layer.name] = _rows(layer, weights[layer.name], ids)
        else:
            values[layer.name] = _value(layer, weights, [values[name] for name in layer.inputs])
    return {task: values[name][:, 0].astype(np.float32) for task, name in model.outputs}


def _rows(
    layer: Embed | Bag, table: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]
) -> _Float64:
    rows = table[ids].astype(np.float64)
    if isinstance(layer, Embed):
        return rows
    counted = ids != PAD_ID
    total: _Float64 = (rows * counted[:, :, None]).sum(axis=1)
    if layer.pooling == "mean":
        total = total / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    return total


def _value(layer: Layer, weights: Weights, values: list[_Float64]) -> _Float64:
    first = values[0]
    found: _Float64
    match layer:
        case Concat():
            found = np.concatenate(values, axis=1)
        case Dense():
            kernel = weights[f"{layer.name}.kernel"].astype(np.float64)
            found = first @ kernel + weights[f"{layer.name}.bias"].astype(np.float64)
        case Activate():
            found = _activated(layer.function, first)
        case Product():
            found = first * values[1]
        case RowSum():
            found = first.sum(axis=1, keepdims=True)
        case Mix():
            found = (np.stack(values[1:], axis=1) * first[:, :, None]).sum(axis=1)
        case Dots():
            dots = [(values[one] * values[two]).sum(axis=1) for one, two in pairs(len(values))]
            found = np.stack(dots, axis=1)
        case PairSum():
            stacked = np.stack(values, axis=1)
            found = (stacked.sum(axis=1) ** 2 - (stacked**2).sum(axis=1)) / 2
        case Normalise():
            found = first / np.maximum(np.sqrt((first**2).sum(axis=1, keepdims=True)), 1e-6)
        case _:
            raise TypeError(f"no such layer: {layer!r}")
    return found


def _activated(function: Function, values: _Float64) -> _Float64:
    if function == "relu":
        return np.maximum(values, 0)
    if function == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-values)))
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
