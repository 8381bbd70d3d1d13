"""What ONNX Runtime says about inputs and outputs, in the bridge's words."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import OptionError, UnsupportedModel
from bridge.model import ModelRef
from bridge.signature import Dim, Signature, TensorSpec, dim

__all__ = ["ONNX_CODES", "VALUE_ONLY", "owned_array", "read_signature"]

# Names as onnxruntime writes them in ``NodeArg.type``, where they differ from ours.
_NAMES = {"float": "float32", "double": "float64"}
_NAMES.update({one.value.replace("_", ""): one.value for one in DType if "float8" in one.value})

# TensorProto.DataType of onnx.proto.
ONNX_CODES = {
    DType.FLOAT32: 1,
    DType.UINT8: 2,
    DType.INT8: 3,
    DType.UINT16: 4,
    DType.INT16: 5,
    DType.INT32: 6,
    DType.INT64: 7,
    DType.STRING: 8,
    DType.BOOL: 9,
    DType.FLOAT16: 10,
    DType.FLOAT64: 11,
    DType.UINT32: 12,
    DType.UINT64: 13,
    DType.BFLOAT16: 16,
    DType.FLOAT8_E4M3FN: 17,
    DType.FLOAT8_E4M3FNUZ: 18,
    DType.FLOAT8_E5M2: 19,
    DType.FLOAT8_E5M2FNUZ: 20,
}

VALUE_ONLY = frozenset(
    one for one in ONNX_CODES if one is DType.BFLOAT16 or one.value.startswith("float8")
)
"""Types that numpy itself does not have: ``run`` refuses such arrays, an OrtValue takes them."""


def read_signature(session: Any, model: ModelRef) -> Signature:
    """The signature of a session; initializers that are inputs as well have a default.

    ONNX Runtime gives the shape ``[]`` for scalars and for unknown ranks alike. Which of
    the two it is, an ONNX file itself says; for an ORT file the rank stays open, unless
    the caller declares it.

    Raises:
        UnsupportedModel: An input or output is no dense tensor of a known type.
        OptionError: A signature was declared that is not the model's.
    """
    inputs = session.get_inputs()
    defaults = session.get_overridable_initializers()
    outputs = session.get_outputs()
    stated = _stated(model, [item.name for item in (*inputs, *defaults)])
    return Signature(
        inputs=(
            *(_spec(item, stated, has_default=False) for item in inputs),
            *(_spec(item, stated, has_default=True) for item in defaults),
        ),
        outputs=tuple(_spec(item, stated, has_default=False) for item in outputs),
    )


def owned_array(value: Any, dtype: DType) -> npt.NDArray[Any]:
    """A copy of an ``OrtValue`` in host memory; works for types that numpy does not have."""
    shape = tuple(value.shape())
    array = np.empty(shape, dtype.numpy)
    if array.size:  # otherwise there is no memory to read
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _stated(model: ModelRef, inputs: list[str]) -> dict[str, TensorSpec]:
    """What the file or the caller says about tensors, by name."""
    if model.format.name == "onnx":
        if model.declared is not None:
            raise OptionError(
                f"a whole signature was given for {model.name}, but its format holds its own.",
                fix="Leave the signature out.",
            )
        signature = model.facts.signatures[""]
    elif model.declared is None:
        return {}
    else:
        signature = model.declared
        if sorted(signature.input_names) != sorted(inputs):
            raise OptionError(
                f"the declared inputs are {', '.join(signature.input_names) or 'none'}; "
                f"the model's are {', '.join(inputs) or 'none'}.",
                fix="Declare the model's own names.",
            )
    return {spec.name: spec for spec in (*signature.outputs, *signature.inputs)}


def _spec(item: Any, stated: dict[str, TensorSpec], *, has_default: bool) -> TensorSpec:
    kind: str = item.type
    element = kind.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = DType(_NAMES.get(element, element))
    except ValueError:
        raise UnsupportedModel(
            f"'{item.name}' is of type {kind}; the bridge passes dense tensors of types that "
            "numpy or ml_dtypes have.",
            fix="Export the model with plain tensors as inputs and outputs.",
            tensor=item.name,
            type=kind,
        ) from None
    shape: tuple[Dim, ...] | None = tuple(dim(size) for size in item.shape)
    if not shape:
        shape = stated[item.name].shape if item.name in stated else None
    return TensorSpec(item.name, dtype, shape, native_name=item.name, has_default=has_default)
