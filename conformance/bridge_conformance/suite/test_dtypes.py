"""Every element type, passed on without a change or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bridge import DType
from bridge.errors import DTypeMismatch, UnsupportedModel
from bridge_conformance.claims import not_verified, refuses, requires
from bridge_conformance.comparison import assert_equal
from bridge_conformance.subject import Subject

_COMPLEX = (DType.COMPLEX64, DType.COMPLEX128)
_FLOATS = [dtype for dtype in DType if dtype.is_float]
_WITHOUT_INFINITY = (DType.FLOAT8_E4M3FN, DType.FLOAT8_E4M3FNUZ, DType.FLOAT8_E5M2FNUZ)
_EVERY_DTYPE = pytest.mark.parametrize("dtype", list(DType), ids=str)


def _extremes(dtype: DType) -> npt.NDArray[Any]:
    """Values at the ends of a type, three of them in a row."""
    if dtype is DType.BOOL:
        values: list[Any] = [True, False, True]
    elif dtype is DType.STRING:
        values = ["", "a\x00b", "\U0010ffff"]
    elif dtype.is_integer:
        values = [*dtype.bounds, 1]
    elif dtype in _COMPLEX:
        values = [complex("inf"), complex(0.0, float("nan")), complex(-0.0, 1.5)]
    else:
        limits = _limits(dtype)
        values = [limits.max, limits.min, limits.smallest_normal]
    return np.array([values], dtype.numpy)


def _limits(dtype: DType) -> Any:
    """What ``numpy.finfo`` says, of the types that numpy does not have as well."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(dtype.numpy)


class TestDtypes:
    """Claimed dtypes pass bit by bit; all others are refused with the tensor's name."""

    @requires("dtype")
    @_EVERY_DTYPE
    def test_passes(self, subject: Subject, load: Any, dtype: DType) -> None:
        """What goes in comes out: same dtype, same values."""
        network = subject.network(f"identity_{dtype}")
        predictor = load(f"identity_{dtype}")
        for rows in (1, 4):
            inputs = network.inputs_for(rows=rows, seed=rows)
            assert_equal(predictor.predict(inputs)["y"], network.oracle(inputs)["y"], "y")

    @refuses("dtype")
    @_EVERY_DTYPE
    def test_is_refused(self, subject: Subject, dtype: DType) -> None:
        """A model with a dtype that is not claimed raises UnsupportedModel."""
        path = subject.path(f"identity_{dtype}")
        with pytest.raises(UnsupportedModel) as caught:
            subject.open(path).close()
        assert caught.value.backend == subject.backend.name
        tensors = ("x", "y")
        quoted = any(f"'{tensor}'" in str(caught.value) for tensor in tensors)
        assert quoted or caught.value.detail.get("tensor") in tensors

    @requires("dtype")
    @_EVERY_DTYPE
    def test_extremes(self, subject: Subject, load: Any, dtype: DType) -> None:
        """The smallest and largest values of a type come through."""
        values = _extremes(dtype)
        assert_equal(load(f"identity_{dtype}").predict({"x": values})["y"], values, "y")

    @requires("dtype")
    @pytest.mark.parametrize("dtype", _FLOATS, ids=str)
    def test_odd_floats(self, subject: Subject, load: Any, dtype: DType) -> None:
        """NaN, infinities and the sign of zero come through."""
        if dtype in _WITHOUT_INFINITY:
            values = np.array([[np.nan, 0.0, 1.0]], dtype.numpy)
        else:
            values = np.array([[np.nan, np.inf, -np.inf], [-0.0, 0.0, 1.0]], dtype.numpy)
        result = load(f"identity_{dtype}").predict({"x": values})["y"]
        assert_equal(result, values, "y")

    @requires("dtype")
    @pytest.mark.parametrize("dtype", _FLOATS, ids=str)
    def test_subnormals(self, subject: Subject, load: Any, dtype: DType) -> None:
        """Numbers too small to be normal are passed on, not rounded to zero."""
        tiny = _limits(dtype).smallest_subnormal
        values = np.array([[tiny, -tiny, tiny]]).astype(dtype.numpy)
        if not np.any(values.astype(np.float64)):
            not_verified(f"{dtype} has no subnormal numbers.")
        assert_equal(load(f"identity_{dtype}").predict({"x": values})["y"], values, "y")

    @requires("dtype")
    @_EVERY_DTYPE
    def test_nothing_is_cast(self, subject: Subject, load: Any, dtype: DType) -> None:
        """An array of another dtype raises DTypeMismatch, though it could be converted."""
        predictor = load(f"identity_{dtype}")
        other = np.float64 if dtype is not DType.FLOAT64 else np.float32
        with pytest.raises(DTypeMismatch) as caught:
            predictor.predict({"x": np.ones((2, 3), other)})
        assert caught.value.detail["wanted"] == dtype.value
        assert caught.value.detail["got"] == np.dtype(other).name

    @requires("dtype")
    @pytest.mark.parametrize("dtype", [one for one in DType if one.is_integer], ids=str)
    def test_swapped_bytes_are_refused(self, subject: Subject, load: Any, dtype: DType) -> None:
        """An array in the other byte order raises DTypeMismatch."""
        values: npt.NDArray[Any]
        if dtype.itemsize_bytes == 1:
            values = np.ones((2, 3), "S1")
        else:
            values = np.ones((2, 3), dtype.numpy.newbyteorder("S"))
        with pytest.raises(DTypeMismatch):
            load(f"identity_{dtype}").predict({"x": values})
