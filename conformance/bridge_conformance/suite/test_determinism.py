"""Equal inputs, equal outputs."""

from __future__ import annotations

from typing import Any

from bridge_conformance.claims import refuses, requires
from bridge_conformance.comparison import assert_equal, assert_outputs
from bridge_conformance.subject import Subject

_CALLS = 50


class TestDeterminism:
    """Where it is claimed, equal inputs give equal bytes; elsewhere, equal within tolerance."""

    @requires("deterministic")
    def test_call_after_call(self, subject: Subject, load: Any) -> None:
        """Many calls give the same bytes."""
        network = subject.network("deep")
        predictor = load("deep")
        inputs = network.inputs_for(rows=8)
        first = predictor.predict(inputs)
        for _ in range(_CALLS):
            for name, array in predictor.predict(inputs).items():
                assert_equal(array, first[name], name)

    @requires("deterministic")
    def test_load_after_load(self, subject: Subject, load: Any) -> None:
        """Predictors loaded one after another give the same bytes."""
        network = subject.network("math_float32")
        inputs = network.inputs_for(rows=8)
        first = load("math_float32").predict(inputs)
        for _ in range(4):
            for name, array in load("math_float32").predict(inputs).items():
                assert_equal(array, first[name], name)

    @requires("deterministic")
    def test_whatever_came_between(self, subject: Subject, load: Any) -> None:
        """Calls of other shapes in between change no byte."""
        network = subject.network("deep")
        predictor = load("deep")
        inputs = network.inputs_for(rows=8)
        first = predictor.predict(inputs)
        for rows in (1, 33, 8, 2) if subject.claims.dynamic_dims else (8, 8):
            predictor.predict(network.inputs_for(rows=rows, seed=rows))
            for name, array in predictor.predict(inputs).items():
                assert_equal(array, first[name], name)

    @refuses("deterministic")
    def test_within_tolerance(self, subject: Subject, load: Any) -> None:
        """Where equal bytes are not claimed, every call is still within tolerance."""
        network = subject.network("deep")
        predictor = load("deep")
        inputs = network.inputs_for(rows=8)
        wanted = network.oracle(inputs)
        for _ in range(_CALLS):
            assert_outputs(predictor.predict(inputs), wanted)
