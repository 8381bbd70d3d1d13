"""The shortest idiomatic load and call of TensorFlow: the yardstick, used for nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
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
    loaded = _loaded(model.file)
    call = loaded.signatures[signature_key or model.signature_key or "serving_default"]
    call.owner = loaded  # the function itself holds its variables only weakly

    def predict(inputs: _Arrays) -> _Arrays:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in call(**tensors).items()}

    return predict, dict


def _loaded(folder: Path) -> Any:
    """``tf.saved_model.load``, and for models with an optimizer of older Keras, without it.

    TensorFlow 2.21 with Keras 3 does not know these optimizers, and fails at the variables
    that they keep for each weight; nothing but training needs them.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        return tf.saved_model.load(str(folder))
    except AttributeError:  # "object has no attribute 'add_slot'"
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            file, saved = Path(copy) / "saved_model.pb", SavedModel()
            saved.ParseFromString(file.read_bytes())
            for node in saved.meta_graphs[0].object_graph_def.nodes:
                node.ClearField("slot_variables")
            file.write_bytes(saved.SerializeToString())
            return tf.saved_model.load(copy)
