"""Wrong calls: the right class, the facts as attributes, one sentence and one fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bridge.errors import (
    BridgeError,
    DTypeMismatch,
    InputError,
    MissingInput,
    PredictError,
    ShapeMismatch,
    UnexpectedInput,
)
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.subject import Subject


def _check(error: BridgeError, subject: Subject, network: str) -> None:
    """What every error of a call has to tell."""
    assert error.backend == subject.backend.name
    assert error.model == subject.path(network).name
    assert error.device == str(subject.device)
    assert error.message.endswith((".", "!", "?"))
    assert "\n" not in error.message
    assert str(error).startswith(error.message)


class TestErrors:
    """Every wrong call raises the class that names the mistake, and harms nothing."""

    def test_missing_input(self, subject: Subject, load: Any) -> None:
        """An input left out raises MissingInput, which names it."""
        inputs = subject.network("mixed").inputs_for()
        del inputs["dense"]
        with pytest.raises(MissingInput, match="'dense'") as caught:
            load("mixed").predict(inputs)
        _check(caught.value, subject, "mixed")
        assert caught.value.detail["missing"] == ["dense"]

    def test_unexpected_input(self, subject: Subject, load: Any) -> None:
        """An input that there is not raises UnexpectedInput, which names the nearest."""
        inputs = subject.network("mixed").inputs_for()
        inputs["dens"] = inputs.pop("dense")
        with pytest.raises(UnexpectedInput, match="'dens'") as caught:
            load("mixed").predict(inputs)
        _check(caught.value, subject, "mixed")
        assert caught.value.detail["unexpected"] == ["dens"]
        assert "'dense'" in (caught.value.fix or "")

    def test_one_input_too_many(self, subject: Subject, load: Any) -> None:
        """Everything that is needed and something else raises UnexpectedInput."""
        inputs = subject.network("affine").inputs_for()
        with pytest.raises(UnexpectedInput, match="'extra'"):
            load("affine").predict({**inputs, "extra": inputs["x"]})

    @pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64", "bool", "complex64"])
    def test_wrong_dtype(self, subject: Subject, load: Any, dtype: str) -> None:
        """Another dtype raises DTypeMismatch, which says how to convert."""
        with pytest.raises(DTypeMismatch, match=dtype) as caught:
            load("affine").predict({"x": np.ones((2, 4), dtype)})
        _check(caught.value, subject, "affine")
        assert caught.value.detail["input"] == "x"
        assert caught.value.detail["wanted"] == "float32"
        assert caught.value.detail["got"] == dtype
        assert "float32" in (caught.value.fix or "")

    @pytest.mark.parametrize("shape", [(4,), (2, 4, 1), (), (2, 5), (2, 3), (4, 2)], ids=str)
    def test_wrong_shape(self, subject: Subject, load: Any, shape: tuple[int, ...]) -> None:
        """Another rank or another size of a fixed dim raises ShapeMismatch."""
        with pytest.raises(ShapeMismatch) as caught:
            load("affine").predict({"x": np.ones(shape, np.float32)})
        _check(caught.value, subject, "affine")
        assert caught.value.detail["input"] == "x"
        assert tuple(caught.value.detail["got"]) == shape

    @pytest.mark.parametrize("rows", [1, 3, 0])
    def test_wrong_fixed_rows(self, subject: Subject, load: Any, rows: int) -> None:
        """A fixed number of rows is that number and no other."""
        with pytest.raises(ShapeMismatch):
            load("fixed").predict({"x": np.ones((rows, 4), np.float32)})

    @pytest.mark.parametrize(
        "value",
        [None, [1.0, 2.0, 3.0, 4.0], 1.0, "text", object(), {"x": 1}],
        ids=["None", "list", "float", "str", "object", "dict"],
    )
    def test_no_array(self, subject: Subject, load: Any, value: object) -> None:
        """What is no array raises InputError, which says what to pass."""
        with pytest.raises(InputError) as caught:
            load("affine").predict({"x": value})
        _check(caught.value, subject, "affine")
        assert caught.value.fix

    @pytest.mark.parametrize("kind", ["object", "text", "structured", "datetime", "masked"])
    def test_odd_array(self, subject: Subject, load: Any, kind: str) -> None:
        """Arrays of objects, texts, records, dates or masked elements raise InputError."""
        arrays: dict[str, Any] = {
            "object": np.full((2, 4), 1.0, object),
            "text": np.full((2, 4), "1"),
            "structured": np.zeros((2, 4), [("a", np.float32)]),
            "datetime": np.zeros((2, 4), "datetime64[s]"),
            "masked": np.ma.masked_equal(np.eye(2, 4, dtype=np.float32), 1),
        }
        with pytest.raises(InputError):
            load("affine").predict({"x": arrays[kind]})

    @pytest.mark.parametrize(
        "inputs",
        [None, [], (), "x", 1, np.ones((2, 4), np.float32)],
        ids=["None", "list", "tuple", "str", "int", "array"],
    )
    def test_no_mapping(self, subject: Subject, load: Any, inputs: object) -> None:
        """Inputs that are no mapping raise InputError."""
        with pytest.raises(InputError) as caught:
            load("affine").predict(inputs)
        _check(caught.value, subject, "affine")

    def test_names_that_are_no_text(self, subject: Subject, load: Any) -> None:
        """Keys that are no names raise UnexpectedInput."""
        array = subject.network("affine").inputs_for()["x"]
        with pytest.raises(UnexpectedInput):
            load("affine").predict({0: array})

    def test_predictor_survives(self, subject: Subject, load: Any) -> None:
        """After any wrong call, right ones are answered as before."""
        network = subject.network("affine")
        predictor = load("affine")
        inputs = network.inputs_for()
        wanted = network.oracle(inputs)
        wrong: list[Any] = [
            {},
            None,
            {"x": None},
            {"x": np.ones((2, 5), np.float32)},
            {"x": np.ones((2, 4))},
            {"y": inputs["x"]},
        ]
        for one in wrong:
            with pytest.raises(InputError):
                predictor.predict(one)
            assert_outputs(predictor.predict(inputs), wanted)

    def test_failure_of_the_runtime(self, subject: Subject, load: Any) -> None:
        """What only the runtime can find wrong raises PredictError, and harms nothing."""
        # Not every format can say both; each is refused by every correct runtime.
        name = "reshape" if subject.can_write("reshape") else "lookup"
        network = subject.network(name)
        predictor = load(name)
        good = network.inputs_for()
        bad = network.inputs_for(rows=5) if name == "reshape" else {"ids": good["ids"] + 1000}
        for _ in range(3):
            with pytest.raises(PredictError) as caught:
                predictor.predict(bad)
            _check(caught.value, subject, name)
            assert caught.value.__cause__ is not None or caught.value.detail
            assert_outputs(predictor.predict(good), network.oracle(good))

    def test_ids_beyond_the_table(self, subject: Subject, load: Any) -> None:
        """An id that a table does not have raises PredictError; no other memory is read."""
        network = subject.network("lookup")
        predictor = load("lookup")
        good = network.inputs_for()
        for wrong in (10, 2**31 - 1):
            with pytest.raises(PredictError):
                predictor.predict({"ids": np.full_like(good["ids"], wrong)})
            assert_outputs(predictor.predict(good), network.oracle(good))
