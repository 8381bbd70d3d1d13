"""Strict comparisons with an oracle: dtype and shape first, then every value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge_conformance.tolerance import TOLERANCES, Tolerance

__all__ = ["assert_close", "assert_equal", "assert_outputs", "difference"]

_Array = npt.NDArray[Any]


def assert_outputs(
    got: Mapping[str, _Array],
    wanted: Mapping[str, _Array],
    tolerance: Tolerance | None = None,
) -> None:
    """Outputs are those of the oracle: names, dtypes, shapes, values.

    Args:
        got: What ``predict`` returned.
        wanted: What the oracle says.
        tolerance: Instead of the one of each output's dtype.
    """
    __tracebackhide__ = True
    assert isinstance(got, dict), f"outputs are of class {type(got).__name__}; wanted a dict"
    assert set(got) == set(wanted), f"outputs are {sorted(got)}; wanted {sorted(wanted)}"
    for name, array in wanted.items():
        assert_close(got[name], array, name, tolerance)


def assert_close(
    got: _Array, wanted: _Array, name: str = "the output", tolerance: Tolerance | None = None
) -> None:
    """One array is that of the oracle, within the tolerance of its dtype."""
    __tracebackhide__ = True
    problem = difference(got, wanted, tolerance)
    assert problem is None, f"'{name}': {problem}"


def assert_equal(got: _Array, wanted: _Array, name: str = "the output") -> None:
    """One array is another to the last bit, the sign of a zero included; a NaN equals a NaN."""
    __tracebackhide__ = True
    assert_close(got, wanted, name, Tolerance(0.0, 0.0))
    if wanted.dtype.kind == "c":  # each part for itself, for both count
        assert_equal(got.real, wanted.real, f"{name}.real")
        assert_equal(got.imag, wanted.imag, f"{name}.imag")
    elif wanted.dtype != object and DType.of(wanted.dtype).is_float:
        # By way of float64: numpy's signbit does not take all types that numpy has not.
        left, right = got.astype(np.float64), wanted.astype(np.float64)
        odd = np.argwhere((np.signbit(left) != np.signbit(right)) & ~np.isnan(right))
        place = tuple(int(index) for index in odd[0]) if len(odd) else ()
        assert not len(odd), (
            f"'{name}': differs in sign at {place}: {got[place]}, not {wanted[place]}"
        )


def difference(got: Any, wanted: _Array, tolerance: Tolerance | None = None) -> str | None:
    """What is wrong with an array, as a phrase; ``None`` if nothing is.

    Args:
        got: What came out.
        wanted: The oracle's array.
        tolerance: Instead of the one of the dtype; types that do not round are exact
            without one.
    """
    if type(got) is not np.ndarray:
        return f"is of class {type(got).__name__}; wanted a numpy array"
    if got.dtype != wanted.dtype:
        return f"has dtype {got.dtype}; wanted {wanted.dtype}"
    if got.shape != wanted.shape:
        return f"has shape {got.shape}; wanted {wanted.shape}"
    if wanted.dtype == object:
        odd = [place for place, one in np.ndenumerate(wanted) if not _same_text(got[place], one)]
        return f"differs at {odd[0]}: {got[odd[0]]!r}, not {wanted[odd[0]]!r}" if odd else None
    chosen = tolerance or TOLERANCES.get(DType.of(wanted.dtype), Tolerance(0.0, 0.0))
    if wanted.dtype.kind in "biu" and chosen == (0.0, 0.0):
        wrong = got != wanted
        distances: _Array = wrong
    else:
        wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
        left, right = got.astype(wide), wanted.astype(wide)
        with np.errstate(all="ignore"):
            distances = np.abs(left - right)
            same = (left == right) | (np.isnan(left) & np.isnan(right))
            wrong = ~same & ~(distances <= chosen.atol + chosen.rtol * np.abs(right))
    if not wrong.any():
        return None
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    worst = np.nanmax(distances) if distances.size and distances.dtype != bool else ""
    most = f", at most by {worst:.3g}" if worst != "" else ""
    return (
        f"{int(wrong.sum())} of {wrong.size} values differ{most}; the first at {place}: "
        f"{got[place]}, not {wanted[place]} (rtol {chosen.rtol:g}, atol {chosen.atol:g})"
    )


def _same_text(got: object, wanted: object) -> bool:
    return type(got) is type(wanted) and got == wanted
