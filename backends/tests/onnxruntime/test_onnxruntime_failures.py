"""What goes wrong with onnxruntime, and the errors that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.errors import ModelLoadFailed, PredictError, translate

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bridge_onnxruntime.backend import OnnxruntimeBackend  # noqa: E402

FLOAT, INT64, INT4 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT4
BFLOAT16, COMPLEX = onnx.TensorProto.BFLOAT16, onnx.TensorProto.COMPLEX64
make_node, make_value = onnx.helper.make_node, onnx.helper.make_tensor_value_info


def proto(
    *nodes: Any,
    x: Any = (FLOAT, ["N"]),
    y: Any = (FLOAT, ["N"]),
    opsets: tuple[tuple[str, int], ...] = (("", 18),),
    ir: int = 9,
    weights: tuple[Any, ...] = (),
) -> Any:
    output = y if hasattr(y, "name") else make_value("y", *y)
    graph = onnx.helper.make_graph(nodes, "g", [make_value("x", *x)], [output], weights)
    imports = [onnx.helper.make_opsetid(*one) for one in opsets]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir)


def load(model: Any) -> bridge.Predictor:
    model = model if isinstance(model, (bytes, Path)) else model.SerializeToString()
    return bridge.load(model, backend="onnxruntime")


def node(operator: str, *inputs: str, **more: Any) -> Any:
    return make_node(operator, inputs or ("x",), ["y"], **more)


def sequence() -> Any:
    return onnx.helper.make_tensor_sequence_value_info("y", FLOAT, ["N"])


def maps() -> Any:
    tensor = onnx.helper.make_tensor_type_proto(FLOAT, [])
    each = onnx.helper.make_map_type_proto(INT64, tensor)
    return onnx.helper.make_value_info("y", onnx.helper.make_sequence_type_proto(each))


def optional() -> Any:
    tensor = onnx.helper.make_tensor_type_proto(FLOAT, ["N"])
    return onnx.helper.make_value_info("y", onnx.helper.make_optional_type_proto(tensor))


LABELS = {"classlabels_int64s": [1, 2]}
UNSUPPORTED: dict[str, tuple[Any, str, dict[str, str]]] = {
    "operator": (proto(node("Frobnicate")), "no operator Frobnicate", {"operator": "Frobnicate"}),
    "custom operator": (
        proto(node("Foo", domain="my.ops"), opsets=(("", 18), ("my.ops", 1))),
        "no operator my.ops.Foo",
        {"operator": "Foo", "domain": "my.ops"},
    ),
    "opset": (
        proto(node("Relu"), opsets=(("", 99),)),
        "of opset 99 of ai.onnx",
        {"opset": "99", "domain": "ai.onnx"},
    ),
    "IR version": (proto(node("Relu"), ir=99), "of IR version 99", {"ir_version": "99"}),
    "types of an operator": (
        proto(node("Relu", name="r"), x=(BFLOAT16, ["N"]), y=(BFLOAT16, ["N"]), opsets=(("", 17),)),
        "no implementation of Relu",
        {"operator": "Relu", "node": "r"},
    ),
    "complex": (
        proto(node("Identity"), x=(COMPLEX, ["N"]), y=(COMPLEX, ["N"])),
        "complex64, which onnxruntime does not take",
        {"dtype": "complex64"},
    ),
    "int4": (
        proto(make_node("Cast", ["x"], ["y"], to=INT4), y=(INT4, ["N"]), opsets=(("", 21),), ir=10),
        "'y' is int4, which onnxruntime does not take",
        {"tensor": "y", "dtype": "int4"},
    ),
    "sequence": (
        proto(node("SequenceConstruct", "x", "x"), y=sequence()),
        "'y' is of type seq(tensor(float))",
        {"tensor": "y"},
    ),
    "map": (
        proto(
            node("ZipMap", domain="ai.onnx.ml", **LABELS),
            x=(FLOAT, ["N", 2]),
            y=maps(),
            opsets=(("", 18), ("ai.onnx.ml", 1)),
        ),
        "'y' is of type seq(map(int64,tensor(float)))",
        {"tensor": "y"},
    ),
    "optional": (
        proto(node("Optional"), y=optional()),
        "'y' is of type optional(tensor(float))",
        {"tensor": "y"},
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, text, facts = UNSUPPORTED[case]
    with pytest.raises(errors.UnsupportedModel) as caught:
        load(model)
    assert text in str(caught.value)
    assert facts.items() <= caught.value.detail.items()
    assert (caught.value.backend, caught.value.device) == ("onnxruntime", "cpu")
    assert caught.value.fix
    assert capfd.readouterr() == ("", "")


INVALID = {
    "missing tensor": (proto(node("Relu", "z")), "Node input 'z'"),
    "number of inputs": (proto(node("Relu", "x", "x")), "input size 2 not in range"),
    "attribute": (proto(node("Relu", slope=1)), "Unrecognized attribute: slope"),
    "declared type": (proto(node("Relu"), y=(INT64, ["N"])), "does not match expected type"),
    "type of an input": (proto(node("Sin"), x=(INT64, ["N"]), y=(INT64, ["N"])), "tensor(int64)"),
    "domain without opset": (proto(node("Foo", domain="my.ops")), "No opset import for domain"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_models(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, text = INVALID[case]
    with pytest.raises(errors.InvalidModel, match="breaks a rule of ONNX") as caught:
        load(model)
    assert text in str(caught.value)
    assert caught.value.detail["native_error"].startswith("[ONNXRuntimeError]")
    assert capfd.readouterr() == ("", "")


def ort_file(path: Path) -> Path:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(path)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(proto(node("Relu")).SerializeToString(), settings)
    return path


def test_broken_ort_files(tmp_path: Path) -> None:
    whole = ort_file(tmp_path / "model.ort").read_bytes()
    for broken in (whole[:200], whole[: len(whole) // 2], whole[:8] + bytes(500)):
        (tmp_path / "broken.ort").write_bytes(broken)
        with pytest.raises(errors.InvalidModel, match="cannot read the ORT file"):
            load(tmp_path / "broken.ort")


def test_an_ort_file_of_another_version(tmp_path: Path) -> None:
    path = ort_file(tmp_path / "model.ort")
    data = path.read_bytes()
    assert data.count(b"\x01\0\0\x006\0") == 1, "the place of the version was not found"
    path.write_bytes(data.replace(b"\x01\0\0\x006\0", b"\x01\0\0\x009\0"))
    with pytest.raises(errors.UnsupportedModel, match="version 9 of the ORT format"):
        load(path)


def test_a_file_that_vanishes_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto(node("Relu")).SerializeToString())
    monkeypatch.setattr("bridge.formats.onnx.Onnx.check", lambda self, model: path.unlink())
    with pytest.raises(errors.ModelNotFound, match=r"File doesn't exist"):
        load(path)


def test_bytes_that_break_between_check_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto(node("Relu")).SerializeToString())
    monkeypatch.setattr(
        "bridge.formats.onnx.Onnx.check", lambda self, model: path.write_bytes(b"\x08\x09:\xff")
    )
    with pytest.raises(errors.InvalidModel, match="cannot read the ONNX file"):
        load(path)


WEIGHTS = onnx.helper.make_tensor("w", FLOAT, [3], [1, 2, 3])


def test_an_operator_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    model = proto(node("Gather", "w", "x", name="look-up"), x=(INT64, ["N"]), weights=(WEIGHTS,))
    predictor = load(model)
    with pytest.raises(errors.PredictError) as caught:
        predictor.predict({"x": np.array([0, 7])})
    assert type(caught.value) is PredictError
    assert "Gather ('look-up') failed: indices element out of data bounds, idx=7" in str(
        caught.value
    )
    assert caught.value.detail["operator"] == "Gather"
    assert caught.value.__cause__ is not None
    # It stays usable, and nothing was printed: what a log would say, the error says.
    np.testing.assert_array_equal(predictor.predict({"x": np.array([2])})["y"], [3])
    assert capfd.readouterr() == ("", "")


def test_the_place_in_the_source_is_left_out() -> None:
    model = proto(node("ConstantOfShape"), x=(INT64, ["N"]), y=(FLOAT, None))
    with pytest.raises(errors.PredictError, match=r"failed: Integer overflow\.$"):
        load(model).predict({"x": np.array([1 << 62, 8])})


@pytest.mark.parametrize("arena", [True, False])
def test_out_of_memory(arena: bool, capfd: pytest.CaptureFixture[str]) -> None:
    model = proto(node("ConstantOfShape"), x=(INT64, ["N"]), y=(FLOAT, None))
    predictor = bridge.load(
        model.SerializeToString(), backend="onnxruntime", options={"arena": arena}
    )
    with pytest.raises(errors.OutOfMemory, match="could not allocate") as caught:
        predictor.predict({"x": np.array([1 << 42, 8])})
    if arena:
        assert caught.value.detail["size_bytes"] == str(1 << 47)
    assert predictor.predict({"x": np.array([2, 3])})["y"].shape == (2, 3)
    assert capfd.readouterr() == ("", "")


def test_declared_shapes_that_are_wrong_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    # onnxruntime would print a warning at each call.
    predictor = load(proto(node("NonZero"), y=(INT64, [1, 3])))
    assert predictor.predict({"x": np.ones(5, np.float32)})["y"].shape == (1, 5)
    assert capfd.readouterr() == ("", "")


# Texts that need hardware: as onnxruntime 1.32's sources have them, not provoked here.
TEXTS = {
    "This session contains graph nodes that are assigned to the default CPU EP, but fallback to "
    "CPU EP has been explicitly disabled by the user.": errors.SilentFallback,
    "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc": errors.OutOfMemory,
    "CUDA failure 101: invalid device ordinal ; GPU=7": errors.DeviceUnavailable,
    "Something that no rule knows": ModelLoadFailed,
}


@pytest.mark.parametrize("text", TEXTS)
def test_rules_for_gpus(text: str) -> None:
    rules = OnnxruntimeBackend().error_rules()
    native = ort.capi.onnxruntime_pybind11_state.Fail(f"[ONNXRuntimeError] : 1 : FAIL : {text}")
    assert type(translate(native, rules, ModelLoadFailed)) is TEXTS[text]


def test_status_codes_without_a_known_text() -> None:
    state = ort.capi.onnxruntime_pybind11_state
    wanted = {
        state.InvalidProtobuf: errors.InvalidModel,
        state.InvalidGraph: errors.InvalidModel,
        state.NotImplemented: errors.UnsupportedModel,
        state.NoSuchFile: errors.ModelNotFound,
        state.RuntimeException: ModelLoadFailed,
    }
    for native, ours in wanted.items():
        error = native("[ONNXRuntimeError] : 0 : NAME : what it says")
        translated = translate(error, OnnxruntimeBackend().error_rules(), ModelLoadFailed)
        assert type(translated) is ours
        assert "what it says" in str(translated)
