"""Loading with the onnxruntime backend: formats, signatures, options, what really runs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.cpus import default_threads
from bridge.loading import open_model
from bridge.search import Pruned

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bridge_onnxruntime import session as sessions  # noqa: E402
from bridge_onnxruntime.backend import OnnxruntimeBackend  # noqa: E402
from bridge_onnxruntime.native import load as native_load  # noqa: E402
from bridge_onnxruntime.options import OnnxruntimeOptions  # noqa: E402

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
CUDA = bridge.Device("cuda", 1)


def proto(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: tuple[Any, ...] = (),
    ir: int = 9,
) -> Any:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value(*one) for one in inputs], [value(*one) for one in outputs], list(weights)
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=ir
    )


def add(ir: int = 9, *, is_input: bool = False) -> Any:
    """y = x + w, w being (0, 1, 2)."""
    weights = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    inputs = [("x", FLOAT, ["N", 3])] + ([("w", FLOAT, [3])] if is_input else [])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    return proto([node], inputs, [("y", FLOAT, ["N", 3])], (weights,), ir)


def load(model: Any, **more: Any) -> bridge.Predictor:
    model = model.SerializeToString() if hasattr(model, "SerializeToString") else model
    return bridge.load(model, backend="onnxruntime", **more)


def check(predictor: bridge.Predictor) -> None:
    assert predictor.signature.input_names == ("x",)
    assert predictor.signature.output_names == ("y",)
    y = predictor.predict({"x": np.ones((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(y, [[1, 2, 3], [1, 2, 3]])


def save_onnx(path: Path) -> Path:
    path.write_bytes(add().SerializeToString())
    return path


def save_external(path: Path) -> Path:
    onnx.save_model(
        add(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def save_ort(path: Path, model: Any = None) -> Path:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(path)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession((model or add()).SerializeToString(), settings)
    return path


@pytest.mark.parametrize("suffix", [".onnx", ".ort", "", ".pt", ".ORT", ".xml"])
@pytest.mark.parametrize("save", [save_onnx, save_external, save_ort])
def test_content_decides_not_the_suffix(tmp_path: Path, suffix: str, save: Any) -> None:
    check(load(save(tmp_path / f"model{suffix}")))


@pytest.mark.parametrize("save", [save_onnx, save_ort])
def test_bytes(tmp_path: Path, save: Any) -> None:
    predictor = load(save(tmp_path / "model").read_bytes())
    check(predictor)
    assert predictor._session._model_bytes is None  # no second copy of the weights


def test_the_default_for_onnx_and_ort(tmp_path: Path) -> None:
    for save, name in ((save_onnx, "onnx"), (save_ort, "ort")):
        predictor = bridge.load(save(tmp_path / "model"))
        assert (predictor.info.backend, predictor.info.format) == ("onnxruntime", name)


def test_external_data_is_found_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    save_external(folder / "model.onnx")
    shutil.move(folder, tmp_path / "b")
    check(load(tmp_path / "b/model.onnx"))
    (tmp_path / "b/weights.bin").unlink()
    with pytest.raises(errors.ModelNotFound, match=r"weights\.bin"):
        load(tmp_path / "b/model.onnx")


def test_a_model_cannot_set_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    model = add()
    entry = model.metadata_props.add()
    entry.key = "ort_config"
    entry.value = json.dumps({"session_options": {"intra_op_num_threads": 7}})
    assert load(model, options={"threads": 1}).info.threads == 1
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    with pytest.raises(errors.OptionError, match="ORT_LOAD_CONFIG_FROM_MODEL"):
        load(model)


def test_signature() -> None:
    spec = load(add()).signature.input("x")
    assert (spec.dtype, spec.shape, spec.has_default) == (bridge.DType.FLOAT32, ("N", 3), False)
    assert spec.native_name == "x"


def test_scalars_and_unknown_ranks_differ(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Neg", ["scalar"], ["minus"]),
        onnx.helper.make_node("Neg", ["any"], ["negative"]),
    ]
    inputs = [("scalar", FLOAT, []), ("any", FLOAT, None)]
    model = proto(nodes, inputs, [("minus", FLOAT, []), ("negative", FLOAT, None)])
    predictor = load(model)
    shapes = [spec.shape for spec in predictor.signature.inputs]
    assert shapes == [(), None]
    assert [spec.shape for spec in predictor.signature.outputs] == [(), None]
    given = {"scalar": np.array(2, np.float32), "any": np.ones((1, 2, 1), np.float32)}
    answer = predictor.predict(given)
    assert answer["minus"].shape == ()
    assert answer["minus"] == -2
    assert answer["negative"].shape == (1, 2, 1)
    with pytest.raises(errors.ShapeMismatch):
        predictor.predict({**given, "scalar": np.zeros(1, np.float32)})
    # ONNX Runtime does not say which is which, and an ORT file has no other reader.
    path = save_ort(tmp_path / "model.ort", model)
    assert [spec.shape for spec in load(path).signature.inputs] == [None, None]
    declared = load(path, signature=predictor.signature)
    assert [spec.shape for spec in declared.signature.inputs] == [(), None]
    with pytest.raises(errors.OptionError, match=r"the model's are scalar, any"):
        load(path, signature=bridge.Signature((), ()))


def test_signatures_that_onnx_does_not_have() -> None:
    with pytest.raises(errors.UnsupportedModel, match="no signature 'serving_default'"):
        load(add(), signature="serving_default")
    with pytest.raises(errors.OptionError, match="holds its own"):
        load(add(), signature=bridge.Signature((), ()))


def test_initializers_that_are_inputs_are_optional() -> None:
    predictor = load(add(is_input=True))
    assert [spec.has_default for spec in predictor.signature.inputs] == [False, True]
    x = np.zeros((1, 3), np.float32)
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], [[0, 1, 2]])
    w = np.full(3, 9, np.float32)
    np.testing.assert_array_equal(predictor.predict({"x": x, "w": w})["y"], [[9, 9, 9]])
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], [[0, 1, 2]])
    # Before IR version 4 they could not be overridden.
    assert load(add(3, is_input=True)).signature.input_names == ("x",)


def test_info_is_the_runtimes_own_answer() -> None:
    info = load(add()).info
    assert (str(info.device), info.provider) == ("cpu", "CPUExecutionProvider")
    assert (info.precision, info.threads, info.stateful) == ("float32", default_threads(), False)
    assert info.versions == {"onnxruntime": ort.__version__}
    assert info.details == {
        "providers": ["CPUExecutionProvider"],
        "execution_mode": "sequential",
        "graph_optimization": "enable_all",
        "spinning": default_threads() > 1,
    }
    json.dumps(info.to_dict())


def test_options_reach_the_session() -> None:
    predictor = load(
        add(),
        options={
            "threads": 3,
            "execution_mode": "parallel",
            "inter_threads": 2,
            "graph_optimization": "basic",
            "arena": False,
            "memory_pattern": False,
            "spinning": False,
        },
    )
    settings = predictor._session.get_session_options()
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (3, 2)
    assert settings.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert settings.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert (settings.enable_cpu_mem_arena, settings.enable_mem_pattern) == (False, False)
    entry = settings.get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == "0"
    assert entry("session.inter_op.allow_spinning") == "0"
    assert predictor.info.details["inter_threads"] == 2
    check(predictor)


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(errors.OptionError, match="inter_threads=2 has no effect"):
        load(add(), options={"inter_threads": 2})
    with pytest.raises(errors.OptionError, match="settings of CUDA devices"):
        load(add(), options={"provider": "cuda"})
    with pytest.raises(errors.OptionError, match="Did you mean 'threads'"):
        load(add(), options={"thread": 2})


def test_every_arm_of_the_search_space_loads() -> None:
    backend, model = OnnxruntimeBackend(), open_model(add().SerializeToString())
    space = backend.search_space(model, bridge.CPU)
    arms = [options for options in space if not isinstance(options, Pruned)]
    assert arms[0] == OnnxruntimeOptions()
    assert len(set(arms)) == len(arms)
    for options in arms:
        with backend.load(model, options=options) as predictor:
            check(predictor)
            assert dict(predictor.info.options) == options.to_dict()
    rules = {item.rule for item in space if isinstance(item, Pruned)}
    assert rules >= {"inter-threads-without-parallel", "io-binding-on-cpu", "same-as-default"}


def space_of(cpus: int, monkeypatch: pytest.MonkeyPatch) -> tuple[bridge.Options | Pruned, ...]:
    for module in ("options", "backend", "session"):
        monkeypatch.setattr(f"bridge_onnxruntime.{module}.default_threads", lambda: cpus)
    model = open_model(add().SerializeToString())
    return OnnxruntimeBackend().search_space(model, bridge.CPU)


def test_threads_never_outnumber_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus in (2, 3, 4, 8, 64):
        arms = [item for item in space_of(cpus, monkeypatch) if isinstance(item, bridge.Options)]
        for options in arms:
            assert isinstance(options, OnnxruntimeOptions)
            if options.execution_mode == "parallel":
                beside = options.inter_threads or cpus
                assert (options.threads or cpus) * beside <= cpus
        assert any("parallel" in str(options) for options in arms)
        assert (OnnxruntimeOptions(threads=cpus // 2) in arms) == (cpus > 3 or cpus // 2 == 1)


def test_with_one_cpu_nothing_runs_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(1, monkeypatch)
    pruned = {str(dict(item.values)): item.rule for item in space if isinstance(item, Pruned)}
    assert pruned["{'execution_mode': 'parallel'}"] == "one-cpu"
    assert pruned["{'threads': 1}"] == pruned["{'spinning': False}"] == "same-as-default"


def test_precision_tiers_and_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    tensorrt = OnnxruntimeOptions(provider="tensorrt")
    assert (OnnxruntimeOptions().tier, tensorrt.tier) == ("strict", "half")
    assert not OnnxruntimeOptions().prepares
    assert tensorrt.prepares
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert tensorrt.tier == "strict"


def test_native_gives_the_same_answer(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    for model in (save_onnx(tmp_path / "model.onnx"), add().SerializeToString()):
        call, named = native_load(open_model(model), threads=1)
        np.testing.assert_array_equal(
            named(call({"x": x}))["y"], load(model).predict({"x": x})["y"]
        )


def test_warnings_go_to_the_log_when_asked_for(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    unused = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "unused")
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    model = proto([node], [("x", FLOAT, ["N"])], [("y", FLOAT, ["N"])], (unused,))
    with caplog.at_level(logging.INFO, "bridge.onnxruntime"):
        load(model)
        assert not caplog.records
        load(model, options={"warnings": True})
    assert any("'unused'" in record.getMessage() for record in caplog.records)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert capfd.readouterr() == ("", "")


# --- Devices that are not here ---------------------------------------------------------


@pytest.fixture
def no_cuda() -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build of onnxruntime has CUDA")


@pytest.mark.usefixtures("no_cuda")
def test_cuda_without_its_provider() -> None:
    assert OnnxruntimeBackend().devices() == (bridge.CPU,)
    with pytest.raises(errors.DeviceUnavailable, match="CPUExecutionProvider") as caught:
        load(add(), device="cuda")
    assert "inference-bridge[onnxruntime-gpu]" in str(caught.value)
    assert caught.value.detail["there"] == "cpu"


def test_cuda_without_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("bridge_onnxruntime.backend.onnxruntime", lambda: runtime)
    monkeypatch.setattr(
        "bridge_onnxruntime.backend.driver_devices",
        lambda: ((bridge.CPU, "a CPU"), (bridge.Device("cuda", 0), "a GPU")),
    )
    backend = OnnxruntimeBackend()
    assert backend.devices() == (bridge.CPU, bridge.Device("cuda", 0))
    error = backend.missing_device(CUDA)
    assert "the NVIDIA driver reports cpu, cuda:0" in str(error)


def test_tensorrt_without_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxruntimeBackend, "devices", lambda self: (bridge.CPU, CUDA))
    with pytest.raises(errors.DeviceUnavailable, match="no TensorRT"):
        load(add(), device=CUDA, options={"provider": "tensorrt"})


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("cpu_nodes", [True, False])
def test_a_provider_that_does_not_start_is_a_silent_fallback(
    monkeypatch: pytest.MonkeyPatch, cpu_nodes: bool
) -> None:
    # As on a machine where the CUDA libraries are missing: onnxruntime goes on with the CPU.
    monkeypatch.setattr(OnnxruntimeBackend, "devices", lambda self: (bridge.CPU, CUDA))
    with pytest.raises(errors.SilentFallback) as caught:
        load(add(), device=CUDA, options={"cpu_nodes": cpu_nodes})
    assert (caught.value.device, caught.value.backend) == ("cuda:1", "onnxruntime")


def test_sessions_never_change_their_provider() -> None:
    # Else InferenceSession.run, which serves bfloat16, would retry on the CPU and print that.
    assert load(add())._session._enable_fallback is False


def test_nodes_on_the_cpu_are_a_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    # The Azure provider, which every build has, computes no operator of this model.
    monkeypatch.setattr(OnnxruntimeBackend, "devices", lambda self: (bridge.CPU, CUDA))
    monkeypatch.setitem(sessions.PROVIDERS, "cuda", "AzureExecutionProvider")
    monkeypatch.setattr(
        sessions, "provider_list", lambda device, options: ["AzureExecutionProvider"]
    )
    with pytest.raises(errors.SilentFallback, match="cpu_nodes"):
        load(add(), device=CUDA)
    with pytest.raises(errors.SilentFallback, match="got no operator of the model"):
        load(add(), device=CUDA, options={"cpu_nodes": True})


def session(providers: list[str], nodes: dict[str, int], device_id: str = "1") -> Any:
    """What a session would answer on another machine."""
    parts = [
        SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
        for name, count in nodes.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: providers,
        get_session_options=ort.SessionOptions,
        get_provider_options=lambda: {name: {"device_id": device_id} for name in providers},
        get_provider_graph_assignment_info=lambda: parts,
    )


def test_what_runs_is_read_from_the_session() -> None:
    cuda, tensorrt, cpu = (
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
        "CPUExecutionProvider",
    )
    default, engine = OnnxruntimeOptions(), OnnxruntimeOptions(provider="tensorrt")
    device, provider, details = sessions.what_runs(
        session([cuda, cpu], {cuda: 3, cpu: 1}), CUDA, default
    )
    assert (device, provider, details["nodes"]) == (CUDA, cuda, {cuda: 3, cpu: 1})
    # Another GPU than the one asked for, which ``Backend.load`` then refuses.
    assert sessions.what_runs(session([cuda], {cuda: 3}, "0"), CUDA, default)[0].index == 0
    assert sessions.what_runs(session([cpu], {cpu: 3}), CUDA, default)[0] == bridge.CPU
    with pytest.raises(errors.SilentFallback, match="asked for Tensorrt.*uses CUDA"):
        sessions.what_runs(session([cuda, cpu], {cuda: 3}), CUDA, engine)
    with pytest.raises(errors.SilentFallback, match="Tensorrt.*got no operator"):
        sessions.what_runs(session([tensorrt, cuda, cpu], {cuda: 3}), CUDA, engine)
    old = session([cuda], {})
    del old.get_provider_graph_assignment_info  # onnxruntime before 1.23
    assert sessions.what_runs(old, CUDA, default)[0] == CUDA


def test_cuda_sessions_are_asked_for_float32_on_that_gpu() -> None:
    providers = sessions.provider_list(CUDA, OnnxruntimeOptions())
    assert providers == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})]
    model = open_model(add().SerializeToString())
    for cpu_nodes in (False, True):
        options = OnnxruntimeOptions(provider="tensorrt", cpu_nodes=cpu_nodes)
        names = [
            one if isinstance(one, str) else one[0] for one in sessions.provider_list(CUDA, options)
        ]
        assert names[:2] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        assert ("CPUExecutionProvider" in names) == cpu_nodes
        settings = sessions._settings(model, CUDA, options)
        entry = settings.get_session_config_entry("session.disable_cpu_ep_fallback")
        assert entry == ("0" if cpu_nodes else "1")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    predictor = load(add(), device="cuda")
    check(predictor)
    assert predictor.info.provider == "CUDAExecutionProvider"
    assert predictor.info.details["nodes"] == {"CUDAExecutionProvider": 1}
    bound = predictor.bind({"x": (2, 3)})
    for value in (1, 5):
        bound.inputs["x"][...] = value
        bound.predict()
        np.testing.assert_array_equal(bound.outputs["y"][0], [value, value + 1, value + 2])
