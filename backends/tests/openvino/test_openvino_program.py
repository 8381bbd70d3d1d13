"""Compiled models from the cache, shared ones, and those for bounded sizes."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.cache import default_cache

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

from bridge_openvino import program as program_module  # noqa: E402
from bridge_openvino.options import OpenvinoOptions  # noqa: E402
from bridge_openvino.runtime import openvino  # noqa: E402

FLOAT = onnx.TensorProto.FLOAT
MATRIX = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
CACHED = {"cache": True}
SHARED = {"shared": True}


def proto(rows: Any = "N", size: int = 8) -> bytes:
    """``y = x @ w`` and ``z = -s``, where s has as many rows as x and a dim of its own."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    weights = MATRIX if size == 8 else np.ones((size, 4), np.float32)
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "w"], ["y"]), node("Neg", ["s"], ["z"])],
        "g",
        [value("x", FLOAT, [rows, size]), value("s", FLOAT, [rows, "M"])],
        [value("y", FLOAT, [rows, 4]), value("z", FLOAT, [rows, "M"])],
        [onnx.helper.make_tensor("w", FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    data: bytes = onnx.helper.make_model(
        graph, opset_imports=opset, ir_version=9
    ).SerializeToString()
    return data


def load(model: Any, **options: Any) -> bridge.Predictor:
    return bridge.load(model, backend="openvino", options=options)


def inputs(rows: int = 3, more: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.resize(X, (rows, 8)), "s": np.ones((rows, more), np.float32)}


def check(predictor: bridge.Predictor) -> None:
    results = predictor.predict(inputs())
    np.testing.assert_allclose(results["y"], X @ MATRIX, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(results["z"], -np.ones((3, 2)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_load_compiles_nothing(cache: Path) -> None:
    first, second = load(proto(), **CACHED), load(proto(), **CACHED)
    assert first.info.details["origin"] == "compiled"
    assert second.info.details["origin"] == "cache"
    assert second.signature == first.signature
    assert second.info.precision == "float32"
    assert second.info.threads == first.info.threads
    one, other = first.predict(inputs()), second.predict(inputs())
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }
    bound = second.bind({"x": (3, 8), "s": (3, 2)})
    bound.inputs["x"][...] = X
    bound.predict()
    np.testing.assert_array_equal(bound.outputs["y"], one["y"])
    assert [entry.kind for entry in default_cache().ls()] == ["openvino-model"]


def test_what_a_compiled_model_depends_on_is_part_of_its_key(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(proto(), **CACHED)
    assert load(proto("N", 9), **CACHED).info.details["origin"] == "compiled"
    assert (
        load(proto(), **CACHED, threads=1, hint="throughput").info.details["origin"] == "compiled"
    )
    assert load(proto(), **CACHED, bounds=("N=3",)).info.details["origin"] == "compiled"

    class Newer:
        def get_version(self) -> str:
            return "2099.1"

    monkeypatch.setattr(program_module, "openvino", Newer)
    assert load(proto(), **CACHED).info.details["origin"] == "compiled"
    assert load(proto(), **CACHED).info.details["origin"] == "cache"
    monkeypatch.setattr(program_module, "cpu_flags", lambda: frozenset({"other"}))
    assert load(proto(), **CACHED).info.details["origin"] == "compiled"


@pytest.mark.parametrize("damage", ["truncated", "altered", "no ports"])
def test_a_damaged_entry_is_built_again_with_one_warning(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    load(proto(), **CACHED).close()
    (blob,) = cache.rglob("model.blob")
    blob.parent.chmod(0o700)
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    if damage == "truncated":
        blob.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        data[-20] ^= 1
        blob.write_bytes(data)
    else:
        (blob.parent / "ports.json").unlink()
    with caplog.at_level("WARNING", "bridge.cache"):
        again = load(proto(), **CACHED)
    assert again.info.details["origin"] == "compiled"
    assert len(caplog.records) == 1
    check(again)
    assert load(proto(), **CACHED).info.details["origin"] == "cache"


def test_a_model_that_changes_while_it_is_loaded_is_not_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto())
    compile_now = program_module.compiled

    def compiled(*arguments: Any) -> Any:
        path.write_bytes(proto("N", 9))
        return compile_now(*arguments)

    monkeypatch.setattr(program_module, "compiled", compiled)
    with pytest.raises(errors.InvalidModel, match="changed while"):
        load(path, **CACHED)
    assert default_cache().ls() == ()


def test_the_cache_is_not_for_auto(cache: Path) -> None:
    with pytest.raises(errors.OptionError, match="auto") as caught:
        bridge.load(proto(), backend="openvino", device="auto", options=CACHED)
    assert caught.value.detail["rule"] == "cache-of-auto"


def test_float64_from_the_cache_still_needs_the_word_of_its_user(cache: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    double = onnx.TensorProto.DOUBLE
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [value("x", double, ["N"])],
        [value("y", double, ["N"])],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    data = made.SerializeToString()
    for _ in range(2):
        result = load(data, **CACHED, narrow_float64=True).predict({"x": np.ones(2)})["y"]
        assert result.dtype == np.float64
        with pytest.raises(errors.UnsupportedModel, match="float64"):
            load(data, **CACHED)


def test_predictors_share_one_compiled_model_if_asked() -> None:
    one, two = load(proto(), **SHARED), load(proto(), **SHARED)
    other = load(proto(), **SHARED, threads=1, pinning=True)
    alone = load(proto())
    unmapped = load(proto(), **SHARED, enable_mmap=False)
    assert one._program is two._program  # type: ignore[attr-defined]
    assert other._program is not one._program  # type: ignore[attr-defined]
    assert alone._program is not one._program  # type: ignore[attr-defined]
    assert unmapped._program is not one._program  # type: ignore[attr-defined]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, [one, two] * 20))
    held = weakref.ref(one._program)  # type: ignore[attr-defined]
    one.close()
    check(two)
    two.close()
    with pytest.raises(errors.PredictorClosed):
        two.predict(inputs())
    gc.collect()
    assert held() is None
    check(load(proto(), **SHARED))


MEMORY = """
import gc, os, sys
import numpy as np
import bridge

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def grown(**options):
    before = resident()
    kept.append(bridge.load(sys.argv[2], backend="openvino", options=options))
    kept[-1].predict({"t0": np.ones((1, 2048), np.float32)})
    return resident() - before

kept = []
bridge.load(sys.argv[1], backend="openvino").predict({"t0": np.ones((1, 4), np.float32)})
print(grown(shared=True), grown(shared=True), grown())
"""


def dense(size: int, path: Path) -> Path:
    value = onnx.helper.make_tensor_value_info
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["t0", "w"], ["t1"])],
        "g",
        [value("t0", FLOAT, ["N", size])],
        [value("t1", FLOAT, ["N", size])],
        [onnx.helper.make_tensor("w", FLOAT, [size, size], weights.tobytes(), raw=True)],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    made = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_sharing_saves_the_weights_of_the_second(tmp_path: Path) -> None:
    small, large = dense(4, tmp_path / "small.onnx"), dense(2048, tmp_path / "large.onnx")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(small), str(large)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    first, second, alone = map(float, done.stdout.split())
    assert first > 14  # MiB; the weights are 16
    assert second < 4
    assert alone > 14


@pytest.mark.parametrize(
    "bounds",
    [("N",), ("N=",), ("=3",), ("N=5:2",), ("N=0",), ("N=-1:3",), ("N=1:2:3",), ("N=1", "N=2")],
)
def test_odd_bounds(bounds: tuple[str, ...]) -> None:
    with pytest.raises(errors.OptionError, match="range") as caught:
        OpenvinoOptions(bounds=bounds)
    assert caught.value.detail["rule"] == "bounds"


def test_bounds_are_read_as_the_command_line_writes_them() -> None:
    assert OpenvinoOptions.make(["bounds=N=1:512,M=4"]).bounds == ("N=1:512", "M=4")


@pytest.mark.parametrize("bound", ["N=2:4", "rows=2:4"])
def test_sizes_beyond_the_bounds_are_refused(bound: str) -> None:
    predictor = load(proto(), bounds=(bound,))
    assert predictor.signature == load(proto()).signature
    for rows in (3, 2, 4):
        result = predictor.predict(inputs(rows))["y"]
        np.testing.assert_allclose(result, np.resize(X, (rows, 8)) @ MATRIX, rtol=1e-5, atol=1e-6)
    for rows in (1, 5, 0):
        with pytest.raises(errors.ShapeMismatch, match="2 to 4") as caught:
            predictor.predict(inputs(rows))
        assert caught.value.detail["wanted"] == [2, 4]
        with pytest.raises(errors.ShapeMismatch, match="2 to 4"):
            predictor.bind({"x": (rows, 8), "s": (rows, 2)})
    check(predictor)


def test_one_size_becomes_part_of_the_signature(cache: Path) -> None:
    for origin in ("compiled", "cache"):
        predictor = load(proto(), bounds=("N=3", "M=2:2"), **CACHED)
        assert predictor.info.details["origin"] == origin
        assert [spec.shape for spec in predictor.signature.inputs] == [(3, 8), (3, 2)]
        assert [spec.shape for spec in predictor.signature.outputs] == [(3, 4), (3, 2)]
        with pytest.raises(errors.ShapeMismatch):
            predictor.predict(inputs(4))
        check(predictor)


def test_bounds_of_a_range_hold_for_models_from_the_cache(cache: Path) -> None:
    for _ in range(2):
        predictor = load(proto(None), bounds=("rows=1:3",), **CACHED)
        check(predictor)
        with pytest.raises(errors.ShapeMismatch):
            predictor.predict(inputs(4))


def test_bounds_of_no_dim_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="'K'") as caught:
        load(proto(), bounds=("K=3",))
    assert caught.value.fix


def test_a_budget_holds_where_options_say_nothing() -> None:
    bridge.set_thread_budget(1)
    try:
        info = load(proto()).info
        assert info.threads == 1
        assert load(proto(), threads=2).info.threads in (1, 2)
        assert OpenvinoOptions(threads=1).effective() == OpenvinoOptions()
    finally:
        bridge.set_thread_budget(None)


def test_there_are_as_many_requests_as_openvino_calls_optimal() -> None:
    predictor = load(proto(), hint="throughput")
    wanted = predictor.info.details["infer_requests"]
    assert len(predictor._idle) == wanted  # type: ignore[attr-defined]
    assert wanted >= predictor.info.details["streams"]


def test_kinds_of_cores_reach_the_runtime() -> None:
    predictor = load(proto(), cores="performance", hyper_threading=False)
    native = predictor._program.native  # type: ignore[attr-defined]
    assert "PCORE" in str(native.get_property("SCHEDULING_CORE_TYPE"))
    assert native.get_property("ENABLE_HYPER_THREADING") is False
    check(predictor)


def test_weights_of_ir_may_be_overwritten_if_they_are_not_mapped(tmp_path: Path) -> None:
    network = openvino().Core().read_model(proto())
    openvino().save_model(network, str(tmp_path / "m.xml"), compress_to_fp16=False)
    predictor = load(tmp_path / "m.xml", enable_mmap=False)
    (tmp_path / "m.bin").write_bytes(b"")
    check(predictor)


def test_every_option_says_when_it_helps() -> None:
    assert all(item.when.endswith(".") for item in OpenvinoOptions.describe())
