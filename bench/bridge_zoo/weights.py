"""Seeded weights, in numpy: the one source that every renderer copies from.

Names: ``tables.<feature>``, ``experts.<expert>.<layer>``, ``gates.<task>``,
``towers.<task>.<layer>`` and ``heads.<task>``; each but the tables has a ``.kernel``
of shape ``(in, out)`` and a ``.bias`` of shape ``(out,)``.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt

from bridge_zoo.description import Ranker

__all__ = ["Weights", "seeded_weights", "weight_shapes"]

Weights = dict[str, npt.NDArray[np.float32]]


def weight_shapes(ranker: Ranker) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in a fixed order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def dense_layer(name: str, fan_in: int, units: int) -> None:
        shapes[f"{name}.kernel"] = (fan_in, units)
        shapes[f"{name}.bias"] = (units,)

    def dense_layers(name: str, fan_in: int, widths: tuple[int, ...]) -> None:
        for index, units in enumerate(widths):
            dense_layer(f"{name}.{index}", fan_in, units)
            fan_in = units

    for feature in ranker.id_features:
        shapes[f"tables.{feature.name}"] = (feature.vocabulary, ranker.embedding_width)
    for expert in range(ranker.expert_count):
        dense_layers(f"experts.{expert}", ranker.joined_width, ranker.expert_widths)
    for task in ranker.tasks:
        dense_layer(f"gates.{task}", ranker.joined_width, ranker.expert_count)
        dense_layers(f"towers.{task}", ranker.expert_widths[-1], ranker.tower_widths)
        dense_layer(f"heads.{task}", ranker.tower_widths[-1], 1)
    return shapes


def seeded_weights(ranker: Ranker, seed: int = 0) -> Weights:
    """Random weights that depend only on the description and the seed.

    Every weight has a generator of its own, seeded by the seed and its name, so that
    a change elsewhere in the model leaves it as it was. Layers are scaled so that
    values keep their size on the way through, and scores spread over much of
    ``[0, 1]`` instead of sitting at 0.5. The bytes are the same for one version of numpy; numpy
    does not promise the stream of ``standard_normal`` across versions.

    Returns:
        float32 arrays of the shapes of ``weight_shapes``, owned by the caller.
    """
    weights: Weights = {}
    for name, shape in weight_shapes(ranker).items():
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = generator.standard_normal(shape, dtype=np.float32)
        weights[name] = values * np.float32(_scale(name, shape))
    return weights


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if name.startswith("tables."):
        return 1.0
    if name.endswith(".bias"):
        return 0.1  # not zero: a renderer that forgets a bias has to be seen
    if name.startswith("gates."):
        return math.sqrt(1 / shape[0])
    if name.startswith("heads."):
        return 3 / math.sqrt(shape[0])  # what the experts and tasks differ by is small: widen it
    return math.sqrt(2 / shape[0])  # keeps the second moment through a ReLU
