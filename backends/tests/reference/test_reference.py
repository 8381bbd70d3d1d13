"""The reference backend: what the evaluator computes, owns, and refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.errors import PredictError
from bridge.loading import open_model

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")

from bridge_reference.backend import ReferenceBackend  # noqa: E402
from bridge_reference.native import load as native_load  # noqa: E402

MODELS = Path(sys.prefix) / "models"
Proto = onnx.TensorProto
FLOAT, INT64, STRING = Proto.FLOAT, Proto.INT64, Proto.STRING
CODES = {
    dtype: onnx.helper.np_dtype_to_tensor_dtype(dtype.numpy)
    for dtype in bridge.DType
    if dtype is not bridge.DType.STRING
} | {bridge.DType.STRING: STRING}


def proto(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, Any] | None = None,
    opsets: tuple[tuple[str, int], ...] = (("", 21),),
    ir: int = 10,
) -> Any:
    def value(one: Any) -> Any:
        return one if hasattr(one, "name") else onnx.helper.make_tensor_value_info(*one)

    graph = onnx.helper.make_graph(
        [one if hasattr(one, "op_type") else onnx.helper.make_node(*one) for one in nodes],
        "g",
        [value(one) for one in inputs],
        [value(one) for one in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [onnx.helper.make_opsetid(*one) for one in opsets]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir)


def one(operator: str, x: Any = (FLOAT, ["N"]), y: Any = (FLOAT, ["N"]), **more: Any) -> Any:
    return proto([(operator, ["x"], ["y"])], [("x", *x)], [("y", *y)], **more)


def add() -> Any:
    return proto(
        [("Add", ["x", "w"], ["y"])],
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["N", 3])],
        {"w": np.arange(3, dtype=np.float32)},
    )


def load(model: Any, **more: Any) -> bridge.Predictor:
    model = model.SerializeToString() if hasattr(model, "SerializeToString") else model
    return bridge.load(model, backend="reference", **more)


def check(predictor: bridge.Predictor) -> None:
    assert predictor.signature.input("x").shape == ("N", 3)
    y = predictor.predict({"x": np.ones((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(y, [[1, 2, 3], [1, 2, 3]])


@pytest.mark.parametrize("suffix", [".onnx", "", ".json", ".onnxtxt", ".textproto"])
@pytest.mark.parametrize("external", [False, True])
def test_files_by_any_name(tmp_path: Path, suffix: str, external: bool) -> None:
    path = tmp_path / f"model{suffix}"
    onnx.save_model(
        add(),
        str(path),
        format="protobuf",
        save_as_external_data=external,
        location="w.bin",
        size_threshold=0,
    )
    assert (tmp_path / "w.bin").exists() == external
    check(load(path))


def test_bytes_and_native() -> None:
    check(load(add()))
    call, named = native_load(open_model(add().SerializeToString()))
    results = named(call({"x": np.ones((1, 3), np.float32)}))
    np.testing.assert_array_equal(results["y"], [[1, 2, 3]])


def test_info() -> None:
    info = load(add()).info
    assert (info.backend, str(info.device), info.provider) == ("reference", "cpu", "onnx.reference")
    assert (info.precision, info.threads) == ("float32", None)
    assert info.versions == {"onnx": onnx.__version__, "numpy": np.__version__}


def test_it_has_no_options_and_one_device() -> None:
    with pytest.raises(errors.OptionError, match="it has: none"):
        load(add(), options={"threads": 2})
    with pytest.raises(errors.DeviceUnavailable, match="it can use: cpu"):
        load(add(), device="cuda")


def test_the_model_states_its_signature() -> None:
    with pytest.raises(errors.UnsupportedModel, match="no signature 'serving_default'"):
        load(add(), signature="serving_default")
    with pytest.raises(errors.OptionError, match="holds its own"):
        load(add(), signature=bridge.Signature((), ()))


# --- Arrays -----------------------------------------------------------------------------


def sample(dtype: bridge.DType, shape: tuple[int, ...]) -> Any:
    # From 1 on: one of the types has no 0.
    numbers = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape)
    if dtype is bridge.DType.STRING:
        return numbers.astype(str).astype(object)
    return numbers.astype(dtype.numpy)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", bridge.DType, ids=str)
def test_every_dtype_passes_unchanged(dtype: bridge.DType, shape: tuple[int, ...]) -> None:
    assert dtype in ReferenceBackend().capabilities(bridge.CPU).dtypes
    dims = ["N", 3] if shape else []
    x = sample(dtype, shape)
    y = load(one("Identity", (CODES[dtype], dims), (CODES[dtype], dims))).predict({"x": x})["y"]
    assert (y.dtype, y.shape) == (dtype.numpy, shape)
    np.testing.assert_array_equal(y, x)


def test_strings() -> None:
    predictor = load(
        proto(
            [("StringConcat", ["x", "x"], ["y"])],
            [("x", STRING, ["N"])],
            [("y", STRING, ["N"])],
        )
    )
    for x in (["a", "é"], np.array(["a", "é"], object), np.array([b"a", "é".encode()], object)):
        y = predictor.predict({"x": np.asarray(x)})["y"]
        assert y.dtype == object
        assert y.tolist() == ["aa", "éé"]
    with pytest.raises(errors.InputError, match="UTF-8"):
        predictor.predict({"x": np.array([b"\xff"], object)})


def test_strided_and_read_only_inputs() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    wide.flags.writeable = False
    predictor = load(add())
    for x in (wide[:, ::2], wide[::-1, 2::-1], np.asfortranarray(wide[:, :3])):
        wanted = x + np.arange(3, dtype=np.float32)
        np.testing.assert_array_equal(predictor.predict({"x": x})["y"], wanted)


SHARING = {
    "identity": [("Identity", ["x"], ["y"])],
    "reshape": [("Flatten", ["x"], ["y"])],
    "squeeze": [("Squeeze", ["x"], ["y"])],
    "clip": [("Clip", ["x"], ["y"])],
    "dropout": [("Dropout", ["x"], ["y"])],
    "weight": [("Identity", ["w"], ["y"])],
    "constant": [onnx.helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])],
    "mean": [("Mean", ["x", "x"], ["y"])],
}


@pytest.mark.parametrize("case", SHARING)
def test_outputs_belong_to_the_caller(case: str) -> None:
    predictor = load(
        proto(
            SHARING[case],
            [("x", FLOAT, ["N", 2])],
            [("y", FLOAT, None)],
            {"w": np.ones(2, np.float32)},
        )
    )
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    first = predictor.predict({"x": x})["y"]
    kept = first.copy()
    predictor.predict({"x": x + 5})
    np.testing.assert_array_equal(first, kept)
    first[...] = 99
    np.testing.assert_array_equal(x, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], kept)


def test_optional_inputs_and_a_subset_of_the_outputs() -> None:
    predictor = load(
        proto(
            [("Add", ["x", "w"], ["y"]), ("Neg", ["x"], ["z"])],
            [("x", FLOAT, ["N"]), ("w", FLOAT, [1])],
            [("y", FLOAT, ["N"]), ("z", FLOAT, ["N"])],
            {"w": np.ones(1, np.float32)},
        )
    )
    x = np.zeros(2, np.float32)
    assert [spec.has_default for spec in predictor.signature.inputs] == [False, True]
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], [1, 1])
    given = predictor.predict({"x": x, "w": np.full(1, 5, np.float32)}, ["y"])
    assert list(given) == ["y"]
    np.testing.assert_array_equal(given["y"], [5, 5])
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], [1, 1])


def test_infinities_are_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = load(one("Exp")).predict({"x": np.array([1000, -1000], np.float32)})["y"]
    assert y.tolist() == [np.inf, 0]


def test_bound_calls() -> None:
    bound = load(add()).bind({"x": (2, 3)})
    for value in (1, 5):
        bound.inputs["x"][...] = value
        bound.predict()
        np.testing.assert_array_equal(bound.outputs["y"][1], [value, value + 1, value + 2])


def test_eight_threads_one_call_at_a_time() -> None:
    predictor = load(add())
    evaluator, inside, most = predictor._evaluator, [], []

    class Watched:
        def run(self, *args: Any) -> Any:
            inside.append(None)
            most.append(len(inside))
            time.sleep(0.001)  # gives others the chance to come in
            try:
                return evaluator.run(*args)
            finally:
                inside.pop()

    predictor._evaluator = Watched()
    together = threading.Barrier(8)

    def work(seed: int) -> None:
        x = np.full((1, 3), seed, np.float32)
        together.wait(timeout=60)
        for _ in range(20):
            np.testing.assert_array_equal(
                predictor.predict({"x": x})["y"], [[seed, seed + 1, seed + 2]]
            )

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result()
    assert max(most) == 1


def test_predict_after_close() -> None:
    predictor = load(add())
    predictor.close()
    predictor.close()
    with pytest.raises(errors.PredictorClosed):
        predictor.predict({"x": np.ones((1, 3), np.float32)})


# --- What it cannot do ------------------------------------------------------------------

BRANCH = onnx.helper.make_graph(
    [onnx.helper.make_node("Frobnicate", ["x"], ["t"])],
    "branch",
    [],
    [onnx.helper.make_tensor_value_info("t", FLOAT, ["N"])],
)
UNSUPPORTED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "operator": (one("Frobnicate"), "no operator Frobnicate", {"operator": "Frobnicate"}),
    "operator in a branch": (
        proto(
            [onnx.helper.make_node("If", ["c"], ["y"], then_branch=BRANCH, else_branch=BRANCH)],
            [("x", FLOAT, ["N"]), ("c", Proto.BOOL, [])],
            [("y", FLOAT, ["N"])],
        ),
        "no operator Frobnicate",
        {"operator": "Frobnicate"},
    ),
    "custom operator": (
        proto(
            [onnx.helper.make_node("Foo", ["x"], ["y"], domain="my.ops")],
            [("x", FLOAT, ["N"])],
            [("y", FLOAT, ["N"])],
            opsets=(("", 21), ("my.ops", 1)),
        ),
        "no operator my.ops.Foo",
        {"operator": "Foo", "domain": "my.ops"},
    ),
    # The checker leaves graphs alone whose outputs have no shape; the evaluator still looks.
    "operator, no shapes": (
        one("Frobnicate", y=(FLOAT, None)),
        "Frobnicate",
        {"operator": "Frobnicate"},
    ),
    "opset": (one("Relu", opsets=(("", 99),)), "of opset 99", {"opset": 99}),
    "IR version": (one("Relu", ir=99), "of IR version 99", {"ir_version": "99"}),
    "sequence": (
        proto(
            [("SequenceConstruct", ["x"], ["y"])],
            [("x", FLOAT, ["N"])],
            [onnx.helper.make_tensor_sequence_value_info("y", FLOAT, ["N"])],
        ),
        "'y' is a sequence;",
        {"tensor": "y", "type": "sequence"},
    ),
    "optional": (
        proto(
            [("Optional", ["x"], ["y"])],
            [("x", FLOAT, ["N"])],
            [
                onnx.helper.make_value_info(
                    "y",
                    onnx.helper.make_optional_type_proto(
                        onnx.helper.make_tensor_type_proto(FLOAT, ["N"])
                    ),
                )
            ],
        ),
        "'y' is an optional value;",
        {"tensor": "y", "type": "optional value"},
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models(case: str) -> None:
    model, text, facts = UNSUPPORTED[case]
    with pytest.raises(errors.UnsupportedModel) as caught:
        load(model)
    assert text in str(caught.value)
    assert facts.items() <= caught.value.detail.items()
    assert (caught.value.backend, caught.value.device) == ("reference", "cpu")


def test_invalid_models() -> None:
    missing = proto([("Relu", ["z"], ["y"])], [("x", FLOAT, ["N"])], [("y", FLOAT, ["N"])])
    with pytest.raises(errors.InvalidModel, match="reads the tensor 'z'"):
        load(missing)
    twice = proto([("Relu", ["x", "x"], ["y"])], [("x", FLOAT, ["N"])], [("y", FLOAT, ["N"])])
    with pytest.raises(errors.InvalidModel, match=r"has input size 2 not in range"):
        load(twice)


def test_bytes_that_break_between_check_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(add().SerializeToString())
    monkeypatch.setattr(
        "bridge.formats.onnx.Onnx.check", lambda self, model: path.write_bytes(b"\x08\x09:\xff")
    )
    with pytest.raises(errors.InvalidModel, match="truncated, or damaged"):
        load(path)


def test_an_operator_that_fails_is_named() -> None:
    node = onnx.helper.make_node("Gather", ["w", "x"], ["y"], name="look-up")
    weights = {"w": np.arange(3, dtype=np.float32)}
    predictor = load(proto([node], [("x", INT64, ["N"])], [("y", FLOAT, ["N"])], weights))
    with pytest.raises(
        errors.PredictError, match=r"Gather \('look-up'\) failed: IndexError"
    ) as caught:
        predictor.predict({"x": np.array([7])})
    assert type(caught.value) is PredictError
    assert isinstance(caught.value.__cause__, IndexError)
    np.testing.assert_array_equal(predictor.predict({"x": np.array([1])})["y"], [1])


def test_out_of_memory() -> None:
    predictor = load(one("ConstantOfShape", (INT64, ["N"]), (FLOAT, None)))
    with pytest.raises(errors.OutOfMemory):
        predictor.predict({"x": np.array([1 << 42, 8])})
    assert predictor.predict({"x": np.array([2, 3])})["y"].shape == (2, 3)


def test_outputs_of_another_type_than_declared() -> None:
    # Checked by nobody before: the evaluator computes with whatever types it meets.
    predictor = load(one("Relu", y=(Proto.DOUBLE, ["N"])))
    with pytest.raises(errors.PredictError, match=r"'y' as float32; the model declares float64"):
        predictor.predict({"x": np.ones(2, np.float32)})


def test_the_plugin_and_probe_do_not_import_onnx() -> None:
    code = """
import sys, bridge
backend = bridge.backends()["reference"]
assert backend.probe().version
backend.capabilities(bridge.CPU)
assert not {"onnx", "ml_dtypes"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


# --- Real models ------------------------------------------------------------------------


def test_basic_pitch_agrees_with_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    path = MODELS / "basic_pitch/saved_models/icassp_2022/nmp.onnx"
    assert path.is_file(), "make test fetches it"
    x = np.random.default_rng(0).standard_normal((1, 43844, 1)).astype(np.float32)
    with load(path) as ours, bridge.load(path, backend="onnxruntime") as theirs:
        assert ours.signature == theirs.signature
        name = ours.signature.input_names[0]
        wanted = theirs.predict({name: x})
        for output, array in ours.predict({name: x}).items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, wanted[output], rtol=0, atol=1e-3)


def test_silero_agrees_with_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    path = MODELS / "silero_vad/data/silero_vad.onnx"
    assert path.is_file(), "make test fetches it"
    inputs = {
        "input": np.random.default_rng(0).standard_normal((2, 576)).astype(np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(16000),
    }
    with load(path) as ours, bridge.load(path, backend="onnxruntime") as theirs:
        wanted = theirs.predict(inputs)
        for output, array in ours.predict(inputs).items():
            np.testing.assert_allclose(array, wanted[output], rtol=0, atol=1e-4)
