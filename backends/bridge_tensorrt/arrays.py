"""Results in the memory of a GPU, which other libraries take through DLPack without a copy.

DLPack passes a C struct in a capsule (``dlpack.h``, version 1.1) with the address, the
shape, and a function that the taker calls when it is done. There are two of them:
``DLManagedTensor``, which everybody takes, and ``DLManagedTensorVersioned``, without which
some takers make their view read-only. Inputs come the other way through ``bridge.dlpack``.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge_tensorrt.cuda import check, read_back, runtime
from bridge_tensorrt.profiles import Shape

__all__ = ["GpuArray"]

_CUDA = 2  # DLDeviceType
# DLDataTypeCode and bits of what TensorRT exchanges.
_CODES = {
    DType.INT8: (0, 8),
    DType.INT32: (0, 32),
    DType.INT64: (0, 64),
    DType.UINT8: (1, 8),
    DType.FLOAT16: (2, 16),
    DType.FLOAT32: (2, 32),
    DType.BFLOAT16: (4, 16),
    DType.BOOL: (6, 8),
    DType.FLOAT8_E4M3FN: (10, 8),
}
_NAME, _VERSIONED = b"dltensor", b"dltensor_versioned"
_VERSION = (1, 1)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Prototypes of our own: those that ctypes.pythonapi hands out belong to everybody.
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# The same for a capsule that is being destroyed, to which no reference may be made.
_dying_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# What others hold of ours, by the address of its struct, until they call the deleter.
_lent: dict[int, tuple[Any, ...]] = {}


def _give_back(address: int) -> None:
    _lent.pop(address, None)


def _forget(capsule: int) -> None:
    for name in (_NAME, _VERSIONED):
        if _dying_is(capsule, name):  # nobody took it
            _lent.pop(_dying_pointer(capsule, name), None)


_on_return = _Deleter(_give_back)
_on_end = _Destructor(_forget)


class GpuArray:
    """An array in the memory of a GPU, C order.

    ``torch.from_dlpack(array)`` and ``cupy.from_dlpack(array)`` are views of the same
    memory; ``numpy.asarray(array)`` is a copy in host memory.

    Args:
        address: Where its first element is.
        shape: Its shape.
        kind: Its element type.
        device_index: The GPU.
        owner: What keeps the memory alive; held as long as the array and all its views.
    """

    def __init__(
        self, address: int, shape: Shape, kind: DType, device_index: int, owner: Any
    ) -> None:
        self.address = address
        self.shape = shape
        self.kind = kind
        self.device_index = device_index
        self.owner = owner

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its numpy dtype."""
        return self.kind.numpy

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.kind.itemsize_bytes

    def __repr__(self) -> str:
        return f"<GpuArray {self.kind} {self.shape} on cuda:{self.device_index}>"

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device_index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        **others: Any,
    ) -> Any:
        """The capsule. Its content is complete: no stream has to wait for it."""
        sizes = (ctypes.c_int64 * len(self.shape))(*self.shape)
        code, bits = _CODES[self.kind]
        tensor = _Tensor(
            data=self.address,
            device_type=_CUDA,
            device_id=self.device_index,
            ndim=len(self.shape),
            code=code,
            bits=bits,
            lanes=1,
            shape=sizes,
            strides=None,  # C order
            byte_offset=0,
        )
        name = _NAME if max_version is None or max_version[0] < _VERSION[0] else _VERSIONED
        managed: ctypes.Structure
        if name is _NAME:
            managed = _Managed(tensor=tensor, deleter=_on_return)
        else:
            major, minor = _VERSION
            managed = _ManagedVersioned(major=major, minor=minor, deleter=_on_return, tensor=tensor)
        address = ctypes.addressof(managed)
        _lent[address] = managed, sizes, self
        return _new(address, name, ctypes.cast(_on_end, ctypes.c_void_p))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For numba, and for versions of cupy without DLPack; types of numpy's own only."""
        if self.dtype.kind not in "biuf":
            raise AttributeError(f"{self.kind} is no type of this interface.")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """A copy in host memory."""
        if copy is False:
            raise ValueError(f"{self!r} cannot be read on the host without a copy.")
        check(runtime().cudaSetDevice(self.device_index))
        found: npt.NDArray[Any] = np.empty(self.shape, self.dtype)
        if found.size:
            read_back(found.ctypes.data, self.address, found.nbytes)
        return found if dtype is None else found.astype(dtype, copy=False)
