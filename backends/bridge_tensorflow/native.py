"""The shortest idiomatic load and call of TensorFlow: the yardstick, used for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from bridge.model import ModelRef

__all__ = ["load"]

_Arrays = dict[str, npt.NDArray[Any]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> tuple[Callable[[_Arrays], Any], Callable[[Any], _Arrays]]:
    """The signature's call of a SavedModel, loaded as TensorFlow's guide shows it.

    Args:
        model: A SavedModel.
        threads: Threads for each operator, for the whole process: TensorFlow's eager
            runtime knows no other way, and refuses it once it has started.
        signature_key: Which signature; ``None`` means the model's, or the default.

    Returns:
        The call, and what turns its result into arrays by name.

    Source: "Using the SavedModel format", tensorflow.org/guide/saved_model.
    """
    import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    loaded = tf.saved_model.load(str(model.file))
    call = loaded.signatures[signature_key or model.signature_key or "serving_default"]
    call.owner = loaded  # the function itself holds its variables only weakly

    def predict(inputs: _Arrays) -> _Arrays:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in call(**tensors).items()}

    return predict, dict
