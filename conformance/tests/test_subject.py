"""How tests get models and predictors, and which troubles are failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.device import CPU
from bridge.errors import UnsupportedModel
from bridge.registry import registry
from bridge_conformance import subject as module
from bridge_conformance.subject import Subject
from bridge_conformance.writing import NotWritable, WriterFailed


@pytest.fixture
def subject() -> Subject:
    return Subject(registry().backends.get("reference"), CPU)


@pytest.mark.parametrize(("is_stated", "count"), [(True, 1), (False, 2)])
def test_a_signature_is_declared_only_where_the_model_states_none(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, is_stated: bool, count: int
) -> None:
    tries: list[dict[str, Any]] = []

    def refuse(model: Path, **arguments: Any) -> bridge.Predictor:
        tries.append(arguments)
        raise UnsupportedModel(f"try {len(tries)} is refused.", fix="Give up.")

    monkeypatch.setattr(subject, "path", lambda *_: Path("affine.onnx"))
    monkeypatch.setattr(subject, "open", refuse)
    monkeypatch.setattr(module, "_states_inputs", lambda model: is_stated)
    with pytest.raises(UnsupportedModel, match="try 1 is refused"):
        subject.load("affine", "onnx")
    assert tries == [{}, {"signature": subject.network("affine").signature}][:count]


def test_which_formats_state_their_inputs(subject: Subject) -> None:
    pytest.importorskip("onnx")
    assert module._states_inputs(subject.path("affine", "onnx"))
    pytest.importorskip("onnxruntime")
    assert not module._states_inputs(subject.path("affine", "ort"))


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (NotWritable("no plugin writes it."), pytest.skip.Exception),
        (WriterFailed("the process ended with status 1."), WriterFailed),
    ],
)
def test_a_writer_that_fails_fails_the_test(
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    outcome: type[BaseException],
) -> None:
    def written(format: str) -> None:
        raise problem

    monkeypatch.setattr(module, "written", written)
    for ask in (subject.path, subject.can_write):
        with pytest.raises(outcome, match=str(problem)):
            ask("affine", "onnx")
