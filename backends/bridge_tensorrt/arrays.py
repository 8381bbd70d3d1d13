"""Arrays in the memory of a GPU, given and taken through DLPack without a copy.

DLPack passes a C struct in a capsule (``dlpack.h``, version 1.1) with the address, the
shape, and a function that the taker calls when it is done. There are two of them:
``DLManagedTensor``, which everybody gives and takes, and ``DLManagedTensorVersioned``,
without which some takers make their view read-only.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import InputError
from bridge_tensorrt.cuda import check, read_back, runtime
from bridge_tensorrt.profiles import Shape

__all__ = ["DeviceArray", "is_on_device", "taken"]

# DLDeviceType: the memory of a GPU, and managed memory, which it reads as well.
_CUDA, _CUDA_MANAGED = 2, 13
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
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_NAME, _USED, _VERSIONED = b"dltensor", b"used_dltensor", b"dltensor_versioned"
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
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
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


class DeviceArray:
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
        return f"<DeviceArray {self.kind} {self.shape} on cuda:{self.device_index}>"

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


class _Loan:
    """A tensor of somebody else's, given back when the last user lets go of it."""

    def __init__(self, managed: _Managed) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.addressof(self._managed))


def is_on_device(value: object) -> bool:
    """Whether an object says through DLPack that its memory is a GPU's."""
    about = getattr(value, "__dlpack_device__", None)
    return about is not None and int(about()[0]) in (_CUDA, _CUDA_MANAGED)


def taken(name: str, value: Any, device_index: int, stream: int) -> DeviceArray:
    """A view of a tensor in the memory of this GPU.

    Args:
        name: The input that it is for, as errors name it.
        value: An object for which ``is_on_device`` holds.
        device_index: The GPU that will read it.
        stream: Handle of the stream that will; its owner lets that wait for the content.

    Raises:
        InputError: It is on another GPU, not in C order, of no type that TensorRT
            exchanges, or its owner does not hand it out.
    """
    if isinstance(value, DeviceArray):
        found = value
    else:
        try:
            capsule = value.__dlpack__(stream=stream)
            managed = _Managed.from_address(_pointer(capsule, _NAME))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"input '{name}' cannot be read through DLPack: {str(error).rstrip('.')}.",
                fix="Detach it from what computes gradients, or pass a numpy array.",
                input=name,
            ) from error
        _rename(capsule, _USED)  # it is ours now, to give back ourselves
        found = _view(name, managed)
    if found.device_index != device_index:
        raise InputError(
            f"input '{name}' is in the memory of cuda:{found.device_index}; this predictor runs "
            f"on cuda:{device_index}.",
            fix=f"Copy it to cuda:{device_index}, or load the model on the other one.",
            input=name,
        )
    return found


def _view(name: str, managed: _Managed) -> DeviceArray:
    loan = _Loan(managed)
    tensor: _Tensor = managed.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kind = _DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if kind is None:
        raise InputError(
            f"input '{name}' has DLPack type {(tensor.code, tensor.bits, tensor.lanes)}, which "
            "is not exchanged.",
            fix="Convert it to the type that the signature states.",
            input=name,
        )
    step = 1
    for axis in reversed(range(tensor.ndim)):
        if tensor.strides and shape[axis] > 1 and tensor.strides[axis] != step:
            raise InputError(
                f"input '{name}' of shape {shape} is not in C order.",
                fix="Make it contiguous first.",
                input=name,
            )
        step *= shape[axis]
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, kind, tensor.device_id, loan)
