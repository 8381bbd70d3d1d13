"""Between numpy arrays and tensors: without a copy where that is safe, with one elsewhere."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dlpack import DeviceArray
from bridge.dtypes import DType
from bridge.errors import DTypeMismatch, PredictError, ShapeMismatch

__all__ = [
    "SMALL_ELEMENTS",
    "dtype_of",
    "on_device",
    "on_host",
    "small_arrays",
    "to_array",
    "to_arrays",
    "to_number",
    "to_tensor",
]

Array = npt.NDArray[Any]

SMALL_ELEMENTS = 512
"""Outputs of up to so many elements are copied: that is cheaper than to ask who else holds
them (0.2 against 0.5 µs), and the copy of 4 KiB itself takes less than 0.1 µs."""

_CARRIERS = {
    DType.BFLOAT16: np.int16,
    DType.FLOAT8_E4M3FN: np.uint8,
    DType.FLOAT8_E4M3FNUZ: np.uint8,
    DType.FLOAT8_E5M2: np.uint8,
    DType.FLOAT8_E5M2FNUZ: np.uint8,
}
"""Integer types of equal size that carry what numpy itself does not have."""


def dtype_of(torch_dtype: Any) -> DType:
    """The element type of a torch dtype; ``ValueError`` if it has no counterpart."""
    return DType(str(torch_dtype).removeprefix("torch."))


def to_tensor(array: Array) -> Any:
    """A tensor over the array's memory, of any dtype that torch has.

    Raises:
        DTypeMismatch: torch has no such dtype.
    """
    import torch

    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        try:
            dtype = DType.of(array.dtype)
        except ValueError:
            dtype = None
        carrier = _CARRIERS.get(dtype) if dtype is not None else None
        if dtype is None or carrier is None:
            raise DTypeMismatch(
                f"torch takes no arrays of dtype {array.dtype.str}: {error}",
                fix="Convert it to a numeric dtype of native byte order.",
                got=str(array.dtype),
            ) from error
        return torch.from_numpy(array.view(carrier)).view(getattr(torch, dtype.value))


def on_device(array: DeviceArray, *, copy: bool) -> Any:
    """A tensor over memory of a device, which waits for what its owner has yet to compute."""
    import torch

    tensor = torch.utils.dlpack.from_dlpack(array.owner)
    return tensor.clone() if copy else tensor


def on_host(array: Array | DeviceArray) -> Array:
    """The array itself, or a copy of what lies in the memory of a device."""
    if type(array) is DeviceArray:
        return to_array(on_device(array, copy=False).cpu())
    return array  # type: ignore[return-value]


def to_number(array: Array, name: str) -> Any:
    """The Python number in an array of one element.

    Raises:
        ShapeMismatch: It has more or fewer elements.
    """
    if array.size != 1:
        raise ShapeMismatch(
            f"input '{name}' has shape {array.shape}; the model takes one number there.",
            fix="Pass an array of shape ().",
            input=name,
            wanted=(),
            got=array.shape,
        )
    return array.item()


def small_arrays(
    pairs: Iterable[tuple[str, Any]], tensor_type: type[Any]
) -> dict[str, Array] | None:
    """Copies of small outputs; ``None`` if there are none, or one that needs a closer look.

    Nothing is done to any tensor that would change what ``to_arrays`` sees of it.
    """
    arrays: dict[str, Array] = {}
    for name, value in pairs:
        if type(value) is not tensor_type or value.numel() > SMALL_ELEMENTS:
            return None
        try:
            arrays[name] = value.numpy().copy()
        except (RuntimeError, TypeError):  # on a device, sparse, or of a dtype numpy lacks
            return None
    return arrays or None


def to_arrays(values: list[Any]) -> list[Array]:
    """Arrays that nobody else writes to, for what a model returned.

    A tensor's memory is handed on only if the list is the last to hold it: an output that
    is an input, a parameter, a view, or kept by the model is copied. Arrays are in C
    order. The caller must hold no other reference to the tensors in the list.
    """
    arrays: list[Array] = []
    for index in range(len(values)):
        if _is_on_host(values[index]):
            if values[index].numel() > SMALL_ELEMENTS and _holders(values, index) == _alone():
                arrays.append(to_array(values[index]))
            else:
                arrays.append(to_array(values[index], copy=True))
        elif hasattr(values[index], "detach"):
            arrays.append(to_array(values[index].detach().cpu(), copy=False))
        else:
            arrays.append(_of_number(values[index]))
    return arrays


def to_array(tensor: Any, *, copy: bool = False) -> Array:
    """The array of a tensor in host memory, in C order.

    Raises:
        PredictError: The tensor is sparse, quantized, nested, or of a dtype unknown here.
    """
    try:
        array: Array = tensor.numpy()
    except (RuntimeError, TypeError):
        array = _unusual(tensor)
    if copy or not array.flags.c_contiguous:
        return array.copy()
    return array


def _unusual(tensor: Any) -> Array:
    """What ``Tensor.numpy`` refuses: gradients, lazy conjugates, types numpy does not have."""
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg()
    carriers = {getattr(torch, dtype.value): (dtype, of) for dtype, of in _CARRIERS.items()}
    try:
        if plain.dtype in carriers:
            dtype, carrier = carriers[plain.dtype]
            integers = plain.contiguous().view(getattr(torch, np.dtype(carrier).name))
            reduced: Array = integers.numpy().view(dtype.numpy)
            return reduced
        array: Array = plain.numpy()
    except (RuntimeError, TypeError) as error:
        raise PredictError(
            f"the model returned a tensor of dtype {tensor.dtype} and layout {tensor.layout}, "
            "which has no numpy form.",
            fix="Convert it inside the model: to_dense(), dequantize() or to(torch.float32).",
        ) from error
    return array


def _is_on_host(value: Any) -> bool:
    return getattr(value, "is_cpu", False)


def _of_number(value: Any) -> Array:
    if isinstance(value, (bool, int, float, complex)):
        return np.asarray(value)
    raise PredictError(
        f"the model returned an object of class {type(value).__name__}; "
        "wanted tensors and numbers.",
        fix="Wrap the model so that it returns tensors.",
    )


def _holders(values: list[Any], index: int) -> tuple[int, int, int, bool]:
    """Who holds a tensor and its memory: Python, C++, other tensors, something outside.

    ``Tensor.numpy`` and ``torch.from_numpy`` make a storage that cannot be resized: its
    memory is known to somebody else.
    """
    import torch

    tensor = values[index]
    try:
        storage = tensor.untyped_storage()
        users = torch._C._storage_Use_Count(storage._cdata)
        return sys.getrefcount(tensor), tensor._use_count(), users, storage.resizable()
    except (RuntimeError, NotImplementedError, AttributeError):
        return 0, 0, 0, False  # sparse, or a torch without these counts: copy


@functools.cache
def _alone() -> tuple[int, int, int, bool]:
    """The counts of a tensor that only its list holds, measured: they differ by version."""
    import torch

    with torch.inference_mode():
        return _holders([torch.zeros(2) + 1], 0)
