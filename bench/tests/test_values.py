from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.dtypes import DType
from bridge.errors import InputError
from bridge_bench.values import KINDS, Values

finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
vocab = st.integers(1, 2**62)
words = st.text(st.characters(exclude_characters=",|", exclude_categories=["Cs"]), max_size=9)


@st.composite
def values(draw: st.DrawFn) -> Values:
    kind = draw(st.sampled_from(list(KINDS)))
    numbers: dict[str, float] = {}
    choices: tuple[str, ...] = ()
    if kind == "normal":
        numbers = {"mean": draw(finite), "std": abs(draw(finite))}
    elif kind == "uniform":
        low, high = sorted((draw(finite), draw(finite)))
        numbers = {"low": low, "high": high}
    elif kind in ("zipf", "ids"):
        numbers = {"vocab": draw(vocab)}
        if kind == "zipf":
            numbers["exponent"] = draw(st.floats(0, 4))
    elif kind == "constant":
        numbers = {"value": draw(finite)}
    elif kind == "bernoulli":
        numbers = {"p": draw(st.floats(0, 1))}
    else:
        choices = tuple(draw(st.lists(words, min_size=1, max_size=4).filter(any)))
    return Values(kind, numbers, choices, draw(st.booleans()))


@given(values())
def test_text_and_values_say_the_same(one: Values) -> None:
    if one.choices and one.choices[-1] != one.choices[-1].rstrip():
        return  # the ends of the whole text are trimmed
    assert Values.parse(str(one)) == one


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("normal", "normal"),
        (" zipf:vocab=10 , broadcast ", "zipf:vocab=10,broadcast"),
        ("zipf:exponent=1.0,vocab=10", "zipf:vocab=10"),
        ("broadcast", "broadcast"),
        ("normal,broadcast", "normal,broadcast"),
        ("choice:a b|broadcast", "choice:a b|broadcast"),
        ("constant:value=true", "constant:value=1"),
        ("uniform:low=-1,high=2.5", "uniform:low=-1,high=2.5"),
        ("ids:vocab=9007199254740993", "ids:vocab=9007199254740993"),
    ],
)
def test_texts_that_are_read(text: str, shown: str) -> None:
    assert str(Values.parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zpf:vocab=3", "Did you mean 'zipf'"),
        ("zipf", "need the parameter 'vocab'"),
        ("zipf:vocab=0", "whole number above 0"),
        ("zipf:vocab=2.5", "whole number above 0"),
        ("zipf:vocab=9e99", "2\\*\\*62"),
        ("zipf:vocab=x", "no number"),
        ("zipf:vocab=3,vocab=4", "the second"),
        ("zipf:vocab=3,exponent=-1", "from 0 on"),
        ("zipf:vocab=3,size=4", "no parameter 'size'"),
        ("zipf:3", "no NAME=VALUE"),
        ("uniform:low=2,high=1", "above"),
        ("bernoulli:p=1.5", "from 0 to 1"),
        ("constant:value=nan", "finite"),
        ("choice", "list what to choose"),
        ("broadcast,broadcast", "no NAME=VALUE"),
        ("", "no kind of values ''"),
    ],
)
def test_texts_that_say_nothing_sound(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Values.parse(text)
    assert caught.value.fix


def make(text: str, dtype: DType, shape: tuple[int, ...] = (2000,)) -> np.ndarray:
    made = Values.parse(text).make("x", dtype, shape, np.random.default_rng(1))
    assert made.shape == shape
    assert made.dtype == dtype.numpy
    return made


@pytest.mark.parametrize("exponent", [0, 0.5, 1, 1.0000001, 1.3, 2])
def test_zipf_ids_follow_their_law(exponent: float) -> None:
    count, vocabulary = 200_000, 1000
    ids = make(f"zipf:vocab={vocabulary},exponent={exponent}", DType.INT64, (count,))
    assert ids.min() == 0
    assert ids.max() < vocabulary
    # The share of id k is the integral of x ** -exponent from k + 1 to k + 2.
    edges = np.linspace(1, vocabulary + 1, 1_000_001)
    middles = (edges[1:] + edges[:-1]) / 2
    whole = float(np.sum(middles**-exponent))
    for k in (0, 1, 7):
        share = float(np.sum(middles[(middles > k + 1) & (middles < k + 2)] ** -exponent)) / whole
        assert abs(float(np.mean(ids == k)) - share) < 6 * np.sqrt(share / count) + 1e-6


def test_numbers_are_what_their_kind_says() -> None:
    normal = make("normal:mean=3,std=2", DType.FLOAT32)
    assert abs(normal.mean() - 3) < 0.3
    assert abs(normal.std() - 2) < 0.3
    assert make("normal", DType.COMPLEX64).imag.std() > 0.5
    uniform = make("uniform:low=-2,high=5", DType.INT8)
    assert set(uniform.tolist()) == set(range(-2, 6))
    floats = make("uniform:low=-2,high=5", DType.FLOAT64)
    assert floats.min() >= -2
    assert floats.max() < 5
    assert make("uniform:low=0,high=18446744073709551615", DType.UINT64).max() > 2**63
    assert set(make("ids:vocab=3", DType.FLOAT16).tolist()) == {0, 1, 2}
    assert set(make("ids:vocab=3", DType.STRING).tolist()) == {"0", "1", "2"}
    assert 0.05 < make("bernoulli:p=0.1", DType.BOOL).mean() < 0.15
    assert set(make("choice:a|b", DType.STRING).tolist()) == {"a", "b"}
    assert Counter(make("choice:1|2|2", DType.INT32).tolist())[2] > 1200
    assert make("choice:1.5", DType.BFLOAT16, ()) == 1.5
    assert (make("constant:value=9007199254740993", DType.INT64) == 9007199254740993).all()
    assert make("zipf:vocab=7", DType.INT4, (0, 3)).size == 0


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("normal", DType.INT64),
        ("normal", DType.STRING),
        ("uniform:low=0,high=1", DType.BOOL),
        ("uniform:low=0,high=256", DType.UINT8),
        ("uniform:low=0.5,high=1", DType.INT64),
        ("ids:vocab=300", DType.UINT8),
        ("zipf:vocab=3", DType.BOOL),
        ("bernoulli:p=1", DType.STRING),
        ("constant:value=1", DType.STRING),
        ("constant:value=1.5", DType.INT64),
        ("choice:a", DType.FLOAT32),
        ("choice:300", DType.INT8),
    ],
)
def test_values_that_the_dtype_cannot_hold(text: str, dtype: DType) -> None:
    with pytest.raises(InputError):
        make(text, dtype)
