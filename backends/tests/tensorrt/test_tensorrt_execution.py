"""The run path on a GPU made of numpy: layout of buffers, lanes, profiles, failures."""

from __future__ import annotations

import gc
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.cache import default_cache

UNSUPPORTED = errors.UnsupportedModel


def inputs_of(rows: int, size: int = 3, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.standard_normal((rows, 4)).astype(np.float32),
        "ids": generator.integers(0, 2**40, rows),
        "size": np.array(size, np.int64),
    }


def assert_right(outputs: dict[str, Any], given: dict[str, Any]) -> None:
    x, ids = given["x"], given["ids"]
    np.testing.assert_array_equal(outputs["y"], (2 * x + ids[:, None]).astype(np.float32))
    np.testing.assert_array_equal(outputs["rows"], np.int64(len(x)))
    np.testing.assert_array_equal(outputs["positive"], x[x > 0])
    np.testing.assert_array_equal(outputs["steps"], np.arange(given["size"], dtype=np.float32))
    assert {name: value.dtype.name for name, value in outputs.items()} == {
        "y": "float32",
        "rows": "int64",
        "positive": "float32",
        "steps": "float32",
    }


@pytest.fixture
def predictor(trt: Any, engine_file: Path) -> Any:
    with bridge.load(engine_file, trust=True, options={"contexts": 2}) as loaded:
        yield loaded


def test_the_fakes_have_the_real_names(fakes: dict[str, Any]) -> None:
    real_cuda = pytest.importorskip("cuda.bindings.runtime")
    real = pytest.importorskip("tensorrt_rtx")
    for name, fake in fakes.items():
        target = real_cuda if name == "cuda" else getattr(real, name)
        extra = {"ports", "holds", "drain", "adopt"}
        for word in vars(fake):
            assert word.startswith("_") or word in extra or hasattr(target, word), (name, word)


def test_info_tells_what_runs(predictor: Any) -> None:
    assert str(predictor.info.device) == "cuda:0"
    assert predictor.info.provider == "TensorRT-RTX"
    assert predictor.info.precision == "as built"
    assert predictor.info.versions["tensorrt_rtx"] == "9.8.7.6"
    assert predictor.info.details["gpu"] == "Numpy GPU"
    assert predictor.info.details["compute_capability"] == "9.8"
    assert str(predictor.signature) == (
        "(x: float32 (?, 4), ids: int64 (?,), size: int64 ()) -> "
        "(y: float32 (?, 4), rows: int64 (), positive: float32 (?,), steps: float32 (?,))"
    )


@pytest.mark.parametrize("order", [[1, 8, 64, 2, 1], [64, 1, 30]])
def test_batches_that_grow_and_shrink(predictor: Any, order: list[int]) -> None:
    kept = []
    for seed, rows in enumerate(order):
        given = inputs_of(rows, size=rows + 1, seed=seed)
        before = {name: array.copy() for name, array in given.items()}
        kept.append((predictor.predict(given), given))
        for name, array in given.items():
            np.testing.assert_array_equal(array, before[name])
    for outputs, given in kept:  # no later call wrote into them
        assert_right(outputs, given)


def test_outputs_without_any_element(predictor: Any) -> None:
    given = inputs_of(2, size=0)
    given["x"] = -np.abs(given["x"])
    outputs = predictor.predict(given)
    assert outputs["positive"].shape == outputs["steps"].shape == (0,)
    assert_right(outputs, given)


def test_equal_shapes_are_laid_out_once_and_copied_at_once(predictor: Any, trt: Any) -> None:
    predictor.predict(inputs_of(4))
    (context,) = trt.engine.contexts
    laid_out, copies = context.laid_out, trt.engine.gpu.copies
    predictor.predict(inputs_of(4, seed=1))
    assert context.laid_out == laid_out
    # All inputs together, all outputs of known size together, and the one of unknown size.
    assert trt.engine.gpu.copies - copies == 3
    predictor.predict(inputs_of(5))
    assert context.laid_out > laid_out


def test_values_on_the_host_decide_shapes(predictor: Any) -> None:
    for size in (3, 7, 7, 2):
        given = inputs_of(4, size=size)
        assert_right(predictor.predict(given), given)


def test_the_first_profile_that_fits_is_used(predictor: Any, trt: Any) -> None:
    for rows in (1, 64, 8, 9):
        given = inputs_of(rows)
        assert_right(predictor.predict(given), given)
    assert [context._profile for context in trt.engine.contexts] == [0, 1]


def test_a_batch_outside_every_profile_is_refused(predictor: Any) -> None:
    with pytest.raises(errors.ShapeMismatch, match=r"\(65, 4\).* \(1, 4\) to \(8, 4\) or \(2, 4\)"):
        predictor.predict(inputs_of(65))
    assert_right(predictor.predict(inputs_of(8)), inputs_of(8))


def test_threads_share_the_contexts(predictor: Any, trt: Any) -> None:
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(20):
                given = inputs_of(1 + (seed + turn) % 8, size=turn % 5, seed=seed * 100 + turn)
                assert_right(predictor.predict(given), given)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(trt.engine.contexts) <= 2


def test_a_failed_execution_says_why_and_the_next_call_works(predictor: Any, trt: Any) -> None:
    predictor.predict(inputs_of(3))
    trt.engine.fails.append("the cask is empty")
    with pytest.raises(errors.PredictError, match="could not be executed: the cask is empty"):
        predictor.predict(inputs_of(3))
    given = inputs_of(3)
    assert_right(predictor.predict(given), given)
    assert len(trt.engine.contexts) == 2  # the failed one is not used again


def test_memory_that_runs_out(predictor: Any, gpu: Any) -> None:
    predictor.predict(inputs_of(1))
    gpu.limit_bytes = 4096
    with pytest.raises(errors.OutOfMemory, match="free memory"):
        predictor.predict(inputs_of(64, size=5000))
    gpu.limit_bytes = 1 << 30
    given = inputs_of(64)
    assert_right(predictor.predict(given), given)


def test_memory_for_an_output_of_unknown_size_runs_out(predictor: Any, trt: Any, gpu: Any) -> None:
    given = inputs_of(8)
    given["x"] = np.abs(given["x"])
    predictor.predict(given)
    allocator = trt.engine.contexts[0]._allocators["positive"]
    allocator.memory.close()
    gpu.limit_bytes = 0
    with pytest.raises(errors.OutOfMemory, match="out of memory"):
        predictor.predict(given)


def test_closing_gives_everything_back(predictor: Any, gpu: Any) -> None:
    outputs = predictor.predict(inputs_of(8))
    predictor.predict(inputs_of(64))
    bound = predictor.bind({"x": (2, 4), "ids": (2,), "size": ()})
    assert [word for word, _, _ in gpu.blocks.values()].count("device") >= 6
    predictor.close()
    assert gpu.streams == {}
    assert [word for word, _, _ in gpu.blocks.values() if word == "device"] == []
    assert_right(outputs, inputs_of(8))
    bound.inputs["x"][...] = 1  # the arrays outlive the predictor: they own their memory
    assert bound.outputs["y"].shape == (2, 4)
    del bound, outputs
    gc.collect()
    assert gpu.blocks == {}


def test_a_dropped_predictor_gives_its_memory_back(trt: Any, gpu: Any, engine_file: Path) -> None:
    loaded = bridge.load(engine_file, trust=True)
    loaded.predict(inputs_of(8))
    assert gpu.blocks
    del loaded
    trt.engine.contexts.clear()
    gc.collect()
    assert gpu.blocks == {}
    assert gpu.streams == {}


def test_bound_calls_work_in_pinned_memory(predictor: Any, gpu: Any) -> None:
    given = inputs_of(5)
    bound = predictor.bind({name: array.shape for name, array in given.items()})
    assert not bound.inputs["x"].any()
    for array in bound.inputs.values():
        assert gpu.holds("host", array.ctypes.data, array.nbytes)
    for seed, size in enumerate((3, 3, 6)):
        given = inputs_of(5, size=size, seed=seed)
        for name, array in given.items():
            bound.inputs[name][...] = array
        bound.predict()
        assert_right(bound.outputs, given)
    first = bound.outputs["y"]
    bound.predict()
    assert bound.outputs["y"] is first
    given = inputs_of(7)  # the predictor's own calls do not disturb it
    assert_right(predictor.predict(given), given)
    with pytest.raises(errors.ShapeMismatch, match="was built for"):
        predictor.bind({"x": (65, 4), "ids": (65,), "size": ()})


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ("not compatible with this version, expecting library version 10.3", UNSUPPORTED),
        ("generated on an incompatible device, expecting compute 8.9", UNSUPPORTED),
        ("Requested amount of GPU memory: out of memory", errors.OutOfMemory),
        ("Serialization assertion failed", errors.ModelLoadFailed),
    ],
)
def test_an_engine_that_tensorrt_refuses(
    trt: Any, engine_file: Path, refusal: str, kind: type[errors.BridgeError]
) -> None:
    trt.refusal = refusal
    with pytest.raises(kind) as caught:
        bridge.load(engine_file, trust=True)
    assert refusal in str(caught.value)
    assert "Build it here again" in str(caught.value) or kind is errors.OutOfMemory


@pytest.mark.parametrize("host_code", [False, True])
def test_code_for_the_cpu_in_an_engine_runs_only_if_allowed(
    trt: Any, engine_file: Path, host_code: bool
) -> None:
    bridge.load(engine_file, trust=True, options={"host_code": host_code}).close()
    assert trt.runs_host_code is host_code


def test_another_device_than_asked_for_is_no_silent_fallback(
    trt: Any, gpu: Any, engine_file: Path
) -> None:
    gpu.devices = 2
    gpu.lands_on = 1
    with pytest.raises(errors.SilentFallback, match="asked for cuda:0, but .* cuda:1"):
        bridge.load(engine_file, trust=True)
    assert bridge.load(engine_file, trust=True, device="cuda:1").info.device.index == 1


def test_an_onnx_model_is_built_into_the_cache_once(
    trt: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    onnx = pytest.importorskip("onnx")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in vars(real).items():
        if not hasattr(trt, name):
            setattr(trt, name, value)
    trt.ILogger = real.ILogger  # the real builder wants a real one
    path = tmp_path / "model.onnx"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [info("x", 1, ["rows", 4])],
        [info("y", 1, ["rows", 4])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    built: list[bytes] = []
    for home in ("engine", "plans"):
        name = f"bridge_tensorrt.{home}.deserialise"
        monkeypatch.setattr(name, lambda *args, host_code: _engine(built, trt, *args))
    with bridge.load(path, backend="tensorrt", options={"batch": "1:2:8"}) as loaded:
        assert loaded.info.precision == "float32"
        assert loaded.info.options == {"batch": "1:2:8"}
        assert loaded.signature.input("x").shape == ("rows", 4)  # the name from the ONNX model
    folder = next(entry.path for entry in default_cache().ls() if entry.kind == "engine")
    assert (folder / "model.engine").read_bytes() == built[0]
    monkeypatch.setattr("bridge_tensorrt.plans.build", None)
    with bridge.load(path, backend="tensorrt", options={"batch": "1:2:8"}):
        assert built[1] == built[0]  # from the cache: nothing can be built any more
    # What the bridge has built itself needs no trust; a changed byte ends that.
    with bridge.load(folder / "model.engine") as loaded:
        assert loaded.info.format == "engine"
    (folder / "model.engine").chmod(0o600)
    with (folder / "model.engine").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(errors.UntrustedModel):
        bridge.load(folder / "model.engine")


def _engine(built: list[bytes], trt: Any, *args: Any) -> Any:
    from bridge_tensorrt.engine import Engine, Port

    built.append(args[1])
    ports = [Port(name, bridge.DType.FLOAT32, (None, 4), is_on_host=False) for name in ("x", "y")]
    ranges = (((1, 4), (2, 4), (8, 4)),)
    return Engine(trt, None, trt.engine, (ports[0],), (ports[1],), (ranges,))  # type: ignore[arg-type]


def test_options_about_building_do_not_fit_an_engine(trt: Any, engine_file: Path) -> None:
    with pytest.raises(errors.OptionError, match="batch, tf32 decide how an engine is built"):
        bridge.load(engine_file, trust=True, options={"batch": "1:2:8", "tf32": True})
    with pytest.raises(errors.OptionError, match="built by tensorrt_rtx; module=tensorrt"):
        bridge.load(engine_file, trust=True, options={"module": "tensorrt"})


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="module tensorrt is installed"
)
def test_an_engine_of_a_module_that_is_not_installed(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"ftrt" + bytes(20) + bytes([10, 16, 1, 11]) + bytes(100))
    with pytest.raises(errors.BackendUnavailable, match="'tensorrt' is not installed"):
        bridge.load(path, trust=True)
