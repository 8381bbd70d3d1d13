"""The closed list of element types, and their numpy counterparts."""

from __future__ import annotations

import enum
import functools
from typing import Any

import numpy as np

__all__ = ["DType"]


class DType(enum.Enum):
    """An element type of a tensor.

    Types that numpy itself does not have live in ``ml_dtypes``, which is imported only
    when one of them appears; elements of less than a byte take one each in its arrays.
    Strings are numpy ``object`` arrays of ``str``.
    """

    BOOL = "bool"
    INT2 = "int2"
    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT2 = "uint2"
    UINT4 = "uint4"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT4_E2M1FN = "float4_e2m1fn"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E4M3FNUZ = "float8_e4m3fnuz"
    FLOAT8_E5M2 = "float8_e5m2"
    FLOAT8_E5M2FNUZ = "float8_e5m2fnuz"
    FLOAT8_E8M0FNU = "float8_e8m0fnu"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"
    STRING = "string"

    def __str__(self) -> str:
        return self.value

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype, in native byte order; ``object`` for strings.

        Raises:
            ImportError: ``ml_dtypes`` is needed for this type and not installed.
        """
        return _numpy_dtype(self)

    @property
    def is_float(self) -> bool:
        """Whether values are real floating-point numbers."""
        return "float" in self.value

    @property
    def is_integer(self) -> bool:
        """Whether values are signed or unsigned integers (bool is not)."""
        return "int" in self.value

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest value of an integer type.

        Raises:
            ValueError: It is no integer type.
        """
        if not self.is_integer:
            raise ValueError(f"{self} has no bounds; only integer types have.")
        bits = int(self.value.lstrip("uint"))
        if self.value.startswith("u"):
            return 0, 2**bits - 1
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    @property
    def itemsize_bytes(self) -> int:
        """Size of one element of a numpy array in bytes; of a pointer for strings."""
        return self.numpy.itemsize

    @classmethod
    def of(cls, dtype: np.dtype[Any] | type[Any] | str) -> DType:
        """The element type of a numpy dtype.

        Raises:
            ValueError: The dtype has no counterpart (structured, datetime, ...).
        """
        resolved = np.dtype(dtype)
        if resolved.kind in "OUT":
            return cls.STRING
        try:
            return cls(resolved.name)
        except ValueError:
            raise ValueError(f"numpy dtype '{resolved}' has no counterpart here.") from None


_REDUCED = frozenset(
    {
        DType.INT2,
        DType.INT4,
        DType.UINT2,
        DType.UINT4,
        DType.FLOAT4_E2M1FN,
        DType.FLOAT8_E4M3FN,
        DType.FLOAT8_E4M3FNUZ,
        DType.FLOAT8_E5M2,
        DType.FLOAT8_E5M2FNUZ,
        DType.FLOAT8_E8M0FNU,
        DType.BFLOAT16,
    }
)


@functools.cache
def _numpy_dtype(dtype: DType) -> np.dtype[Any]:
    if dtype is DType.STRING:
        return np.dtype(object)
    if dtype in _REDUCED:
        import ml_dtypes

        reduced: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype.value))
        return reduced
    plain: np.dtype[Any] = np.dtype(dtype.value)
    return plain
