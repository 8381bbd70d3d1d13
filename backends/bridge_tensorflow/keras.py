"""Keras models, exported to a SavedModel in a temporary folder.

The graph session then serves them as it does any SavedModel. The folder lives only while
the model is loaded: the session holds graph and variables in memory.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.errors import BackendUnavailable, UnsupportedModel
from bridge.formats.tensorflow import SavedModel
from bridge.model import ModelRef

__all__ = ["exported"]


@contextmanager
def exported(model: ModelRef) -> Iterator[tuple[ModelRef, Mapping[str, str]]]:
    """A SavedModel of a Keras file or of a live Keras model, which is not changed.

    Yields:
        The SavedModel, and for inputs whose tensors Keras numbered by itself the name
        of their input layer: the numbers depend on what else the process has built.

    Raises:
        BackendUnavailable: Keras computes with another framework here.
        UnsupportedModel: The model has never been built, or has several outputs of one name.
    """
    import keras

    framework = keras.backend.backend()
    if framework != "tensorflow":
        raise BackendUnavailable(
            f"Keras computes with {framework} in this process; wanted tensorflow.",
            fix="Set KERAS_BACKEND=tensorflow in the environment before Keras is imported.",
            framework=framework,
        )
    live: Any = model.live
    if live is None:
        live = keras.saving.load_model(str(model.file), compile=False, safe_mode=not model.trust)
        _call_once(live)
    if not live.built:
        raise UnsupportedModel(
            f"the Keras model {model.name} has never been built, so it has no shapes.",
            fix="Call it once on real inputs, or give it an Input layer.",
        )
    with tempfile.TemporaryDirectory(prefix="bridge-keras-") as name:
        folder = Path(name, "model")
        with _root_logger_left_alone():
            live.export(str(folder), format="tf_saved_model", verbose=False)
        saved = ModelRef(format=SavedModel(), path=folder, signature_key=model.signature_key)
        yield saved, _input_names(live)


def _call_once(live: Any) -> None:
    """Calls a subclassed model fresh from its file, without which Keras does not export it."""
    from keras import ops

    if getattr(live, "inputs", None):
        return  # functional and sequential models know their inputs
    shape = (live.get_build_config() or {}).get("input_shape")
    if not shape or not all(item is None or isinstance(item, int) for item in shape):
        raise UnsupportedModel(
            f"the Keras file of class {type(live).__name__} does not say what shapes its inputs "
            "have.",
            fix="Load it with Keras, call it once, and pass the live model.",
        )
    live(ops.zeros([1, *(item or 1 for item in shape[1:])], live.input_dtype))


@contextmanager
def _root_logger_left_alone() -> Iterator[None]:
    """Keeps absl from configuring logging for the whole program.

    absl's logging functions, which TensorFlow calls while it saves, run
    ``logging.basicConfig()`` where the root logger has no handler (absl-py 2.5).
    """
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def _input_names(live: Any) -> dict[str, str]:
    names = {}
    for tensor in getattr(live, "inputs", None) or ():
        history = getattr(tensor, "_keras_history", None)
        layer = getattr(history, "operation", None)
        if layer is not None and tensor.name.startswith("keras_tensor"):
            names[tensor.name] = str(layer.name)
    return names
