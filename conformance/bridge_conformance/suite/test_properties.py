"""Properties that hold for any legal input, searched for a counterexample.

Every backend is held to the same numpy oracle within half of the tolerance, so any two
that pass agree with each other within the whole of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge_conformance.calls import copies
from bridge_conformance.claims import requires
from bridge_conformance.comparison import assert_close, assert_outputs
from bridge_conformance.subject import Subject
from bridge_conformance.tolerance import TOLERANCES, Tolerance

# The same examples every time: what is known to fail must always fail. The fixture is a
# predictor that keeps nothing between calls; that it does not is one of the properties.
_steady = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_SEEDS = st.integers(0, 2**32 - 1)
_ROWS = st.integers(1, 40)


def _half(tolerance: Tolerance) -> Tolerance:
    return Tolerance(tolerance.rtol / 2, tolerance.atol / 2)


class TestProperties:
    """Whatever legal input is given: all agree, rows are independent, calls leave no trace."""

    @requires("dynamic_dims")
    @pytest.mark.parametrize("network", ["affine", "mixed", "math_float32", "reduce"])
    def test_all_agree(self, subject: Subject, load: Any, network: str) -> None:
        """Any input gives the oracle's outputs, within half of the tolerance."""
        one = subject.network(network)
        predictor = load(network)

        @_steady
        @given(rows=_ROWS, seed=_SEEDS)
        @example(rows=1, seed=0)
        def agrees(rows: int, seed: int) -> None:
            inputs = one.inputs_for(rows=rows, seed=seed)
            wanted = one.oracle(inputs)
            outputs = predictor.predict(inputs)
            for spec in one.signature.outputs:
                tolerance = TOLERANCES.get(spec.dtype) if spec.dtype else None
                half = tolerance and _half(tolerance)
                assert_close(outputs[spec.name], wanted[spec.name], spec.name, half)

        agrees()

    @requires("dynamic_dims")
    @pytest.mark.parametrize("network", ["affine", "mixed", "math_float32"])
    def test_rows_are_independent(self, subject: Subject, load: Any, network: str) -> None:
        """A row's result does not depend on the other rows of its batch."""
        one = subject.network(network)
        predictor = load(network)

        @_steady
        @given(rows=_ROWS, seed=_SEEDS, data=st.data())
        def holds(rows: int, seed: int, data: st.DataObject) -> None:
            inputs = one.inputs_for(rows=rows, seed=seed)
            whole = copies(predictor.predict(inputs), one.signature.output_names)
            row = data.draw(st.integers(0, rows - 1))
            alone = predictor.predict({name: a[row : row + 1] for name, a in inputs.items()})
            for name, array in whole.items():
                assert_close(alone[name], array[row : row + 1], name)

        holds()

    @requires("dynamic_dims")
    def test_order_of_rows(self, subject: Subject, load: Any) -> None:
        """Rows in another order give the same results in that order."""
        one = subject.network("mixed")
        predictor = load("mixed")

        @_steady
        @given(rows=_ROWS, seed=_SEEDS)
        def holds(rows: int, seed: int) -> None:
            inputs = one.inputs_for(rows=rows, seed=seed)
            order = np.random.default_rng(seed).permutation(rows)
            whole = copies(predictor.predict(inputs), one.signature.output_names)
            mixed = predictor.predict({name: array[order] for name, array in inputs.items()})
            assert_outputs(mixed, {name: array[order] for name, array in whole.items()})

        holds()

    @requires("dynamic_dims")
    def test_calls_leave_no_trace(self, subject: Subject, load: Any) -> None:
        """An earlier call never changes a later one, whatever its shape."""
        one = subject.network("mixed")
        predictor = load("mixed")
        inputs = one.inputs_for(rows=5, seed=1)
        first = copies(predictor.predict(inputs), one.signature.output_names)

        @_steady
        @given(rows=_ROWS, seed=_SEEDS)
        def holds(rows: int, seed: int) -> None:
            predictor.predict(one.inputs_for(rows=rows, seed=seed))
            assert_outputs(predictor.predict(inputs), first)

        holds()

    def test_any_floats(self, subject: Subject, load: Any) -> None:
        """Any float32, NaN and infinities included, is doubled and negated as numpy does it."""
        one = subject.network("two")
        predictor = load("two")
        # Without subnormals, which some runtimes take for zero on purpose; see TestDtypes.
        floats = st.floats(width=32, allow_subnormal=False)

        @_steady
        @given(values=st.lists(floats, min_size=12, max_size=12))
        def holds(values: list[float]) -> None:
            inputs = {"x": np.array(values, np.float32).reshape(3, 4)}
            with np.errstate(over="ignore"):
                wanted = one.oracle(inputs)
            assert_outputs(predictor.predict(inputs), wanted)

        holds()
