"""Bound calls: buffers made once, filled and read in place."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from bridge import Bound
from bridge.errors import InputError, PredictError, PredictorClosed, ShapeMismatch
from bridge_conformance.claims import refuses, requires
from bridge_conformance.comparison import assert_close, assert_outputs
from bridge_conformance.subject import Subject
from bridge_conformance.tracing import traced_peak_bytes


def _shapes(inputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.items()}


class TestBinding:
    """``bind()`` answers in place, again and again, without losing a value."""

    @pytest.mark.parametrize("network", ["affine", "aliasing", "fixed", "forty", "mixed", "scalar"])
    def test_answers(self, subject: Subject, load: Any, network: str) -> None:
        """Filled buffers give the oracle's outputs, call after call."""
        one = subject.network(network)
        predictor = load(network)
        bound = predictor.bind(_shapes(one.inputs_for()))
        for seed in range(5):
            inputs = one.inputs_for(seed=seed)
            for name, array in inputs.items():
                bound.inputs[name][...] = array
            bound.predict()
            assert_outputs(dict(bound.outputs), one.oracle(inputs))

    def test_buffers(self, subject: Subject, load: Any) -> None:
        """Buffers have the signature's dtypes, the shapes asked for, and C order."""
        network = subject.network("mixed")
        inputs = network.inputs_for(rows=4)
        bound = load("mixed").bind(_shapes(inputs))
        assert set(bound.inputs) == set(inputs)
        for name, array in inputs.items():
            buffer = bound.inputs[name]
            assert buffer.dtype == array.dtype
            assert buffer.shape == array.shape
            assert buffer.flags.carray
            assert not buffer.any()

    def test_arrays_stay_the_same(self, subject: Subject, load: Any) -> None:
        """From the first call on, outputs are the same arrays, overwritten by each call."""
        network = subject.network("affine")
        inputs = network.inputs_for(rows=4)
        bound = load("affine").bind(_shapes(inputs))
        bound.predict()
        buffer, output = bound.inputs["x"], bound.outputs["y"]
        for seed in range(4):
            again = network.inputs_for(rows=4, seed=seed)
            bound.inputs["x"][...] = again["x"]
            bound.predict()
            assert bound.inputs["x"] is buffer
            assert bound.outputs["y"] is output
            assert_close(output, network.oracle(again)["y"], "y")

    @requires("bind")
    def test_is_the_backends_own(self, subject: Subject, load: Any) -> None:
        """Where binding is claimed, it is the runtime's, not the bridge's ordinary call."""
        bound = load("large").bind({"x": (16, 65536)})
        assert type(bound) is not Bound

    @requires("bind")
    def test_nothing_is_copied(self, subject: Subject, load: Any) -> None:
        """A bound call makes no array of the size of its inputs or outputs."""
        network = subject.network("large")
        inputs = network.inputs_for(rows=16)
        bound = load("large").bind(_shapes(inputs))
        bound.inputs["x"][...] = inputs["x"]
        peak = traced_peak_bytes(bound.predict)
        assert_outputs(dict(bound.outputs), network.oracle(inputs))
        assert peak < inputs["x"].nbytes // 2, f"{peak} bytes were allocated for arrays"

    @refuses("bind")
    def test_results_are_copied(self, subject: Subject, load: Any) -> None:
        """Where binding is not claimed, it is not done: results are copied by the bridge."""
        network = subject.network("large")
        bound = load("large").bind(_shapes(network.inputs_for(rows=16)))
        bound.predict()
        output = bound.outputs["y"]
        before = output.copy()
        # numpy refuses to copy into such an array; native code that holds its address does not.
        output.flags.writeable = False
        bound.inputs["x"][...] += 1
        with contextlib.suppress(PredictError):
            bound.predict()
        is_in_place = bound.outputs["y"] is output and not (output == before).all()
        assert not is_in_place, "the runtime writes into the bound outputs: claim bind"

    def test_side_by_side(self, subject: Subject, load: Any) -> None:
        """Bound objects of one predictor, and its own calls, do not disturb each other."""
        network = subject.network("affine")
        predictor = load("affine")
        small, large = network.inputs_for(rows=2, seed=1), network.inputs_for(rows=6, seed=2)
        first, second = predictor.bind(_shapes(small)), predictor.bind(_shapes(large))
        first.inputs["x"][...] = small["x"]
        second.inputs["x"][...] = large["x"]
        for _ in range(3):
            second.predict()
            first.predict()
            predictor.predict(network.inputs_for(rows=3, seed=9))
            assert_close(first.outputs["y"], network.oracle(small)["y"], "y")
            assert_close(second.outputs["y"], network.oracle(large)["y"], "y")

    @requires("zero_rows")
    @requires("dynamic_dims")
    def test_zero_rows(self, subject: Subject, load: Any) -> None:
        """An empty batch can be bound."""
        network = subject.network("affine")
        inputs = network.inputs_for(rows=0)
        bound = load("affine").bind(_shapes(inputs))
        for _ in range(2):
            bound.predict()
            assert_outputs(dict(bound.outputs), network.oracle(inputs))

    def test_wrong_shapes(self, subject: Subject, load: Any) -> None:
        """Shapes that do not fit the signature are refused when they are bound."""
        predictor = load("affine")
        with pytest.raises(ShapeMismatch):
            predictor.bind({"x": (2, 5)})
        with pytest.raises(ShapeMismatch):
            predictor.bind({"x": (4,)})
        with pytest.raises(ShapeMismatch):
            predictor.bind({"x": (-1, 4)})
        with pytest.raises(InputError):
            predictor.bind({})
        with pytest.raises(InputError):
            predictor.bind({"x": (2, 4), "other": (1,)})

    def test_after_close(self, subject: Subject, load: Any) -> None:
        """A bound object of a closed predictor raises PredictorClosed; its outputs stay."""
        network = subject.network("affine")
        predictor = load("affine")
        inputs = network.inputs_for(rows=2)
        bound = predictor.bind(_shapes(inputs))
        bound.inputs["x"][...] = inputs["x"]
        bound.predict()
        predictor.close()
        with pytest.raises(PredictorClosed):
            bound.predict()
        assert_close(np.array(bound.outputs["y"]), network.oracle(inputs)["y"], "y")
