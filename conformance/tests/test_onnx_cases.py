"""ONNX's cases as data, and what the test that runs them makes of right and wrong answers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridge.errors import UnsupportedModel

pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

from bridge_conformance.datasets import onnx_cases
from bridge_conformance.suite.test_onnx import TestOnnx as Suite

ADD = "test_add"
SEQUENCE = "test_identity_sequence"


def test_names_are_unique_and_of_every_kind() -> None:
    names = onnx_cases.names()
    assert len(names) == len(set(names)) > 1900
    assert names == tuple(name for kind in onnx_cases.KINDS for name in onnx_cases.names(kind))
    assert ADD in onnx_cases.names("node")
    with pytest.raises(KeyError):
        onnx_cases.case("test_nothing")


def test_values_are_arrays_lists_or_none() -> None:
    kinds: Counter[str] = Counter()
    for name in onnx_cases.names():
        case = onnx_cases.case(name)
        for data in case.data_sets:
            assert len(data.inputs) <= len(case.interface.inputs)
            assert len(data.outputs) == len(case.interface.outputs)
            for value in (*data.inputs, *data.outputs):
                kinds[type(value).__name__] += 1
                if isinstance(value, np.ndarray):
                    assert value.dtype.kind != "U"
    assert set(kinds) == {"ndarray", "list", "NoneType"}


def test_facts_of_a_case() -> None:
    plain = onnx_cases.case(ADD).interface
    assert (plain.inputs, plain.outputs, plain.others) == (("x", "y"), ("sum",), frozenset())
    assert not plain.is_random
    assert plain.missing is None
    assert onnx_cases.case(SEQUENCE).interface.others == {"x", "y"}
    assert onnx_cases.case("test_bernoulli").interface.is_random


@pytest.mark.parametrize("there", [False, True])
def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(onnx_cases, "_has_locale", lambda: there)
    monkeypatch.setattr(onnx_cases.importlib.util, "find_spec", lambda name: there or None)
    for name, lacking in (
        ("test_strnormalizer_nostopwords_nochangecase", "locale"),
        ("test_image_decoder_decode_png_rgb", "Pillow"),
    ):
        missing = onnx_cases.case(name).interface.missing
        assert missing is None if there else lacking in str(missing)


class Predictor:
    def __init__(self, answer: Any) -> None:
        self.predict = answer

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def right(case: onnx_cases.OnnxCase, change: Any = lambda array: array) -> dict[str, Any]:
    (data,) = case.data_sets
    changed = [change(value) for value in data.outputs]
    return dict(zip(case.interface.outputs, changed, strict=True))


def run(name: str, ours: Any, alone: Any = right, *, known: bool = False) -> dict[str, Any]:
    """What is recorded; ``ours`` and ``alone`` make the answers for a case, or raise."""
    case = onnx_cases.case(name)
    properties: dict[str, Any] = {}

    def load(model: bytes, options: Any = None) -> Predictor:
        answers = ours(case, options) if ours is lifted else ours(case)
        return Predictor(lambda inputs: answers)

    subject = SimpleNamespace(
        backend=SimpleNamespace(name="tried"),
        native=lambda model: None if alone is None else (lambda inputs: alone(case), dict),
        open=load,
    )
    mark = SimpleNamespace(get_closest_marker=lambda name: "mark" if known else None)
    request = SimpleNamespace(node=mark)
    Suite().test_case(subject, "onnx", name, request, properties.__setitem__)
    return properties


def lifted(case: onnx_cases.OnnxCase, options: Any) -> dict[str, Any]:
    if options != {"rough": True}:
        raise UnsupportedModel("it is too fine.", options={"rough": True})
    return right(case)


def wrong(case: onnx_cases.OnnxCase) -> dict[str, Any]:
    return right(case, lambda array: array + 1)


def wider(case: onnx_cases.OnnxCase) -> dict[str, Any]:
    return right(case, lambda array: array.astype(np.float64))


def flatter(case: onnx_cases.OnnxCase) -> dict[str, Any]:
    return right(case, np.ravel)


def raising(error: Exception) -> Any:
    def answer(case: onnx_cases.OnnxCase) -> dict[str, Any]:
        raise error

    return answer


def test_right_answers_pass() -> None:
    assert run(ADD, right) == {"native": "passed"}
    assert run(ADD, right, wrong) == {"native": "failed"}
    assert run(ADD, right, None) == {}
    assert run(SEQUENCE, right) == {"native": "passed"}


@pytest.mark.parametrize("answer", [wrong, wider, flatter])
def test_wrong_answers_fail_and_name_whose_fault_it_is(answer: Any) -> None:
    with pytest.raises(pytest.fail.Exception, match="tried alone passes this case; the bridge"):
        run(ADD, answer)
    with pytest.raises(pytest.fail.Exception, match=r"^output 'sum' "):
        run(ADD, answer, answer)
    with pytest.raises(pytest.fail.Exception, match=r"^output 'sum' "):
        run(ADD, answer, None)


def test_errors_fail_by_class() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^UnsupportedModel: no\."):
        run(ADD, raising(UnsupportedModel("no.", tensor="x")), wrong)
    with pytest.raises(pytest.fail.Exception, match="KeyError instead of an error of the bridge"):
        run(ADD, raising(KeyError("x")), raising(KeyError("x")))


def test_sequences_may_be_refused_by_name() -> None:
    refused = run(SEQUENCE, raising(UnsupportedModel("no.", tensor="x")))
    assert refused == {"native": "passed", "refused": "no."}
    with pytest.raises(pytest.fail.Exception, match="the bridge fails"):
        run(SEQUENCE, raising(UnsupportedModel("no.", tensor="z")))


def test_a_refusal_that_names_options_is_answered_with_them() -> None:
    assert run(ADD, lifted)["options"] == "{'rough': True}"


def test_drawn_values_may_be_any_but_not_of_any_type() -> None:
    assert run("test_bernoulli", wrong) == {"native": "passed"}
    with pytest.raises(pytest.fail.Exception, match="has shape"):
        run("test_bernoulli", taller)


def taller(case: onnx_cases.OnnxCase) -> dict[str, Any]:
    return right(case, lambda array: array[None])


def test_what_the_machine_lacks_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cases, "_has_locale", lambda: False)
    name = "test_strnormalizer_nostopwords_nochangecase"
    no = raising(UnsupportedModel("no."))
    with pytest.raises(pytest.skip.Exception, match="not verified: the locale .* no"):
        run(name, no, no)
    with pytest.raises(pytest.fail.Exception):
        run(name, no, no, known=True)
    with pytest.raises(pytest.fail.Exception, match="alone passes"):
        run(name, no)
