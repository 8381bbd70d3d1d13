"""How far a result may be from its oracle: one table for the whole suite.

The oracles compute in float64 and round once, so the table bounds what a runtime may
lose by computing in the type itself.
"""

from __future__ import annotations

from typing import NamedTuple

from bridge.dtypes import DType

__all__ = ["TOLERANCES", "Tolerance"]


class Tolerance(NamedTuple):
    """``|got - wanted| <= atol + rtol * |wanted|`` has to hold for every element."""

    rtol: float
    atol: float


TOLERANCES = {
    DType.FLOAT16: Tolerance(1e-3, 1e-5),
    DType.BFLOAT16: Tolerance(1.6e-2, 1e-5),
    DType.FLOAT32: Tolerance(1.3e-6, 1e-5),
    DType.FLOAT64: Tolerance(1e-7, 1e-7),
    DType.COMPLEX64: Tolerance(1.3e-6, 1e-5),
    DType.COMPLEX128: Tolerance(1e-7, 1e-7),
}
"""Tolerance of each type that rounds; all other types have to be exact.

Source: the defaults of ``torch.testing.assert_close`` by dtype, in the documentation of
``torch.testing``, version 2.13.
"""
