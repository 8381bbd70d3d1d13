"""SavedModels for the tests of the tensorflow backend, written and edited with TensorFlow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def saved() -> Callable[..., Path]:
    """``saved(module, folder, **signatures)`` writes a SavedModel and gives its folder."""
    import tensorflow as tf

    def save(module: object, folder: Path, **signatures: object) -> Path:
        tf.saved_model.save(module, str(folder), signatures=signatures)
        return folder

    return save


@pytest.fixture(scope="session")
def edited() -> Callable[..., Path]:
    """``edited(folder, copy, change)`` copies a SavedModel; ``change`` modifies its graph."""
    from tensorflow.core.protobuf import saved_model_pb2

    def edit(folder: Path, copy: Path, change: Callable[[Any], object]) -> Path:
        shutil.copytree(folder, copy)
        message = saved_model_pb2.SavedModel()
        message.ParseFromString((copy / "saved_model.pb").read_bytes())
        change(message.meta_graphs[0])
        (copy / "saved_model.pb").write_bytes(message.SerializeToString())
        return copy

    return edit


@pytest.fixture(scope="session")
def affine(saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x * scale + 1, beside signatures of what TensorFlow likes to hand out as its own."""
    import tensorflow as tf

    rows = [tf.TensorSpec((None, 4), tf.float32, "x")]

    class Affine(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(np.arange(4, dtype=np.float32), name="scale")

        @tf.function(input_signature=rows, autograph=False)
        def affine(self, x):
            return {"y": x * self.scale + 1.0}

        @tf.function(input_signature=rows, autograph=False)
        def shared(self, x):
            return {
                "same": tf.identity(x),
                "head": x[:1],
                "plus_zero": x + 0.0,
                "variable": self.scale.read_value(),
                "constant": tf.constant(np.arange(4, dtype=np.float32)),
                "shape": tf.shape(x),
                "zero": tf.zeros((3,)),
            }

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, "x")], autograph=False)
        def anything(self, x):
            return {"y": x * 2.0, "rank": tf.rank(x)}

    module = Affine()
    return saved(
        module,
        tmp_path_factory.mktemp("affine") / "model",
        serving_default=module.affine,
        shared=module.shared,
        anything=module.anything,
    )
