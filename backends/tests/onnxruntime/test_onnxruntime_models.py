"""Real models, which nobody here wrote, with the onnxruntime backend."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import DTypeMismatch

pytest.importorskip("onnxruntime")

MODELS = Path(sys.prefix) / "models"
NMP = MODELS / "basic_pitch/saved_models/icassp_2022/nmp.onnx"
SILERO = sorted((MODELS / "silero_vad/data").glob("*.onnx"))
MAGIKA = sorted((MODELS / "magika/models").glob("*/model.onnx"))
WINDOW = 576  # 64 samples of context before each 512, at 16 kHz
STEPS = 50


def test_the_models_are_there() -> None:
    assert NMP.is_file(), "make test fetches them"
    assert len(SILERO) >= 6
    assert MAGIKA


@pytest.mark.parametrize("path", SILERO, ids=lambda path: path.stem)
def test_silero_with_its_state_fed_back(path: Path) -> None:
    with bridge.load(path) as predictor:
        signature = predictor.signature
        (audio,) = (spec for spec in signature.inputs if spec.name == "input")
        states = [spec for spec in signature.inputs if spec.name in {"state", "h", "c"}]
        # A dynamic batch is at dim 0 of the audio and at dim 1 of the state; the sequence
        # variant has steps, not a batch, at dim 0.
        is_batched = audio.shape is not None and not isinstance(audio.shape[0], int)
        is_batched = is_batched and states[0].shape is not None and states[0].shape[1] != 1
        rows = 8 if is_batched else 1
        inputs = {
            spec.name: np.zeros((spec.shape[0], rows, spec.shape[2]), np.float32)  # type: ignore[index]
            for spec in states
        }
        if "sr" in signature.input_names:
            assert signature.input("sr").shape == ()
            assert signature.input("sr").dtype is bridge.DType.INT64
            inputs["sr"] = np.array(16000)
        assert set(inputs) | {"input"} == set(signature.input_names)
        following = {
            spec.name: name for spec, name in zip(states, signature.output_names[1:], strict=True)
        }
        random = np.random.default_rng(0)
        seen = []
        for _ in range(STEPS):
            inputs["input"] = random.standard_normal((rows, WINDOW)).astype(np.float32) / 5
            outputs = predictor.predict(inputs)
            (probabilities, *_) = outputs.values()
            assert probabilities.size == rows
            assert ((probabilities >= 0) & (probabilities <= 1)).all()
            seen.append(probabilities.ravel().copy())
            for name, result in following.items():
                assert outputs[result].shape == inputs[name].shape
                assert not np.array_equal(outputs[result], inputs[name])
                inputs[name] = outputs[result]
        assert len(np.unique(np.concatenate(seen))) > STEPS // 2


def test_silero_rows_do_not_depend_on_each_other() -> None:
    path = MODELS / "silero_vad/data/silero_vad.onnx"
    x = np.random.default_rng(1).standard_normal((8, WINDOW)).astype(np.float32)
    with bridge.load(path) as predictor:
        state = np.zeros((2, 8, 128), np.float32)
        together = predictor.predict({"input": x, "state": state, "sr": np.array(16000)})
        for row in range(8):
            alone = predictor.predict(
                {"input": x[row : row + 1], "state": state[:, :1], "sr": np.array(16000)}
            )
            np.testing.assert_allclose(alone["output"][0], together["output"][row], atol=1e-5)


@pytest.mark.parametrize("path", MAGIKA, ids=lambda path: path.parent.name)
def test_magika_in_batches(path: Path) -> None:
    random = np.random.default_rng(0)
    with bridge.load(path) as predictor:
        spec = predictor.signature.inputs[0]
        assert spec.dtype is bridge.DType.INT32
        assert spec.shape is not None
        assert spec.shape[0] is None
        width = spec.shape[1]
        x = random.integers(0, 256, (64, width), np.int32)
        whole = predictor.predict({spec.name: x})
        (name,) = whole
        np.testing.assert_allclose(whole[name].sum(axis=1), 1, atol=1e-5)
        for rows in (1, 7):
            part = predictor.predict({spec.name: x[:rows]})[name]
            np.testing.assert_allclose(part, whole[name][:rows], atol=1e-5)
        bound = predictor.bind({spec.name: (7, width)})
        for start in (0, 7, 14):
            bound.inputs[spec.name][...] = x[start : start + 7]
            bound.predict()
            wanted = predictor.predict({spec.name: x[start : start + 7]})[name]
            np.testing.assert_array_equal(bound.outputs[name], wanted)
        with pytest.raises(DTypeMismatch, match="int32"):
            predictor.predict({spec.name: x.astype(np.int64)})


def test_basic_pitch() -> None:
    with bridge.load(NMP) as predictor:
        (spec,) = predictor.signature.inputs
        assert spec.shape == (None, 43844, 1)
        x = np.random.default_rng(0).standard_normal((2, 43844, 1)).astype(np.float32)
        both = predictor.predict({spec.name: x})
        for name, array in both.items():
            assert array.shape[:2] == (2, 172)
            one = predictor.predict({spec.name: x[1:]}, [name])[name]
            np.testing.assert_allclose(one[0], array[1], atol=1e-5)
