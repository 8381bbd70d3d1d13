from __future__ import annotations

import math

import numpy as np
import pytest

from bridge_bench.stats import (
    Mean,
    bootstrap_median,
    clopper_pearson,
    correlation,
    factor,
    least_bound,
    median,
    outliers,
    percentile,
    percentile_upper,
    ratio_interval,
    samples_needed,
    trimmed_mean,
)


@pytest.mark.parametrize(
    ("count", "p99", "p50"),
    [(1, 1, 1), (2, 2, 1), (99, 99, 50), (100, 99, 50), (101, 100, 51), (1000, 990, 500)],
)
def test_percentiles_are_nearest_rank(count: int, p99: float, p50: float) -> None:
    values = np.arange(count, 0, -1)
    assert percentile(values, 0.99) == p99
    assert percentile(values, 0.5) == p50
    assert percentile(values, 1) == count


def test_ranks_do_not_depend_on_how_fractions_round() -> None:
    assert percentile(np.arange(1, 101), 0.07) == 7
    assert percentile(np.arange(1, 2001), (1 - 0.95) / 2) == 50
    assert percentile([5.0], 1e-12) == 5


def test_percentiles_need_values_and_a_fraction() -> None:
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="needs values"):
        percentile([1], 0)


def test_median() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5


@pytest.mark.parametrize(
    ("fraction", "confidence", "counts"),
    [
        (0.99, 0.99, (459, 662, 838, 1001, 1307, 2010)),
        (0.99, 0.95, (299, 473, 628, 773, 1049, 1693)),
        (0.95, 0.99, (90, 130, 165, 198, 259, 398)),
        (0.95, 0.95, (59, 93, 124, 153, 208, 336)),
        (0.9, 0.99, (44, 64, 81, 97, 127, 197)),
        (0.9, 0.95, (29, 46, 61, 76, 103, 167)),
    ],
)
def test_samples_needed_are_those_of_early_stopping(
    fraction: float, confidence: float, counts: tuple[int, ...]
) -> None:
    for misses, count in zip((0, 1, 2, 3, 5, 10), counts, strict=True):
        assert samples_needed(fraction, misses, confidence) == count


def test_samples_needed_far_out() -> None:
    assert samples_needed(0.999, 0) == 2995
    assert samples_needed(0.999, 1) == 4742
    with pytest.raises(ValueError, match="within"):
        samples_needed(1.0, 0)


@pytest.mark.parametrize(
    ("count", "limit"),
    [(1, None), (298, None), (299, 299), (472, 472), (473, 472), (628, 626), (1693, 1683)],
)
def test_the_upper_limit_of_a_percentile_drops_as_many_as_are_allowed(
    count: int, limit: float | None
) -> None:
    assert percentile_upper(np.arange(1, count + 1), 0.99) == limit


def test_the_upper_limit_holds_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth = -math.log(1 - 0.9)
    limits = [percentile_upper(random.exponential(size=100), 0.9) for _ in range(1000)]
    share = np.mean([limit is not None and limit >= truth for limit in limits])
    assert 0.945 <= share <= 0.995  # discrete: 0.95 at least, here 0.976
    assert percentile_upper([], 0.9) is None


def test_clopper_pearson_is_exact() -> None:
    low, high = clopper_pearson(0, 100)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert clopper_pearson(100, 100) == (pytest.approx(0.025 ** (1 / 100)), 1)
    low, high = clopper_pearson(5, 100)  # R: binom.test(5, 100)
    assert (low, high) == (pytest.approx(0.01643, abs=1e-5), pytest.approx(0.11284, abs=1e-5))
    with pytest.raises(ValueError, match="within"):
        clopper_pearson(2, 1)


def test_outliers_are_mild_or_severe() -> None:
    body = list(range(1, 101))  # quartiles 25 and 75: fences at -50 and 150, -125 and 225
    assert outliers(body) == (0, 0)
    assert outliers([*body, 160, 200, -60]) == (3, 0)
    assert outliers([*body, 160, 300, -200]) == (1, 2)
    assert outliers([]) == (0, 0)
    assert outliers([1.0] * 10 + [2.0]) == (0, 1)


def test_correlation_of_neighbours() -> None:
    assert correlation([1.0, 1.0, 1.0, 1.0]) == 0
    assert correlation([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]) == 0  # rounding only
    assert correlation([1.0, 2.0]) == 0
    assert correlation([1, -1] * 20) == pytest.approx(-39 / 40)
    assert correlation([-1.0] * 20 + [1.0] * 20) > 0.9


def test_a_trimmed_mean_by_hand() -> None:
    values = [3.0, 1.0, 5.0, 2.0, 100.0, 4.0, 6.0, 7.0, 9.0, 8.0]
    mean = trimmed_mean(values)
    assert mean.value == pytest.approx(np.mean([2, 3, 4, 5, 6, 7, 8, 9]))
    winsorised = [2, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert mean.error == pytest.approx(math.sqrt(9 * np.var(winsorised, ddof=1) / (8 * 7)))
    assert mean.freedom == 7
    rising = trimmed_mean(sorted(values))
    near = correlation(winsorised)
    assert near > 0.2
    assert rising.error == pytest.approx(mean.error * math.sqrt((1 + near) / (1 - near)))


def test_few_values_are_not_trimmed() -> None:
    mean = trimmed_mean([1.0, 3.0, 1.0, 3.0])
    assert (mean.value, mean.freedom) == (2, 3)
    assert mean.error == pytest.approx(np.std([1, 3, 1, 3], ddof=1) / 2)
    one = trimmed_mean([5.0])
    assert (one.value, one.error) == (5, math.inf)
    with pytest.raises(ValueError, match="needs values"):
        trimmed_mean([])


def test_limits_are_those_of_student() -> None:
    mean = Mean(1.0, 0.5, 10)
    assert mean.lower(0.05) == pytest.approx(1 - 1.812461 * 0.5)
    assert mean.interval(0.95) == (
        pytest.approx(1 - 2.228139 * 0.5),
        pytest.approx(1 + 2.228139 * 0.5),
    )
    exact = trimmed_mean([0.25] * 6)
    assert exact.lower(1e-6) == 0.25
    assert exact.interval() == (0.25, 0.25)


def test_the_least_bound_shares_the_odds_among_all_means() -> None:
    one = Mean(-0.01, 0.005, 10)
    assert least_bound([one], 0.05) == pytest.approx(0.01 + 1.812461 * 0.005, rel=1e-4)
    assert least_bound([one, one], 0.1) == pytest.approx(0.01 + 1.812461 * 0.005, rel=1e-4)
    far = Mean(10.0, 0.005, 10)
    assert least_bound([one, far], 0.05) == pytest.approx(least_bound([one], 0.05))
    assert least_bound([far], 0.05) == 0
    assert least_bound([], 0.05) == 0
    assert least_bound([Mean(0.0, 0.0, 5)], 0.05) == 0
    assert least_bound([Mean(-0.5, 0.0, 5)], 0.05) == pytest.approx(0.5, rel=1e-4)
    assert least_bound([Mean(0.0, math.inf, 1)], 0.05) == math.inf


def test_the_interval_of_a_ratio() -> None:
    assert ratio_interval([0.1]) is None
    found = ratio_interval(np.log([1.1, 1.2, 1.15, 1.12]))
    assert found is not None
    assert found.value == pytest.approx((1.1 * 1.2 * 1.15 * 1.12) ** 0.25)
    assert 1 < found.low < found.value < found.high < 1.3
    wide = ratio_interval([-500.0, 500.0])
    assert wide is not None
    assert (wide.low, wide.high) == (pytest.approx(1e-6), pytest.approx(1e6))
    assert factor(0) == 1


def test_limits_hold_as_often_as_they_say_with_and_without_correlation() -> None:
    random = np.random.default_rng(1)
    for pace, least in ((0.0, 0.93), (0.5, 0.85)):
        covered = 0
        for _ in range(600):
            series, last = [], random.normal()
            for step in random.normal(size=30) * math.sqrt(1 - pace**2):
                last = pace * last + step
                series.append(last)
            low, high = trimmed_mean(series).interval(0.95)
            covered += low <= 0 <= high
        assert covered / 600 >= least, pace  # without widening, 0.5 would come to about 0.73


def test_a_bootstrap_repeats_and_holds_the_median() -> None:
    values = np.random.default_rng(2).lognormal(size=40)
    found = bootstrap_median(values, seed=7)
    assert found == bootstrap_median(values, seed=7)
    few = [bootstrap_median(values, resamples=20, seed=seed) for seed in range(5)]
    assert len(set(few)) > 1
    assert found.value == median(values)
    assert found.low < found.value < found.high
    narrow = bootstrap_median(values, confidence=0.5)
    assert narrow.high - narrow.low < found.high - found.low
    same = bootstrap_median([2.0] * 6)
    assert (same.low, same.value, same.high) == (2, 2, 2)
    assert bootstrap_median([3.0]).high == 3
    with pytest.raises(ValueError, match="needs values"):
        bootstrap_median([])


def test_a_bootstrap_of_correlated_blocks_is_wider() -> None:
    steps = np.sin(np.arange(40) / 6)
    shuffled = np.random.default_rng(3).permutation(steps)
    wide, narrow = bootstrap_median(steps), bootstrap_median(shuffled)
    assert correlation(shuffled) < 0.2 < correlation(steps)
    assert wide.high - wide.low > narrow.high - narrow.low
