from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import InputError
from bridge_bench.metrics import MetricRule, auc, rank_correlation, top_k_overlap

scipy_stats = pytest.importorskip("scipy.stats")

ints = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30)


def array(values: list[Any]) -> npt.NDArray[Any]:
    return np.array(values, np.float64)


def test_auc_by_hand() -> None:
    # Positives 0.9 and 0.4; of six pairs, five are in order: 0.4 is below 0.5.
    scores, labels = array([0.9, 0.5, 0.4, 0.1, 0.2]), np.array([1, 0, 1, 0, 0], bool)
    assert auc(scores, labels) == pytest.approx(5 / 6)
    assert auc(np.zeros(5), labels) == 0.5
    assert auc(-scores, labels) == pytest.approx(1 / 6)
    columns = np.stack([scores, -scores], 1)
    assert auc(columns, np.stack([labels, labels], 1)) == pytest.approx(0.5)


@given(ints)
def test_auc_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    scores, labels = array([a for a, _ in pairs]), np.array([b > 0 for _, b in pairs])
    if labels.all() or not labels.any():
        with pytest.raises(InputError, match="one class only"):
            auc(scores, labels)
        return
    wins = [
        (p > n) + (p == n) / 2 for p in scores[labels].tolist() for n in scores[~labels].tolist()
    ]
    assert auc(scores, labels) == pytest.approx(sum(wins) / len(wins))


@given(ints)
def test_rank_correlation_is_spearman_s(pairs: list[tuple[int, int]]) -> None:
    right, left = array([a for a, _ in pairs]), array([b for _, b in pairs])
    if len(set(right.tolist())) == 1:
        with pytest.raises(InputError, match="ranks nothing"):
            rank_correlation(right, left)
        return
    found = rank_correlation(right, left)
    if len(set(left.tolist())) == 1:
        assert found == 0
        return
    assert found == pytest.approx(float(scipy_stats.spearmanr(right, left).statistic))


@given(ints, st.integers(1, 8))
def test_top_k_counts_what_is_among_the_highest(pairs: list[tuple[int, int]], k: int) -> None:
    right, left = array([a for a, _ in pairs]), array([b for _, b in pairs])
    if len(right) <= k:
        with pytest.raises(InputError, match="are all"):
            top_k_overlap(right, left, k)
        return
    chosen = sorted(range(len(left)), key=lambda row: (-left[row], row))[:k]
    least = sorted(right.tolist(), reverse=True)[k - 1]
    assert top_k_overlap(right, left, k) == pytest.approx(
        sum(right[row] >= least for row in chosen) / k
    )
    assert top_k_overlap(right, right, k) == 1


def test_several_columns_are_ranked_within_the_row() -> None:
    right = array([[3, 2, 1], [1, 2, 3], [5, 5, 5]])
    left = array([[3, 1, 2], [1, 2, 3], [1, 2, 3]])
    assert top_k_overlap(right, left, 1) == 1
    assert top_k_overlap(right, left, 2) == pytest.approx((0.5 + 1 + 1) / 3)
    # The last row is constant in the reference, so it says nothing.
    assert rank_correlation(right, left) == pytest.approx((0.5 + 1) / 2)


def rule(text: str) -> MetricRule:
    return MetricRule.parse(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("auc", "auc:max_drop=0.0005"),
        ("auc:max_drop=0.01,output=click,labels=y", "auc:max_drop=0.01,output=click,labels=y"),
        (" top_k:k=100 , min=0.9", "top_k:k=100,min=0.9"),
        ("rank_correlation:output=a=b", "rank_correlation:min=0.999,output=a=b"),
    ],
)
def test_rules_are_read_and_written(text: str, shown: str) -> None:
    assert str(rule(text)) == shown
    assert rule(shown) == rule(text)
    assert rule(text).to_dict()["metric"] == rule(text).metric
    assert MetricRule.parse("auc", max_drop=0.1).limit == 0.1
    assert MetricRule.parse("auc:max_drop=0.2", max_drop=0.1).limit == 0.2
    assert MetricRule.parse("top_k", max_drop=0.1).limit == 0.99


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("auk", "no metric 'auk'.*auc"),
        ("auc:min=0.9", "is no NAME=VALUE of max_drop"),
        ("auc:max_drop=x", "is no number"),
        ("auc:max_drop=-1", "from 0 to 1"),
        ("auc:max_drop=nan", "from 0 to 1"),
        ("auc:max_drop=0.1,max_drop=0.2", "the second"),
        ("top_k:k=0", "from 1 on"),
        ("top_k:k=2.5", "no whole number"),
        ("top_k:labels=y", "NAME=VALUE"),
        ("auc:output=", "NAME=VALUE"),
    ],
)
def test_rules_that_say_nothing_sound(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        rule(text)


def test_an_arm_may_lose_no_more_than_the_limit() -> None:
    labels = np.arange(10) % 2
    reference = array([0, 9, 1, 8, 2, 7, 3, 6, 4, 5])
    worse = array([0, 9, 1, 8, 2, 7, 3, 6, 6.5, 5])  # one of 25 pairs is now wrong, another too
    found = rule("auc:max_drop=0.1").measure("y", reference, worse, labels)
    assert (found.reference, found.passes) == (1.0, True)
    assert found.value == pytest.approx(1 - 2 / 25)
    assert found.limit == pytest.approx(0.9)
    assert not rule("auc:max_drop=0.07").measure("y", reference, worse, labels).passes
    assert rule("auc:max_drop=0").measure("y", reference, reference, labels).passes
    assert rule("auc").measure("y", reference[:, None], reference[:, None], labels[:, None]).passes


def test_scores_that_are_no_numbers_are_the_worst() -> None:
    labels = np.arange(10) % 2
    reference = np.arange(10.0)
    broken = reference.copy()
    broken[3] = np.nan
    for text in ("auc", "top_k:k=3", "rank_correlation"):
        found = rule(text).measure("y", reference, broken, labels)
        assert (found.value, found.passes) == (0, False)
        with pytest.raises(InputError, match="not finite"):
            rule(text).measure("y", broken, reference, labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "no labels"),
        (np.zeros(10), "one class only: 0 of 10"),
        (np.ones(10, bool), "one class only: 10 of 10"),
        (np.arange(10), "a label is 2; wanted 0 or 1"),
        (np.full(10, np.nan), "a label is nan"),
        (np.arange(9) % 2, r"have shape \(9,\); the scores have \(10,\)"),
        (np.array(["a"] * 10), "wanted 0 and 1"),
    ],
)
def test_labels_that_say_nothing_are_refused(labels: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        rule("auc").measure("click", np.arange(10.0), np.arange(10.0), labels)
    assert "output 'click'" in caught.value.message
    assert caught.value.detail["output"] == "click"
