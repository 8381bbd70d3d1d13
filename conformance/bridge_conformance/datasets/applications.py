"""Keras applications with random weights, as SavedModels.

The expected outputs are computed by Keras in float64, from the same weights. Networks of
such depth lose more to rounding than a single operator does, so how much is measured:
building fails unless Keras's own float32 stays within a quarter of the tolerance, and
unless the rows of the result differ by far more than it.

Activations would grow or vanish in a network that nobody has trained. So its batch
normalizations take their statistics from one batch, as a first step of training would.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge_conformance.datasets.cases import CaseSet, write_arrays, write_index

__all__ = ["APPLICATIONS", "ARCHITECTURES", "TOLERANCE", "main"]

APPLICATIONS = CaseSet("Keras applications", "applications", "model", ("keras", "tensorflow"))

_TOP = {"classes": 10, "classifier_activation": None}

ARCHITECTURES: dict[str, tuple[int, dict[str, Any]]] = {
    "DenseNet121": (64, _TOP),
    "EfficientNetB0": (64, _TOP),
    "EfficientNetB1": (64, _TOP),
    "EfficientNetV2B0": (64, _TOP),
    "MobileNet": (64, {**_TOP, "alpha": 0.25}),
    "MobileNetV2": (64, {**_TOP, "alpha": 0.35}),
    "MobileNetV3Large": (64, _TOP),
    "MobileNetV3Small": (64, _TOP),
    "NASNetMobile": (64, _TOP),
    "ResNet50": (64, _TOP),
    "VGG16": (32, {"include_top": False, "pooling": "avg"}),  # its top alone is 80 MB
    "Xception": (71, _TOP),
}
"""By name in ``keras.applications``: width of the square images, and arguments. All take
colour images and give logits, or features: a softmax would hide what differs."""

TOLERANCE = 4e-4
"""How far a float32 result may be from the expected one, as a part of the largest value.

Source: measured; Keras's own float32 is within 5e-5 (ResNet50) with keras 3.15 on AVX-512.
"""

_ROWS = 3
_ROWS_OF_STATISTICS = 64
_LEAST_SPREAD = 25 * TOLERANCE


def main(arguments: Sequence[str] | None = None) -> int:
    """Saves every architecture with inputs and outputs, and writes the index."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_conformance.datasets.applications",
        description="Save Keras applications with random weights, each with a result.",
    )
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    folder: Path = parser.parse_args(arguments).folder
    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    for number, name in enumerate(ARCHITECTURES, start=1):
        _save(name, folder / name)
        keras.backend.clear_session()
        print(f"Keras applications: {number} of {len(ARCHITECTURES)}", file=sys.stderr)  # noqa: T201
    write_index(folder, list(ARCHITECTURES), {})
    return 0


def _save(name: str, folder: Path) -> None:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    pixels, _ = ARCHITECTURES[name]
    model = _made(name, "float32")
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (_ROWS_OF_STATISTICS, pixels, pixels, 3))
    images = images.astype(np.float32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # what it keeps of the statistics it had
    model([images], training=True)
    images = images[:_ROWS]

    exact = _made(name, "float64")
    exact.set_weights(model.get_weights())
    wanted = np.asarray(exact([images.astype(np.float64)], training=False))
    _require_sound(name, np.asarray(model([images], training=False)), wanted)

    module = tf.Module()
    module.variables_to_save = [variable.value for variable in model.variables]
    module.serve = tf.function(
        lambda image: {"features": model([image], training=False)},
        input_signature=[tf.TensorSpec((None, pixels, pixels, 3), tf.float32, name="image")],
    )
    # Not model.export, which writes every weight twice.
    tf.saved_model.save(module, str(folder / APPLICATIONS.model), signatures=module.serve)
    write_arrays(folder / "inputs.npz", {"image": images})
    write_arrays(folder / "outputs.npz", {"features": wanted.astype(np.float32)})


def _made(name: str, dtype: str) -> Any:
    import keras

    keras.config.set_dtype_policy(dtype)
    pixels, arguments = ARCHITECTURES[name]
    image = keras.Input((pixels, pixels, 3), name="image", dtype=dtype)
    return getattr(keras.applications, name)(input_tensor=image, weights=None, **arguments)


def _require_sound(name: str, rounded: Any, exact: Any) -> None:
    """Ends the process if the tolerance does not fit this network."""
    largest = np.abs(exact).max()
    lost = np.abs(rounded - exact).max() / largest
    spread = exact.std(axis=0).mean() / largest
    if exact.dtype != np.float64 or not lost <= TOLERANCE / 4 or not spread >= _LEAST_SPREAD:
        raise SystemExit(
            f"{name}: float32 loses {lost:.1e} of the largest value, rows differ by {spread:.1e}; "
            f"wanted at most {TOLERANCE / 4:.1e} and at least {_LEAST_SPREAD:.1e}."
        )


if __name__ == "__main__":
    raise SystemExit(main())
