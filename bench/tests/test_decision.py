"""From the verdicts of buckets to the arms that serve, on numbers made up for it."""

from __future__ import annotations

import math

import pytest

from bridge.errors import OptionError
from bridge.record import BucketRecord
from bridge_bench.decision import assign, bounds, group, routes
from bridge_bench.request import buckets_of

WEIGHTS = {1: 0.5, 16: 0.3, 128: 0.2}
MEMORY = dict.fromkeys("abc", 100)


def test_one_arm_serves_all_where_it_loses_little() -> None:
    ratios = {1: {"a": 1.0, "b": 1.5}, 16: {"b": 1.0, "a": 1.01}, 128: {"c": 1.0, "a": 1.02}}
    found = assign(ratios, WEIGHTS, MEMORY, epsilon=0.02, max_memory_bytes=None)
    assert found is not None
    assert found.arms == {1: "a", 16: "a", 128: "a"}
    assert found.loss == pytest.approx(0.02)
    assert found.memory_bytes == 100


def test_of_sets_as_small_the_one_that_loses_least_is_taken() -> None:
    ratios = {1: {"a": 1.0, "b": 1.01}, 16: {"b": 1.0, "a": 1.02}}
    weights = {1: 0.9, 16: 0.1}
    found = assign(ratios, weights, MEMORY, epsilon=0.02, max_memory_bytes=None)
    assert found is not None
    assert set(found.arms.values()) == {"a"}
    found = assign(ratios, {1: 0.1, 16: 0.9}, MEMORY, epsilon=0.02, max_memory_bytes=None)
    assert found is not None
    assert set(found.arms.values()) == {"b"}


def test_more_arms_are_kept_where_one_would_lose_too_much() -> None:
    ratios = {1: {"a": 1.0, "b": 1.5}, 16: {"b": 1.0, "a": 1.3}, 128: {"b": 1.0, "c": 1.001}}
    found = assign(ratios, WEIGHTS, MEMORY, epsilon=0.02, max_memory_bytes=None)
    assert found is not None
    assert found.arms == {1: "a", 16: "b", 128: "b"}
    assert (found.loss, found.memory_bytes) == (0, 200)


def test_memory_forbids_the_best_set() -> None:
    ratios = {1: {"a": 1.0, "b": 1.5}, 16: {"b": 1.0, "a": 1.3}}
    found = assign(ratios, WEIGHTS, MEMORY, epsilon=0.02, max_memory_bytes=199)
    assert found is not None
    # A loss of 50 % weighs half, one of 30 % three tenths.
    assert found.arms == {1: "a", 16: "a"}
    assert found.loss == pytest.approx(0.3)
    assert assign(ratios, WEIGHTS, MEMORY, epsilon=0.02, max_memory_bytes=99) is None


def test_every_winner_is_kept_where_more_than_four_are_needed() -> None:
    names = "abcdef"
    ratios = {
        rows: {name: 1.0 if index == rows else 2.0 for index, name in enumerate(names)}
        for rows in range(6)
    }
    weights = dict.fromkeys(range(6), 1 / 6)
    memory = dict.fromkeys(names, 1)
    found = assign(ratios, weights, memory, epsilon=0.02, max_memory_bytes=None)
    assert found is not None
    assert (found.loss, found.memory_bytes) == (0, 6)
    assert "".join(found.arms[rows] for rows in range(6)) == names
    found = assign(ratios, weights, memory, epsilon=0.02, max_memory_bytes=5)
    assert found is not None
    assert (found.loss, found.memory_bytes) == (1.0, 4)


def test_an_arm_that_only_looks_faster_than_the_winner_gains_nothing() -> None:
    found = assign({1: {"z": 1.0, "a": 0.9}}, {1: 1}, {}, epsilon=0.02, max_memory_bytes=None)
    assert found is not None
    assert (found.arms, found.loss) == ({1: "z"}, 0)


def test_a_bucket_without_an_arm_cannot_be_served() -> None:
    assert assign({}, {}, {}, epsilon=0.02, max_memory_bytes=None) is None
    assert assign({1: {"a": 1.0}, 16: {}}, WEIGHTS, {}, epsilon=0.02, max_memory_bytes=None) is None
    # No set of one, since neither may serve both.
    found = assign(
        {1: {"a": 1.0}, 16: {"b": 1.0}}, WEIGHTS, MEMORY, epsilon=0.02, max_memory_bytes=None
    )
    assert found is not None
    assert found.arms == {1: "a", 16: "b"}


def test_neighbours_with_the_same_arm_become_one_route() -> None:
    buckets = bounds([1, 16, 128, 512])
    found = routes(buckets, {1: "a", 16: "a", 128: "b", 512: "a"}, {})
    assert [(one.to_rows, one.arm) for one in found] == [(45, "a"), (256, "b"), (None, "a")]
    cut = {128: ("a", 16), 512: ("a", 16)}
    found = routes(buckets, {1: "a", 16: "a", 128: "b", 512: "b"}, cut)
    assert [(one.to_rows, one.arm, one.split_rows) for one in found] == [
        (45, "a", None),
        (None, "a", 16),
    ]


def test_borders_are_geometric_means() -> None:
    assert bounds([16, 1, 128, 16]) == [
        BucketRecord(rows=1, to_rows=4, weight=1 / 3),
        BucketRecord(rows=16, to_rows=45, weight=1 / 3),
        BucketRecord(rows=128, to_rows=None, weight=1 / 3),
    ]
    assert [one.to_rows for one in bounds([1, 2, 3])] == [1, 2, None]


def test_a_histogram_becomes_buckets_of_sizes_that_occur() -> None:
    found = group({1: 700, 16: 100, 17: 100, 20: 50, 300: 50, 9: 0})
    assert [(one.rows, one.to_rows) for one in found] == [(1, 1), (17, 20), (300, None)]
    assert [one.weight for one in found] == pytest.approx([0.7, 0.25, 0.05])


def test_a_wide_histogram_is_grouped_more_coarsely() -> None:
    counts = {2**power: 1.0 for power in range(12)}
    found = group(counts)
    assert len(found) == 6  # factors of four
    assert sum(one.weight for one in found) == pytest.approx(1)
    assert {one.rows for one in found} <= set(counts)
    limits = [one.to_rows for one in found[:-1] if one.to_rows is not None]
    assert limits == sorted(set(limits))
    assert len(limits) == 5
    assert all(one.rows <= (one.to_rows or math.inf) for one in found)


@pytest.mark.parametrize("counts", [{16: 0.0}, {16: -1.0, 1: 2.0}, {16: math.nan}, {16: math.inf}])
def test_a_histogram_without_calls_is_refused(counts: dict[int, float]) -> None:
    with pytest.raises(OptionError, match="counts of the batch sizes"):
        buckets_of(counts)
