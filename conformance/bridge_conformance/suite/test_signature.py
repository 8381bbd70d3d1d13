"""What a predictor says about its inputs and outputs."""

from __future__ import annotations

from typing import Any

import pytest

from bridge import DType
from bridge.registry import registry
from bridge_conformance.claims import requires
from bridge_conformance.subject import Subject
from bridge_conformance.writing import writers

_FORMATS = sorted({one.name for one in registry().formats} & set(writers()))


class TestSignature:
    """Names, dtypes and shapes are those that the model's author gave."""

    @pytest.mark.parametrize(
        "network", ["affine", "aliasing", "fixed", "forty", "mixed", "reduce", "scalar", "two"]
    )
    def test_names_dtypes_shapes(self, subject: Subject, load: Any, network: str) -> None:
        """Inputs and outputs have the model's names, dtypes, ranks and fixed dims."""
        wanted = subject.network(network).signature
        signature = load(network).signature
        # As sets: a SavedModel keeps its inputs by name, and has no order of its own.
        assert set(signature.input_names) == set(wanted.input_names)
        assert set(signature.output_names) == set(wanted.output_names)
        for spec in (*wanted.inputs, *wanted.outputs):
            side = signature.input if spec in wanted.inputs else signature.output
            found = side(spec.name)
            assert found.dtype == spec.dtype
            assert found.shape is not None
            assert spec.shape is not None
            assert len(found.shape) == len(spec.shape)
            fixed = [dim if isinstance(dim, int) else None for dim in spec.shape]
            assert [dim if isinstance(dim, int) else None for dim in found.shape] == fixed

    @requires("dtype")
    @pytest.mark.parametrize("dtype", list(DType), ids=str)
    def test_dtype(self, subject: Subject, load: Any, dtype: DType) -> None:
        """A tensor's dtype is the one that the model states."""
        signature = load(f"identity_{dtype}").signature
        assert signature.input("x").dtype is dtype
        assert signature.output("y").dtype is dtype

    @requires("format")
    @pytest.mark.parametrize("format", _FORMATS)
    def test_format(self, subject: Subject, load: Any, format: str) -> None:
        """In every format, each input and output has a name, and counts are right."""
        signature = load("affine", format).signature
        assert len(signature.inputs) == 1
        assert len(signature.outputs) == 1
        assert all(spec.name for spec in (*signature.inputs, *signature.outputs))

    def test_results_fit_it(self, subject: Subject, load: Any) -> None:
        """Dtypes and shapes of results are those that the signature promises."""
        network = subject.network("mixed")
        predictor = load("mixed")
        outputs = predictor.predict(network.inputs_for(rows=4))
        for name in network.signature.output_names:
            array, spec = outputs[name], predictor.signature.output(name)
            assert DType.of(array.dtype) is spec.dtype
            for size, dim in zip(array.shape, spec.shape, strict=True):
                assert not isinstance(dim, int) or size == dim

    @requires("dynamic_dims")
    def test_rows_are_known(self, subject: Subject, load: Any) -> None:
        """The dim that counts rows is found in every input that has one."""
        assert load("mixed").signature.batch_axes() == {"ids": 0, "dense": 0, "flag": 0}

    @requires("dynamic_dims")
    def test_warmup(self, subject: Subject, load: Any) -> None:
        """``warmup`` makes inputs from the signature, for any number of rows."""
        network = subject.network("mixed")
        predictor = load("mixed")
        predictor.warmup(batches=(1, 8))
        predictor.warmup(network.inputs_for(rows=2))
