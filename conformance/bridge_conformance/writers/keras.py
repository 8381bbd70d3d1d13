"""Networks as Keras archives, built of Keras's own layers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from bridge_conformance.network import Network
from bridge_conformance.writing import NotExpressible

__all__ = ["write_keras"]

_LAYERED = ("affine", "two", "deep")


def write_keras(network: Network, folder: Path) -> Path:
    """Writes a functional model whose outputs are a dict, which keeps their names.

    Raises:
        NotExpressible: The network is not one of the few that are made of layers.
    """
    import keras

    if network.name == "fixed":
        raise NotExpressible("Keras frees the number of rows of every model that it exports.")
    if network.name not in _LAYERED:
        raise NotExpressible(
            f"Only {', '.join(_LAYERED)} are built of Keras layers here; a SavedModel says the "
            "others."
        )
    spec = network.inputs[0]
    assert spec.shape is not None
    x = keras.Input(spec.shape[1:], dtype=str(spec.dtype), name=spec.name)
    model = keras.Model({spec.name: x}, _outputs(keras, network, x), name=network.name)
    path = folder / f"{network.name}.keras"
    with warnings.catch_warnings():
        # Said of TensorFlow's variables by numpy 2, when Keras reads them.
        warnings.filterwarnings(
            "ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning
        )
        model.save(path)
    return path


def _outputs(keras: Any, network: Network, x: Any) -> dict[str, Any]:
    layers = keras.layers
    if network.name == "two":
        return {"double": layers.Add()([x, x]), "negative": layers.Rescaling(-1.0)(x)}
    kernels = [value for name, value in network.constants.items() if name.startswith("W")]
    bias = network.constants.get("b")
    activation = "tanh" if network.name == "deep" else None
    for kernel in kernels:
        layer = layers.Dense(kernel.shape[1], activation, use_bias=bias is not None)
        x = layer(x)
        layer.set_weights([kernel] if bias is None else [kernel, bias])
    return {"y": x}
