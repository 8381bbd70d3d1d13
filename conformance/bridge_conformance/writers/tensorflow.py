"""Networks as SavedModels and as TensorFlow Lite files, both written by TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bridge import DType, TensorSpec
from bridge_conformance.network import Network, Node
from bridge_conformance.writing import NotExpressible

__all__ = ["write_saved_model", "write_tflite"]

_KEY = "serving_default"

# What the converter of TensorFlow 2.21 raises for.
_NOT_LITE = frozenset(
    {
        DType.INT2,
        DType.UINT2,
        DType.UINT4,
        DType.FLOAT4_E2M1FN,
        DType.FLOAT8_E4M3FN,
        DType.FLOAT8_E4M3FNUZ,
        DType.FLOAT8_E5M2,
        DType.FLOAT8_E5M2FNUZ,
        DType.FLOAT8_E8M0FNU,
    }
)
# What the converter makes operators of, other than those that pass values on.
_LITE_OPERANDS = frozenset({DType.BOOL, DType.INT32, DType.INT64, DType.FLOAT32})


def write_saved_model(network: Network, folder: Path) -> Path:
    """Writes a SavedModel with one signature, ``serving_default``.

    Names are kept; dims that vary are unknown, since SavedModels do not name them.

    Raises:
        NotExpressible: TensorFlow lacks an element type.
    """
    import tensorflow as tf

    path = folder / network.name
    module = _module(network)
    tf.saved_model.save(module, str(path), signatures={_KEY: module.call})
    return path


def write_tflite(network: Network, folder: Path) -> Path:
    """Writes what TensorFlow's converter makes of the traced function, with its names.

    Raises:
        NotExpressible: TensorFlow Lite lacks an element type, or the operators for it.
    """
    import tensorflow as tf

    missing = network.dtypes & _NOT_LITE
    if missing:
        raise NotExpressible(
            f"TensorFlow's converter to TensorFlow Lite takes no {_listed(missing)}."
        )
    missing = network.dtypes - _LITE_OPERANDS
    if missing and {node.op for node in network.nodes} != {"Identity"}:
        raise NotExpressible(f"TensorFlow Lite's own operators take no {_listed(missing)}.")
    path = folder / f"{network.name}.tflite"
    module = _module(network)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call], module)
    path.write_bytes(converter.convert())
    return path


def _module(network: Network) -> Any:
    """A ``tf.Module`` with the constants as variables, and the traced function ``call``."""
    import tensorflow as tf

    try:
        specs = {spec.name: _tensor_spec(tf, spec) for spec in network.inputs}
    except TypeError as error:
        raise NotExpressible(
            f"TensorFlow has no element type {_listed(network.dtypes)}."
        ) from error
    module = tf.Module(name=network.name)
    # As variables, so that runtimes have to find them in the folder, as in real models.
    module.kept = {name: tf.Variable(value) for name, value in network.constants.items()}

    # not autograph: nothing here depends on a tensor's value, and it would need the source
    @tf.function(autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def call(**inputs: Any) -> dict[str, Any]:
        known = {**module.kept, **inputs}
        for node in network.nodes:
            known[node.output] = _computed(tf, node, [known[name] for name in node.inputs])
        return {spec.name: known[spec.name] for spec in network.outputs}

    module.call = call.get_concrete_function(**specs)
    return module


def _tensor_spec(tf: Any, spec: TensorSpec) -> Any:
    dims = [item if isinstance(item, int) else None for item in spec.shape or ()]
    return tf.TensorSpec(dims, str(spec.dtype), spec.name)


def _listed(dtypes: Iterable[DType]) -> str:
    return ", ".join(sorted(map(str, dtypes)))


def _computed(tf: Any, node: Node, values: list[Any]) -> Any:
    operators: dict[str, Callable[..., Any]] = {
        "Add": tf.add,
        "And": tf.logical_and,
        "Exp": tf.exp,
        "Gather": tf.gather,
        "Identity": tf.identity,
        "MatMul": tf.matmul,
        "Mul": tf.multiply,
        "Neg": tf.negative,
        "Not": tf.logical_not,
        "Or": tf.logical_or,
        "ReduceMean": tf.reduce_mean,
        "ReduceSum": tf.reduce_sum,
        "Reshape": tf.reshape,
        "Softmax": tf.nn.softmax,
        "Sub": tf.subtract,
        "Tanh": tf.tanh,
        "Where": tf.where,
    }
    return operators[node.op](*values, **node.attributes)
