"""Arithmetic in every claimed dtype, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bridge import DType
from bridge_conformance.claims import requires
from bridge_conformance.comparison import assert_close, assert_outputs
from bridge_conformance.networks import NETWORKS
from bridge_conformance.subject import Subject

# Of the integers below 8 bits there is no arithmetic, in ONNX as in numpy.
_INTEGERS = [one for one in DType if one.is_integer and f"arith_{one}" in NETWORKS]
_ROUNDING = [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64]
_COMPLEX = [DType.COMPLEX64, DType.COMPLEX128]


class TestNumerics:
    """Results are those of numpy oracles, exactly or within one table of tolerances."""

    @requires("dtype")
    @pytest.mark.parametrize("dtype", [*_INTEGERS, *_ROUNDING, *_COMPLEX], ids=str)
    def test_arithmetic(self, subject: Subject, load: Any, dtype: DType) -> None:
        """Sums, differences and products; exact for integers."""
        network = subject.network(f"arith_{dtype}")
        predictor = load(f"arith_{dtype}")
        for seed in range(4):
            inputs = network.inputs_for(rows=5, seed=seed)
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    @requires("dtype")
    @pytest.mark.parametrize("dtype", _ROUNDING, ids=str)
    def test_functions(self, subject: Subject, load: Any, dtype: DType) -> None:
        """Softmax, tanh, exp, mean and a matrix product."""
        network = subject.network(f"math_{dtype}")
        predictor = load(f"math_{dtype}")
        for seed in range(4):
            inputs = network.inputs_for(rows=5, seed=seed)
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    @requires("dtype")
    @pytest.mark.parametrize("dtype", [DType.BOOL], ids=str)
    def test_logic(self, subject: Subject, load: Any, dtype: DType) -> None:
        """And, or, not."""
        network = subject.network(f"logic_{dtype}")
        inputs = network.inputs_for(rows=16)
        assert_outputs(load(f"logic_{dtype}").predict(inputs), network.oracle(inputs))

    def test_deep(self, subject: Subject, load: Any) -> None:
        """Errors do not build up over sixteen layers."""
        network = subject.network("deep")
        inputs = network.inputs_for(rows=8)
        assert_outputs(load("deep").predict(inputs), network.oracle(inputs))

    def test_long_sum(self, subject: Subject, load: Any) -> None:
        """A sum over 65,536 numbers is as good as float32 allows."""
        network = subject.network("wide")
        inputs = network.inputs_for(rows=2)
        assert_outputs(load("wide").predict(inputs), network.oracle(inputs))

    def test_nan_stays_in_its_row(self, subject: Subject, load: Any) -> None:
        """A NaN spoils its own row and no other."""
        network = subject.network("affine")
        predictor = load("affine")
        inputs = network.inputs_for(rows=9)
        wanted = network.oracle(inputs)["y"]
        inputs["x"][4, 1] = np.nan
        result = predictor.predict(inputs)["y"]
        assert np.isnan(result[4]).all()
        others = np.arange(9) != 4
        assert_close(result[others], wanted[others], "y")

    def test_infinity_propagates(self, subject: Subject, load: Any) -> None:
        """Infinities follow the rules of arithmetic."""
        network = subject.network("two")
        inputs = network.inputs_for(rows=2)
        inputs["x"][0] = np.inf
        inputs["x"][1] = -np.inf
        assert_outputs(load("two").predict(inputs), network.oracle(inputs))
