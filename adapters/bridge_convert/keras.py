"""Keras files to SavedModels, by Keras's own export; from there routes lead on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import BackendUnavailable, UnsupportedModel

__all__ = ["KerasToSavedModel"]


class KerasToSavedModel(bridge.Adapter):
    """Inputs are called as Keras calls its input tensors."""

    name = "keras-to-saved_model"
    sources = frozenset({"keras"})
    target = "saved_model"
    distributions = ("keras", "tensorflow-cpu", "tensorflow")

    def probe(self) -> bridge.Availability:
        return bridge.find_runtime(
            "tensorflow", ("tensorflow-cpu", "tensorflow"), "tensorflow", exclusive=False
        )

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import keras

            if keras.backend.backend() != "tensorflow":
                raise BackendUnavailable(
                    f"Keras computes with {keras.backend.backend()} here; wanted tensorflow.",
                    fix="Set KERAS_BACKEND=tensorflow in the environment.",
                )
            safe = not model.trust
            live = keras.saving.load_model(str(model.file), compile=False, safe_mode=safe)
            if not live.built or not getattr(live, "inputs", None):
                raise UnsupportedModel(
                    f"the Keras file of class {type(live).__name__} does not say what inputs it "
                    "has.",
                    fix="Load it with Keras, call it once, and export it with model.export().",
                    model=model.name,
                )
            live.export(
                os.fspath(target),
                format="tf_saved_model",
                verbose=False,
                input_signature=_input_signature(live),
            )
        return {"layers": len(live.layers)}


def _input_signature(live: Any) -> Any:
    """Specs of the inputs, called by their layers where Keras numbered the tensors itself.

    The numbers depend on what else the process has built; the bridge's backend names
    inputs in the same way.
    """
    import keras

    def spec(tensor: Any) -> Any:
        name = str(tensor.name)
        if name.startswith("keras_tensor"):
            name = str(tensor._keras_history.operation.name)
        return keras.InputSpec(shape=tensor.shape, dtype=tensor.dtype, name=name)

    given = getattr(live, "_inputs_struct", None)
    if isinstance(given, dict):  # such a model takes nothing else
        return [keras.tree.map_structure(spec, given)]
    specs = [spec(tensor) for tensor in live.inputs]
    return [specs] if len(specs) > 1 else specs
