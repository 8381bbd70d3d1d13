"""Torch's own database of operators, each as an exported program.

A backend that loads exported programs gets each operator as it is. Where an adapter of the
backend's own plugin turns an exported program into a format that the backend loads, each
operator is also run through that one; what adapters of others cannot convert is no fault of
the backend. A backend that is not native to the format may refuse an operator by a typed
error, and the certificate counts that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import UnsupportedModel
from bridge.loading import open_model
from bridge.registry import registry
from bridge_conformance.claims import full, not_verified, requires
from bridge_conformance.comparison import assert_equal, assert_outputs
from bridge_conformance.datasets.cases import LibraryMissing, NotBuilt
from bridge_conformance.datasets.operators import OPERATORS
from bridge_conformance.subject import Subject, subject_of

_FORMAT = "exported_program"


@full
@requires("format")
class TestOperators:
    """Operators of torch give what torch gives when it runs them eagerly."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each operator, and one more for each adapter that takes it further."""
        subject = subject_of(metafunc.config, metafunc.cls)
        formats = subject.claims.formats
        adapters = registry().adapters
        own = registry().backends.source(subject.backend.name)
        routes = [
            (adapter.name, adapter.target)
            for adapter in adapters
            if _FORMAT in adapter.sources
            and adapter.target in formats
            and adapters.source(adapter.name) == own
        ]
        if _FORMAT in formats or not routes:
            routes.insert(0, ("", _FORMAT))
        try:
            names = OPERATORS.stored().names if _FORMAT in formats or routes[0][0] else ("any",)
        except (LibraryMissing, NotBuilt):  # the test itself says which
            names = ("not-built",)
        metafunc.parametrize(
            ("operator", "adapter", "format"),
            [
                pytest.param(name, adapter, target, id=f"{name}-{adapter}".rstrip("-"))
                for adapter, target in routes
                for name in names
            ],
        )

    # What torch says about operators that it wants to change or remove.
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_operator(
        self,
        subject: Subject,
        operator: str,
        adapter: str,
        format: str,
        tmp_path: Path,
        record_property: Callable[[str, object], None],
    ) -> None:
        """Dtypes and shapes are those of eager torch, values close; inputs stay as they were."""
        try:
            case = OPERATORS.stored().case(operator)
        except LibraryMissing as error:
            not_verified(str(error))
        model = case.model
        if adapter:
            model = tmp_path / f"model.{format}"
            registry().adapters.get(adapter).convert(open_model(case.model), model)
        given = {name: array.copy() for name, array in case.inputs.items()}
        try:
            predictor = subject.open(model)
        except UnsupportedModel as error:
            if registry().formats.get(format).native_backend == subject.backend.name:
                raise
            record_property("refused", str(error))
            return
        with predictor:
            outputs = predictor.predict(given)
        assert len(outputs) == len(case.outputs)
        named = dict(zip(case.outputs, outputs.values(), strict=True))
        assert_outputs(named, case.outputs)
        for name, array in case.inputs.items():
            assert_equal(given[name], array, name)
