"""The ranker in TensorFlow, and the SavedModel that TensorFlow itself writes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge_zoo.description import Ranker
from bridge_zoo.weights import Weights

__all__ = ["SIGNATURE_KEY", "tensorflow_module", "write_saved_model"]

SIGNATURE_KEY = "serving_default"
"""Key of the one signature; TensorFlow's own default."""


def tensorflow_module(ranker: Ranker, weights: Weights) -> Any:
    """A ``tf.Module`` with the weights as variables and a ``tf.function`` ``score``.

    ``score`` takes every input by keyword and returns a dict of the scores by task.
    """
    import tensorflow as tf

    module = tf.Module(name=ranker.name)
    module.weights = {
        name: tf.Variable(value, name=name.replace(".", "/")) for name, value in weights.items()
    }

    def dense_layer(values: Any, name: str) -> Any:
        kernel, bias = module.weights[f"{name}.kernel"], module.weights[f"{name}.bias"]
        return tf.nn.bias_add(tf.matmul(values, kernel), bias)

    def relu_layers(values: Any, name: str, count: int) -> Any:
        for index in range(count):
            values = tf.nn.relu(dense_layer(values, f"{name}.{index}"))
        return values

    # not autograph: nothing here depends on a tensor's value, and it would need the source
    @tf.function(autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def score(**inputs: Any) -> dict[str, Any]:
        rows = [
            tf.nn.embedding_lookup(module.weights[f"tables.{item.name}"], inputs[item.name])
            for item in ranker.id_features
        ]
        joined = tf.concat([*rows, inputs["dense"]], axis=1)
        experts = [
            relu_layers(joined, f"experts.{expert}", len(ranker.expert_widths))
            for expert in range(ranker.expert_count)
        ]
        stacked = tf.stack(experts, axis=1)
        scores = {}
        for task in ranker.tasks:
            gate = tf.nn.softmax(dense_layer(joined, f"gates.{task}"))
            mixed = tf.reduce_sum(stacked * tf.expand_dims(gate, 2), axis=1)
            hidden = relu_layers(mixed, f"towers.{task}", len(ranker.tower_widths))
            scores[task] = tf.sigmoid(tf.squeeze(dense_layer(hidden, f"heads.{task}"), axis=1))
        return scores

    module.score = score
    return module


def write_saved_model(ranker: Ranker, weights: Weights, path: Path) -> None:
    """Writes the SavedModel folder with one signature, ``serving_default``.

    The folder serves both loaders: ``tf.saved_model.load`` and, for the graph session,
    ``tf.compat.v1.saved_model.load`` with the tag ``serve``. OpenVINO reads it as well.
    The signature's names are those of the description; the first dim of every tensor
    is unknown, since SavedModels do not name dims.
    """
    import tensorflow as tf

    module = tensorflow_module(ranker, weights)
    specs = {
        feature.name: tf.TensorSpec((None,), tf.int64, feature.name)
        for feature in ranker.id_features
    }
    specs["dense"] = tf.TensorSpec((None, ranker.dense_width), tf.float32, "dense")
    signature = module.score.get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE_KEY: signature})
