"""The closed list of element types, and their numpy counterparts."""

from __future__ import annotations

import enum
import functools
from typing import Any

import numpy as np

__all__ = ["DType"]


class DType(enum.Enum):
    """An element type of a tensor.

    ``bfloat16`` and the ``float8`` types live in ``ml_dtypes``, which is imported only
    when one of them appears. Strings are numpy ``object`` arrays of ``str``.
    """

    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E4M3FNUZ = "float8_e4m3fnuz"
    FLOAT8_E5M2 = "float8_e5m2"
    FLOAT8_E5M2FNUZ = "float8_e5m2fnuz"
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
    def itemsize_bytes(self) -> int:
        """Size of one element in bytes; of a pointer for strings."""
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


@functools.cache
def _numpy_dtype(dtype: DType) -> np.dtype[Any]:
    if dtype is DType.STRING:
        return np.dtype(object)
    if dtype is DType.BFLOAT16 or dtype.value.startswith("float8"):
        import ml_dtypes

        reduced: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype.value))
        return reduced
    plain: np.dtype[Any] = np.dtype(dtype.value)
    return plain
