from __future__ import annotations

import numpy as np
import pytest

from bridge_bench.stats import median, percentile


@pytest.mark.parametrize(
    ("count", "p99", "p50"),
    [(1, 1, 1), (2, 2, 1), (99, 99, 50), (100, 99, 50), (101, 100, 51), (1000, 990, 500)],
)
def test_percentiles_are_nearest_rank(count: int, p99: float, p50: float) -> None:
    values = np.arange(count, 0, -1)
    assert percentile(values, 0.99) == p99
    assert percentile(values, 0.5) == p50
    assert percentile(values, 1) == count


def test_percentiles_need_values_and_a_fraction() -> None:
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="needs values"):
        percentile([1], 0)


def test_median() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
