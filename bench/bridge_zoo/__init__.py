"""Ranking models built by the project, the same weights in every format.

One model so far: ``ranker``, a multi-task ranker of the MMoE kind. One description
per model; one renderer of it per runtime, and a numpy forward that says what is
right::

    ranker = bridge_zoo.describe("ranker", "small")
    paths = bridge_zoo.build("ranker", size="small", formats=("onnx",), folder=Path("zoo"))
    batch = bridge_zoo.inputs(ranker, rows=128, seed=0)
    scores = bridge_zoo.forward(ranker, bridge_zoo.seeded_weights(ranker), batch)

Nothing heavy is imported until a format is built, and only the runtime that writes
that format. ``python -m bridge_zoo ranker --size real -o DIR`` does the same from a
shell.
"""

from __future__ import annotations

from bridge_zoo.batches import inputs
from bridge_zoo.description import MODELS, SIZES, IdFeature, Ranker, describe
from bridge_zoo.formats import FORMATS, build, write
from bridge_zoo.oracle import forward
from bridge_zoo.weights import Weights, seeded_weights, weight_shapes

__all__ = [
    "FORMATS",
    "MODELS",
    "SIZES",
    "IdFeature",
    "Ranker",
    "Weights",
    "build",
    "describe",
    "forward",
    "inputs",
    "seeded_weights",
    "weight_shapes",
    "write",
]
