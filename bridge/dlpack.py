"""Memory of other libraries, where numpy's own import of DLPack does not reach.

``numpy.from_dlpack`` refuses bfloat16 and float8. Their bits are here for the taking: the
capsule says where they are, and ``ml_dtypes`` has a type for each. Memory of a device numpy
cannot read at all: a ``DeviceArray`` describes it. Capsules are kept and never marked as
used, so that their own destructors give the memory back.

Source: dmlc/dlpack, ``include/dlpack/dlpack.h`` of version 1.1, and the Python
specification of the protocol in its documentation.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType

__all__ = ["DeviceArray", "Memory", "Tensor", "device_array", "opened", "shared_view"]

_VERSION = (1, 1)
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY

# Types that numpy lacks, by DLDataTypeCode and bits; and numpy's letters for the others.
_TYPES = {
    (4, 16): DType.BFLOAT16,
    (10, 8): DType.FLOAT8_E4M3FN,
    (11, 8): DType.FLOAT8_E4M3FNUZ,
    (12, 8): DType.FLOAT8_E5M2,
    (13, 8): DType.FLOAT8_E5M2FNUZ,
    (14, 8): DType.FLOAT8_E8M0FNU,
}
_LETTERS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
_CARRIERS: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}

_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)


class Tensor(ctypes.Structure):
    """``DLTensor``, with which an unversioned ``DLManagedTensor`` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


class Memory:
    """What numpy takes an array from, and keeps for as long as it has that array."""

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


@dataclass(frozen=True, eq=False, slots=True)
class DeviceArray:
    """An input that stays in the memory of a device: what ``_predict`` gets in its place.

    Attributes:
        owner: The caller's object; runtimes that speak DLPack take it as it is.
        pointer: Address of the first element, on the device; the elements lie in C order.
        shape: Sizes of its dims.
        dtype: Type of its elements.
        capsule: Keeps the memory.
    """

    owner: Any
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    capsule: object

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all elements in bytes."""
        return self.size * self.dtype.itemsize

    def wait(self, stream: int) -> None:
        """Makes a CUDA stream wait for what the owner has yet to compute.

        Args:
            stream: Its handle as DLPack has it: 1 for the legacy default stream, 2 for
                that of the thread.
        """
        self.owner.__dlpack__(stream=stream)


def device_array(value: Any) -> DeviceArray:
    """Describes an object in the memory of a device, without waiting for its content.

    Raises:
        BufferError: It does not hand out its memory, its elements are of no known type, or
            they do not lie in C order.
    """
    try:
        capsule = value.__dlpack__(stream=-1, max_version=_VERSION)
    except TypeError:  # made before version 1.0 of the protocol
        capsule = value.__dlpack__(stream=-1)
    tensor, _ = opened(capsule)
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides and 0 not in shape:
        step = 1
        strides = tensor.strides[: tensor.ndim]
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size != 1 and stride != step:
                raise BufferError("its elements do not lie in C order")
            step *= size
    pointer = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(value, pointer, shape, _dtype(tensor), capsule)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    kind = (tensor.type_code, tensor.type_bits)
    if kind in _TYPES and tensor.lanes == 1:
        return _TYPES[kind].numpy
    letter = _LETTERS.get(tensor.type_code)
    if letter is None or tensor.lanes != 1:
        raise BufferError(f"its elements are of DLPack type {kind}, {tensor.lanes} side by side")
    return np.dtype(f"{letter}{tensor.type_bits // 8}")


def shared_view(value: Any) -> npt.NDArray[Any] | None:
    """The array over the memory of an object in host memory, if numpy lacks its type.

    Args:
        value: An object with ``__dlpack__``, whose device is known to be the host.

    Returns:
        An array that shares its memory, read-only where the object says so or cannot say;
        ``None`` for any other type of elements.

    Raises:
        BufferError: The object does not hand out its memory.
    """
    try:
        capsule = value.__dlpack__(max_version=_VERSION)
    except TypeError:  # made before version 1.0 of the protocol
        capsule = value.__dlpack__()
    tensor, is_read_only = opened(capsule)
    dtype = _TYPES.get((tensor.type_code, tensor.type_bits)) if tensor.lanes == 1 else None
    if dtype is None:
        return None
    shape = tuple(tensor.shape[: tensor.ndim])
    if 0 in shape:
        return np.empty(shape, dtype.numpy)
    carrier = _CARRIERS[dtype.itemsize_bytes]
    strides = None
    if tensor.strides:
        strides = tuple(step * carrier.itemsize for step in tensor.strides[: tensor.ndim])
    interface = {
        "version": 3,
        "shape": shape,
        "typestr": carrier.str,
        "strides": strides,
        "data": (tensor.data + tensor.byte_offset, is_read_only),
    }
    return np.asarray(Memory(capsule, interface)).view(dtype.numpy)


def opened(capsule: object) -> tuple[Tensor, bool]:
    """The description in a capsule, and whether its memory must not be written to.

    Raises:
        BufferError: It is no unused capsule, or of a later version of DLPack.
    """
    if _is_valid(capsule, b"dltensor_versioned"):
        address = _pointer(capsule, b"dltensor_versioned")
        managed = ctypes.cast(address, ctypes.POINTER(_Versioned)).contents
        if managed.major != _VERSION[0]:
            raise BufferError(f"it speaks version {managed.major} of DLPack")
        return managed.tensor, bool(managed.flags & _READ_ONLY)
    if not _is_valid(capsule, b"dltensor"):
        raise BufferError("what __dlpack__ returned is no unused DLPack capsule")
    address = _pointer(capsule, b"dltensor")
    return ctypes.cast(address, ctypes.POINTER(Tensor)).contents, True
