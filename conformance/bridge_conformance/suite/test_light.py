"""The networks that lie inside the onnx package without their weights."""

from __future__ import annotations

import pytest

from bridge_conformance.claims import full, not_verified, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.datasets import light
from bridge_conformance.datasets.cases import LibraryMissing
from bridge_conformance.subject import Subject


@full
@requires("format")
class TestLight:
    """Well-known convolutional networks give the outputs that onnx has stored."""

    @pytest.mark.parametrize(
        ("network", "format"), [pytest.param(name, "onnx", id=name) for name in light.NETWORKS]
    )
    def test_network(self, subject: Subject, network: str, format: str) -> None:
        """Names, dtypes and shapes are the graph's, values within the tolerance it states."""
        try:
            case, tolerance = light.case(network)
        except LibraryMissing as error:
            not_verified(str(error))
        with subject.open(case.model) as predictor:
            assert_outputs(predictor.predict(case.inputs), case.outputs, tolerance)
