from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bridge import DType, Layout, Signature, TensorSpec
from bridge.check import check_inputs, compile_check
from bridge.errors import (
    DTypeMismatch,
    InputError,
    MissingInput,
    ShapeMismatch,
    UnexpectedInput,
)

SIGNATURE = Signature(
    (
        TensorSpec("x", DType.FLOAT32, ("N", 4)),
        TensorSpec("a", DType.INT64, ("N",)),
        TensorSpec("b", DType.INT64, ("N",)),
        TensorSpec("free", DType.BOOL, (None, 2)),
        TensorSpec("bias", DType.FLOAT32, (4,), has_default=True),
    ),
    (),
)


def good(rows: int = 2) -> dict[str, Any]:
    return {
        "x": np.zeros((rows, 4), np.float32),
        "a": np.zeros(rows, np.int64),
        "b": np.zeros(rows, np.int64),
        "free": np.zeros((5, 2), bool),
    }


def changed(**arrays: Any) -> dict[str, Any]:
    return {**good(), **arrays}


@pytest.fixture(params=[Layout.ANY, Layout.CONTIGUOUS, Layout.WRITABLE], ids=lambda one: one.value)
def check(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return compile_check(SIGNATURE, request.param, zero_rows=True)


def test_fitting_inputs_pass_untouched(check: Callable[[Any], Any]) -> None:
    inputs = good()
    assert check(inputs) is inputs


def test_defaults_may_be_given_or_left_out(check: Callable[[Any], Any]) -> None:
    inputs = changed(bias=np.ones(4, np.float32))
    assert set(check(inputs)) == set(inputs)


BAD = [
    (3, InputError, "wanted a dict"),
    ({k: v for k, v in good().items() if k != "b"}, MissingInput, "'b' is missing"),
    (
        {**{k: v for k, v in good().items() if k != "free"}, "fre": 1},
        UnexpectedInput,
        "Did you mean 'free'?",
    ),
    (changed(more=np.zeros(1)), UnexpectedInput, "'more'"),
    (changed(x=np.zeros((2, 4))), DTypeMismatch, "array.astype('float32')"),
    (changed(a=np.zeros(2, np.int32)), DTypeMismatch, "int64"),
    (changed(a=np.zeros(2, ">i8")), DTypeMismatch, "Swap the bytes"),
    (changed(a=np.array([None, 1])), DTypeMismatch, "object"),
    (changed(a=np.array(["1", "2"])), DTypeMismatch, "int64"),
    (changed(x=np.zeros(4, np.float32)), ShapeMismatch, "2 dims, got 1"),
    (changed(x=np.zeros((2, 5), np.float32)), ShapeMismatch, "dim 1 must be 4, got 5"),
    (changed(a=np.zeros(3, np.int64)), ShapeMismatch, "dim 'N' is 3 here but 2 in input 'x'"),
    (changed(b=np.zeros(1, np.int64)), ShapeMismatch, "dim 'N' is 1 here but 2 in input 'x'"),
    (changed(bias=np.zeros(5, np.float32)), ShapeMismatch, "dim 0 must be 4"),
    (changed(x=[[0.0] * 4] * 2), InputError, "wanted a numpy array"),
    (changed(x=None), InputError, "wanted a numpy array"),
]


@pytest.mark.parametrize(("inputs", "kind", "text"), BAD, ids=[text for _, _, text in BAD])
def test_wrong_inputs_raise_the_right_error(
    check: Callable[[Any], Any], inputs: Any, kind: type[InputError], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        check(inputs)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert caught.value.fix


def test_errors_carry_data() -> None:
    with pytest.raises(ShapeMismatch) as caught:
        check_inputs(SIGNATURE, changed(x=np.zeros((2, 5), np.float32)))
    assert caught.value.detail == {"input": "x", "wanted": "(N, 4)", "got": (2, 5), "axis": 1}


def unusual() -> dict[str, np.ndarray[Any, Any]]:
    base = np.arange(64, dtype=np.float32).reshape(8, 8)
    raw = np.zeros(33, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(2, 4)
    misaligned[...] = base[:2, :4]
    readonly = base[:2, :4].copy()
    readonly.flags.writeable = False
    return {
        "strided": base[:4:2, ::2],
        "negative": base[1::-1, 3::-1],
        "fortran": np.asfortranarray(base[:2, :4]),
        "misaligned": misaligned,
        "readonly": readonly,
    }


@pytest.mark.parametrize("kind", list(unusual()))
@pytest.mark.parametrize("layout", list(Layout), ids=lambda one: one.value)
def test_unusual_arrays_arrive_as_the_layout_promises(kind: str, layout: Layout) -> None:
    array = unusual()[kind]
    before = array.copy()
    checked = compile_check(SIGNATURE, layout, zero_rows=True)(changed(x=array))["x"]
    np.testing.assert_array_equal(checked, before)
    np.testing.assert_array_equal(array, before)
    if layout is not Layout.ANY:
        assert checked.flags.c_contiguous
        assert checked.flags.aligned
    if layout is Layout.WRITABLE:
        assert checked.flags.writeable


def test_other_array_types_share_memory() -> None:
    class Exporter:
        def __init__(self, array: np.ndarray[Any, Any]) -> None:
            self.array = array

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    array = np.ones((2, 4), np.float32)
    check = compile_check(SIGNATURE, Layout.CONTIGUOUS, zero_rows=True)
    assert np.shares_memory(check(changed(x=Exporter(array)))["x"], array)
    mapped = array.view(type("Mapped", (np.ndarray,), {}))
    assert np.shares_memory(check(changed(x=mapped))["x"], array)


def test_device_memory_is_refused() -> None:
    class OnDevice:
        def __dlpack__(self, **kwargs: Any) -> Any:
            raise AssertionError("must not be asked")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)  # kDLCUDA

    with pytest.raises(InputError, match="device memory"):
        check_inputs(SIGNATURE, changed(x=OnDevice()))


def test_numpy_scalars_serve_rank_0() -> None:
    signature = Signature((TensorSpec("sr", DType.INT64, ()),), ())
    assert check_inputs(signature, {"sr": np.int64(16000)})["sr"].shape == ()
    with pytest.raises(InputError, match="numpy.asarray"):
        check_inputs(signature, {"sr": 16000})


def test_empty_batches_where_they_are_refused() -> None:
    check = compile_check(SIGNATURE, Layout.CONTIGUOUS, zero_rows=False)
    inputs = good()
    assert check(inputs) is inputs
    with pytest.raises(ShapeMismatch, match="empty batches"):
        check(good(0))
    allowed = compile_check(SIGNATURE, Layout.CONTIGUOUS, zero_rows=True)
    empty = good(0)
    assert allowed(empty) is empty


def test_strings() -> None:
    signature = Signature((TensorSpec("s", DType.STRING, (None,)),), ())
    check = compile_check(signature, Layout.CONTIGUOUS, zero_rows=True)
    for array in (np.array(["a", "b"]), np.array(["a", "b"], object), np.array([b"a"], object)):
        assert check({"s": array})["s"].dtype == object
    with pytest.raises(DTypeMismatch, match="class int"):
        check({"s": np.array(["a", 1], object)})
    with pytest.raises(DTypeMismatch):
        check({"s": np.zeros(2)})


def test_unchecked_specs_take_any_numbers() -> None:
    signature = Signature((TensorSpec("x", None, None),), ())
    check = compile_check(signature, Layout.CONTIGUOUS, zero_rows=True)
    for array in (np.zeros(3), np.zeros((2, 2), np.int8)):
        assert check({"x": array})["x"] is array
    for odd in (np.array(["a"]), np.array([None])):
        with pytest.raises(DTypeMismatch, match="wanted native numbers"):
            check_inputs(signature, {"x": odd})


def test_names_never_become_code() -> None:
    name = "x'] ; import os ; os.abort() #\n"
    signature = Signature((TensorSpec(name, DType.FLOAT32, ('"); os.abort() #', 4)),), ())
    inputs = {name: np.zeros((2, 4), np.float32)}
    assert compile_check(signature, Layout.WRITABLE, zero_rows=False)(inputs) is inputs


def test_equal_dtypes_of_other_identity_pass() -> None:
    other = np.dtype("f4", copy=True)
    array = np.zeros((2, 4), other)
    inputs = changed(x=array)
    checked = compile_check(SIGNATURE, Layout.CONTIGUOUS, zero_rows=True)(inputs)
    np.testing.assert_array_equal(checked["x"], array)


UNKNOWN = Signature((TensorSpec("x", None, None),), ())


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1.5], object),
        np.array(["a"]),
        np.zeros(2, [("field", np.float32)]),
        np.zeros(2, "datetime64[s]"),
        np.ones(2, np.dtype(np.float32).newbyteorder()),
    ],
    ids=lambda array: str(array.dtype),
)
def test_an_unknown_dtype_still_means_numbers(array: Any) -> None:
    for check in (compile_check(UNKNOWN, Layout.ANY, zero_rows=True), _explicit):
        with pytest.raises(DTypeMismatch, match="wanted native numbers"):
            check({"x": array})


def test_an_unknown_dtype_may_be_a_reduced_one() -> None:
    array = np.zeros(2, DType.BFLOAT16.numpy)
    for check in (compile_check(UNKNOWN, Layout.ANY, zero_rows=True), _explicit):
        assert check({"x": array})["x"] is array


def _explicit(inputs: Any) -> Any:
    return check_inputs(UNKNOWN, inputs, Layout.ANY)


def test_a_mask_is_never_dropped(check: Callable[[Any], Any]) -> None:
    masked = np.ma.array(np.zeros((2, 4), np.float32), mask=False)
    assert check(changed(x=masked))["x"].shape == (2, 4)
    masked[0, 1] = np.ma.masked
    with pytest.raises(InputError, match="masked elements.*filled"):
        check(changed(x=masked))


def test_objects_that_fail_to_become_arrays_are_input_errors() -> None:
    class Deviceless:
        def __dlpack__(self) -> None: ...
        def __dlpack_device__(self) -> None:
            raise ValueError("unknown device type meta")

    class Odd:
        def __array__(self, dtype: Any = None, copy: Any = None) -> None:
            raise AttributeError("no data")

    for value, text in ((Deviceless(), "device type meta"), (Odd(), "no data")):
        with pytest.raises(InputError, match=f"cannot become a numpy array: .*{text}") as caught:
            check_inputs(SIGNATURE, changed(x=value))
        assert isinstance(caught.value.__cause__, (ValueError, AttributeError))
