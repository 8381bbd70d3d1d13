"""Seeded weights, in numpy: a source that every renderer copies from.

Names: a table has the name of its layer, ``tables.<feature>`` or ``linear.<feature>``;
a dense layer has ``<name>.kernel`` of shape ``(in, out)`` and ``<name>.bias`` of shape
``(out,)``. By convention ``gates.*`` are the layers before a softmax, and ``heads.*``
those before a sigmoid.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt

from bridge_zoo.description import Description, model_of
from bridge_zoo.layers import Dense

__all__ = ["Weights", "seeded_weights", "weight_shapes"]

Weights = dict[str, npt.NDArray[np.float32]]


def weight_shapes(description: Description) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the layers."""
    model = model_of(description)
    tables, widths = model.tables(), model.widths()
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in model.layers:
        if layer.name in tables:
            feature, width = tables[layer.name]
            shapes[layer.name] = (feature.vocabulary, width)
        elif isinstance(layer, Dense):
            shapes[f"{layer.name}.kernel"] = (widths[layer.inputs[0]], layer.units)
            shapes[f"{layer.name}.bias"] = (layer.units,)
    return shapes


def seeded_weights(description: Description, seed: int = 0) -> Weights:
    """Random weights that depend only on the description and the seed.

    Every weight has a generator of its own, seeded by the seed and its name, so that
    a change elsewhere in the model leaves it as it was. Layers are scaled so that
    values keep their size on the way through, and scores spread over much of
    ``[0, 1]`` instead of sitting at 0.5. The bytes are the same for one version of numpy; numpy
    does not promise the stream of ``standard_normal`` across versions.

    Returns:
        float32 arrays of the shapes of ``weight_shapes``, owned by the caller.
    """
    table_scale = model_of(description).table_scale
    weights: Weights = {}
    for name, shape in weight_shapes(description).items():
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = generator.standard_normal(shape, dtype=np.float32)
        weights[name] = values * np.float32(_scale(name, shape, table_scale))
    return weights


def _scale(name: str, shape: tuple[int, ...], table_scale: float) -> float:
    if not name.endswith((".bias", ".kernel")):
        return table_scale
    if name.endswith(".bias"):
        return 0.1  # not zero: a renderer that forgets a bias has to be seen
    if name.startswith("gates."):
        return math.sqrt(1 / shape[0])
    if name.startswith("heads."):
        return 3 / math.sqrt(shape[0])  # what the experts and tasks differ by is small: widen it
    return math.sqrt(2 / shape[0])  # keeps the second moment through a ReLU
