"""The models in TensorFlow, and the SavedModel that TensorFlow itself writes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge_zoo.description import Description, model_of
from bridge_zoo.layers import (
    PAD_ID,
    Activate,
    Bag,
    Concat,
    Dense,
    Dots,
    Embed,
    Layer,
    Mix,
    Normalise,
    PairSum,
    Product,
    RowSum,
    pairs,
)
from bridge_zoo.weights import Weights

__all__ = ["SIGNATURE_KEY", "tensorflow_module", "write_saved_model"]

SIGNATURE_KEY = "serving_default"
"""Key of the one signature; TensorFlow's own default."""


def tensorflow_module(description: Description, weights: Weights) -> Any:
    """A ``tf.Module`` with the weights as variables and a ``tf.function`` ``score``.

    ``score`` takes every input by keyword and returns a dict of the scores by task.
    """
    import tensorflow as tf

    model = model_of(description)
    module = tf.Module(name=model.name)
    module.weights = {
        name: tf.Variable(value, name=name.replace(".", "/")) for name, value in weights.items()
    }

    # not autograph: nothing here depends on a tensor's value, and it would need the source
    @tf.function(autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def score(**inputs: Any) -> dict[str, Any]:
        values = dict(inputs)
        for layer in model.layers:
            values[layer.name] = _value(
                layer, module.weights, [values[name] for name in layer.inputs]
            )
        return {task: tf.squeeze(values[name], axis=1) for task, name in model.outputs}

    module.score = score
    return module


def _value(layer: Layer, weights: dict[str, Any], values: list[Any]) -> Any:
    import tensorflow as tf

    first = values[0]
    match layer:
        case Embed():
            return tf.nn.embedding_lookup(weights[layer.name], first)
        case Bag():
            rows = tf.nn.embedding_lookup(weights[layer.name], first)
            counted = tf.cast(tf.not_equal(first, PAD_ID), tf.float32)
            total = tf.reduce_sum(rows * tf.expand_dims(counted, 2), axis=1)
            if layer.pooling == "sum":
                return total
            return total / tf.maximum(tf.reduce_sum(counted, axis=1, keepdims=True), 1.0)
        case Concat():
            return tf.concat(values, axis=1)
        case Dense():
            kernel, bias = weights[f"{layer.name}.kernel"], weights[f"{layer.name}.bias"]
            return tf.nn.bias_add(tf.matmul(first, kernel), bias)
        case Activate():
            functions = {"relu": tf.nn.relu, "sigmoid": tf.sigmoid, "softmax": tf.nn.softmax}
            return functions[layer.function](first)
        case Product():
            return first * values[1]
        case RowSum():
            return tf.reduce_sum(first, axis=1, keepdims=True)
        case Mix():
            return tf.reduce_sum(tf.stack(values[1:], axis=1) * tf.expand_dims(first, 2), axis=1)
        case Dots():
            stacked, count = tf.stack(values, axis=1), len(values)
            dots = tf.reshape(tf.matmul(stacked, stacked, transpose_b=True), (-1, count * count))
            return tf.gather(dots, [one * count + two for one, two in pairs(count)], axis=1)
        case PairSum():
            stacked = tf.stack(values, axis=1)
            squares = tf.reduce_sum(tf.square(stacked), axis=1)
            return (tf.square(tf.reduce_sum(stacked, axis=1)) - squares) * 0.5
        case Normalise():
            return tf.math.l2_normalize(first, axis=1, epsilon=1e-12)  # of the squared length
        case _:
            raise TypeError(f"no such layer: {layer!r}")


def write_saved_model(description: Description, weights: Weights, path: Path) -> None:
    """Writes the SavedModel folder with one signature, ``serving_default``.

    The folder serves both loaders: ``tf.saved_model.load`` and, for the graph session,
    ``tf.compat.v1.saved_model.load`` with the tag ``serve``. OpenVINO reads it as well.
    The signature's names are those of the description; the first dim of every tensor
    is unknown, since SavedModels do not name dims.
    """
    import tensorflow as tf

    model = model_of(description)
    module = tensorflow_module(model, weights)
    specs = {
        one.name: tf.TensorSpec((None, one.length) if one.length else (None,), tf.int64, one.name)
        for one in model.id_features
    }
    for dense in model.dense_features:
        specs[dense.name] = tf.TensorSpec((None, dense.width), tf.float32, dense.name)
    signature = module.score.get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE_KEY: signature})
