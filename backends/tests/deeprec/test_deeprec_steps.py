"""What is computed in front of a model, against the operators of TensorFlow themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bridge.errors import InvalidModel, ShapeMismatch
from bridge_deeprec.steps import STEPS, Step, run

tf = pytest.importorskip("tensorflow")

I64 = np.array([[5, -3, 5], [1 << 40, 0, -7]], np.int64)
FLAT = np.array([9, 2, 9, -4, 2, 1 << 40], np.int64)
BOOLS = np.array([[True, False, True], [False, True, True]])
ONE = np.int64(3)
MASKS = dict.fromkeys(
    ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0
)
PAIR = (I64, I64[::-1].copy())

# Operator, tensors, attributes here, attributes there.
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
    *((op, PAIR, {}, {}) for op in ("Add", "AddV2", "Sub", "Mul", "Maximum", "Minimum")),
    *((op, PAIR, {}, {}) for op in ("Equal", "NotEqual", "Greater", "GreaterEqual")),
    *((op, PAIR, {}, {}) for op in ("Less", "LessEqual", "BitwiseAnd")),
    *((op, (I64, ONE), {}, {}) for op in ("FloorDiv", "FloorMod")),
    *((op, (BOOLS, ~BOOLS), {}, {}) for op in ("LogicalAnd", "LogicalOr")),
    ("LogicalNot", (BOOLS,), {}, {}),
    ("Cast", (I64,), {"dtype": "<i4"}, {"DstT": tf.int32}),
    ("ConcatV2", (I64, I64, np.int32(1)), {}, {}),
    ("ExpandDims", (I64, np.int32(1)), {}, {}),
    ("Fill", (np.array([2, 2], np.int32), ONE), {}, {}),
    ("Gather", (I64, np.array([1, 0], np.int32)), {}, {}),
    ("GatherNd", (I64, np.array([[1, 0], [0, 2]], np.int64)), {}, {}),
    ("GatherV2", (I64, np.array([[1], [0]], np.int32), np.int32(1)), {}, {}),
    ("Identity", (I64,), {}, {}),
    ("OnesLike", (I64,), {}, {}),
    ("Pack", (FLAT, FLAT), {"axis": 1}, {"axis": 1}),
    ("Range", (np.int32(1), np.int32(9), np.int32(3)), {}, {}),
    ("Range", (np.float32(0), np.float32(2), np.float32(0.5)), {}, {}),
    ("Reshape", (I64, np.array([-1, 2], np.int32)), {}, {}),
    ("Select", (np.array([True, False]), *PAIR), {}, {}),
    ("SelectV2", (BOOLS, *PAIR), {}, {}),
    ("Shape", (I64,), {"dtype": "<i8"}, {"out_type": tf.int64}),
    ("Size", (I64,), {"dtype": "<i4"}, {"out_type": tf.int32}),
    (
        "SparseFillEmptyRows",
        (np.array([[1, 0], [1, 1], [3, 0]], np.int64), FLAT[:3], np.array([5, 2], np.int64), ONE),
        {},
        {},
    ),
    *(
        (op, (I64, np.array([1], np.int32)), {"keep_dims": False}, {"keep_dims": False})
        for op in ("Max", "Prod", "Sum")
    ),
    ("Slice", (I64, np.array([0, 1], np.int32), np.array([2, -1], np.int32)), {}, {}),
    (
        "SparseReshape",
        (
            np.array([[0, 1, 2], [1, 0, 0]], np.int64),
            np.array([2, 2, 3], np.int64),
            np.array([4, -1], np.int64),
        ),
        {},
        {},
    ),
    ("Tile", (I64, np.array([1, 2], np.int32)), {}, {}),
    ("Squeeze", (I64[None, :, None],), {"axes": [0]}, {"axis": [0]}),
    ("StopGradient", (I64,), {}, {}),
    (
        "StridedSlice",
        (I64, *(np.array(one, np.int32) for one in ([0, 1], [0, 3], [1, 2]))),
        {**MASKS, "end_mask": 1, "shrink_axis_mask": 2},
        {"end_mask": 1, "shrink_axis_mask": 2},
    ),
    ("Transpose", (I64, np.array([1, 0], np.int32)), {}, {}),
    ("Unique", (FLAT,), {"dtype": "<i4"}, {}),
    ("UniqueWithCounts", (FLAT,), {"dtype": "<i8"}, {"out_idx": tf.int64}),
    ("Where", (BOOLS,), {}, {}),
    ("ZerosLike", (I64,), {}, {}),
]


def done(op: str, given: tuple[Any, ...], attrs: dict[str, Any]) -> list[Any]:
    tensors = {f"in{at}:0": np.asarray(one) for at, one in enumerate(given)}
    step = Step.from_dict(Step("it", op, tuple(tensors), attrs).to_dict())
    found = run([step], dict(tensors))
    return [found[name] for name in found if name.startswith("it:")]


def native(op: str, given: tuple[Any, ...], attrs: dict[str, Any]) -> list[Any]:
    call = getattr(tf.raw_ops, op)
    if op == "Pack":
        return [call(values=list(given), **attrs)]
    if op == "ConcatV2":
        return [call(values=list(given[:-1]), axis=given[-1])]
    names = [name for name in call.__wrapped__.__code__.co_varnames if name != "name"]
    found = call(**dict(zip(names, given, strict=False)), **attrs)
    return list(found) if isinstance(found, tuple) else [found]


def test_every_step_is_tried() -> None:
    assert {op for op, *_ in CASES} | {"Const"} == set(STEPS)


@pytest.mark.parametrize(("op", "given", "here", "there"), CASES, ids=[one[0] for one in CASES])
def test_a_step_means_what_tensorflow_means(
    op: str, given: tuple[Any, ...], here: dict[str, Any], there: dict[str, Any]
) -> None:
    results, wanted = done(op, given, here), native(op, given, there)
    assert len(results) == len(wanted)
    for result, one in zip(results, wanted, strict=True):
        assert result.dtype == one.numpy().dtype
        np.testing.assert_array_equal(result, one.numpy())


def test_constants_of_text() -> None:
    (made,) = done("Const", (), {"value": ["a", "ü"], "dtype": "|O", "shape": [2]})
    assert made.tolist() == ["a", "ü"]


def test_what_does_not_fit_is_an_error_with_the_step_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"'it' \(Reshape\)"):
        done("Reshape", (FLAT, np.array([4], np.int32)), {})
    with pytest.raises(ShapeMismatch, match="not within 0 to 1"):
        done("Gather", (I64, np.array([2], np.int32)), {})
    with pytest.raises(ShapeMismatch, match="divide by zero"):
        done("FloorMod", (I64, np.int64(0)), {})
    with pytest.raises(InvalidModel, match="cannot be done"):
        run([Step("it", "Identity", ("nothing:0",), {})], {})
    with pytest.raises(InvalidModel, match="not done in front of models"):
        Step.from_dict({"name": "it", "op": "Print", "inputs": [], "attrs": {}})
