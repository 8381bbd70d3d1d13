"""ONNX's own test cases: the runtime alone, then the bridge, in the same process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bridge.errors import BridgeError, UnsupportedModel
from bridge.loading import open_model
from bridge_conformance.claims import full, not_verified, requires
from bridge_conformance.comparison import difference
from bridge_conformance.datasets import onnx_cases
from bridge_conformance.datasets.onnx_cases import OnnxCase
from bridge_conformance.subject import Subject, subject_of
from bridge_conformance.tolerance import Tolerance

_FORMAT = "onnx"
_BFLOAT16_RTOL = 2**-6  # two units in the last place, as in onnx/backend/test/runner

# Runs one data set: inputs by name to outputs in the order of the graph.
_Call = Callable[[dict[str, Any]], Sequence[Any]]


@full
@requires("format")
@pytest.mark.filterwarnings("ignore")  # numpy's about infinities; the values are compared
class TestOnnx:
    """What the runtime answers alone, it answers through the bridge: ONNX's own cases."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each case; their names are not looked up for backends without ONNX."""
        names: Sequence[str] = ("any",)
        if (
            _FORMAT in subject_of(metafunc.config, metafunc.cls).claims.formats
            and onnx_cases.is_installed()
        ):
            names = onnx_cases.names()
        metafunc.parametrize(("format", "name"), [(_FORMAT, name) for name in names], ids=names)

    def test_case(
        self,
        subject: Subject,
        format: str,
        name: str,
        request: pytest.FixtureRequest,
        record_property: Callable[[str, object], None],
    ) -> None:
        """Names, dtypes, shapes and values are those that ONNX states.

        A model whose inputs or outputs are sequences or optional values may be refused by
        an UnsupportedModel that names one of them. A refusal that names the options which
        lift it is answered with these options. What is drawn may have any values.
        """
        if not onnx_cases.is_installed():
            not_verified("onnx, which holds the cases, is not installed.")
        case = onnx_cases.case(name)
        alone = _alone(subject, case)
        if alone is not _UNKNOWN:
            record_property("native", "failed" if alone else "passed")
        try:
            ours = _through_the_bridge(subject, case, record_property)
        except UnsupportedModel as error:
            if error.detail.get("tensor") in case.interface.others:
                record_property("refused", str(error))
                return
            ours = f"{type(error).__name__}: {error}"
        except BridgeError as error:
            ours = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - it fails the test, by its class
            ours = f"{type(error).__name__} instead of an error of the bridge's own: {error}"
        missing = case.interface.missing
        is_known = request.node.get_closest_marker("xfail") is not None
        if ours and alone is not None and missing is not None and not is_known:
            not_verified(f"{missing}; {ours}")
        if ours and alone is None:
            ours = f"{subject.backend.name} alone passes this case; the bridge fails: {ours}"
        if ours:
            pytest.fail(ours, pytrace=False)


_UNKNOWN = "the backend has no native.py"


def _alone(subject: Subject, case: OnnxCase) -> str | None:
    """What is wrong with the runtime's own answers; ``None`` if nothing is."""
    try:
        native = subject.native(open_model(case.model))
        if native is None:
            return _UNKNOWN
        call, named = native
        return _problem(case, lambda inputs: [_array(one) for one in named(call(inputs)).values()])
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises, it has not passed
        return f"{type(error).__name__}: {error}"


def _array(value: Any) -> Any:
    """Scalars as arrays and texts as objects: no runtime fails for numpy's habits."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "UT":
        return value.astype(object)
    return value


def _through_the_bridge(
    subject: Subject, case: OnnxCase, record_property: Callable[[str, object], None]
) -> str | None:
    try:
        predictor = subject.open(case.model)
    except UnsupportedModel as error:
        options = error.detail.get("options")
        if options is None:
            raise
        record_property("options", str(options))
        predictor = subject.open(case.model, options=options)
    names = case.interface.outputs

    def call(inputs: dict[str, Any]) -> Sequence[Any]:
        outputs = predictor.predict(inputs)
        return [outputs[name] for name in names]

    with predictor:
        return _problem(case, call)


def _problem(case: OnnxCase, call: _Call) -> str | None:
    """What is wrong with the answers of a call, the first thing only."""
    interface = case.interface
    for data in case.data_sets:
        # A case may leave out the last inputs, those that have a default.
        got = call(dict(zip(interface.inputs, data.inputs, strict=False)))
        if len(got) != len(data.outputs):
            return f"there are {len(got)} outputs; wanted {len(data.outputs)}"
        for name, one, wanted in zip(interface.outputs, got, data.outputs, strict=True):
            problem = _difference(one, wanted, case, is_random=interface.is_random)
            if problem is not None:
                return f"output '{name}' {problem}"
    return None


def _difference(got: Any, wanted: Any, case: OnnxCase, *, is_random: bool) -> str | None:
    if wanted is None:
        return None if got is None else f"is of class {type(got).__name__}; wanted None"
    if isinstance(wanted, list):
        if not isinstance(got, (list, tuple)):
            return f"is of class {type(got).__name__}; wanted a list"
        if len(got) != len(wanted):
            return f"has {len(got)} elements; wanted {len(wanted)}"
        pairs = zip(got, wanted, strict=True)
        found = (_difference(one, other, case, is_random=is_random) for one, other in pairs)
        return next((problem for problem in found if problem is not None), None)
    rtol = case.rtol
    if wanted.dtype.name == "bfloat16":
        rtol = max(rtol, _BFLOAT16_RTOL)
    if is_random and isinstance(got, np.ndarray):
        wanted, got = np.zeros_like(wanted), np.zeros_like(got)
    return difference(got, wanted, Tolerance(rtol, case.atol))
