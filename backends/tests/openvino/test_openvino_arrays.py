"""Arrays in and out of the OpenVINO backend."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
ml_dtypes = pytest.importorskip("ml_dtypes")

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def value(name: str, dtype: int, shape: list[Any]) -> Any:
    return onnx.helper.make_tensor_value_info(name, dtype, shape)


def model_bytes(nodes: list[Any], inputs: list[Any], outputs: list[Any], *tensors: Any) -> bytes:
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, list(tensors))
    opset = [onnx.helper.make_opsetid("", 24)]
    data: bytes = onnx.helper.make_model(
        graph, opset_imports=opset, ir_version=12
    ).SerializeToString()
    return data


def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return onnx.helper.make_node(operator, inputs, outputs, **attributes)


def load(data: bytes, **options: Any) -> bridge.Predictor:
    return bridge.load(data, backend="openvino", options=options)


def unary(operator: str, dtype: int, rank: int = 2, **attributes: Any) -> bytes:
    shape = ["N", *([3] * (rank - 1))] if rank else []
    return model_bytes(
        [node(operator, ["x"], ["y"], **attributes)],
        [value("x", dtype, shape)],
        [value("y", dtype, shape)],
    )


@pytest.fixture(scope="module")
def negated() -> bridge.Predictor:
    return load(unary("Neg", FLOAT))


def laid_out(kind: str, folder: Path) -> np.ndarray:
    base = np.arange(24, dtype=np.float32).reshape(8, 3)
    if kind == "read-only":
        base.flags.writeable = False
        return base
    if kind == "strided":
        return base[::2]
    if kind == "negative stride":
        return base[::-1, ::-1]
    if kind == "fortran":
        return np.asfortranarray(base)
    if kind == "misaligned":
        raw = np.zeros(base.nbytes + 1, np.uint8)[1:]
        odd = raw.view(np.float32).reshape(base.shape)
        odd[...] = base
        assert not odd.flags.aligned
        return odd
    if kind == "broadcast":
        return np.broadcast_to(base[:1], (5, 3))
    file = folder / "x.bin"
    base.tofile(file)
    return np.memmap(file, np.float32, "r", shape=base.shape)


@pytest.mark.parametrize(
    "kind",
    ["read-only", "strided", "negative stride", "fortran", "misaligned", "broadcast", "memmap"],
)
def test_every_layout_is_taken_and_left_alone(
    kind: str, negated: bridge.Predictor, tmp_path: Path
) -> None:
    x = laid_out(kind, tmp_path)
    before = x.copy()
    result = negated.predict({"x": x})["y"]
    np.testing.assert_array_equal(result, -before)
    np.testing.assert_array_equal(x, before)


def test_a_runtime_that_computes_in_place_changes_no_input() -> None:
    data = model_bytes(
        [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Relu", ["b"], ["y"])],
        [value("x", FLOAT, ["N", 3])],
        [value("y", FLOAT, ["N", 3]), value("a", FLOAT, ["N", 3])],
    )
    predictor = load(data)
    x = np.array([[1, -2, 3]], np.float32)
    for _ in range(3):
        predictor.predict({"x": x})
        np.testing.assert_array_equal(x, [[1, -2, 3]])
    bound = predictor.bind({"x": (1, 3)})
    bound.inputs["x"][...] = x
    for _ in range(3):
        bound.predict()
        np.testing.assert_array_equal(bound.inputs["x"], x)
        np.testing.assert_array_equal(bound.outputs["a"], [[1, 0, 3]])


def test_outputs_belong_to_the_caller(negated: bridge.Predictor) -> None:
    first = negated.predict({"x": np.ones((2, 3), np.float32)})["y"]
    second = negated.predict({"x": np.full((2, 3), 5, np.float32)})["y"]
    assert first.flags.owndata
    assert first.flags.writeable
    np.testing.assert_array_equal(first, -np.ones((2, 3)))
    first[...] = 9
    np.testing.assert_array_equal(second, np.full((2, 3), -5))
    np.testing.assert_array_equal(
        negated.predict({"x": np.zeros((2, 3), np.float32)})["y"], np.zeros((2, 3))
    )


def test_an_input_passed_through_is_no_view_of_the_caller_array() -> None:
    predictor = load(unary("Identity", FLOAT))
    x = np.ones((2, 3), np.float32)
    result = predictor.predict({"x": x})["y"]
    x[...] = 7
    np.testing.assert_array_equal(result, np.ones((2, 3)))
    assert not np.shares_memory(result, x)


def test_shapes_may_change_from_call_to_call(negated: bridge.Predictor) -> None:
    generator = np.random.default_rng(0)
    for rows in (1, 7, 3, 4096, 1, 0, 2, 100_000, 5):
        x = generator.standard_normal((rows, 3), np.float32)
        np.testing.assert_array_equal(negated.predict({"x": x})["y"], -x)


def test_several_inputs_of_different_types_and_shapes() -> None:
    data = model_bytes(
        [
            node("Cast", ["i"], ["fi"], to=FLOAT),
            node("Cast", ["b"], ["fb"], to=FLOAT),
            node("Sum", ["x", "fi", "fb", "s"], ["y"]),
        ],
        [
            value("b", onnx.TensorProto.BOOL, ["N", 1]),
            value("x", FLOAT, ["N", 3]),
            value("s", FLOAT, []),
            value("i", INT64, ["N", 3]),
        ],
        [value("y", FLOAT, ["N", 3])],
    )
    predictor = load(data)
    generator = np.random.default_rng(1)
    for rows in (2, 9, 2, 1, 300):
        x = generator.standard_normal((rows, 3), np.float32)
        i = generator.integers(-9, 9, (rows, 3))
        b = generator.integers(0, 2, (rows, 1)).astype(bool)
        s = np.float32(generator.integers(0, 9))
        result = predictor.predict({"x": x, "i": i, "b": b, "s": np.asarray(s)})["y"]
        np.testing.assert_allclose(result, x + i + b + s, rtol=1e-6, atol=1e-5)


DTYPES = {
    "BOOL": (np.bool_, [True, False, True]),
    "INT8": (np.int8, [-128, 127, 0]),
    "INT16": (np.int16, [-(2**15), 2**15 - 1, 0]),
    "INT32": (np.int32, [-(2**31), 2**31 - 1, 0]),
    "INT64": (np.int64, [-(2**31), 2**31 - 1, 0]),
    "UINT8": (np.uint8, [0, 255, 1]),
    "UINT16": (np.uint16, [0, 65535, 1]),
    "UINT32": (np.uint32, [0, 2**31 - 1, 1]),
    "UINT64": (np.uint64, [0, 2**31 - 1, 1]),
    "FLOAT16": (np.float16, [1.5, -65504, 6e-8]),
    "FLOAT8E4M3FN": (ml_dtypes.float8_e4m3fn, [1.5, -448, 0]),
    "FLOAT8E5M2": (ml_dtypes.float8_e5m2, [1.5, -57344, 0]),
    "FLOAT8E8M0": (ml_dtypes.float8_e8m0fnu, [1, 2.0**-127, 2.0**127]),
    "BFLOAT16": (ml_dtypes.bfloat16, [1.5, -3e38, 0]),
    "FLOAT": (np.float32, [1.5, 3e38, 1e-38]),
}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_claimed_dtypes_pass_unchanged(name: str, rank: int) -> None:
    dtype, values = DTYPES[name]
    predictor = load(unary("Identity", getattr(onnx.TensorProto, name), rank))
    spec = predictor.signature.inputs[0]
    assert spec.dtype is not None
    assert spec.dtype.numpy == dtype
    assert spec.dtype in bridge.backends()["openvino"].capabilities(bridge.CPU).dtypes
    x = np.array(values, dtype)
    x = x[0].reshape(()) if rank == 0 else x if rank == 1 else np.stack([x, x[::-1]])
    result = predictor.predict({"x": x})["y"]
    assert result.dtype == dtype
    assert result.shape == x.shape
    np.testing.assert_array_equal(result, x)
    bound = predictor.bind({"x": x.shape})
    bound.inputs["x"][...] = x
    bound.predict()
    assert bound.outputs["y"].dtype == dtype
    np.testing.assert_array_equal(bound.outputs["y"], x)


def test_every_claimed_dtype_is_tested() -> None:
    claimed = bridge.backends()["openvino"].capabilities(bridge.CPU).dtypes
    assert {bridge.DType.of(dtype) for dtype, _ in DTYPES.values()} == set(claimed)


@pytest.mark.parametrize("name", ["STRING", "FLOAT8E4M3FNUZ", "COMPLEX64"])
def test_other_dtypes_are_refused_on_loading(name: str) -> None:
    with pytest.raises(errors.UnsupportedModel) as caught:
        load(unary("Identity", getattr(onnx.TensorProto, name)))
    assert caught.value.detail["dtype"]


def test_float64_is_not_narrowed_unasked() -> None:
    data = unary("Neg", onnx.TensorProto.DOUBLE)
    with pytest.raises(errors.UnsupportedModel, match="float32") as caught:
        load(data)
    assert "narrow_float64" in str(caught.value)
    predictor = load(data, narrow_float64=True)
    assert predictor.info.details["narrowed"] == {"float64": "float32"}
    x = np.array([[1, 2, 3]], np.float64)
    result = predictor.predict({"x": x})["y"]
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, -x)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("INT64", 2**31), ("INT64", -(2**31) - 1), ("UINT64", 2**63 + 1), ("UINT32", 2**31)],
)
def test_integers_that_openvino_would_truncate_are_refused(name: str, bad: int) -> None:
    data = model_bytes(
        [node("Identity", ["a"], ["p"]), node("Identity", ["b"], ["q"])],
        [value(n, getattr(onnx.TensorProto, name), ["N"]) for n in ("a", "b")],
        [value(n, getattr(onnx.TensorProto, name), ["N"]) for n in ("p", "q")],
    )
    predictor = load(data)
    assert predictor.info.details["narrowed"] == {name.lower(): "int32"}
    kind = DTYPES[name][0]
    good = {"a": np.array([1, 2], kind), "b": np.array([3, 4], kind)}
    for name_of_bad in ("a", "b"):
        inputs = good | {name_of_bad: np.array([5, bad], kind)}
        with pytest.raises(errors.InputError, match=f"'{name_of_bad}' holds {bad}") as caught:
            predictor.predict(inputs)
        assert caught.value.detail["value"] == bad
    bound = predictor.bind({"a": (2,), "b": (2,)})
    bound.inputs["b"][1] = bad
    with pytest.raises(errors.InputError, match=f"'b' holds {bad}"):
        bound.predict()
    np.testing.assert_array_equal(predictor.predict(good)["q"], [3, 4])


def test_what_the_gaps_between_buffers_held_before_is_not_taken_for_an_integer() -> None:
    data = model_bytes(
        [
            node("Cast", ["i"], ["f"], to=FLOAT),
            node("ReduceSum", ["f"], ["y"], keepdims=0),
            node("Neg", ["x"], ["z"]),
        ],
        [value("x", FLOAT, ["M"]), value("i", INT64, ["N"])],
        [value("y", FLOAT, []), value("z", FLOAT, ["M"])],
    )
    predictor = load(data)
    for floats, integers in ((1000, 9), (3, 9), (700, 3), (9, 1)):
        inputs = {"x": np.full(floats, -1e30, np.float32), "i": np.arange(integers)}
        assert predictor.predict(inputs)["y"] == np.arange(integers).sum()
        (checked,) = predictor._idle[0].buffers._wide  # type: ignore[attr-defined]
        assert checked.min() == 0
        assert checked.max() == integers - 1


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([("MatMul", ["x", "w"], ["y"])], {"y": (0, 4)}),
        ([("ReduceMean", ["x"], ["y"])], {"y": (1, 1)}),
        ([("Concat", ["x", "x"], ["y"], {"axis": 1})], {"y": (0, 6)}),
        ([("Softmax", ["x"], ["y"])], {"y": (0, 3)}),
    ],
)
def test_empty_batches(nodes: list[Any], outputs: dict[str, tuple[int, ...]]) -> None:
    weights = onnx.helper.make_tensor("w", FLOAT, [3, 4], [1.0] * 12)
    data = model_bytes(
        [
            node(operator, ins, outs, **(more[0] if more else {}))
            for operator, ins, outs, *more in nodes
        ],
        [value("x", FLOAT, ["N", 3])],
        [value("y", FLOAT, [None, None])],
        weights,
    )
    predictor = load(data)
    for rows in (0, 2, 0):
        result = predictor.predict({"x": np.ones((rows, 3), np.float32)})["y"]
        assert result.dtype == np.float32
        if rows == 0:
            assert result.shape == outputs["y"]


def test_an_empty_batch_that_an_operator_refuses_is_an_input_error() -> None:
    data = model_bytes(
        [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])],
        [value("x", FLOAT, ["N", 1, 4, 4])],
        [value("y", FLOAT, ["N", 1, 3, 3])],
    )
    predictor = load(data)
    with pytest.raises(errors.ShapeMismatch, match="empty batch") as caught:
        predictor.predict({"x": np.zeros((0, 1, 4, 4), np.float32)})
    assert caught.value.detail["node"] == "y"
    assert predictor.predict({"x": np.ones((2, 1, 4, 4), np.float32)})["y"].shape == (2, 1, 3, 3)


def test_a_failed_call_names_the_operator_and_leaves_the_predictor_usable() -> None:
    data = model_bytes(
        [node("Reshape", ["x", "s"], ["y"])],
        [value("x", FLOAT, ["N"])],
        [value("y", FLOAT, ["A", 4])],
        onnx.helper.make_tensor("s", INT64, [2], [-1, 4]),
    )
    predictor = load(data)
    assert predictor.predict({"x": np.zeros(8, np.float32)})["y"].shape == (2, 4)
    with pytest.raises(errors.PredictError, match="Reshape") as caught:
        predictor.predict({"x": np.zeros(7, np.float32)})
    assert "src/" not in str(caught.value)
    assert "src/" in caught.value.detail["native_error"]
    assert predictor.predict({"x": np.zeros(12, np.float32)})["y"].shape == (3, 4)


def test_a_subset_of_outputs() -> None:
    data = model_bytes(
        [node("Neg", ["x"], ["y"]), node("Identity", ["y"], ["z"])],
        [value("x", FLOAT, ["N", 3])],
        [value("z", FLOAT, ["N", 3]), value("x", FLOAT, ["N", 3]), value("y", FLOAT, ["N", 3])],
    )
    predictor = load(data)
    assert predictor.signature.output_names == ("z", "x", "y")
    x = np.ones((2, 3), np.float32)
    everything = predictor.predict({"x": x})
    assert list(everything) == ["z", "x", "y"]
    only = predictor.predict({"x": x}, outputs=["y"])
    assert list(only) == ["y"]
    np.testing.assert_array_equal(only["y"], -x)
    np.testing.assert_array_equal(everything["z"], -x)
    np.testing.assert_array_equal(everything["x"], x)
    with pytest.raises(errors.UnknownOutput):
        predictor.predict({"x": x}, outputs=["w"])


def test_bound_outputs_stay_in_place_and_follow_a_shape_that_data_decide() -> None:
    data = model_bytes(
        [node("NonZero", ["x"], ["y"])],
        [value("x", FLOAT, ["N"])],
        [value("y", INT64, [1, "K"])],
    )
    bound = load(data).bind({"x": (4,)})
    bound.inputs["x"][...] = [1, 0, 1, 0]
    bound.predict()
    first = bound.outputs["y"]
    np.testing.assert_array_equal(first, [[0, 2]])
    bound.inputs["x"][...] = [0, 1, 1, 0]
    bound.predict()
    assert bound.outputs["y"] is first
    np.testing.assert_array_equal(first, [[1, 2]])
    bound.inputs["x"][...] = 1
    bound.predict()
    np.testing.assert_array_equal(bound.outputs["y"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(first, [[1, 2]])


def test_bound_outputs_are_written_by_openvino_itself() -> None:
    data = model_bytes(
        [
            node("Identity", ["x"], ["same"]),
            node("Identity", ["c"], ["constant"]),
            node("Add", ["x", "x"], ["y"]),
            node("ReduceSum", ["x"], ["total"], keepdims=0),
        ],
        [value("x", FLOAT, ["N", 3])],
        [
            value("same", FLOAT, ["N", 3]),
            value("constant", FLOAT, [2]),
            value("y", FLOAT, ["N", 3]),
            value("total", FLOAT, []),
        ],
        onnx.helper.make_tensor("c", FLOAT, [2], [5, 6]),
    )
    bound = load(data).bind({"x": (2, 3)})
    bound.predict()
    arrays = dict(bound.outputs)
    assert [array.ctypes.data % 64 for array in arrays.values()] == [0] * 4
    for start in (1, 7):
        bound.inputs["x"][...] = x = np.arange(start, start + 6).reshape(2, 3)
        for array in arrays.values():
            array[...] = -1
        bound.outputs.clear()  # nothing of ours can copy into them now
        bound.predict()
        np.testing.assert_array_equal(arrays["same"], x)
        np.testing.assert_array_equal(arrays["constant"], [5, 6])
        np.testing.assert_array_equal(arrays["y"], x + x)
        assert arrays["total"] == x.sum()


def test_bound_outputs_of_random_values_are_copied() -> None:
    data = model_bytes(
        [node("RandomUniformLike", ["x"], ["y"], dtype=FLOAT)],
        [value("x", FLOAT, [64])],
        [value("y", FLOAT, [64])],
    )
    bound = load(data).bind({"x": (64,)})
    bound.predict()
    array = bound.outputs["y"]
    assert len(set(array.tolist())) > 32
    before = array.copy()
    bound.predict()
    assert bound.outputs["y"] is array
    assert (array != before).any()


def doubled() -> bridge.Bound:
    data = model_bytes(
        [node("Add", ["x", "x"], ["y"]), node("ReduceSum", ["x"], ["total"], keepdims=0)],
        [value("x", FLOAT, ["N", 3])],
        [value("y", FLOAT, ["N", 3]), value("total", FLOAT, [])],
    )
    return load(data).bind({"x": (2, 3)})


def check_doubled(bound: bridge.Bound, number: float) -> None:
    bound.inputs["x"][...] = number
    bound.predict()
    np.testing.assert_array_equal(bound.outputs["y"], np.full((2, 3), 2 * number))
    assert bound.outputs["total"] == 6 * number


@pytest.mark.parametrize("has_run", [False, True])
def test_an_interrupt_while_bound_outputs_are_tried_leaves_the_next_calls_right(
    has_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: Any = doubled()
    infer, calls, tried = bound._infer, 0, set()

    def addresses() -> set[int]:
        request = bound._request.native
        return {request.get_output_tensor(index).data.ctypes.data for index in range(2)}

    def interrupted() -> Any:
        nonlocal calls
        calls += 1
        if calls != 2:
            return infer()
        tried.update(addresses())
        assert tried == {array.ctypes.data for array in bound._held.values()}
        if has_run:
            infer()
        raise KeyboardInterrupt

    monkeypatch.setattr(bound, "_infer", interrupted)
    bound.inputs["x"][...] = 1
    with pytest.raises(KeyboardInterrupt):
        bound.predict()
    assert len(tried) == 2
    assert not tried & addresses()  # which may be gone by now
    for number in (2, 3, 4):
        check_doubled(bound, number)


def test_bound_outputs_that_openvino_does_not_take_are_copied_even_if_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf:
        def set_output_tensor(self, index: int, tensor: Any) -> None:
            pass

    bound: Any = doubled()
    monkeypatch.setattr(bound._request, "native", Deaf())
    for number in (0, 1, 2):
        check_doubled(bound, number)


def test_bound_outputs_of_zeros_and_of_nothing_stay_in_place() -> None:
    data = unary("Neg", FLOAT)
    for rows in (0, 2):
        bound = load(data).bind({"x": (rows, 3)})
        bound.predict()
        array = bound.outputs["y"]
        assert array.shape == (rows, 3)
        bound.inputs["x"][...] = 1
        bound.outputs.clear()  # nothing of ours can copy into it now
        bound.predict()
        np.testing.assert_array_equal(array, np.full((rows, 3), -1))


@pytest.mark.parametrize("is_bound", [False, True])
def test_settled_calls_make_no_large_array(is_bound: bool) -> None:
    x = np.ones((64, 4096), np.float32)
    outputs = [value("total", FLOAT, [])]
    if is_bound:  # what predict returns is an array of the caller's
        outputs.append(value("y", FLOAT, ["N", 4096]))
    predictor = load(
        model_bytes(
            [node("Add", ["x", "x"], ["y"]), node("ReduceSum", ["y"], ["total"], keepdims=0)],
            [value("x", FLOAT, ["N", 4096])],
            outputs,
        )
    )
    bound = predictor.bind({"x": x.shape})

    class Exporter:
        def __dlpack__(self, **arguments: Any) -> Any:
            return x.__dlpack__(**arguments)

        def __dlpack_device__(self) -> tuple[int, int]:
            return x.__dlpack_device__()

    def call() -> None:
        if is_bound:
            bound.predict()
        else:
            predictor.predict({"x": Exporter()})

    for _ in range(3):
        call()
    tracemalloc.start()
    try:
        call()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < x.nbytes // 2


def test_equal_inputs_give_equal_bytes() -> None:
    weights = np.random.default_rng(2).standard_normal((256, 256), np.float32)
    data = model_bytes(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", FLOAT, ["N", 256])],
        [value("y", FLOAT, ["N", 256])],
        onnx.helper.make_tensor("w", FLOAT, weights.shape, weights.tobytes(), raw=True),
    )
    x = np.random.default_rng(3).standard_normal((32, 256), np.float32)
    predictor = load(data)
    first = predictor.predict({"x": x})["y"]
    for _ in range(5):
        assert predictor.predict({"x": x})["y"].tobytes() == first.tobytes()
    # float32 in earnest: bfloat16 would be off by about 0.1
    np.testing.assert_allclose(first, x.astype(np.float64) @ weights, atol=1e-3)


def test_bound_buffers_are_what_openvino_and_other_libraries_see() -> None:
    data = model_bytes(
        [node("Add", ["x", "x"], ["y"])],
        [value("x", FLOAT, ["N", 3])],
        [value("y", FLOAT, ["N", 3])],
    )
    bound: Any = load(data).bind({"x": (4, 3)})
    bound.predict()
    request = bound._request.native
    given, made = bound.inputs["x"], bound.outputs["y"]
    assert request.get_input_tensor(0).data.ctypes.data == given.ctypes.data
    assert request.get_output_tensor(0).data.ctypes.data == made.ctypes.data
    imported = np.from_dlpack(given)
    assert imported.ctypes.data == given.ctypes.data
    given[...] = 3
    bound.predict()
    np.testing.assert_array_equal(np.from_dlpack(made), np.full((4, 3), 6))
    assert bound.outputs["y"] is made
