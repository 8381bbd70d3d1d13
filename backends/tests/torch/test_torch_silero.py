"""silero-vad: the TorchScript file against the ONNX file, 50 steps with state."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import bridge

pytest.importorskip("torch")

DATA = Path(sys.prefix) / "models" / "silero_vad" / "data"
STEPS = 50
RATE = np.array(16000, np.int64)

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the silero-vad package is not unpacked in this environment"
)


def windows() -> list[np.ndarray]:
    """Seeded noise with a tone in it, float32 (1, 512) each, 32 ms at 16 kHz."""
    random = np.random.default_rng(7)
    time_s = np.arange(STEPS * 512) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 220 * time_s) * (np.sin(2 * np.pi * 2 * time_s) > 0)
    audio = (tone + 0.05 * random.standard_normal(time_s.size)).astype(np.float32)
    return list(audio.reshape(STEPS, 1, 512))


def run_script() -> list[float]:
    with bridge.load(DATA / "silero_vad.jit") as predictor:
        return [
            float(predictor.predict({"x": window, "sr": RATE})["output_0"].item())
            for window in windows()
        ]


def test_the_script_is_accepted_without_trust_and_keeps_state() -> None:
    with bridge.load(DATA / "silero_vad.jit") as predictor:
        assert predictor.signature.input_names == ("x", "sr")
        assert predictor.signature.input("sr").dtype is bridge.DType.INT64
        assert predictor.signature.output_names == ("output_0",)
        assert predictor.info.stateful
        window = windows()[3]
        answers = {
            float(predictor.predict({"x": window, "sr": RATE})["output_0"].item()) for _ in range(5)
        }
        assert len(answers) > 1
        with pytest.raises(bridge.errors.PredictError, match="Supported sampling rates"):
            predictor.predict({"x": window, "sr": np.array(11025)})


def test_a_fresh_load_has_a_fresh_state() -> None:
    assert run_script() == run_script()


def test_it_agrees_with_the_onnx_file() -> None:
    pytest.importorskip("onnxruntime")
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros((1, 64), np.float32)
    answers = []
    with bridge.load(DATA / "silero_vad.onnx", backend="onnxruntime") as predictor:
        for window in windows():
            whole = np.concatenate([context, window], axis=1)
            context = whole[:, -64:]
            result = predictor.predict({"input": whole, "state": state, "sr": RATE})
            state = result["stateN"]
            answers.append(float(result["output"].item()))
    worst = max(abs(one - other) for one, other in zip(answers, run_script(), strict=True))
    assert worst <= 1e-4
    assert max(answers) - min(answers) > 1e-3  # the comparison is not one of constants
