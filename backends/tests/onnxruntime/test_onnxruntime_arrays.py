"""Arrays through the onnxruntime backend: dtypes, layouts, ownership, bound calls."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
ml_dtypes = pytest.importorskip("ml_dtypes")

from bridge_onnxruntime.backend import OnnxruntimeBackend  # noqa: E402
from bridge_onnxruntime.binding import SessionBound  # noqa: E402
from bridge_onnxruntime.predictor import run_of  # noqa: E402
from bridge_onnxruntime.tensors import ONNX_CODES  # noqa: E402

FLOAT, INT64, STRING = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.STRING
Net = list[tuple[str, list[str], list[str]]]
DTYPES = sorted(ONNX_CODES, key=str)
NUMBERS = [dtype for dtype in DTYPES if dtype is not bridge.DType.STRING]


def load(
    net: Net,
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, Any] | None = None,
    **more: Any,
) -> bridge.Predictor:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*one) for one in net],
        "g",
        [value(*one) for one in inputs],
        [value(*one) for one in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    return bridge.load(model.SerializeToString(), backend="onnxruntime", **more)


def relu(**more: Any) -> bridge.Predictor:
    return load(
        [("Relu", ["x"], ["y"])], [("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 4])], **more
    )


def identity(code: int, shape: list[Any] | None = None) -> bridge.Predictor:
    shape = ["N", 3] if shape is None else shape
    return load([("Identity", ["x"], ["y"])], [("x", code, shape)], [("y", code, shape)])


def sample(dtype: bridge.DType, shape: tuple[int, ...]) -> Any:
    numbers = np.arange(np.prod(shape)).reshape(shape)
    return (
        numbers.astype(str).astype(object)
        if dtype.value == "string"
        else numbers.astype(dtype.numpy)
    )


def test_claimed_dtypes_are_those_tested() -> None:
    assert OnnxruntimeBackend().capabilities(bridge.CPU).dtypes == frozenset(DTYPES)


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_passes_unchanged(dtype: bridge.DType, shape: tuple[int, ...]) -> None:
    predictor = identity(ONNX_CODES[dtype])
    assert predictor.signature.input("x").dtype is dtype
    x = sample(dtype, shape)
    y = predictor.predict({"x": x})["y"]
    assert (y.dtype, y.shape) == (x.dtype, shape)
    np.testing.assert_array_equal(y, x)
    assert not np.shares_memory(x, y)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_scalars(dtype: bridge.DType) -> None:
    predictor = identity(ONNX_CODES[dtype], [])
    y = predictor.predict({"x": np.array(3, dtype.numpy)})["y"]
    assert (y.dtype, y.shape) == (dtype.numpy, ())
    assert y == np.array(3, dtype.numpy)


def test_bfloat16_is_computed() -> None:
    predictor = _cast()
    x = np.array([1.5, -2], ml_dtypes.bfloat16)
    outputs = predictor.predict({"x": x, "a": np.ones(2, np.float32)})
    np.testing.assert_array_equal(outputs["y"], np.array([2.5, -1], np.float32))
    assert outputs["b"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        predictor.predict({"x": x, "a": np.ones(2, np.float32)}, ["b"])["b"], x
    )


def _cast() -> bridge.Predictor:
    code = onnx.TensorProto.BFLOAT16
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Cast", ["x"], ["f"], to=FLOAT),
            make("Add", ["f", "a"], ["y"]),
            make("Cast", ["f"], ["b"], to=code),
        ],
        "g",
        [
            onnx.helper.make_tensor_value_info("x", code, ["N"]),
            onnx.helper.make_tensor_value_info("a", FLOAT, ["N"]),
        ],
        [
            onnx.helper.make_tensor_value_info("y", FLOAT, ["N"]),
            onnx.helper.make_tensor_value_info("b", code, ["N"]),
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    return bridge.load(model.SerializeToString(), backend="onnxruntime")


def layouts() -> dict[str, Any]:
    wide = np.arange(24, dtype=np.float32).reshape(3, 8)
    bytes_ = np.zeros(3 * 4 * 4 + 1, np.uint8)
    misaligned = bytes_[1:].view(np.float32).reshape(3, 4)
    misaligned[...] = wide[:, :4]
    read_only = wide[:, :4].copy()
    read_only.flags.writeable = False
    return {
        "strided": wide[:, ::2],
        "negative": wide[::-1, 3::-1],
        "fortran": np.asfortranarray(wide[:, :4]),
        "transposed": np.arange(12, dtype=np.float32).reshape(4, 3).T,
        "broadcast": np.broadcast_to(np.float32(2), (3, 4)),
        "misaligned": misaligned,
        "read-only": read_only,
        "byte-swapped view": read_only.astype(">f4").astype("=f4"),
        "subclass": read_only.view(np.memmap),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", layouts())
def test_every_layout(layout: str, dtype: str) -> None:
    x = layouts()[layout]
    predictor = relu()
    if dtype == "bfloat16":
        predictor = identity(onnx.TensorProto.BFLOAT16, ["N", 4])
        x = x.astype(ml_dtypes.bfloat16, order="K")  # which aligns it
    before = x.tobytes()
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], x)
    assert x.tobytes() == before


def test_sums_do_not_depend_on_alignment() -> None:
    # ReduceSum of onnxruntime 1.32 does, if it gets a misaligned array as it is.
    predictor = load([("ReduceSum", ["x"], ["y"])], [("x", FLOAT, ["N", 64])], [("y", FLOAT, None)])
    x = np.random.default_rng(0).standard_normal((33, 64)).astype(np.float32)
    misaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    aligned = predictor.predict({"x": x})["y"]
    assert predictor.predict({"x": misaligned})["y"].tobytes() == aligned.tobytes()


# A node, an input or a constant that could be handed out as it is.
SHARING: dict[str, tuple[Net, list[str]]] = {
    "identity": ([("Identity", ["x"], ["y"])], ["y"]),
    "reshape": ([("Flatten", ["x"], ["y"])], ["y"]),
    "input": ([("Relu", ["x"], ["y"])], ["x", "y"]),
    "weight": ([("Relu", ["x"], ["y"])], ["w", "y"]),
    "identity of a weight": ([("Identity", ["w"], ["y"])], ["y"]),
    "folded weight": ([("Add", ["w", "w"], ["y"])], ["y"]),
    "one result thrice": (
        [("Relu", ["x"], ["r"]), ("Identity", ["r"], ["y"]), ("Identity", ["r"], ["z"])],
        ["r", "y", "z"],
    ),
}


@pytest.mark.parametrize("level", ["disable", "all"])
@pytest.mark.parametrize("case", SHARING)
def test_outputs_belong_to_the_caller(case: str, level: str) -> None:
    net, names = SHARING[case]
    predictor = load(
        net,
        [("x", FLOAT, ["N", 3])],
        [(name, FLOAT, None) for name in names],
        {"w": np.arange(3, dtype=np.float32)},
        options={"graph_optimization": level},
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = predictor.predict({"x": x})
    kept = {name: array.copy() for name, array in first.items()}
    second = predictor.predict({"x": x + 1})
    for name in names:
        np.testing.assert_array_equal(first[name], kept[name])
        assert first[name].flags.writeable
        first[name][...] = 99
    np.testing.assert_array_equal(x, np.arange(6).reshape(2, 3))
    third = predictor.predict({"x": x + 1})
    for name in names:
        np.testing.assert_array_equal(third[name], second[name])


def test_outputs_outlive_the_predictor() -> None:
    predictor = relu()
    y = predictor.predict({"x": np.ones((500, 4), np.float32)})["y"]
    predictor.close()
    del predictor
    gc.collect()
    other = relu()
    other.predict({"x": np.full((500, 4), 7, np.float32)})
    assert (y == 1).all()


def test_a_subset_of_the_outputs() -> None:
    net = [("Relu", ["x"], ["y"]), ("Neg", ["x"], ["z"])]
    both = [("y", FLOAT, ["N"]), ("z", FLOAT, ["N"])]
    predictor = load(net, [("x", FLOAT, ["N"])], both)
    x = np.array([1, -1], np.float32)
    assert list(predictor.predict({"x": x})) == ["y", "z"]
    assert list(predictor.predict({"x": x}, ["z", "y"])) == ["z", "y"]
    answer = predictor.predict({"x": x}, ["z"])
    assert list(answer) == ["z"]
    np.testing.assert_array_equal(answer["z"], -x)


def test_forty_inputs() -> None:
    names = [f"id_{index}" for index in range(40)]
    net = [("Concat", names, ["y"])]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*net[0], axis=1)],
        "g",
        [onnx.helper.make_tensor_value_info(name, INT64, ["N", 1]) for name in names],
        [onnx.helper.make_tensor_value_info("y", INT64, ["N", 40])],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    predictor = bridge.load(model.SerializeToString(), backend="onnxruntime")
    inputs = {name: np.array([[index], [-index]]) for index, name in enumerate(names)}
    y = predictor.predict(dict(reversed(inputs.items())))["y"]  # order does not matter
    np.testing.assert_array_equal(y, [np.arange(40), -np.arange(40)])
    with pytest.raises(errors.ShapeMismatch, match="dim 'N' is 1 here but 2 in input 'id_0'"):
        predictor.predict({**inputs, "id_7": np.zeros((1, 1), np.int64)})


# --- Strings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        np.array(["a", "", "é\0x"], object),
        np.array(["a", "bcd", "é"]),
        np.array([b"a", "\u00e9".encode(), "c"], object),
        np.array(["a", "b"] * 4, object)[::2],
        np.array([], object),
    ],
    ids=["objects", "fixed width", "bytes", "strided", "empty"],
)
def test_strings(x: Any) -> None:
    wanted = [item.decode() if isinstance(item, bytes) else item for item in x]
    before = x.tolist()
    y = identity(STRING, ["N"]).predict({"x": x})["y"]
    assert y.dtype == object
    assert y.tolist() == wanted
    assert x.tolist() == before


@pytest.mark.parametrize("item", [b"\xff", "\ud800"], ids=["bytes", "surrogate"])
def test_strings_that_are_no_text(item: Any) -> None:
    with pytest.raises(errors.InputError, match="UTF-8"):
        identity(STRING, ["N"]).predict({"x": np.array(["a", item], object)})


def test_strings_beside_bfloat16_are_refused() -> None:
    code = onnx.TensorProto.BFLOAT16
    with pytest.raises(errors.UnsupportedModel, match="strings and bfloat16"):
        load(
            [("Identity", ["x"], ["y"]), ("Identity", ["s"], ["t"])],
            [("x", code, ["N"]), ("s", STRING, ["N"])],
            [("y", code, ["N"]), ("t", STRING, ["N"])],
        )


# --- Bound calls ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bound_calls_for_every_dtype(dtype: bridge.DType, shape: tuple[int, ...]) -> None:
    bound = identity(ONNX_CODES[dtype]).bind({"x": shape})
    x = sample(dtype, shape)
    for values in (x, x[::-1], x):
        bound.inputs["x"][...] = values
        bound.predict()
        assert bound.outputs["y"].dtype == x.dtype
        np.testing.assert_array_equal(bound.outputs["y"], values)


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_bound_buffers_are_read_and_written_in_place(shape: tuple[int, ...]) -> None:
    predictor = load(
        [("Neg", ["x"], ["y"]), ("Abs", ["x"], ["z"])],
        [("x", FLOAT, list(shape))],
        [("y", FLOAT, list(shape)), ("z", FLOAT, list(shape))],
    )
    bound = predictor.bind({"x": shape})
    assert isinstance(bound, SessionBound)
    x = bound.inputs["x"]
    bound.predict()
    arrays = dict(bound.outputs)
    for value in (3, -4):
        x[...] = value
        bound.predict()
        assert bound._is_fixed
        assert all(bound.outputs[name] is array for name, array in arrays.items())
        assert (arrays["y"] == -value).all()
        assert (arrays["z"] == abs(value)).all()


def test_bound_outputs_are_apart_from_predict_and_from_each_other() -> None:
    predictor = relu()
    one, two = predictor.bind({"x": (1, 4)}), predictor.bind({"x": (1, 4)})
    one.inputs["x"][...], two.inputs["x"][...] = 1, 2
    one.predict()
    two.predict()
    owned = predictor.predict({"x": np.full((1, 4), 3, np.float32)})["y"]
    one.predict()
    assert (one.outputs["y"] == 1).all()
    assert (two.outputs["y"] == 2).all()
    assert (owned == 3).all()


def test_bound_outputs_whose_shape_depends_on_values() -> None:
    predictor = load(
        [("NonZero", ["x"], ["y"]), ("Neg", ["x"], ["z"])],
        [("x", FLOAT, ["N"])],
        [("y", INT64, [1, "K"]), ("z", FLOAT, ["N"])],
    )
    bound = predictor.bind({"x": (4,)})
    for values in ([1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]):
        bound.inputs["x"][...] = values
        bound.predict()
        np.testing.assert_array_equal(bound.outputs["y"], [np.flatnonzero(values)])
        np.testing.assert_array_equal(bound.outputs["z"], np.negative(values))


def test_bound_outputs_that_are_inputs_or_weights() -> None:
    predictor = load(
        [("Relu", ["x"], ["y"])],
        [("x", FLOAT, ["N"])],
        [("x", FLOAT, ["N"]), ("w", FLOAT, [2]), ("y", FLOAT, ["N"])],
        {"w": np.array([5, 6], np.float32)},
    )
    bound = predictor.bind({"x": (3,)})
    for value in (1, -2, 3):
        bound.inputs["x"][...] = value
        bound.predict()
        assert (bound.outputs["x"] == value).all()
        assert not np.shares_memory(bound.outputs["x"], bound.inputs["x"])
        np.testing.assert_array_equal(bound.outputs["w"], [5, 6])
        assert (bound.outputs["y"] == max(value, 0)).all()
        bound.outputs["w"][...] = 0


def test_bound_calls_recover_from_errors() -> None:
    predictor = load(
        [("Gather", ["w", "i"], ["y"])],
        [("i", INT64, ["N"])],
        [("y", FLOAT, ["N"])],
        {"w": np.array([5, 6], np.float32)},
    )
    bound = predictor.bind({"i": (2,)})
    for good in (0, 1):
        bound.inputs["i"][...] = good
        bound.predict()
        assert (bound.outputs["y"] == 5 + good).all()
        bound.inputs["i"][...] = 9
        with pytest.raises(errors.PredictError, match="Gather"):
            bound.predict()
    bound.inputs["i"][...] = 0
    bound.predict()
    assert (bound.outputs["y"] == 5).all()
    assert bound._is_fixed


def test_bound_optional_inputs() -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", FLOAT, ["N"]), value("w", FLOAT, [1])],
        [value("y", FLOAT, ["N"])],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    predictor = bridge.load(model.SerializeToString(), backend="onnxruntime")
    left_out, given = predictor.bind({"x": (2,)}), predictor.bind({"x": (2,), "w": (1,)})
    given.inputs["w"][...] = 7
    for bound, wanted in ((left_out, 1), (given, 7)):
        bound.predict()
        assert (bound.outputs["y"] == wanted).all()


def test_bound_calls_end_with_the_predictor() -> None:
    predictor = relu()
    bound = predictor.bind({"x": (1, 4)})
    bound.predict()
    predictor.close()
    with pytest.raises(errors.PredictorClosed):
        bound.predict()
    with pytest.raises(errors.PredictorClosed):
        predictor.bind({"x": (1, 4)})
    assert not hasattr(bound, "_binding")  # the session does not live on in it


# --- What private names are used for, and what happens without them ---------------------


def test_the_c_session_is_called_directly() -> None:
    predictor = relu()
    assert predictor._run == predictor._session._sess.run
    assert predictor.bind({"x": (1, 4)})._native_run == predictor._session._sess.run_with_iobinding


def test_without_the_c_session_the_public_methods_serve() -> None:
    predictor = relu()
    session = predictor._session
    public = SimpleNamespace(
        run=session.run,
        io_binding=session.io_binding,
        run_with_iobinding=session.run_with_iobinding,
    )
    assert run_of(public) == session.run
    x = np.full((2, 4), 5, np.float32)
    predictor._run = run_of(public)
    np.testing.assert_array_equal(predictor.predict({"x": x})["y"], x)
    bound = SessionBound(predictor, {"x": x}, public, predictor._run_options)
    assert bound._native_run == session.run_with_iobinding
    for value in (1, 2, 3):
        x[...] = value
        bound.predict()
        assert (bound.outputs["y"] == value).all()
