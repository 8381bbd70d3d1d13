"""Equal inputs, equal outputs."""

from __future__ import annotations

from typing import Any

import bridge
from bridge.check import Arrays
from bridge_conformance.calls import copies
from bridge_conformance.claims import refuses, requires
from bridge_conformance.comparison import assert_equal, assert_outputs
from bridge_conformance.network import Network
from bridge_conformance.subject import Subject

_CALLS = 50


def _answer(predictor: bridge.Predictor, network: Network, inputs: Arrays) -> Arrays:
    return copies(predictor.predict(inputs), network.signature.output_names)


def _assert_same_bytes(got: Arrays, wanted: Arrays) -> None:
    __tracebackhide__ = True
    for name, array in wanted.items():
        assert_equal(got[name], array, name)
        if array.dtype != object:  # the bytes of which are addresses
            assert got[name].tobytes() == array.tobytes(), f"'{name}' has other bytes"


class TestDeterminism:
    """Where it is claimed, equal inputs give equal bytes; elsewhere, equal within tolerance."""

    @requires("deterministic")
    def test_call_after_call(self, subject: Subject, load: Any) -> None:
        """Many calls give the same bytes."""
        network = subject.network("deep")
        predictor = load("deep")
        inputs = network.inputs_for(rows=8)
        first = _answer(predictor, network, inputs)
        for _ in range(_CALLS):
            _assert_same_bytes(_answer(predictor, network, inputs), first)

    @requires("deterministic")
    def test_load_after_load(self, subject: Subject, load: Any) -> None:
        """Predictors loaded one after another give the same bytes."""
        network = subject.network("math_float32")
        inputs = network.inputs_for(rows=8)
        first = _answer(load("math_float32"), network, inputs)
        for _ in range(4):
            _assert_same_bytes(_answer(load("math_float32"), network, inputs), first)

    @requires("deterministic")
    def test_whatever_came_between(self, subject: Subject, load: Any) -> None:
        """Calls of other shapes in between change no byte."""
        network = subject.network("deep")
        predictor = load("deep")
        inputs = network.inputs_for(rows=8)
        first = _answer(predictor, network, inputs)
        for rows in (1, 33, 8, 2) if subject.claims.dynamic_dims else (8, 8):
            predictor.predict(network.inputs_for(rows=rows, seed=rows))
            _assert_same_bytes(_answer(predictor, network, inputs), first)

    @refuses("deterministic")
    def test_within_tolerance(self, subject: Subject, load: Any) -> None:
        """Where equal bytes are not claimed, every call is still within tolerance."""
        network = subject.network("deep")
        predictor = load("deep")
        inputs = network.inputs_for(rows=8)
        wanted = network.oracle(inputs)
        for _ in range(_CALLS):
            assert_outputs(predictor.predict(inputs), wanted)
