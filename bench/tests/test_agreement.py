from __future__ import annotations

import math

import numpy as np
import pytest

from bridge import DType, Signature, TensorSpec
from bridge.errors import InputError
from bridge_bench.agreement import agreement, match_inputs, match_outputs

F32 = DType.FLOAT32


def test_the_smallest_tolerance_is_the_one_numpy_would_need() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((20, 30)).astype(np.float32)
    got = wanted + rng.standard_normal(wanted.shape).astype(np.float32) * np.float32(1e-4)
    found = agreement("y", wanted, "y", got)
    assert found.tolerance is not None
    left, right = got.astype(float), wanted.astype(float)
    above, below = found.tolerance * 1.0001, found.tolerance * 0.9999
    assert np.allclose(left, right, rtol=above, atol=above)
    assert not np.allclose(left, right, rtol=below, atol=below)
    assert found.max_abs == np.abs(left - right).max()
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.passes(1e-3)
    assert not found.passes(1e-6)


def test_equal_outputs_need_no_tolerance() -> None:
    same = np.array([0, np.nan, np.inf, -np.inf, 2], np.float32)
    found = agreement("y", same, "y", same.copy())
    assert (found.tolerance, found.max_abs, found.max_rel) == (0, 0, 0)
    assert found.passes(0)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_nan_or_infinity_on_one_side_never_passes(odd: float) -> None:
    wanted, got = np.zeros(3, np.float32), np.array([0, odd, 0], np.float32)
    for one, other in ((wanted, got), (got, wanted)):
        found = agreement("y", one, "y", other)
        assert found.tolerance == math.inf
        assert not found.passes(1e30)
    flipped = agreement("y", np.array([np.inf]), "y", np.array([-np.inf]))
    assert not flipped.passes(1e30)


def test_dtype_and_shape_must_be_equal() -> None:
    wanted = np.zeros((2, 1), np.float32)
    assert "float64" in str(agreement("y", wanted, "y", wanted.astype(float)).problem)
    assert "shape (2,)" in str(agreement("y", wanted, "y", wanted[:, 0]).problem)
    assert agreement("y", wanted, None, None).problem
    assert not agreement("y", wanted, "y", wanted[:, 0]).passes(1e30)


def test_strings_agree_or_not() -> None:
    words = np.array(["a", "b"], object)
    assert agreement("y", words, "y", words.copy()).passes(0)
    found = agreement("y", words, "y", np.array(["a", "c"], object))
    assert found.problem == "1 of 2 strings differ"


def test_integers_are_compared_exactly_beyond_float32() -> None:
    found = agreement("y", np.array([2**24]), "y", np.array([2**24 + 1]))
    assert found.max_abs == 1


def spec(name: str, native: str | None = None, shape: tuple[int, ...] = (2,)) -> TensorSpec:
    return TensorSpec(name, F32, shape, native_name=native)


def test_outputs_are_matched_by_name_then_native_name_then_looks() -> None:
    ours = Signature((), (spec("note", "p:1"), spec("onset", "p:2"), spec("wide", None, (3,))))
    theirs = Signature((), (spec("p:2"), spec("p:1"), spec("other", None, (3,))))
    mine = {name: np.zeros(2, np.float32) for name in ("note", "onset")}
    mine["wide"] = np.zeros(3, np.float32)
    other = {"p:1": mine["note"], "p:2": mine["onset"], "other": mine["wide"]}
    assert match_outputs(ours, theirs, mine, other) == {
        "note": "p:1",
        "onset": "p:2",
        "wide": "other",
    }


def test_outputs_that_look_alike_are_never_matched_by_position() -> None:
    ours = Signature((), (spec("a"), spec("b")))
    theirs = Signature((), (spec("c"), spec("d")))
    zeros = np.zeros(2, np.float32)
    mine, other = {"a": zeros, "b": zeros}, {"c": zeros, "d": zeros}
    assert match_outputs(ours, theirs, mine, other) == {}
    assert match_outputs(ours, theirs, mine, other, {"a": "d"}) == {"a": "d", "b": "c"}
    with pytest.raises(InputError, match="'x', which is not there"):
        match_outputs(ours, theirs, mine, other, {"a": "x"})


def test_inputs_are_matched_even_where_dtypes_are_unknown() -> None:
    ours = Signature((spec("x", "serving_x:0"), spec("y", None, (2, 2))), ())
    assert match_inputs(ours, Signature((spec("serving_x:0"),), ())) == {"serving_x:0": "x"}
    assert match_inputs(ours, Signature((spec("z", None, (2, 2)),), ())) == {"z": "y"}
    single = Signature((spec("x"),), ())
    unknown = Signature((TensorSpec("input", None, None),), ())
    assert match_inputs(single, unknown) == {"input": "x"}
    with pytest.raises(InputError, match="no counterpart"):
        match_inputs(ours, unknown)


def test_large_integers_that_differ_by_one_do_not_agree() -> None:
    for kind, values in ((np.int64, (2**60, 2**60 + 1)), (np.uint64, (2**64 - 1, 2**64 - 2))):
        found = agreement("y", np.array(values[:1], kind), "y", np.array(values[1:], kind))
        assert found.max_abs == 1
        assert not found.passes(0)
    ends = np.array([-(2**63), 5], np.int64), np.array([2**63 - 1, 5], np.int64)
    assert agreement("y", ends[0], "y", ends[1]).max_abs == float(2**64 - 1)


def test_inputs_with_a_default_are_fed_what_the_reference_is_fed() -> None:
    optional = TensorSpec("k", F32, (1,), has_default=True)
    x, required = TensorSpec("x", F32, ("N", 2)), TensorSpec("k", F32, (1,))
    ours = Signature((x, optional), ())
    assert match_inputs(ours, ours) == {"x": "x"}
    assert match_inputs(ours, ours, ("x", "k")) == {"x": "x", "k": "k"}
    with pytest.raises(InputError, match="no counterpart in the inputs given"):
        match_inputs(ours, Signature((x, required), ()))


def test_a_map_of_outputs_leaves_those_alone_that_need_none() -> None:
    same = Signature((), (TensorSpec("a", F32, (1,)), TensorSpec("b", F32, (1,))))
    results = {"a": np.zeros(1), "b": np.zeros(1)}
    given = {"a": "other:0", "b": "other:1"}
    assert match_outputs(same, same, results, results, given) == {"a": "a", "b": "b"}
    third = Signature((), (TensorSpec("c", F32, (1,)),))
    with pytest.raises(InputError, match="names output 'other:0'"):
        match_outputs(same, third, results, {"c": np.zeros(1)}, given)
