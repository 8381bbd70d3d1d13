from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import bridge
from bridge import diagnosis, inspection
from bridge.errors import (
    BackendNotFound,
    BackendUnavailable,
    BridgeError,
    DeviceUnavailable,
    ModelLoadFailed,
    OptionError,
    SilentFallback,
    UnsupportedModel,
)


def test_a_missing_runtime_says_what_to_type(tiny: Any, tiny_model: Path) -> None:
    tiny.availability = bridge.find_runtime("no_such_module", ("no-such-dist",), "tiny")
    with pytest.raises(BackendUnavailable) as caught:
        bridge.load(tiny_model)
    assert "module 'no_such_module' is not installed" in str(caught.value)
    assert "pip install 'inference-bridge[tiny]'" in str(caught.value)
    assert isinstance(caught.value, ImportError)


def test_unknown_names_offer_the_nearest(tiny: Any, tiny_model: Path) -> None:
    with pytest.raises(BackendNotFound, match="Did you mean 'tiny'"):
        bridge.load(tiny_model, backend="tinny")
    with pytest.raises(DeviceUnavailable, match="Did you mean 'cuda'"):
        bridge.load(tiny_model, device="cud")
    with pytest.raises(OptionError, match="Did you mean 'threads'"):
        bridge.load(tiny_model, options=["thread=1"])


def test_a_device_that_is_not_there(tiny: Any, tiny_model: Path) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        bridge.load(tiny_model, device="cuda:1")
    assert "it can use: cpu, cuda:0" in str(caught.value)
    assert (caught.value.backend, caught.value.device) == ("tiny", "cuda:1")


def test_a_silent_fallback_is_an_error_and_closes_the_predictor(
    tiny: Any, tiny_model: Path
) -> None:
    tiny.runs_on = bridge.CPU
    with pytest.raises(SilentFallback, match="asked for cuda:0, but tiny runs this model on cpu"):
        bridge.load(tiny_model, device="cuda")
    assert tiny.closed == 1


def test_another_format_is_refused(tiny: Any, plugin: Any, tmp_path: Path) -> None:
    class Other(bridge.Format):
        name, title, native_backend = "other", "Other", "tiny"

        def sniff(self, file: Any) -> bool:
            return bool(file.head.startswith(b"OTHER"))

    bridge.loading.registry().add(plugin(formats=(Other(),)), "other", "other-dist")
    path = tmp_path / "x"
    path.write_bytes(b"OTHER")
    with pytest.raises(UnsupportedModel, match="tiny does not load Other; it loads tiny"):
        bridge.load(path)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (KeyError("operator Foo"), UnsupportedModel),
        (RuntimeError("odd"), ModelLoadFailed),
        (ImportError("libfoo.so is missing"), BackendUnavailable),
    ],
)
def test_load_errors_are_mapped_and_chained(
    tiny: Any, tiny_model: Path, foreign: Exception, ours: type[BridgeError]
) -> None:
    tiny.load_error = foreign
    with pytest.raises(BridgeError) as caught:
        bridge.load(tiny_model)
    assert type(caught.value) is ours
    assert caught.value.__cause__ is foreign
    assert (caught.value.backend, caught.value.model) == ("tiny", "model.tiny")


def test_a_runtime_without_an_extra_is_installed_by_its_own_name() -> None:
    found = bridge.find_runtime("no_such_module", ("no-such-dist", "other-dist"))
    assert found.fix == "Install it with: pip install no-such-dist"


def test_two_distributions_of_one_module_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1", "numpy-gpu": "2"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions[name])
    found = bridge.find_runtime("numpy", ("numpy", "numpy-gpu"), "x")
    assert found.installed
    assert "numpy 1 and numpy-gpu 2 are installed side by side" in found.warnings[0]
    broken = bridge.find_runtime("no_such_module", ("numpy",), "x")
    assert "numpy 1 is installed, but its module 'no_such_module' is missing" in str(broken.reason)


def test_inspect_lists_every_backend_with_its_reason(tiny: Any, tiny_model: Path) -> None:
    found = inspection.inspect(tiny_model)
    assert (found.format, found.size_bytes, found.problem) == ("tiny", 10, None)
    assert found.digest is not None
    assert [(one.backend, one.is_native, one.is_capable) for one in found.candidates] == [
        ("tiny", True, True)
    ]
    tiny.availability = bridge.find_runtime("no_such_module", ("no-such-dist",), "tiny")
    one = inspection.inspect(tiny_model).candidates[0]
    assert one.is_capable
    assert not one.is_installed
    assert "pip install" in str(one.fix)


def test_dtypes_that_a_backend_does_not_take_are_told_before_loading() -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.COMPLEX64, [2])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.COMPLEX64, [2])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    found = {one.backend: one for one in inspection.inspect(model).candidates}
    assert not found["onnxruntime"].is_capable
    assert "'x' is complex64" in str(found["onnxruntime"].reason)
    with pytest.raises(UnsupportedModel, match="'x' is complex64") as caught:
        bridge.load(model, backend="openvino")
    assert caught.value.detail["dtype"] == "complex64"


class Stating(bridge.Format):
    """A format whose bytes name the signature that they state."""

    name, title, native_backend, has_signature_keys = "stating", "Stating", "tiny", True
    shapes: ClassVar[dict[bytes, dict[str, Any]]] = {
        b"fixed": {"": (2, 4)},
        b"scalar": {"": ()},
        b"open": {"": ("N", None)},
        b"unknown": {"": None},
        b"both": {"fixed": (2,), "open": (None,)},
        b"silent": {},
    }

    def sniff(self, file: Any) -> bool:
        return file.head in self.shapes

    def describe(self, model: bridge.ModelRef) -> bridge.ModelFacts:
        def signature(shape: Any) -> bridge.Signature:
            y = bridge.TensorSpec("y", bridge.DType.FLOAT32, (None,))
            return bridge.Signature((bridge.TensorSpec("x", bridge.DType.FLOAT32, shape),), (y,))

        shapes = self.shapes[model.file.read_bytes()]
        return bridge.ModelFacts(signatures={key: signature(one) for key, one in shapes.items()})


@pytest.mark.parametrize(
    ("content", "key", "shape"),
    [
        (b"fixed", None, None),
        (b"scalar", None, None),
        (b"open", None, "(N, ?)"),
        (b"unknown", None, None),
        (b"both", None, None),
        (b"both", "fixed", None),
        (b"both", "open", "(?,)"),
        (b"silent", None, None),
    ],
)
def test_dims_that_vary_are_refused_before_loading_unless_claimed(
    tiny: Any, plugin: Any, tmp_path: Path, content: bytes, key: str | None, shape: str | None
) -> None:
    bridge.loading.registry().add(plugin(formats=(Stating(),)), "stating", "stating-dist")
    path = tmp_path / "x"
    path.write_bytes(content)
    tiny.formats = frozenset({"stating"})
    if shape is None:
        bridge.load(path, signature=key).close()
    else:
        with pytest.raises(UnsupportedModel) as caught:
            bridge.load(path, signature=key)
        assert f"input 'x' has shape {shape}; tiny takes models whose dims" in str(caught.value)
        assert caught.value.detail == {"format": "stating", "tensor": "x", "shape": shape}
    tiny.dynamic_dims = True
    bridge.load(path, signature=key).close()


def test_inspect_says_where_a_backend_lacks_its_device(tiny: Any, tiny_model: Path) -> None:
    tiny.device_kinds = ("cuda",)
    tiny.predicts = False
    one = inspection.inspect(tiny_model).candidates[0]
    assert one.is_capable
    assert one.is_installed
    assert not one.can_run
    assert "tiny cannot use cuda:0 here" in str(one.reason)


def test_doctor_reports_runtimes_devices_and_breakage(tiny: Any) -> None:
    quick = diagnosis.doctor()
    assert quick.is_healthy
    assert quick.usable_cpus >= 1
    assert quick.devices[0][0] == "cpu"
    assert quick.backends[0].devices is None
    assert diagnosis.doctor(deep=True).backends[0].devices == ("cpu", "cuda:0")

    def fail() -> None:
        raise OSError("libfoo.so: cannot open shared object file")

    tiny.devices = fail
    deep = diagnosis.doctor(deep=True)
    assert not deep.is_healthy
    assert "libfoo.so" in str(deep.backends[0].problem)
    assert deep.to_dict()["backends"][0]["plugin"] == "tiny-dist (plugin 'tiny')"


def test_live_objects_and_odd_paths_are_named(tiny: Any) -> None:
    with pytest.raises(UnsupportedModel, match="class numpy.ndarray is no model"):
        bridge.load(np.zeros(3))


@pytest.mark.parametrize(
    ("raised", "error"),
    [(ImportError("no libfoo"), BackendUnavailable), (OSError("no libfoo"), DeviceUnavailable)],
)
def test_a_runtime_that_cannot_tell_its_devices(
    tiny: Any, tiny_model: Path, raised: Exception, error: type[BridgeError]
) -> None:
    def fail() -> None:
        raise raised

    tiny.devices = fail
    with pytest.raises(error, match="no libfoo") as caught:
        bridge.load(tiny_model, device="cuda")
    assert caught.value.__cause__ is raised
    assert (caught.value.backend, caught.value.device) == ("tiny", "cuda:0")
