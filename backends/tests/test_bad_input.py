"""The same mistakes, made with every backend: the same errors must come back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
import bridge_zoo
from bridge.errors import (
    BackendNotFound,
    BridgeError,
    DeviceUnavailable,
    DTypeMismatch,
    InputError,
    MissingInput,
    ModelError,
    ModelNotFound,
    OptionError,
    PredictError,
    PredictorClosed,
    ShapeMismatch,
    UnexpectedInput,
    UnknownOutput,
    UnsupportedModel,
)

BACKENDS = {
    "onnxruntime": "onnx",
    "openvino": "onnx",
    "reference": "onnx",
    "tensorflow": "saved_model",
    "torch": "torchscript",
}
RANKER = bridge_zoo.describe("ranker", "small")
F32, I64 = bridge.DType.FLOAT32, bridge.DType.INT64
SIGNATURE = bridge.Signature(
    (
        *(bridge.TensorSpec(one.name, I64, ("batch",)) for one in RANKER.id_features),
        bridge.TensorSpec("dense", F32, ("batch", 13)),
    ),
    tuple(bridge.TensorSpec(name, F32, ("batch",)) for name in ("click", "like", "share")),
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return bridge_zoo.build("ranker", folder=folder, formats=sorted(set(BACKENDS.values())))


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    found = bridge.backends()[name].probe()
    if not found.installed:
        pytest.skip(f"{name}: {found.reason}")
    return name


@pytest.fixture(scope="module")
def model(backend: str, zoo: dict[str, Path]) -> Path:
    return zoo[BACKENDS[backend]]


def opened(model: Path, backend: str, **said: Any) -> bridge.Predictor:
    # TorchScript holds no signature, so it is declared; the others' own must be as good.
    if backend == "torch":
        said["signature"] = SIGNATURE
    return bridge.load(model, backend=backend, **said)


@pytest.fixture(scope="module")
def predictor(model: Path, backend: str) -> Any:
    with opened(model, backend) as made:
        yield made


def good(rows: int = 3) -> dict[str, Any]:
    return dict(bridge_zoo.inputs(RANKER, rows=rows))


def without(name: str) -> dict[str, Any]:
    return {key: array for key, array in good().items() if key != name}


WRONG: dict[str, tuple[dict[str, Any], type[BridgeError], str]] = {
    "missing": (without("dense"), MissingInput, "'dense' is missing"),
    "misspelt": (
        {**without("dense"), "dence": good()["dense"]},
        UnexpectedInput,
        "Did you mean 'dense'?",
    ),
    "extra": ({**good(), "user": good()["dense"]}, UnexpectedInput, "'user' is not in the"),
    "float64": ({**good(), "dense": np.zeros((3, 13))}, DTypeMismatch, "astype('float32')"),
    "int32": ({**good(), "id_00": np.zeros(3, np.int32)}, DTypeMismatch, "astype('int64')"),
    "objects": ({**good(), "id_00": np.array([1, "a", None], object)}, DTypeMismatch, "int64"),
    "rank": ({**good(), "dense": np.zeros(13, np.float32)}, ShapeMismatch, "2 dims, got 1"),
    "fixed": ({**good(), "dense": np.zeros((3, 12), np.float32)}, ShapeMismatch, "must be 13"),
    "list": ({**good(), "id_00": [1, 2, 3]}, InputError, "wanted a numpy array"),
    "nothing": ({}, MissingInput, "and 33 more is missing"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_inputs(predictor: bridge.Predictor, backend: str, mistake: str) -> None:
    inputs, kind, text = WRONG[mistake]
    with pytest.raises(BridgeError) as caught:
        predictor.predict(inputs)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert (caught.value.backend, caught.value.device) == (backend, "cpu")


def test_disagreeing_batches(predictor: bridge.Predictor) -> None:
    inputs = {**good(), "id_07": np.zeros(4, np.int64)}
    spec = predictor.signature.input("id_07")
    with pytest.raises((ShapeMismatch, PredictError)) as caught:
        predictor.predict(inputs)
    if spec.shape == ("batch",):
        assert type(caught.value) is ShapeMismatch
        assert "dim 'batch'" in str(caught.value)
    assert predictor.predict(good())["click"].shape == (3,)


def test_empty_batches_are_answered(predictor: bridge.Predictor) -> None:
    outputs = predictor.predict(good(0))
    assert {name: (a.dtype, a.shape) for name, a in outputs.items()} == {
        name: (np.dtype(np.float32), (0,)) for name in ("click", "like", "share")
    }


def test_unknown_outputs(predictor: bridge.Predictor) -> None:
    with pytest.raises(UnknownOutput, match="Did you mean 'click'"):
        predictor.predict(good(), ["clik"])


def test_every_backend_gives_the_oracles_answer(predictor: bridge.Predictor) -> None:
    inputs = good(17)
    wanted = bridge_zoo.forward(RANKER, bridge_zoo.seeded_weights(RANKER), inputs)
    outputs = predictor.predict(inputs)
    for name, values in wanted.items():
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=1e-5)


def test_an_empty_file(tmp_path: Path, model: Path, backend: str) -> None:
    empty = tmp_path / model.name
    if model.is_dir():
        shutil.copytree(model, empty)
        (empty / "saved_model.pb").write_bytes(b"")
    else:
        empty.touch()
    with pytest.raises(ModelError, match="empty|truncated"):
        opened(empty, backend)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, model: Path, backend: str, share: float) -> None:
    cut = tmp_path / model.name
    if model.is_dir():
        shutil.copytree(model, cut)
        victim = cut / "saved_model.pb"
    else:
        shutil.copy(model, cut)
        victim = cut
    whole = victim.read_bytes()
    victim.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError) as caught:
        opened(cut, backend)
    assert caught.value.fix
    assert caught.value.model


def test_random_bytes_under_the_right_name(tmp_path: Path, model: Path, backend: str) -> None:
    path = tmp_path / (model.name if not model.is_dir() else "model.onnx")
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelError):
        opened(path, backend)


def test_a_wrong_suffix_does_not_matter(tmp_path: Path, model: Path, backend: str) -> None:
    path = tmp_path / "model.txt"
    (shutil.copytree if model.is_dir() else shutil.copy)(model, path)
    with opened(path, backend) as predictor:
        assert predictor.predict(good())["click"].shape == (3,)


def test_a_folder_in_place_of_a_file_and_the_reverse(tmp_path: Path, backend: str) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(UnsupportedModel, match="holds no model"):
        bridge.load(tmp_path / "model.onnx", backend=backend)
    with pytest.raises(ModelNotFound):
        bridge.load(tmp_path / "nothing.onnx", backend=backend)


def test_unknown_names(model: Path, backend: str) -> None:
    with pytest.raises(BackendNotFound, match=f"Did you mean '{backend}'"):
        bridge.load(model, backend=backend + "x")
    with pytest.raises(DeviceUnavailable):
        opened(model, backend, device="cuda:7")
    with pytest.raises(DeviceUnavailable, match="is unknown"):
        opened(model, backend, device="tpu")
    with pytest.raises(OptionError, match="option 'no_such' is unknown"):
        opened(model, backend, options={"no_such": 1})


def test_a_kind_of_device_that_it_never_uses(model: Path, backend: str) -> None:
    device = "npu" if backend != "openvino" else "cuda"
    with pytest.raises(DeviceUnavailable) as caught:
        opened(model, backend, device=device)
    assert caught.value.fix


def test_a_signature_key_that_the_model_does_not_have(model: Path, backend: str) -> None:
    with pytest.raises((UnsupportedModel, OptionError), match="no signature 'nope'"):
        bridge.load(model, backend=backend, signature="nope")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "reference"])
def test_an_opset_that_nobody_knows(name: str, zoo: dict[str, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(zoo["onnx"]))
    model.opset_import[0].version = 99
    path = tmp_path / "future.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match="99"):
        bridge.load(path, backend=name)


def test_no_outputs_asked_for(predictor: bridge.Predictor) -> None:
    assert predictor.predict(good(), []) == {}


def test_a_format_that_it_does_not_take(backend: str, zoo: dict[str, Path]) -> None:
    takes = bridge.backends()[backend].capabilities(bridge.CPU).formats
    other = next(path for name, path in zoo.items() if name not in takes)
    with pytest.raises(UnsupportedModel, match=f"{backend} does not load"):
        bridge.load(other, backend=backend)


def test_predict_after_close(model: Path, backend: str) -> None:
    predictor = opened(model, backend)
    predictor.close()
    predictor.close()
    with pytest.raises(PredictorClosed):
        predictor.predict(good())


FORKED = """
import os, sys, time
sys.path.insert(0, {here!r})
from test_bad_input import good, opened
from pathlib import Path
from bridge.errors import ForkedPredictor
predictor = opened(Path({model!r}), {backend!r})
predictor.predict(good())
child = os.fork()
if child == 0:
    try:
        predictor.predict(good())
    except ForkedPredictor:
        del predictor
        {leave}(41)
    sys.exit(1)
deadline = time.monotonic() + 60
while True:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    if time.monotonic() > deadline:
        os.kill(child, 9)
        sys.exit("the child hangs")
    time.sleep(0.01)
assert predictor.predict(good())["click"].shape == (3,)
print(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_is_told_and_ends_cleanly(model: Path, backend: str) -> None:
    # sys.exit goes through the whole shutdown, where natives must be left alone. With
    # onnxruntime 1.32 alone, without the bridge, such a child hangs in a destructor of the
    # library (pthread_cond_destroy), so there the child ends as multiprocessing ends one.
    leave = "os._exit" if backend == "onnxruntime" else "sys.exit"
    here = str(Path(__file__).parent)
    code = FORKED.format(here=here, model=str(model), backend=backend, leave=leave)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert done.stdout.strip() == "41", done.stderr[-2000:]
