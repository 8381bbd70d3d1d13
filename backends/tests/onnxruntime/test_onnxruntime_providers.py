"""Plugin providers of the onnxruntime backend, and the settings of the built-in ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.dlpack import DeviceArray
from bridge.loading import open_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bridge_onnxruntime import providers  # noqa: E402
from bridge_onnxruntime import session as sessions  # noqa: E402
from bridge_onnxruntime.backend import OnnxruntimeBackend  # noqa: E402
from bridge_onnxruntime.graph_binding import GraphBound  # noqa: E402
from bridge_onnxruntime.optimised import engine_folder  # noqa: E402
from bridge_onnxruntime.options import OnnxruntimeOptions  # noqa: E402
from bridge_onnxruntime.predictor import DevicePredictor  # noqa: E402

CUDA = bridge.Device("cuda", 1)
FLOAT = onnx.TensorProto.FLOAT


def model(rows: int | str = "N") -> bytes:
    """y = relu(x @ w), w being twice the identity."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["before"]),
            onnx.helper.make_node("Relu", ["before"], ["y"]),
        ],
        "g",
        [value("x", FLOAT, [rows, 3])],
        [value("y", FLOAT, [rows, 3])],
        [onnx.numpy_helper.from_array(2 * np.eye(3, dtype=np.float32), "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    made: Any = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    data: bytes = made.SerializeToString()
    return data


def load(**options: Any) -> Any:
    return bridge.load(model(), backend="onnxruntime", options=options)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package whose library is none."""
    package = tmp_path / "onnxruntime_ep_for_a_test"
    package.mkdir()
    (package / "library.so").write_text("no library")
    (package / "__init__.py").write_text(
        "def get_library_path():\n    return __file__.replace('__init__.py', 'library.so')\n"
        "def get_ep_names():\n    return ['TestExecutionProvider']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(providers, "_registered", {})
    yield "for-a-test"
    sys.modules.pop("onnxruntime_ep_for_a_test", None)


def test_a_plugin_that_is_not_installed() -> None:
    with pytest.raises(errors.BackendUnavailable, match="no plugin of that name") as caught:
        load(provider="not-there")
    assert "pip install onnxruntime-ep-not-there" in caught.value.fix
    assert caught.value.detail["wanted"] == "not-there"


def test_a_plugin_whose_library_does_not_load(plugin: str) -> None:
    assert plugin in providers.plugins()
    with pytest.raises(errors.BackendUnavailable, match="cannot load it") as caught:
        load(provider=plugin)
    assert caught.value.__cause__ is not None


def test_a_plugin_that_cannot_be_imported(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_ep_for_a_test" / "__init__.py").write_text("import not_there_either")
    with pytest.raises(
        errors.BackendUnavailable, match="plugin for-a-test is inst.*either"
    ) as caught:
        load(provider=plugin)
    assert "onnxruntime-ep-for-a-test" in caught.value.fix


def devices(*kinds: tuple[str, int]) -> Any:
    """A runtime that knows devices of these types and vendors."""
    there = [
        SimpleNamespace(
            ep_name="TestExecutionProvider",
            device=SimpleNamespace(type=SimpleNamespace(name=kind), vendor_id=vendor, vendor="V"),
        )
        for kind, vendor in kinds
    ]
    return SimpleNamespace(get_ep_devices=lambda: there, there=there)


def test_the_device_of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_registered", {"test": ("TestExecutionProvider",)})
    runtime = devices(("GPU", 0x8086), ("CPU", 0x8086), ("GPU", 0x10DE), ("GPU", 0x10DE))
    monkeypatch.setattr(providers, "onnxruntime", lambda: runtime)
    assert providers.plugin_device("test", bridge.CPU) is runtime.there[1]
    assert providers.plugin_device("test", CUDA) is runtime.there[3]
    with pytest.raises(errors.DeviceUnavailable, match="CPU of V, GPU of V"):
        providers.plugin_device("test", bridge.Device("cuda", 2))


def test_what_a_plugin_says_of_itself() -> None:
    assert OnnxruntimeOptions(provider="openvino").tier == "half"
    assert OnnxruntimeOptions(provider="openvino").prepares


def test_the_openvino_plugin_runs_the_model() -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    try:
        loaded = load(provider="openvino")
    except errors.DeviceUnavailable as error:
        pytest.skip(f"it takes no CPU of this maker: {error.message}")
    with loaded as predictor:
        assert str(predictor.info.device) == "cpu"
        assert predictor.info.provider == "OpenVINOExecutionProvider"
        assert set(predictor.info.details["nodes"]) == {"OpenVINOExecutionProvider"}
        x = np.array([[1, -2, 3]], np.float32)
        np.testing.assert_array_equal(predictor.predict({"x": x})["y"], [[2, 0, 6]])
        bound = predictor.bind({"x": (2, 3)})
        for value in (1, 5):
            bound.inputs["x"][...] = value
            bound.predict()
            np.testing.assert_array_equal(bound.outputs["y"], np.full((2, 3), 2 * value))
    backend = OnnxruntimeBackend()
    arms = backend.search_space(open_model(model()), bridge.CPU)
    assert OnnxruntimeOptions(provider="openvino") in arms


# --- Settings of the providers in the build ----------------------------------------------


def test_cuda_graphs_are_asked_for() -> None:
    ((name, settings),) = providers.provider_list(CUDA, OnnxruntimeOptions(cuda_graph=True))
    assert name == "CUDAExecutionProvider"
    assert settings == {"device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1"}


def test_a_cache_on_cuda_is_for_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxruntimeBackend, "devices", lambda self: (bridge.CPU, CUDA))
    with pytest.raises(errors.OptionError, match="keeps TensorRT's engines") as caught:
        bridge.load(model(), backend="onnxruntime", device=CUDA, options={"cache": True})
    assert caught.value.detail["rule"] == "cache-without-engines"


def test_engines_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "model.engine").write_bytes(b"engine")

    options = OnnxruntimeOptions(provider="tensorrt", cache=True)
    fixed, other = open_model(model(2)), open_model(model(3))
    folder = engine_folder(fixed, CUDA, options, build)
    assert engine_folder(fixed, CUDA, options, build) == folder
    assert engine_folder(other, CUDA, options, build) != folder
    assert len(built) == 2
    (folder / "model.engine").chmod(0o600)
    (folder / "model.engine").write_bytes(b"Engine")
    assert engine_folder(fixed, CUDA, options, build) == folder
    assert len(built) == 3
    with pytest.raises(errors.OptionError, match=r"input 'x' has shape \(N, 3\)"):
        engine_folder(open_model(model()), CUDA, options, build)


def test_engines_of_a_model_that_tensorrt_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another provider that takes no operator stands in for it."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(OnnxruntimeBackend, "devices", lambda self: (bridge.CPU, CUDA))
    monkeypatch.setitem(providers.PROVIDERS, "tensorrt", "AzureExecutionProvider")
    monkeypatch.setattr(
        sessions,
        "provider_list",
        lambda device, options: [("AzureExecutionProvider", {}), "CPUExecutionProvider"],
    )
    options = {"provider": "tensorrt", "cache": True, "cpu_nodes": True}
    with pytest.raises(errors.SilentFallback, match="got no operator of the model"):
        bridge.load(model(2), backend="onnxruntime", device=CUDA, options=options)


def test_inputs_on_a_device_are_bound_where_they_are() -> None:
    """The memory is the host's here, so that what is bound can be computed with."""
    session = ort.InferenceSession(model(), providers=["CPUExecutionProvider"])
    signature = bridge.Signature(
        (bridge.TensorSpec("x", bridge.DType.FLOAT32, ("N", 3)),),
        (bridge.TensorSpec("y", bridge.DType.FLOAT32, ("N", 3)),),
    )
    predictor = DevicePredictor(session, signature, bridge.PredictorInfo())
    memory = np.array([[1, -2, 3]], np.float32)
    array = DeviceArray(memory, memory.ctypes.data, memory.shape, memory.dtype, None)
    for factor in (1, 2):
        memory[...] = np.array([[1, -2, 3]]) * factor
        answer = predictor._predict({"x": array}, ("y",))["y"]
        np.testing.assert_array_equal(answer, [[2 * factor, 0, 6 * factor]])
    host = predictor._predict({"x": memory}, ("y",))["y"]
    np.testing.assert_array_equal(host, [[4, 0, 12]])


def test_recorded_calls_have_buffers_of_their_own() -> None:
    """On the CPU, where nothing is recorded, but all else is as on a GPU."""
    session = ort.InferenceSession(model(), providers=["CPUExecutionProvider"])
    signature = bridge.Signature(
        (bridge.TensorSpec("x", bridge.DType.FLOAT32, ("N", 3)),),
        (bridge.TensorSpec("y", bridge.DType.FLOAT32, ("N", 3)),),
    )
    info = bridge.PredictorInfo(details={"cuda_graph": True})
    predictor = DevicePredictor(session, signature, info)
    assert predictor._run_options.get_run_config_entry("gpu_graph_id") == "-1"
    bounds = [
        GraphBound(predictor, {"x": np.zeros((rows, 3), np.float32)}, session, sessions.SILENT)
        for rows in (2, 5)
    ]
    assert bounds[0]._graph != bounds[1]._graph
    for value in (1, -1, 5):
        for bound in bounds:
            bound.inputs["x"][...] = value
            bound.predict()
            wanted = np.full(bound.inputs["x"].shape, max(2 * value, 0))
            np.testing.assert_array_equal(bound.outputs["y"], wanted)
    held = bounds[0].outputs["y"]
    bounds[0].predict()
    assert bounds[0].outputs["y"] is held
    bounds[0].release()
    bounds[1].predict()


def test_recorded_calls_begin_anew_after_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two outputs gets no memory at first."""
    proto = onnx.load_from_string(model())
    proto.graph.output.append(onnx.helper.make_tensor_value_info("before", FLOAT, ["N", 3]))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    spec = bridge.TensorSpec("x", bridge.DType.FLOAT32, ("N", 3))
    outputs = tuple(replace(spec, name=name) for name in ("y", "before"))
    info = bridge.PredictorInfo(details={"cuda_graph": True})
    predictor = DevicePredictor(session, bridge.Signature((spec,), outputs), info)
    bound = GraphBound(predictor, {"x": np.full((2, 3), -1, np.float32)}, session, sessions.SILENT)
    make, calls = ort.OrtValue.ortvalue_from_shape_and_type, []

    def make_few(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise MemoryError
        return make(*given)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", make_few)
    with pytest.raises(errors.BridgeError):
        bound.predict()
    for _ in range(2):
        bound.predict()
        np.testing.assert_array_equal(bound.outputs["y"], np.zeros((2, 3)))
        np.testing.assert_array_equal(bound.outputs["before"], np.full((2, 3), -2))
    assert len(calls) == 4


@pytest.mark.gpu
def test_tensors_on_the_gpu_stay_there() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    predictor = bridge.load(model(), backend="onnxruntime", device="cuda")
    for factor in (1, 2):
        x = torch.ones((2, 3), device="cuda") * factor
        answer = predictor.predict({"x": x})["y"]
        np.testing.assert_array_equal(answer, np.full((2, 3), 2 * factor))


@pytest.mark.gpu
def test_cuda_graphs_answer_like_ordinary_calls() -> None:
    plain = bridge.load(model(), backend="onnxruntime", device="cuda")
    graph = bridge.load(model(), backend="onnxruntime", device="cuda", options={"cuda_graph": True})
    bounds = [graph.bind({"x": (rows, 3)}) for rows in (2, 5)]
    for value in (1, -1, 5):
        for bound in bounds:
            bound.inputs["x"][...] = value
            bound.predict()
            wanted = plain.predict({"x": bound.inputs["x"]})["y"]
            np.testing.assert_array_equal(bound.outputs["y"], wanted)
        x = np.full((3, 3), value, np.float32)
        np.testing.assert_array_equal(graph.predict({"x": x})["y"], plain.predict({"x": x})["y"])


@pytest.mark.gpu
def test_an_engine_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this build of onnxruntime has no TensorRT")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    options = {"provider": "tensorrt", "cache": True}
    for _ in range(2):
        predictor = bridge.load(model(2), backend="onnxruntime", device="cuda", options=options)
        x = {"x": np.ones((2, 3), np.float32)}
        np.testing.assert_array_equal(predictor.predict(x)["y"], np.full((2, 3), 2))
        files = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*.engine")}
        assert len(files) == 1
    assert {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*.engine")} == files
