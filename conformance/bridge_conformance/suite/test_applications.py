"""Keras applications with random weights, as SavedModels."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_conformance.claims import full, not_verified, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.datasets.applications import APPLICATIONS, ARCHITECTURES, TOLERANCE
from bridge_conformance.datasets.cases import LibraryMissing
from bridge_conformance.subject import Subject
from bridge_conformance.tolerance import Tolerance


@full
@requires("format")
class TestApplications:
    """Networks of Keras with random weights give what Keras computes in float64."""

    @pytest.mark.parametrize(
        ("architecture", "format"),
        [pytest.param(name, "saved_model", id=name) for name in ARCHITECTURES],
    )
    def test_application(self, subject: Subject, architecture: str, format: str) -> None:
        """Names, dtypes and shapes are those of the model, values close to the largest one's."""
        try:
            case = APPLICATIONS.stored().case(architecture)
        except LibraryMissing as error:
            not_verified(str(error))
        largest = max(float(np.abs(array).max()) for array in case.outputs.values())
        with subject.open(case.model) as predictor:
            outputs = predictor.predict(case.inputs)
        assert_outputs(outputs, case.outputs, Tolerance(0.0, TOLERANCE * largest))
