"""Optimisation profiles from options."""

from __future__ import annotations

from typing import Any

import pytest

from bridge import DType, TensorSpec
from bridge.errors import OptionError
from bridge_tensorrt.options import EngineOptions
from bridge_tensorrt.profiles import make_profiles


def spec(name: str, *shape: int | str | None) -> TensorSpec:
    return TensorSpec(name, DType.FLOAT32, shape)


RANKER = (spec("ids", "N", "hot"), spec("dense", "N", 13), spec("user", 1, 8))
SILERO = (spec("input", None, None), spec("state", 2, None, 128), spec("sr"))


def made(inputs: tuple[TensorSpec, ...], holding: tuple[str, ...] = (), **options: Any) -> Any:
    profiles = make_profiles(inputs, EngineOptions.make(options), holding)
    return [{**profile.shapes, **profile.values} for profile in profiles]


def test_rows_have_a_default_range() -> None:
    assert made((spec("x", None, 4),)) == [{"x": ((1, 4), (16, 4), (128, 4))}]


@pytest.mark.parametrize("batch", ["2,8,32", "2:8:32", ("2", "8", "32"), ["2:8:32"]])
def test_a_range_of_rows(batch: Any) -> None:
    assert made((spec("x", "N", 4),), batch=batch) == [{"x": ((2, 4), (8, 4), (32, 4))}]


def test_one_number_is_one_size() -> None:
    assert made((spec("x", "N"),), batch="7") == [{"x": ((7,), (7,), (7,))}]


def test_each_range_is_a_profile() -> None:
    first, second = made((spec("x", "N"), spec("y", "N", 2)), batch="1:1:1,2:64:512")
    assert first == {"x": ((1,), (1,), (1,)), "y": ((1, 2), (1, 2), (1, 2))}
    assert second == {"x": ((2,), (64,), (512,)), "y": ((2, 2), (64, 2), (512, 2))}


def test_fixed_inputs_are_left_out_and_fixed_models_have_no_profile() -> None:
    (profile,) = made(RANKER, dims="hot=1:2:5")
    assert profile == {
        "ids": ((1, 1), (16, 2), (128, 5)),
        "dense": ((1, 13), (16, 13), (128, 13)),
    }
    assert made((spec("x", 1, 4), spec("sr"))) == []


def test_the_name_of_the_rows_holds_in_other_places() -> None:
    (profile,) = made((spec("x", "N"), spec("state", 2, "N", 128)), batch="1:4:8")
    assert profile["state"] == ((2, 1, 128), (2, 4, 128), (2, 8, 128))


def test_whole_shapes_are_for_dims_without_names() -> None:
    (profile,) = made(SILERO, dims="input=1x576:8x576:64x576,state=2x1x128:2x8x128:2x64x128")
    assert profile["input"] == ((1, 576), (8, 576), (64, 576))
    assert profile["state"] == ((2, 1, 128), (2, 8, 128), (2, 64, 128))
    (profile,) = made((spec("a:0", None, 3),), dims="a:0=4x3")
    assert profile == {"a:0": ((4, 3), (4, 3), (4, 3))}


def test_a_named_range_takes_the_rows_from_batch() -> None:
    (profile,) = made((spec("x", "N", 4),), dims="N=1:2:3")
    assert profile == {"x": ((1, 4), (2, 4), (3, 4))}


def test_values_of_inputs_that_hold_shapes() -> None:
    inputs = (spec("x", "N"), spec("k", 2))
    (profile,) = made(inputs, ("k",), values="k=1x1:8x8:64x64")
    assert profile["k"] == ((1, 1), (8, 8), (64, 64))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": "1,8"}, "2 numbers"),
        ({"batch": "8:4:16"}, "min <= opt <= max"),
        ({"batch": "0:1:2"}, "1 <= min"),
        ({"batch": "one"}, "'one'"),
        ({"batch": "1:2"}, "'1:2'"),
        ({"batch": "-1:2:3"}, "'-1:2:3'"),
        ({"batch": "1:2:99999999999"}, "'1:2:99999999999'"),
        ({"dims": "hott=1:2:3"}, "Did you mean 'hot'"),
        ({"dims": "hot"}, "NAME=RANGE"),
        ({"dims": "hot=3:2:1"}, "min <= opt <= max"),
        ({"dims": "ids=1x2:1x2"}, "three shapes"),
        ({"dims": "ids=1x2x3:1x2x3:1x2x3"}, r"the model has \(N, hot\)"),
        ({"dims": "user=2x8:2x8:2x8"}, r"the model has \(1, 8\)"),
        ({"dims": "ids=2x2:1x2:4x2"}, "in every place"),
        ({"dims": "ids=0x2:1x2:4x2"}, r"\(0, 2\)"),
        ({"values": "ids=1:2:3"}, "no input that holds a shape"),
        ({}, r"'ids' \(N, hot\) changes in dim 1.* dims='hot=1:16:128'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, str], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        made(RANKER, **options)


def test_a_dim_without_a_name_asks_for_the_whole_shape() -> None:
    with pytest.raises(OptionError, match="dims='input=1x1:1x1:1x1'"):
        made(SILERO)


def test_rows_that_nothing_has_are_refused() -> None:
    with pytest.raises(OptionError, match="'batch' has no effect"):
        made((spec("x", 1, 4),), batch="1:2:3")
    with pytest.raises(OptionError, match="'batch' has no effect"):
        made((spec("x", "N"),), batch="1:2:3", dims="N=1:2:3")


def test_values_must_be_given() -> None:
    with pytest.raises(OptionError, match=r"values='k=1:8:64'"):
        made((spec("k"),), ("k",))


def test_buckets_are_profiles_tuned_for_their_size() -> None:
    profiles = made((spec("x", "N", 4), spec("user", 1, 8)), buckets="1,16,128")
    assert profiles == [
        {"x": ((1, 4), (1, 4), (1, 4))},
        {"x": ((2, 4), (16, 4), (16, 4))},
        {"x": ((17, 4), (128, 4), (128, 4))},
    ]
    assert made((spec("x", "N"),), buckets="8") == [{"x": ((1,), (8,), (8,))}]


@pytest.mark.parametrize(
    ("buckets", "rule", "text"),
    [
        ("16,1", "descending-range", "Write buckets=1,16"),
        ("1,1,2", "descending-range", "Write buckets=1,2"),
        ("0,4", "malformed-range", "of at least 1"),
        ("1:2:3", "malformed-range", "buckets=1,16,128"),
        ("many", "malformed-range", "'many'"),
        ((), "malformed-range", "''"),
    ],
)
def test_buckets_that_are_none(buckets: Any, rule: str, text: str) -> None:
    with pytest.raises(OptionError, match=text) as caught:
        made((spec("x", "N"),), buckets=buckets)
    assert caught.value.detail["rule"] == rule


def test_buckets_of_fixed_rows_are_refused() -> None:
    with pytest.raises(OptionError, match="'buckets' has no effect") as caught:
        made((spec("x", 1, 4),), buckets="1,2")
    assert caught.value.detail["rule"] == "batches-of-fixed-rows"
