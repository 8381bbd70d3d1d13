"""What is kept on disk: engines, times and kernels; what is read again, and what is not."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.cache import default_cache
from bridge.loading import open_model
from bridge_tensorrt import building, plans
from bridge_tensorrt.blob import Blob
from bridge_tensorrt.refitting import graph_digest

onnx = pytest.importorskip("onnx")

info = onnx.helper.make_tensor_value_info


def model_of(
    weight: float = 1.0, shape: tuple[int, ...] = (1, 4), name: str = "w", **save: Any
) -> Any:
    """``y = reshape(x + w)``: a weight, and an integer that decides a shape."""
    weights = [
        onnx.numpy_helper.from_array(np.full(4, weight, np.float32), name),
        onnx.numpy_helper.from_array(np.array(shape, np.int64), "shape"),
    ]
    nodes = [
        onnx.helper.make_node("Add", ["x", name], ["h"]),
        onnx.helper.make_node("Reshape", ["h", "shape"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, ["rows", 4])], [info("y", 1, None)], weights
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model_of(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, trt: Any) -> list[str]:
    """Names of the models that were built; an engine's bytes say which build made it."""
    made: list[str] = []

    def build(module: Any, model: Any, options: Any) -> building.Built:
        made.append(model.name)
        data = f"engine {len(made)}".encode()
        return building.Built(data, bridge.Signature((), ()), {"precision": "float32"})

    monkeypatch.setattr(plans, "build", build)
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was given to TensorRT to deserialise."""
    seen: list[bytes] = []
    real = plans.deserialise

    def deserialise(trt: Any, data: bytes, name: str, *, host_code: bool) -> Any:
        seen.append(data)
        return real(trt, data, name, host_code=host_code)

    monkeypatch.setattr(plans, "deserialise", deserialise)
    return seen


def load(path: Path, **options: Any) -> bridge.Predictor:
    return bridge.load(path, backend="tensorrt", options=options)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING]


def engine_of(kind: str = "engine") -> Path:
    (folder,) = (entry.path for entry in default_cache().ls() if entry.kind == kind)
    (file,) = (one for one in folder.iterdir() if one.suffix in (".engine", ""))
    return file


def change(file: Path, data: bytes) -> None:
    file.chmod(0o600)
    file.write_bytes(data)


def test_an_engine_is_built_once(builds: list[str], read: list[bytes], path: Path) -> None:
    for _ in range(2):
        with load(path) as predictor:
            assert predictor.info.details["refitted"] is False
    assert builds == ["model.onnx"]
    assert read == [b"engine 1", b"engine 1"]


@pytest.mark.parametrize("other", ["model", "version", "gpu", "options", "buckets"])
def test_anything_else_is_another_engine(
    other: str,
    builds: list[str],
    read: list[bytes],
    path: Path,
    trt: Any,
    gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(path).close()
    options = {}
    if other == "model":
        onnx.save(model_of(weight=2.0), path)
    elif other == "version":
        trt.__version__ = "9.8.7.7"
    elif other == "gpu":
        about = SimpleNamespace(name=b"Numpy GPU 2", major=9, minor=8)
        real = gpu.cudaGetDeviceProperties
        monkeypatch.setattr(gpu, "cudaGetDeviceProperties", lambda index: (real(index)[0], about))
    else:
        options = {"tf32": True} if other == "options" else {"buckets": "1,64"}
    load(path, **options).close()
    assert read == [b"engine 1", b"engine 2"]
    assert len(builds) == 2


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_a_damaged_engine_is_built_again_and_never_read(
    damage: str, builds: list[str], read: list[bytes], path: Path, caplog: Any
) -> None:
    load(path).close()
    file = engine_of()
    data = file.read_bytes()
    change(file, data[:-2] if damage == "truncated" else data[:-1] + b"X")
    load(path).close()
    assert read == [b"engine 1", b"engine 2"]
    assert len(builds) == 2
    (warning,) = warnings_of(caplog)
    assert "is built again" in warning
    load(path).close()
    assert len(builds) == 2


def test_an_engine_that_is_refused_here_is_built_again(
    builds: list[str], path: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    load(path).close()
    trt.refusal = "generated on an incompatible device, expecting compute 8.9"
    build = plans.build

    def builds_well(*args: Any) -> Any:
        trt.refusal = ""
        return build(*args)

    monkeypatch.setattr(plans, "build", builds_well)
    load(path).close()
    assert len(builds) == 2
    told = [text for text in warnings_of(caplog) if "is built again" in text]
    assert len(told) == 1
    assert "incompatible device" in told[0]


def test_a_new_engine_that_is_refused_is_an_error(builds: list[str], path: Path, trt: Any) -> None:
    trt.refusal = "Serialization assertion failed"
    with pytest.raises(errors.ModelLoadFailed, match="Serialization assertion failed"):
        load(path)
    assert len(builds) == 1


def test_compiled_kernels_are_kept_for_the_next_process(
    builds: list[str], path: Path, trt: Any, caplog: Any
) -> None:
    zeros = {"x": np.zeros((2, 4), np.float32), "ids": np.zeros(2, np.int64)}
    for count in (1, 2, 3):
        with load(path) as predictor:
            predictor.predict({**zeros, "size": np.array(1)})
        assert engine_of("runtime-cache").read_bytes() == b"kernels" + b"k" * count
    assert warnings_of(caplog) == []
    change(engine_of("runtime-cache"), b"kernelsXXX")
    with load(path) as predictor:
        predictor.predict({**zeros, "size": np.array(1)})
    (warning,) = warnings_of(caplog)
    assert "runtime-cache in the cache is damaged" in warning
    assert engine_of("runtime-cache").read_bytes() == b"kernelsk"


def test_kernels_of_another_driver_are_compiled_again(
    builds: list[str], path: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(Blob, "read", lambda self: b"of another driver")
    with load(path) as predictor:
        predictor.bind({"x": (2, 4), "ids": (2,), "size": ()})
    (warning,) = warnings_of(caplog)
    assert "compiled again" in warning


def test_nothing_is_kept_unless_wanted(builds: list[str], path: Path, trt: Any) -> None:
    with load(path, runtime_cache=False) as predictor:
        predictor.bind({"x": (2, 4), "ids": (2,), "size": ()})
        (context,) = trt.engine.contexts
        assert not hasattr(context.made_of, "_cache")
    assert [entry.kind for entry in default_cache().ls()] == ["engine"]


def test_contexts_take_memory_for_their_own_profile(
    builds: list[str], path: Path, trt: Any
) -> None:
    strategies = trt.ExecutionContextAllocationStrategy
    for ranges, strategy in (
        ([(1, 8), (2, 64)], strategies.ON_PROFILE_CHANGE),
        ([(1, 64)], strategies.STATIC),
    ):
        trt.engine.ranges = ranges
        with load(path) as predictor:
            predictor.bind({"x": (2, 4), "ids": (2,), "size": ()})
        assert trt.engine.contexts[-1].made_of._strategy is strategy


def test_a_blob_only_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path))
    blob = Blob("timing-cache", {"gpu": "a"})
    assert blob.read() == b""
    blob.write(b"one")
    assert Blob("timing-cache", {"gpu": "b"}).read() == b""
    other = Blob("timing-cache", {"gpu": "a"})
    assert other.read() == b"one"
    other.write(b"two")  # of the same length: nothing was learnt
    assert Blob("timing-cache", {"gpu": "a"}).read() == b"one"
    other.write(b"three")
    assert blob.read() == b"three"


def test_a_cache_that_cannot_be_used_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "file"))
    blob = Blob("timing-cache", {})
    assert blob.read() == b""
    blob.write(b"one")
    assert warnings_of(caplog)
    assert (tmp_path / "file").read_text() == "no folder"


class Config:
    """``IBuilderConfig``, as far as timing caches go."""

    def __init__(self, known: bytes) -> None:
        self._known = known
        self.attached: list[bytes] = []

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.attached.append(cache)
        return cache in (b"", self._known)


def test_times_of_another_gpu_are_not_used(caplog: Any) -> None:
    config: Any = Config(b"ours")
    assert building._attach(config, b"ours") == b"ours"
    assert config.attached == [b"ours"]
    assert warnings_of(caplog) == []
    assert building._attach(config, b"theirs") == b""
    (warning,) = warnings_of(caplog)
    assert "of another GPU or version" in warning


def test_times_are_kept_where_they_are_measured(gpu: Any) -> None:
    assert building._timings(SimpleNamespace(__name__="tensorrt_rtx")) is None
    gpu.current.index = 0
    blob = building._timings(SimpleNamespace(__name__="tensorrt", __version__="10.16"))
    assert blob is not None
    assert blob.parts == {"module": "tensorrt", "version": "10.16", "gpu": ["Numpy GPU", "9.8"]}


def test_graphs_are_told_apart_by_all_but_their_weights(tmp_path: Path) -> None:
    def digest(model: Any) -> str | None:
        return graph_digest(open_model(model.SerializeToString()))

    base = digest(model_of())
    assert base == digest(model_of(weight=2.0))
    assert base != digest(model_of(shape=(4, 1)))
    assert base != digest(model_of(name="v"))
    typed = model_of()
    typed.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("w", 1, [4], [1.0, 2.0, 3.0, 4.0]))
    assert digest(typed) not in (base, None)  # stored in another field
    onnx.save(model_of(), tmp_path / "a.onnx")
    assert graph_digest(open_model(tmp_path / "a.onnx")) == base
    onnx.save(
        model_of(), tmp_path / "b.onnx", save_as_external_data=True, size_threshold=0, location="b"
    )
    assert graph_digest(open_model(tmp_path / "b.onnx")) is None  # the integers are elsewhere


def test_new_weights_are_given_to_the_engine_of_their_graph(
    builds: list[str], path: Path, trt: Any, caplog: Any
) -> None:
    load(path, refittable=True).close()
    assert trt.engine.refits == 0
    onnx.save(model_of(weight=2.0), path)
    for count in (1, 2):
        with load(path, refittable=True) as predictor:
            assert predictor.info.details["refitted"] is True
        assert trt.engine.refits == count
    assert len(builds) == 1
    onnx.save(model_of(shape=(4, 1)), path)  # an integer changed: another graph
    load(path, refittable=True).close()
    assert len(builds) == 2
    assert trt.engine.refits == 2
    assert warnings_of(caplog) == []


def test_weights_that_cannot_be_replaced_mean_a_build(
    builds: list[str], path: Path, trt: Any, caplog: Any
) -> None:
    load(path, refittable=True).close()
    trt.engine.weights = []
    onnx.save(model_of(weight=2.0), path)
    for _ in range(2):
        with load(path, refittable=True) as predictor:
            assert predictor.info.details["refitted"] is False
    assert trt.engine.refits == 0
    assert len(builds) == 2  # the second is kept under the model itself
    assert all("cannot be refitted" in text for text in warnings_of(caplog))


def test_options_for_the_other_module_are_refused_where_none_is_named(
    builds: list[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_tensorrt.module.choose", lambda wanted: "tensorrt")
    with pytest.raises(errors.OptionError) as caught:
        load(path, specialization="eager")
    assert caught.value.detail["rule"] == "specialization-of-tensorrt"
    assert builds == []
