"""The run path on a real GPU: ``pytest -m gpu``. Skipped, with the reason, elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.loading import open_model
from bridge_tensorrt import native
from bridge_tensorrt.backend import TensorrtBackend

pytest.importorskip("cuda.bindings.runtime")
onnx = pytest.importorskip("onnx")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not TensorrtBackend().devices(), reason="needs a CUDA device"),
]

NMP = Path(sys.prefix) / "models/basic_pitch/saved_models/icassp_2022/nmp.onnx"
BATCH = {"batch": "1:1:1,2:8:64"}
info = onnx.helper.make_tensor_value_info
node = onnx.helper.make_node


def save(
    folder: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any
) -> Path:
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [onnx.helper.make_opsetid("", 17)]
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


TABLE = np.random.default_rng(1).standard_normal((100, 8)).astype(np.float32)
WEIGHT = np.random.default_rng(2).standard_normal((8, 3)).astype(np.float32)


@pytest.fixture
def ranker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``y = table[ids] @ w + x``; ids are int64."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    return save(
        tmp_path,
        [
            node("Gather", ["table", "ids"], ["rows"]),
            node("MatMul", ["rows", "w"], ["h"]),
            node("Add", ["h", "x"], ["y"]),
        ],
        [info("ids", 7, ["N"]), info("x", 1, ["N", 3])],
        [info("y", 1, ["N", 3])],
        table=TABLE,
        w=WEIGHT,
    )


def inputs_of(rows: int, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "ids": generator.integers(0, 100, rows),
        "x": generator.standard_normal((rows, 3)).astype(np.float32),
    }


def wanted(given: dict[str, Any]) -> Any:
    return TABLE[given["ids"]] @ WEIGHT + given["x"]


@pytest.fixture
def predictor(ranker: Path) -> Iterator[bridge.Predictor]:
    with bridge.load(ranker, backend="tensorrt", options=BATCH) as loaded:
        yield loaded


def test_it_runs_where_it_says(predictor: bridge.Predictor) -> None:
    assert str(predictor.info.device) == "cuda:0"
    assert predictor.info.precision == "float32"
    assert predictor.signature.input("ids").dtype is bridge.DType.INT64
    assert predictor.signature.input("ids").shape == ("N",)


def test_batches_that_grow_and_shrink(predictor: bridge.Predictor) -> None:
    kept = []
    for seed, rows in enumerate((1, 2, 64, 7, 1, 33)):
        given = inputs_of(rows, seed)
        kept.append((predictor.predict(given)["y"], wanted(given)))
    for got, right in kept:  # float32 without TF32: its error here would be about 1e-3
        np.testing.assert_allclose(got, right, atol=2e-5)


def test_a_batch_outside_every_profile(predictor: bridge.Predictor) -> None:
    with pytest.raises(errors.ShapeMismatch, match="was built for"):
        predictor.predict(inputs_of(65))


def test_threads(predictor: bridge.Predictor) -> None:
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(30):
                given = inputs_of(1 + (seed * 7 + turn) % 64, seed * 100 + turn)
                np.testing.assert_allclose(predictor.predict(given)["y"], wanted(given), atol=2e-5)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bound_calls(predictor: bridge.Predictor) -> None:
    bound = predictor.bind({"ids": (5,), "x": (5, 3)})
    for seed in range(3):
        given = inputs_of(5, seed)
        for name, array in given.items():
            bound.inputs[name][...] = array
        bound.predict()
        np.testing.assert_allclose(bound.outputs["y"], wanted(given), atol=2e-5)


def test_outputs_whose_shape_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    path = save(
        tmp_path, [node("NonZero", ["x"], ["at"])], [info("x", 1, ["N"])], [info("at", 7, [1, "k"])]
    )
    with bridge.load(path, backend="tensorrt") as loaded:
        for x in ([0, 2, 0, 3], [0, 0], [1] * 100):
            given = np.array(x, np.float32)
            np.testing.assert_array_equal(
                loaded.predict({"x": given})["at"], np.array(np.nonzero(given))
            )


def test_a_saved_engine_runs(ranker: Path, tmp_path: Path) -> None:
    from bridge.registry import registry

    target = tmp_path / "model.engine"
    registry().adapters.get("onnx-to-engine").convert(open_model(ranker), target)
    given = inputs_of(9)
    with bridge.load(target, trust=True) as loaded:
        np.testing.assert_allclose(loaded.predict(given)["y"], wanted(given), atol=2e-5)


def test_a_damaged_engine_is_an_error(ranker: Path, tmp_path: Path) -> None:
    from bridge.registry import registry

    target = tmp_path / "model.engine"
    registry().adapters.get("onnx-to-engine").convert(open_model(ranker), target)
    data = bytearray(target.read_bytes())
    data[24] += 1  # the version
    target.write_bytes(data)
    with pytest.raises(errors.ModelError):
        bridge.load(target, trust=True)


def test_the_yardstick_agrees(ranker: Path, predictor: bridge.Predictor) -> None:
    call, named = native.load(open_model(ranker))
    given = inputs_of(16)
    np.testing.assert_allclose(named(call(given))["y"], predictor.predict(given)["y"], atol=2e-5)


def test_basic_pitch_agrees_with_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    x = np.random.default_rng(3).standard_normal((3, 43844, 1)).astype(np.float32) * 0.1
    given = {"serving_default_input_2:0": x}
    with bridge.load(NMP, backend="tensorrt") as ours, bridge.load(NMP) as theirs:
        right = theirs.predict(given)
        for name, got in ours.predict(given).items():
            np.testing.assert_allclose(got, right[name], atol=1e-3)


def test_ids_above_32_bits_keep_their_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    path = save(
        tmp_path,
        [node("Add", ["ids", "one"], ["next"])],
        [info("ids", 7, ["N"])],
        [info("next", 7, ["N"])],
        one=np.ones(1, np.int64),
    )
    ids = np.array([0, 2**31 - 1, 2**31, 2**32 + 5, 2**53 + 1, 2**62, -(2**40)], np.int64)
    with bridge.load(path, backend="tensorrt") as loaded:
        np.testing.assert_array_equal(loaded.predict({"ids": ids})["next"], ids + 1)
        bound = loaded.bind({"ids": ids.shape})
        bound.inputs["ids"][...] = ids
        bound.predict()
        np.testing.assert_array_equal(bound.outputs["next"], ids + 1)


def test_buckets_serve_every_batch(ranker: Path) -> None:
    with bridge.load(ranker, backend="tensorrt", options={"buckets": "1,16,64"}) as loaded:
        assert loaded.info.details["profiles"] == 3
        for seed, rows in enumerate((1, 2, 16, 17, 64)):
            given = inputs_of(rows, seed)
            np.testing.assert_allclose(loaded.predict(given)["y"], wanted(given), atol=2e-5)


@pytest.mark.parametrize("io", ["host", "device"])
def test_cuda_graphs(ranker: Path, io: str) -> None:
    options = {**BATCH, "cuda_graph": True, "io": io}
    with bridge.load(ranker, backend="tensorrt", options=options) as loaded:
        bound = loaded.bind({"ids": (5,), "x": (5, 3)})
        if io == "device":
            torch = pytest.importorskip("torch")
            views = {name: torch.from_dlpack(array) for name, array in bound.inputs.items()}
        for seed in range(4):
            given = inputs_of(5, seed)
            for name, array in given.items():
                if io == "device":
                    views[name].copy_(torch.from_numpy(array))
                else:
                    bound.inputs[name][...] = array
            bound.predict()
            np.testing.assert_allclose(np.asarray(bound.outputs["y"]), wanted(given), atol=2e-5)


def test_tensors_of_torch_stay_on_the_gpu(ranker: Path) -> None:
    torch = pytest.importorskip("torch")
    options = {**BATCH, "io": "device"}
    with bridge.load(ranker, backend="tensorrt", options=options) as loaded:
        for seed, rows in enumerate((4, 33)):
            given = inputs_of(rows, seed)
            there = {name: torch.from_numpy(array).cuda() for name, array in given.items()}
            scores = torch.from_dlpack(loaded.predict(there)["y"])
            assert scores.is_cuda
            np.testing.assert_allclose(scores.cpu().numpy(), wanted(given), atol=2e-5)
    with bridge.load(ranker, backend="tensorrt", options=BATCH) as loaded:
        got = loaded.predict(there)["y"]
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, wanted(given), atol=2e-5)


def test_arrays_of_cupy_stay_on_the_gpu(ranker: Path) -> None:
    cupy = pytest.importorskip("cupy")
    options = {**BATCH, "io": "device"}
    with bridge.load(ranker, backend="tensorrt", options=options) as loaded:
        given = inputs_of(7)
        there = {name: cupy.asarray(array) for name, array in given.items()}
        scores = cupy.from_dlpack(loaded.predict(there)["y"])
        np.testing.assert_allclose(cupy.asnumpy(scores), wanted(given), atol=2e-5)


def test_new_weights_without_a_build(ranker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge_tensorrt import plans

    options = {**BATCH, "refittable": True}
    given = inputs_of(8)
    with bridge.load(ranker, backend="tensorrt", options=options) as loaded:
        np.testing.assert_allclose(loaded.predict(given)["y"], wanted(given), atol=2e-5)
    model = onnx.load(ranker)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(WEIGHT * 2, "w"))
    onnx.save(model, ranker)
    monkeypatch.setattr(plans, "build", None)
    with bridge.load(ranker, backend="tensorrt", options=options) as loaded:
        assert loaded.info.details["refitted"] is True
        right = TABLE[given["ids"]] @ (WEIGHT * 2) + given["x"]
        np.testing.assert_allclose(loaded.predict(given)["y"], right, atol=5e-5)


def test_kernels_are_kept(ranker: Path) -> None:
    from bridge.cache import default_cache

    with bridge.load(ranker, backend="tensorrt", options=BATCH) as loaded:
        loaded.predict(inputs_of(4))
        provider = loaded.info.provider
    kinds = {entry.kind for entry in default_cache().ls()}
    assert ("runtime-cache" if provider == "TensorRT-RTX" else "timing-cache") in kinds
