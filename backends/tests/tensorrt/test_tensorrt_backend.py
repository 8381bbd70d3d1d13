"""The backend and the engine format where no GPU and no TensorRT is needed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge import errors
from bridge.cache import Cache, default_cache
from bridge.loading import open_model
from bridge.search import Pruned
from bridge_tensorrt import cuda, module
from bridge_tensorrt.backend import TensorrtBackend
from bridge_tensorrt.network import parse
from bridge_tensorrt.options import EngineOptions, TensorrtOptions

CUDA = bridge.Device("cuda", 0)


def header(tag: bytes, version: tuple[int, ...], size_bytes: int = 64) -> bytes:
    head = tag + bytes(4) + (2).to_bytes(8, "little") + size_bytes.to_bytes(8, "little")
    return head + bytes(version) + bytes(36)


@pytest.mark.parametrize(
    ("tag", "maker"), [(b"ftrt", "tensorrt"), (b"vtrt", "tensorrt_rtx")], ids=["10", "rtx"]
)
def test_engines_are_known_by_content(tag: bytes, maker: str, tmp_path: Path) -> None:
    path = tmp_path / "model.dat"
    path.write_bytes(header(tag, (10, 16, 1, 11)))
    found = open_model(path)
    assert found.format.name == "engine"
    assert found.facts.versions == {maker: "10.16.1.11"}
    about = bridge.inspect(path)
    assert isinstance(about.problem, errors.UntrustedModel)
    assert [one.backend for one in about.candidates if one.is_capable] == ["tensorrt"]
    assert bridge.inspect(path, trust=True).problem is None
    data = open_model(path.read_bytes())
    assert data.facts.versions == found.facts.versions


def test_engines_of_others_need_trust(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(header(b"vtrt", (1, 7, 1, 116)))
    for model in (path, path.read_bytes()):
        with pytest.raises(errors.UntrustedModel, match="not from the bridge's own cache"):
            open_model(model).format.check(open_model(model))
        trusted = open_model(model, trust=True)
        trusted.format.check(trusted)


def test_engines_from_the_cache_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))

    def write(folder: Path) -> None:
        (folder / "model.engine").write_bytes(header(b"vtrt", (1, 7, 1, 116)))

    for kind, is_trusted in (("engine", True), ("zoo", False)):
        path = default_cache().entry(kind, {"a": 1}, write) / "model.engine"
        found = open_model(path)
        if is_trusted:
            found.format.check(found)
        else:
            with pytest.raises(errors.UntrustedModel):
                found.format.check(found)
    other = Cache(tmp_path / "other").entry("engine", {"a": 1}, write) / "model.engine"
    with pytest.raises(errors.UntrustedModel):
        open_model(other).format.check(open_model(other))


@pytest.mark.parametrize("size", [8, 27, 63])
def test_truncated_engines(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(header(b"vtrt", (1, 7, 1, 116))[:size])
    with pytest.raises(errors.InvalidModel, match="truncated"):
        bridge.load(path, trust=True)


def test_other_bytes_are_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"ftrt is how this text begins, which is no engine")
    with pytest.raises(errors.InvalidModel, match=r"called \.engine"):
        open_model(path)


def found(monkeypatch: pytest.MonkeyPatch, *names: str, bindings: bool = True) -> None:
    def find(name: str) -> bridge.Availability:
        if name in names:
            return bridge.Availability(installed=True, version="1.2", distribution=name)
        return bridge.Availability(installed=False, reason=f"no {name}", fix="Install it.")

    monkeypatch.setattr(module, "find", find)
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name != "cuda-bindings":
            return real(name)
        if not bindings:
            raise importlib.metadata.PackageNotFoundError(name)
        return "13.5.0"

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_neither_module_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch)
    backend = TensorrtBackend()
    assert not backend.probe().installed
    assert "neither module 'tensorrt' nor 'tensorrt_rtx'" in (backend.probe().reason or "")
    assert "inference-bridge[tensorrt-rtx]" in (backend.probe().fix or "")
    with pytest.raises(errors.BackendUnavailable):
        backend.require()
    with pytest.raises(errors.BackendUnavailable, match="neither"):
        module.choose(None)


def test_one_module_is_enough_and_tensorrt_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "tensorrt_rtx")
    assert TensorrtBackend().probe().distribution == "tensorrt_rtx"
    assert module.choose(None) == "tensorrt_rtx"
    with pytest.raises(errors.BackendUnavailable, match="no tensorrt"):
        module.choose("tensorrt")
    found(monkeypatch, "tensorrt_rtx", "tensorrt")
    assert TensorrtBackend().probe().distribution == "tensorrt"
    assert module.choose(None) == "tensorrt"
    assert module.choose("tensorrt_rtx") == "tensorrt_rtx"


def test_missing_bindings_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "tensorrt_rtx", bindings=False)
    (warning,) = TensorrtBackend().probe().warnings
    assert "built but not run" in warning
    assert "pip install" in warning
    assert not TensorrtBackend().capabilities(CUDA).predicts
    found(monkeypatch, "tensorrt_rtx")
    assert TensorrtBackend().probe().warnings == ()


def test_capabilities() -> None:
    capabilities = TensorrtBackend().capabilities(CUDA)
    assert capabilities.formats == {"onnx", "engine"}
    assert bridge.DType.INT64 in capabilities.dtypes
    assert capabilities.thread_safety is bridge.ThreadSafety.SHARED
    assert not TensorrtBackend().capabilities(bridge.CPU).predicts
    assert TensorrtBackend().default_device(_onnx()) == CUDA


def _onnx() -> Any:
    class Model:
        format = bridge.Format()

    return Model()


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TensorrtBackend()
    monkeypatch.setattr(cuda, "driver_is_installed", lambda: False)
    assert "no CUDA driver (libcuda.so.1)" in str(backend.missing_device(CUDA))
    monkeypatch.setattr(cuda, "driver_is_installed", lambda: True)
    monkeypatch.setattr(cuda, "count_devices", lambda: 0)
    assert "no GPU at all" in str(backend.missing_device(CUDA))
    monkeypatch.setattr(cuda, "count_devices", lambda: 2)
    text = str(backend.missing_device(bridge.Device("cuda", 3)))
    assert "only cuda:0 to cuda:1" in text
    assert "CUDA_VISIBLE_DEVICES" in text

    def fails() -> int:
        raise cuda.CudaError("cudaErrorInsufficientDriver: too old")

    monkeypatch.setattr(cuda, "count_devices", fails)
    assert "no GPU can be used: cudaErrorInsufficientDriver" in str(backend.missing_device(CUDA))
    assert backend.devices() == ()


def test_a_builder_that_needs_a_gpu_says_so(tmp_path: Path) -> None:
    """``tensorrt`` makes no builder without a GPU: pybind11 then raises TypeError."""

    class Trt:
        __name__ = "tensorrt"
        __version__ = "10.0"

        class ILogger:
            def __init__(self) -> None:
                pass

        def init_libnvinfer_plugins(self, log: Any, space: str) -> bool:
            return True

        def Builder(self, log: Any) -> Any:
            log.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09")
    with pytest.raises(errors.DeviceUnavailable, match="CUDA initialization failure") as caught:
        parse(Trt(), bridge.ModelRef(format=bridge.Format(), path=path))
    assert "module=tensorrt_rtx" in str(caught.value)


def test_options_say_which_of_them_build() -> None:
    options = TensorrtOptions.make({"contexts": 2, "batch": "1:2:3", "module": "tensorrt_rtx"})
    assert options.building == {"batch": "1:2:3"}
    assert EngineOptions().building == {}


def test_what_is_worth_measuring_depends_on_who_builds(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(header(b"ftrt", (10, 16, 1, 11)))
    default, left_out = TensorrtBackend().search_space(open_model(path), CUDA)
    assert default == TensorrtOptions()
    assert isinstance(left_out, Pruned)
    assert left_out.rule == "built-already"
    assert TensorrtOptions().prepares
    assert TensorrtOptions(tf32=True).tier == "half"
