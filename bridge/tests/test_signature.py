from __future__ import annotations

import json

import numpy as np
import pytest

from bridge import DType, Signature, TensorSpec
from bridge.signature import dim


@pytest.mark.parametrize("invented", ["", "?", "-1", "None", "unk__12", -1, None, "7"])
def test_invented_dim_names_are_free(invented: object) -> None:
    assert dim(invented) is None


@pytest.mark.parametrize(("given", "kept"), [("batch", "batch"), (3, 3), (0, 0), (np.int64(4), 4)])
def test_real_dims_are_kept(given: object, kept: object) -> None:
    assert dim(given) == kept


def test_names_must_be_unique() -> None:
    one = TensorSpec("x", DType.FLOAT32, (1,))
    with pytest.raises(ValueError, match="repeated: x"):
        Signature((one, one), ())


def test_json_round_trip_keeps_everything() -> None:
    signature = Signature(
        (
            TensorSpec("a", DType.BFLOAT16, ("N", None, 3), native_name="a:0", has_default=True),
            TensorSpec("b", None, None),
            TensorSpec("c", DType.STRING, ()),
        ),
        (TensorSpec("y", DType.FLOAT8_E5M2, (2,)),),
    )
    back = Signature.from_dict(json.loads(json.dumps(signature.to_dict())))
    assert back == signature
    assert back.inputs[0].native_name == "a:0"
    assert str(signature.inputs[0]) == "a: bfloat16 (N, ?, 3)"
    assert str(signature.inputs[1]) == "b: any dtype any shape"
    assert signature.outputs[0].shape_text == "(2,)"


def test_batch_is_dynamic_dim_0_unless_named() -> None:
    signature = Signature(
        (
            TensorSpec("input", DType.FLOAT32, ("N", 576)),
            TensorSpec("state", DType.FLOAT32, (2, "N", 128)),
            TensorSpec("free", DType.FLOAT32, (None, 2)),
            TensorSpec("sr", DType.INT64, ()),
            TensorSpec("open", None, None),
        ),
        (),
    )
    assert signature.batch_axes() == {"input": 0, "free": 0}
    assert signature.batch_axes("N") == {"input": 0, "state": 1}


def test_zeros_tie_named_dims_together() -> None:
    signature = Signature(
        (
            TensorSpec("input", DType.FLOAT32, ("N", "T")),
            TensorSpec("state", DType.FLOAT16, (2, "N", 128)),
            TensorSpec("text", DType.STRING, (None,)),
            TensorSpec("extra", DType.INT32, ("N",), has_default=True),
        ),
        (),
    )
    arrays = signature.zeros(3, dims={"T": 7})
    assert {name: array.shape for name, array in arrays.items()} == {
        "input": (3, 7),
        "state": (2, 3, 128),
        "text": (3,),
    }
    assert arrays["state"].dtype == np.float16
    assert arrays["text"].tolist() == ["", "", ""]


def test_zeros_need_shape_and_dtype() -> None:
    with pytest.raises(ValueError, match="no known shape"):
        Signature((TensorSpec("x", DType.INT8, None),), ()).zeros()
    with pytest.raises(ValueError, match="no known dtype"):
        Signature((TensorSpec("x", None, (1,)),), ()).zeros()


def test_bounds_of_integers() -> None:
    integers = [dtype for dtype in DType if dtype.is_integer]
    assert len(integers) == 12
    for dtype in integers:
        lowest, highest = dtype.bounds
        assert np.array([lowest, highest], dtype.numpy).astype(object).tolist() == [lowest, highest]
    assert (DType.INT2.bounds, DType.UINT4.bounds) == ((-2, 1), (0, 15))
    assert DType.INT64.bounds == (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    with pytest.raises(ValueError, match="float32 has no bounds"):
        _ = DType.FLOAT32.bounds


def test_dtypes_round_trip_through_numpy() -> None:
    pytest.importorskip("ml_dtypes")
    for dtype in DType:
        assert DType.of(dtype.numpy) is dtype
    assert DType.of(np.dtype("<U3")) is DType.STRING
    with pytest.raises(ValueError, match="no counterpart"):
        DType.of(np.dtype("M8[s]"))
