"""What counts as equal, and that nothing is compared with itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bridge_conformance.calls import call_of, copies
from bridge_conformance.comparison import assert_close, assert_equal
from bridge_conformance.networks import NETWORKS
from bridge_conformance.suite.test_determinism import TestDeterminism as Determinism
from bridge_conformance.suite.test_properties import TestProperties as Properties

FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_sign_of_zero_counts(dtype: Any) -> None:
    odd = np.array([np.nan, 0.0, -0.0, -1.5], dtype)
    assert_equal(odd, odd.copy())
    assert_equal(np.array(-0.0, dtype), np.array(-0.0, dtype))
    with pytest.raises(AssertionError, match=r"'y': differs in sign at \(1,\): 0.*, not -0"):
        assert_equal(odd, np.array([np.nan, -0.0, -0.0, -1.5], dtype), "y")
    assert_close(np.array([0.0], dtype), np.array([-0.0], dtype))


def test_the_sign_of_nan_does_not_count() -> None:
    assert_equal(np.array([np.nan]), np.array([-np.nan]))


@pytest.mark.parametrize(
    ("got", "part"),
    [
        (complex(0.0, 1.5), "real"),
        (complex(1.0, -0.0), "imag"),
        (complex(float("nan"), 1.0), "imag"),
    ],
)
def test_both_parts_of_a_complex_number_count(got: complex, part: str) -> None:
    wanted = {
        complex(0.0, 1.5): complex(-0.0, 1.5),
        complex(1.0, -0.0): complex(1.0, 0.0),
    }.get(got, complex(float("nan"), 2.0))
    with pytest.raises(AssertionError, match=f"'y.{part}'"):
        assert_equal(np.array([got]), np.array([wanted]), "y")


def test_outputs_are_copied_and_complete() -> None:
    answer = {"y": np.ones(3)}
    kept = copies(answer, ["y"])
    answer["y"][...] = 0
    np.testing.assert_array_equal(kept["y"], np.ones(3))
    for wanted in (["y", "z"], []):
        with pytest.raises(AssertionError, match=r"outputs are \['y'\]"):
            copies(answer, wanted)


class Drifting:
    """Answers in the same arrays at each call, a little more each time."""

    def __init__(self, network: str, dropped: int = 0) -> None:
        self.signature = NETWORKS[network].signature
        self.dropped = dropped
        self.held: dict[tuple[str, int], Any] = {}

    def predict(self, inputs: Any) -> dict[str, Any]:
        (rows, *_) = {len(array) for array in inputs.values()}
        names = self.signature.output_names
        for name in names[: len(names) - self.dropped]:
            self.held.setdefault((name, rows), np.zeros((rows, 1), np.float32))[...] += 1
        return {name: array for (name, count), array in self.held.items() if count == rows}


def test_a_call_keeps_its_answer() -> None:
    predictor: Any = Drifting("affine")
    call = call_of(predictor, {"x": np.ones((3, 4))})
    predictor.predict(call.inputs)
    np.testing.assert_array_equal(call.answer["y"], np.full((3, 1), 2))


@pytest.mark.parametrize("dropped", [0, 1])
@pytest.mark.parametrize(
    ("test", "network"),
    [
        (Determinism().test_call_after_call, "deep"),
        (Determinism().test_whatever_came_between, "deep"),
        (Properties().test_calls_leave_no_trace, "mixed"),
    ],
)
def test_answers_in_one_buffer_are_not_compared_with_themselves(
    test: Any, network: str, dropped: int
) -> None:
    subject = SimpleNamespace(
        network=NETWORKS.__getitem__, claims=SimpleNamespace(dynamic_dims=True)
    )
    with pytest.raises(AssertionError):
        test(subject, lambda name: Drifting(network, dropped))
