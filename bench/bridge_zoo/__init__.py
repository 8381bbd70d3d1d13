"""Ranking models built by the project, the same weights in every format.

``ranker`` is a multi-task ranker given by its parameters; the other ten are the models
of the published zoos. A model is data, a small graph of typed layers; there is one
renderer of it per runtime, and a numpy forward that says what is right::

    mmoe = bridge_zoo.describe("mmoe", "small")
    paths = bridge_zoo.build("mmoe", size="small", formats=("onnx",), folder=Path("zoo"))
    batch = bridge_zoo.inputs(mmoe, rows=128, seed=0)
    scores = bridge_zoo.forward(mmoe, bridge_zoo.seeded_weights(mmoe), batch)

``trained_weights`` are learned from a click log with planted structure, so that the AUC
of a model means something. Nothing heavy is imported until a format is built, and only
the runtime that writes that format. ``bridge zoo build`` does the same from a shell.
"""

from __future__ import annotations

from bridge_zoo.batches import inputs
from bridge_zoo.description import MODELS, SIZES, Description, Ranker, describe, model_of
from bridge_zoo.formats import FORMATS, build, checked_formats, write
from bridge_zoo.model import DenseFeature, IdFeature, Model
from bridge_zoo.oracle import forward
from bridge_zoo.training import Training, held_out, trained, trained_weights, write_held_out
from bridge_zoo.weights import Weights, seeded_weights, weight_shapes

__all__ = [
    "FORMATS",
    "MODELS",
    "SIZES",
    "DenseFeature",
    "Description",
    "IdFeature",
    "Model",
    "Ranker",
    "Training",
    "Weights",
    "build",
    "checked_formats",
    "describe",
    "forward",
    "held_out",
    "inputs",
    "model_of",
    "seeded_weights",
    "trained",
    "trained_weights",
    "weight_shapes",
    "write",
    "write_held_out",
]
