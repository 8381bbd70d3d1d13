"""One call: inputs by name, outputs by name, and nothing mixed up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from bridge.errors import ShapeMismatch, UnknownOutput, UnsupportedModel
from bridge_conformance.claims import refuses, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.subject import Subject

_ROWS = (1, 2, 3, 7, 64, 5, 1)


class _Lazy(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class TestPredict:
    """A call answers what was asked: right names, shapes and numbers."""

    @pytest.mark.parametrize("network", ["affine", "fixed", "mixed", "reduce", "scalar", "two"])
    def test_answers(self, subject: Subject, load: Any, network: str) -> None:
        """The outputs are those of the oracle."""
        one = subject.network(network)
        predictor = load(network)
        for seed in range(3):
            inputs = one.inputs_for(seed=seed)
            assert_outputs(predictor.predict(inputs), one.oracle(inputs))

    def test_forty_inputs(self, subject: Subject, load: Any) -> None:
        """Inputs go by name, in whatever order the dict has them."""
        network = subject.network("forty")
        predictor = load("forty")
        inputs = network.inputs_for(rows=4)
        wanted = network.oracle(inputs)
        assert_outputs(predictor.predict(inputs), wanted)
        turned = dict(reversed(inputs.items()))
        assert_outputs(predictor.predict(turned), wanted)
        assert_outputs(predictor.predict(_Lazy(turned)), wanted)

    def test_two_outputs_of_one_shape(self, subject: Subject, load: Any) -> None:
        """Outputs that look alike are not confused."""
        network = subject.network("two")
        inputs = network.inputs_for()
        results = load("two").predict(inputs)
        wanted = network.oracle(inputs)
        assert (results["double"] == wanted["double"]).all()
        assert (results["negative"] == wanted["negative"]).all()

    def test_some_outputs(self, subject: Subject, load: Any) -> None:
        """Exactly the outputs that are asked for come back, in the order asked for."""
        network = subject.network("two")
        predictor = load("two")
        inputs = network.inputs_for()
        wanted = network.oracle(inputs)
        for names in (["negative"], ["double"], ["negative", "double"], ("double", "negative")):
            results = predictor.predict(inputs, names)
            assert list(results) == list(names)
            assert_outputs(results, {name: wanted[name] for name in names})
        assert predictor.predict(inputs, []) == {}

    def test_unknown_output(self, subject: Subject, load: Any) -> None:
        """An output that there is not raises UnknownOutput, which names the nearest."""
        network = subject.network("two")
        with pytest.raises(UnknownOutput, match="negativ") as caught:
            load("two").predict(network.inputs_for(), ["negativ"])
        assert "'negative'" in (caught.value.fix or "")

    def test_scalars(self, subject: Subject, load: Any) -> None:
        """A tensor without dims goes in and comes out as one."""
        network = subject.network("scalar")
        inputs = network.inputs_for()
        assert inputs["x"].shape == ()
        results = load("scalar").predict(inputs)
        assert results["y"].shape == ()
        assert_outputs(results, network.oracle(inputs))

    @requires("dynamic_dims")
    def test_dynamic_rows(self, subject: Subject, load: Any) -> None:
        """The number of rows may change from call to call, up and down."""
        network = subject.network("affine")
        predictor = load("affine")
        for seed, rows in enumerate(_ROWS):
            inputs = network.inputs_for(rows=rows, seed=seed)
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    @requires("dynamic_dims")
    def test_two_dynamic_dims(self, subject: Subject, load: Any) -> None:
        """Several dims may change, each by itself."""
        network = subject.network("reduce")
        predictor = load("reduce")
        for rows, columns in ((2, 3), (3, 2), (1, 1), (5, 40), (40, 5)):
            inputs = network.inputs_for(rows=rows, M=columns)
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    @refuses("dynamic_dims")
    def test_dynamic_rows_are_refused(self, subject: Subject) -> None:
        """A model whose number of rows may change raises UnsupportedModel."""
        with pytest.raises(UnsupportedModel):
            subject.open(subject.path("affine")).close()

    @requires("zero_rows")
    @requires("dynamic_dims")
    @pytest.mark.parametrize("network", ["affine", "forty", "mixed", "reduce", "two"])
    def test_zero_rows(self, subject: Subject, load: Any, network: str) -> None:
        """An empty batch gives empty outputs of the right dtype and shape."""
        one = subject.network(network)
        predictor = load(network)
        inputs = one.inputs_for(rows=0)
        assert_outputs(predictor.predict(inputs), one.oracle(inputs))
        inputs = one.inputs_for(rows=2)
        assert_outputs(predictor.predict(inputs), one.oracle(inputs))

    @refuses("zero_rows")
    @requires("dynamic_dims")
    def test_zero_rows_are_refused(self, subject: Subject, load: Any) -> None:
        """An empty batch raises ShapeMismatch, and the next call answers."""
        network = subject.network("affine")
        predictor = load("affine")
        with pytest.raises(ShapeMismatch):
            predictor.predict(network.inputs_for(rows=0))
        inputs = network.inputs_for()
        assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    def test_big_tensors(self, subject: Subject, load: Any) -> None:
        """Megabytes in and out come through whole."""
        network = subject.network("large")
        inputs = network.inputs_for(rows=16)
        assert_outputs(load("large").predict(inputs), network.oracle(inputs))

    def test_earlier_calls_leave_no_trace(self, subject: Subject, load: Any) -> None:
        """Equal inputs give equal outputs, whatever was computed in between."""
        network = subject.network("mixed")
        predictor = load("mixed")
        inputs = network.inputs_for(rows=3, seed=1)
        wanted = network.oracle(inputs)
        for seed in range(2, 8):
            assert_outputs(predictor.predict(inputs), wanted)
            predictor.predict(network.inputs_for(rows=3, seed=seed))
