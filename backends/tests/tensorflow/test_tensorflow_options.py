"""Options of the tensorflow backend, and a real model against onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import OptionError
from bridge.loading import open_model
from bridge.search import Pruned

tf = pytest.importorskip("tensorflow")

from bridge_tensorflow.options import TensorflowOptions  # noqa: E402
from bridge_tensorflow.session import own_pools  # noqa: E402

X = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
Y = X * np.arange(4, dtype=np.float32) + 1


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "single_threaded"},
        {"inter_threads": 2},
        {"graph_optimizer": False},
        {"xla": True},
    ],
    ids=str,
)
def test_options_change_no_result(affine: Path, options: dict[str, object]) -> None:
    with bridge.load(affine, options=options) as predictor:
        for _ in range(3):
            np.testing.assert_allclose(predictor.predict({"x": X})["y"], Y, rtol=1e-6)
        assert predictor.info.options == options


def test_options_that_conflict(affine: Path) -> None:
    with pytest.raises(OptionError, match="inter_threads"):
        bridge.load(affine, options={"executor": "single_threaded", "inter_threads": 2})
    with pytest.raises(OptionError, match="xla"):
        bridge.load(affine, options={"executor": "single_threaded", "xla": True})
    with pytest.raises(OptionError, match="Did you mean 'inter_threads'"):
        bridge.load(affine, options={"inter_thread": 2})


def test_all_options_worth_measuring_load_and_answer(affine: Path) -> None:
    space = bridge.backends()["tensorflow"].search_space(open_model(affine), bridge.CPU)
    arms = [options for options in space if not isinstance(options, Pruned)]
    assert arms[0] == TensorflowOptions()
    assert len(set(arms)) == len(arms)
    for options in arms:
        assert isinstance(options, TensorflowOptions)
        if options.threads is not None and not own_pools():
            continue  # the model was written in this process, which settled its threads
        with bridge.load(affine, options=options) as predictor:
            np.testing.assert_allclose(predictor.predict({"x": X})["y"], Y, rtol=1e-6)
    rules = {item.rule for item in space if isinstance(item, Pruned)}
    assert rules >= {
        "same-as-default",
        "single-threaded-with-inter-threads",
        "single-threaded-with-xla",
        "compiles-per-size",
    }


def test_xla_is_worth_measuring_where_sizes_are_fixed(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    class Fixed(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((2, 4), tf.float32, "x")], autograph=False)
        def double(self, x):
            return {"y": x * 2.0}

    module = Fixed()
    folder = saved(module, tmp_path / "fixed", serving_default=module.double)
    space = bridge.backends()["tensorflow"].search_space(open_model(folder), bridge.CPU)
    assert TensorflowOptions(xla=True) in space


def test_what_options_say_of_themselves() -> None:
    assert TensorflowOptions().tier == "strict"
    assert TensorflowOptions(tf32=True).tier == "half"
    assert TensorflowOptions(tf32=True).process_key() == "tf32=True"
    assert TensorflowOptions(threads=1).process_key() == ""
    assert TensorflowOptions(xla=True).prepares


MODELS = Path(sys.prefix) / "models"
NMP = MODELS / "basic_pitch/saved_models/icassp_2022/nmp"


@pytest.mark.parametrize("rows", [1, 3])
def test_basic_pitch_agrees_with_onnxruntime(rows: int) -> None:
    """5e-6 absolute is what the project promises; 1.6e-6 was seen."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(NMP.with_suffix(".onnx")))
    audio = np.random.default_rng(rows).uniform(-1, 1, (rows, 43844, 1)).astype(np.float32)
    names = [item.name for item in session.get_outputs()]
    wanted = dict(zip(names, session.run(None, {session.get_inputs()[0].name: audio}), strict=True))
    with bridge.load(NMP) as predictor:
        assert predictor.signature.output_names == ("contour", "note", "onset")
        found = predictor.predict({"input_2": audio})
        for spec in predictor.signature.outputs:
            assert found[spec.name].dtype == np.float32
            np.testing.assert_allclose(
                found[spec.name], wanted[spec.native_name], rtol=0, atol=5e-6
            )
