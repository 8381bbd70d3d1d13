"""Results in the memory of a GPU, which other libraries take through DLPack without a copy.

DLPack passes a C struct in a capsule (``dlpack.h``, version 1.1) with the address, the
shape, and a function that the taker calls when it is done. Ours are made by numpy, of an
array over that address, whose elements it never touches; only the device and the type are
then changed. Its C code gives memory back where Python code cannot: while an exception is
on its way, and when the interpreter is gone. Inputs come the other way through
``bridge.dlpack``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dlpack import Memory, opened
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
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The capsule. Its content is complete: no stream has to wait for it.

        Raises:
            BufferError: A copy is wanted, or the memory of another device.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(
                f"{self!r} hands out its own memory only: take it without copy and device, "
                "then copy it."
            )
        code, bits = _CODES[self.kind]
        interface = {
            "version": 3,
            "shape": self.shape,
            "typestr": f"<u{bits // 8}",
            "data": (self.address, False),
        }
        carrier = np.asarray(Memory(self, interface))
        try:
            capsule = carrier.__dlpack__(max_version=max_version)
        except TypeError:  # numpy before 2.1, which knows the unversioned struct alone
            capsule = carrier.__dlpack__()
        tensor, _ = opened(capsule)
        tensor.device_type, tensor.device_id = self.__dlpack_device__()
        tensor.type_code, tensor.type_bits = code, bits
        return capsule

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
