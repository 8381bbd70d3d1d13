"""Real models, and SavedModels of several signatures, with the OpenVINO backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import errors

pytest.importorskip("openvino")
onnxruntime = pytest.importorskip("onnxruntime")

MODELS = Path(sys.prefix) / "models"
BASIC_PITCH = MODELS / "basic_pitch/saved_models/icassp_2022"
SILERO = MODELS / "silero_vad/data"
MAGIKA = MODELS / "magika/models/standard_v3_3/model.onnx"


def load(path: Path) -> bridge.Predictor:
    return bridge.load(path, backend="openvino")


def only_cpu(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("windows", [1, 3])
def test_basic_pitch_agrees_in_three_formats(windows: int) -> None:
    x = np.random.default_rng(windows).standard_normal((windows, 43844, 1), np.float32) / 4
    session = only_cpu(BASIC_PITCH / "nmp.onnx")
    wanted = dict(
        zip(
            [output.name for output in session.get_outputs()],
            session.run(None, {session.get_inputs()[0].name: x}),
            strict=True,
        )
    )
    # What the exporter did: signature key -> tensor of the ONNX and TFLite files.
    keys = {
        "contour": "StatefulPartitionedCall:0",
        "note": "StatefulPartitionedCall:1",
        "onset": "StatefulPartitionedCall:2",
    }
    saved = load(BASIC_PITCH / "nmp")
    assert saved.info.format == "saved_model"
    assert saved.info.precision == "float32"
    assert saved.signature.input_names == ("input_2",)
    assert set(saved.signature.output_names) == set(keys)
    results = saved.predict({"input_2": x})
    for key, name in keys.items():
        assert results[key].shape == (windows, *saved.signature.output(key).shape[1:])
        np.testing.assert_allclose(results[key], wanted[name], rtol=0, atol=5e-6)

    exported = load(BASIC_PITCH / "nmp.onnx")
    assert set(exported.signature.output_names) == set(wanted)
    answers = exported.predict({exported.signature.input_names[0]: x})
    for name, array in wanted.items():
        np.testing.assert_allclose(answers[name], array, rtol=0, atol=5e-6)

    lite = load(BASIC_PITCH / "nmp.tflite")
    answers = lite.predict({lite.signature.input_names[0]: x})
    assert {array.shape for array in answers.values()} == {a.shape for a in wanted.values()}
    for name, answer in answers.items():
        tensor = keys.get(name, name)
        np.testing.assert_allclose(answer, wanted[tensor], rtol=0, atol=5e-6)


def test_magika_takes_any_batch() -> None:
    predictor = load(MAGIKA)
    assert str(predictor.signature.input("bytes").dtype) == "int32"
    session = only_cpu(MAGIKA)
    for rows in (1, 7, 64, 1):
        x = np.random.default_rng(rows).integers(0, 257, (rows, 2048)).astype(np.int32)
        result = predictor.predict({"bytes": x})["target_label"]
        np.testing.assert_allclose(result, session.run(None, {"bytes": x})[0], rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "fed_back", "rows"),
    [
        ("silero_vad_openvino_16k", {"state": "stateN"}, 1),
        ("silero_vad_op18_ifless", {"state": "stateN"}, 8),
        ("silero_vad_16k_sequence", {"h": "hn", "c": "cn"}, 5),
    ],
)
def test_silero_runs_by_its_own_signature(name: str, fed_back: dict[str, str], rows: int) -> None:
    path = SILERO / f"{name}.onnx"
    predictor, session = load(path), only_cpu(path)
    generator = np.random.default_rng(0)
    ours: dict[str, np.ndarray] = {}
    for item in session.get_inputs():
        if item.name in fed_back:
            shape = [size if isinstance(size, int) else rows for size in item.shape]
            ours[item.name] = np.zeros(shape, np.float32)
        elif item.name == "sr":
            ours["sr"] = np.array(16000, np.int64)
    theirs = dict(ours)
    for _ in range(50):
        x = generator.standard_normal((rows, 576), np.float32) / 10
        results = predictor.predict({**ours, "input": x})
        answers = dict(
            zip(
                [output.name for output in session.get_outputs()],
                session.run(None, {**theirs, "input": x}),
                strict=True,
            )
        )
        assert set(results) == set(answers)
        for key, answer in answers.items():
            assert results[key].shape == answer.shape
            np.testing.assert_allclose(results[key], answer, rtol=0, atol=1e-4)
        for into, out_of in fed_back.items():
            ours[into], theirs[into] = results[out_of], answers[out_of]


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_half", "silero_vad_16k_op15"])
def test_silero_with_branches_of_unknown_rank_is_refused(name: str) -> None:
    # Convolutions on tensors of unknown rank inside If: OpenVINO 2026.4 has no conversion.
    with pytest.raises(errors.UnsupportedModel, match="Conv") as caught:
        load(SILERO / f"{name}.onnx")
    assert "rank" in str(caught.value)


SIGNATURES = """
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        self.weights = tf.Variable([[1.0, 2.0], [3.0, 4.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="features")])
    def score(self, features):
        return {"score": features @ self.weights, "twice": features * 2}

    @tf.function(input_signature=[
        tf.TensorSpec([None, 2], tf.float32, name="x"), tf.TensorSpec([], tf.int64, name="k")])
    def shift(self, x, k):
        return {"out": x + tf.cast(k, tf.float32), "same": x}

model = Model()
for name, signatures in {
    "default": {"serving_default": model.score, "other": model.shift},
    "alone": {"only": model.shift},
    "none": {"zeta": model.score, "beta": model.shift},
}.items():
    tf.saved_model.save(model, f"{sys.argv[1]}/{name}", signatures=signatures)
"""


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("saved_models")
    # In a process of its own: two runtimes with a protobuf each need not meet here.
    subprocess.run(
        [sys.executable, "-c", SIGNATURES, str(folder)],
        check=True,
        capture_output=True,
        timeout=200,
    )
    return folder


def test_the_default_signature_has_its_keys_as_names(saved_models: Path) -> None:
    predictor = load(saved_models / "default")
    assert predictor.signature.input_names == ("features",)
    assert set(predictor.signature.output_names) == {"score", "twice"}
    results = predictor.predict({"features": np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(results["score"], [[4, 6]] * 3)
    np.testing.assert_array_equal(results["twice"], np.full((3, 2), 2))


def test_a_signature_that_is_alone_needs_no_name(saved_models: Path) -> None:
    predictor = load(saved_models / "alone")
    assert set(predictor.signature.input_names) == {"x", "k"}
    assert set(predictor.signature.output_names) == {"out", "same"}
    x = np.array([[1, 2]], np.float32)
    results = predictor.predict({"x": x, "k": np.array(3)})
    np.testing.assert_array_equal(results["out"], x + 3)
    np.testing.assert_array_equal(results["same"], x)


def test_other_signatures_are_refused(saved_models: Path) -> None:
    for name, key in (("default", "other"), ("none", None), ("none", "zeta")):
        with pytest.raises(errors.UnsupportedModel, match="cannot serve"):
            bridge.load(saved_models / name, backend="openvino", signature=key)
    with pytest.raises(errors.UnsupportedModel, match="no signature"):
        bridge.load(saved_models / "default", backend="openvino", signature="otter")
