"""The program on the runtimes that are installed, and on models that nobody here wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge as sdk

MODELS = Path(sys.prefix) / "models"
NMP = MODELS / "basic_pitch" / "saved_models" / "icassp_2022"
SILERO = MODELS / "silero_vad" / "data"
MAGIKA = MODELS / "magika" / "models" / "standard_v3_3" / "model.onnx"

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="'make test' fetches the packages that carry real models"
)


def need(*backends: str) -> None:
    for name in backends:
        found = sdk.backends()[name].probe()
        if not found.installed:
            pytest.skip(f"{name}: {found.reason}")


def test_basic_pitch_agrees_on_every_runtime(real: Any) -> None:
    need("tensorflow", "onnxruntime", "openvino")
    backends = ["--backend", "tensorflow", "--backend", "onnxruntime", "--backend", "openvino"]
    words = ["--rounds", 0, "--rows", 1, "--tolerance", 5e-6, "--json"]
    found = real("compare", NMP / "nmp", NMP / "nmp.onnx", *backends, *words)
    document = found.document("compare")
    arms = {(arm["backend"], arm["format"]): arm for arm in document["arms"]}
    ran = {key for key, arm in arms.items() if arm["error"] is None}
    assert ran == {
        ("tensorflow", "saved_model"),
        ("openvino", "saved_model"),
        ("onnxruntime", "onnx"),
        ("openvino", "onnx"),
    }
    assert arms["tensorflow", "saved_model"]["is_reference"]
    assert found.code == 0
    assert document["all_agree"]
    matched = {one["output"]: one["other"] for one in arms["onnxruntime", "onnx"]["agreement"]}
    assert matched == {
        "contour": "StatefulPartitionedCall:0",
        "note": "StatefulPartitionedCall:1",
        "onset": "StatefulPartitionedCall:2",
    }
    # Named, though they take another format: shown as refused, which is no disagreement.
    assert arms["tensorflow", "onnx"]["error"]["class"] == "UnsupportedModel"


def test_inspect_tells_who_takes_it(real: Any) -> None:
    document = real("inspect", NMP / "nmp", "--json").document("inspect")
    able = {one["backend"] for one in document["candidates"] if one["is_capable"]}
    assert {"tensorflow", "openvino"} <= able
    assert "onnxruntime" not in able
    assert document["signatures"]["serving_default"]["inputs"][0]["shape"] == [None, 43844, 1]


def test_silero_with_state_and_a_scalar(real: Any, tmp_path: Path) -> None:
    need("onnxruntime")
    out = tmp_path / "out.npz"
    shapes = ["--shape", "input=1x512", "--shape", "state=2x1x128", "--set", "sr=16000"]
    found = real("run", SILERO / "silero_vad.onnx", *shapes, "-o", out, "--json")
    assert found.code == 0, found.err
    assert found.document("run")["inputs"][2] == {"name": "sr", "dtype": "int64", "shape": []}
    with np.load(out) as archive:
        assert archive["stateN"].shape == (2, 1, 128)


def test_silero_torchscript_needs_a_signature(real: Any, tmp_path: Path) -> None:
    need("torch")
    path = SILERO / "silero_vad.jit"
    assert real("run", path).code == 5
    stated = {
        "inputs": [
            {"name": "x", "dtype": "float32", "shape": [1, 512]},
            {"name": "sr", "dtype": "int64", "shape": []},
        ],
        "outputs": [{"name": "output_0", "dtype": "float32", "shape": [1, 1]}],
    }
    (tmp_path / "signature.json").write_text(json.dumps(stated))
    words = ["--signature", tmp_path / "signature.json", "--set", "sr=16000", "--json"]
    document = real("run", path, *words).document("run")
    assert document["info"]["stateful"]
    assert 0 <= document["outputs"][0]["mean"] <= 1


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_magika_on_several_batches(real: Any, rows: int) -> None:
    need("onnxruntime")
    words = ["--rows", rows, "--highest-id", 256, "--json"]
    document = real("run", MAGIKA, *words).document("run")
    assert document["inputs"][0]["dtype"] == "int32"
    assert document["outputs"][0]["shape"][0] == rows


def test_options_of_every_backend_are_described(real: Any) -> None:
    for name in sdk.backends():
        assert real("options", name, "--json").document("options")["name"] == name


def test_convert_builds_an_engine_without_a_gpu(real: Any, tmp_path: Path) -> None:
    need("tensorrt")
    out = tmp_path / "nmp.engine"
    words = ["--to", "engine", "-o", out, "--option", "batch=1", "--json"]
    document = real("convert", NMP / "nmp.onnx", *words).document("convert")
    assert document["size_bytes"] == out.stat().st_size > 10_000
    assert document["adapter"] == "onnx-to-engine"
