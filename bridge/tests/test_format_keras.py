"""Keras archives, judged without Keras: the archives are written by hand."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import InvalidModel, UntrustedModel
from bridge.formats.tensorflow import Keras
from bridge.model import ModelRef


def layer(kind: str, module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


def archive(path: Path, *layers: Any, top: dict[str, Any] | None = None, **members: bytes) -> Path:
    config = {**layer("Sequential", "keras", layers=list(layers)), **(top or {})}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        file.writestr("config.json", json.dumps(config))
        for name, content in members.items():
            file.writestr(name, content)
    return path


def opened(path: Path, *, trust: bool = False) -> ModelRef:
    return ModelRef.open(path, [Keras()], trust=trust)


FUNCTION = {"class_name": "function", "module": "builtins", "config": "relu"}
PASSED = {
    "plain": layer("Dense", units=2, activation="relu"),
    "nested": layer("Bidirectional", layer=layer("LSTM", units=2)),
    "initializer": layer("Dense", kernel_initializer=layer("Zeros", "keras.initializers")),
    "policy": layer("Dense", dtype=layer("DTypePolicy", "keras", name="float32")),
    "operation": layer("Add", "keras.src.ops.numpy"),
    "function": layer("Activation", activation=FUNCTION),
    "short form": layer("Dense", None, units=2),
    "values": layer("Reshape", target_shape={"class_name": "__tensor__", "config": {"value": [1]}}),
    "words": layer("StringLookup", vocabulary=["a", "b"]),
}
REFUSED = {
    "lambda layer": layer("Lambda", function={"class_name": "__lambda__", "config": {}}),
    "lambda": layer("Activation", activation={"class_name": "__lambda__", "config": {}}),
    "nested lambda": layer("TimeDistributed", layer=layer("Lambda")),
    "lambda from elsewhere": layer("Lambda", "keras.src.layers.core.lambda_layer"),
    "short lambda": layer("Lambda", None),
    "torch": layer("TorchModuleWrapper"),
    "saved model": layer("TFSMLayer", filepath="/tmp/x"),
    "custom": layer("Mine", "mine.layers"),
    "registered": {**layer("Mine", None), "registered_name": "Mine>Mine"},
    "like keras": layer("Mine", "keras_extra.layers"),
    "outside of modelling": layer("get_file", "keras.utils"),
    "dots": layer("os.system", None),
    "function": layer("Activation", activation={**FUNCTION, "module": "os", "config": "system"}),
    "function of utils": layer("X", activation={**FUNCTION, "module": "keras.utils"}),
    "function object": layer("X", activation={**FUNCTION, "config": {"a": 1}}),
    "file of words": layer("StringLookup", vocabulary="/etc/passwd"),
    "file of weights": layer("TextVectorization", idf_weights="/etc/passwd"),
    "type": layer("X", spec={"class_name": "__typespec__", "config": [], "module": "os"}),
    "odd name": {"class_name": ["Lambda"], "config": {}},
}


@pytest.mark.parametrize("case", PASSED)
def test_keras_s_own_classes_pass(case: str, tmp_path: Path) -> None:
    model = opened(archive(tmp_path / "m.keras", PASSED[case]))
    model.format.check(model)
    assert model.facts.versions == {"keras": "3.15.1"}


@pytest.mark.parametrize("case", REFUSED)
def test_code_and_files_need_trust(case: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", REFUSED[case])
    model = opened(path)
    with pytest.raises(UntrustedModel, match="trust=True"):
        model.format.check(model)
    trusted = opened(path, trust=True)
    trusted.format.check(trusted)


def test_how_it_was_trained_does_not_matter(tmp_path: Path) -> None:
    custom = {"compile_config": {"loss": layer("Mine", "mine")}}
    model = opened(archive(tmp_path / "m.keras", top=custom))
    model.format.check(model)
    inner = opened(archive(tmp_path / "n.keras", {**layer("Model", "keras"), **custom}))
    with pytest.raises(UntrustedModel):  # that of an inner model is used by Keras
        inner.format.check(inner)


def test_layers_are_counted(tmp_path: Path) -> None:
    model = opened(archive(tmp_path / "m.keras", layer("Dense"), layer("Dense"), layer("ReLU")))
    assert model.facts.operators == {"Dense": 2, "ReLU": 1}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "C:\\x"])
def test_members_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", **{name: b"x"})
    for trust in (False, True):
        model = opened(path, trust=trust)
        with pytest.raises(UntrustedModel, match="elsewhere"):
            model.format.check(model)


def test_member_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.formats.tensorflow.keras._MEMBER_BYTES", 1 << 20)
    model = opened(archive(tmp_path / "m.keras", **{"model.weights.h5": bytes(2 << 20)}))
    with pytest.raises(UntrustedModel, match="would grow"):
        model.format.check(model)


@pytest.mark.parametrize(
    "config", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 450 + b"1" + b"}" * 450], ids=len
)
def test_broken_config(config: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", config)
    model = opened(path)
    with pytest.raises(InvalidModel):
        model.format.check(model)
    with pytest.raises(InvalidModel):
        model.format.describe(model)


def test_damaged_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", layer("Dense"))
    model = opened(path)
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\0" * 40 + content[100:])
    with pytest.raises(InvalidModel):
        model.format.describe(model)
    path.write_bytes(content[:-30])
    with pytest.raises(InvalidModel):
        model.format.check(model)


def test_live_models_are_known_by_their_class() -> None:
    base = type("Model", (), {"__module__": "keras.src.models.model"})
    live = type("Mine", (base,), {})()
    model = ModelRef.open(live, [Keras()])
    assert (model.format.name, model.live, model.name) == ("keras", live, "<live Mine>")
    model.format.check(model)
    assert model.facts.notes
    assert not Keras().sniff_live(type("Model", (), {"__module__": "elsewhere"})())
