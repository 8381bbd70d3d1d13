"""The few statistics that measuring needs, each with its definition.

Percentiles are nearest-rank everywhere. Means of paired differences are trimmed, so that
one interrupted slice does not decide, with the standard error that belongs to trimming.
Blocks that follow each other may resemble each other; where their correlation is above
``MAX_CORRELATION`` the errors are widened as if there were fewer blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import MeasureError
from bridge.record import Interval

__all__ = [
    "MAX_CORRELATION",
    "MIN_P99_SAMPLES",
    "TRIM",
    "Mean",
    "bootstrap_median",
    "clopper_pearson",
    "correlation",
    "duel",
    "factor",
    "least_bound",
    "median",
    "outliers",
    "percentile",
    "percentile_upper",
    "ratio_interval",
    "samples_needed",
    "trimmed_mean",
]

Values = Sequence[float] | npt.NDArray[Any]

MIN_P99_SAMPLES = 100
"""Fewest samples for which a 99th percentile is not simply the maximum, by nearest rank."""
TRIM = 0.25
"""Share of the values left out at each end of a trimmed mean, rounded down, less one value.

Less one, because of few values each one left out costs a degree of freedom that matters:
of 6 none is left out, of 9 one, of 20 four.

On real arms of a shared machine up to a quarter of the slices is off by 10 % or more, the
rest by 1.5 %. There the error after 20 blocks was 1.3 % with 0.1, 1.0 % with 0.15 and 0.7 %
with 0.25 (two settings of one runtime on a ranker). In simulated races, whose noise is
normal with 5 % of spikes, 0.25 needs up to a tenth more blocks than 0.15.
"""
MAX_CORRELATION = 0.2
"""Correlation of neighbours up to which values count as independent."""
_FARTHEST = 1e6  # a bound beyond it is none
_HIGHEST_LOG = math.log(1e6)
_HIGHEST_CORRELATION = 0.8  # an estimate above it, of so few values, would widen without bound


def median(values: Values) -> float:
    """The middle value, or the mean of the two middle ones."""
    return float(np.median(np.asarray(values)))


def percentile(values: Values, fraction: float) -> float:
    """The nearest-rank percentile: the value at rank ``ceil(fraction * n)``, from 1.

    Raises:
        ValueError: There are no values, or the fraction is not within (0, 1].
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=None)
    if ordered.size == 0 or not 0 < fraction <= 1:
        raise ValueError("a percentile needs values and a fraction within (0, 1].")
    # Not 8 for 7 % of 100, which in binary is a little more than 7.
    return float(ordered[max(math.ceil(fraction * ordered.size - 1e-9), 1) - 1])


def percentile_upper(values: Values, fraction: float, confidence: float = 0.95) -> float | None:
    """The upper confidence limit of a percentile, by the binomial rule.

    The k-th worst value is above the true percentile unless fewer than k of the n calls
    are beyond it, and how many are is binomial. The limit is the best value for which that
    is improbable enough. (LoadGen's early stopping uses the same rule, one value worse.)

    Args:
        values: Independent times of calls.
        fraction: Such as 0.99.
        confidence: Probability that the limit is not below the true percentile.

    Returns:
        The limit; ``None`` with fewer than ``samples_needed(fraction, 0, confidence)`` values.
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=None)
    if samples_needed(fraction, 0, confidence) > ordered.size:
        return None
    return float(ordered[-1 - _most_misses(ordered.size, fraction, confidence)])


def samples_needed(fraction: float, misses: int, confidence: float = 0.95) -> int:
    """Fewest calls among which ``misses`` slow ones still show that a percentile is met.

    The least n with ``P(Binomial(n, 1 - fraction) <= misses) <= 1 - confidence``.

    Args:
        fraction: The percentile, such as 0.99.
        misses: Calls over the limit.
        confidence: Of the conclusion that at most ``1 - fraction`` of all calls are over it.

    Raises:
        ValueError: ``fraction`` or ``confidence`` is not within (0, 1), or ``misses`` < 0.

    Source: ``loadgen/early_stopping.cc`` of mlcommons/inference, with its tolerance of 0.
    """
    if not (0 < fraction < 1 and 0 < confidence < 1 and misses >= 0):
        raise ValueError("a fraction and a confidence within (0, 1) and misses >= 0 are needed.")
    low, high = misses, misses + 1  # low calls are too few
    while not _suffice(high, misses, fraction, confidence):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _suffice(middle, misses, fraction, confidence):
            high = middle
        else:
            low = middle
    return high


def _suffice(count: int, misses: int, fraction: float, confidence: float) -> bool:
    from scipy.special import bdtr

    return bool(bdtr(misses, count, 1 - fraction) <= 1 - confidence)


def _most_misses(count: int, fraction: float, confidence: float) -> int:
    """Most misses that ``count`` calls allow; 0 at least is known to be allowed."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if _suffice(count, middle, fraction, confidence):
            low = middle
        else:
            high = middle
    return low


def clopper_pearson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share of which ``hits`` of ``count`` were seen.

    Raises:
        ValueError: ``count`` is 0, or ``hits`` is not within 0..count.

    Source: Clopper and Pearson, Biometrika 26 (1934), by quantiles of the beta distribution.
    """
    from scipy.special import betaincinv

    if count < 1 or not 0 <= hits <= count:
        raise ValueError("hits within 0..count and a count of at least 1 are needed.")
    rest = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, rest))
    high = 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1 - rest))
    return low, high


def outliers(values: Values) -> tuple[int, int]:
    """How many values are mild and how many are severe outliers, by Tukey's fences.

    Mild ones lie more than 1.5 interquartile ranges beyond a quartile, but not more than 3;
    severe ones lie further out. No value counts as both. Quartiles are nearest-rank.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        return 0, 0
    low, high = percentile(array, 0.25), percentile(array, 0.75)
    beyond = np.maximum(low - array, array - high)
    severe = int(np.count_nonzero(beyond > 3 * (high - low)))
    return int(np.count_nonzero(beyond > 1.5 * (high - low))) - severe, severe


def correlation(values: Values) -> float:
    """The correlation of each value with its successor; 0 where nothing varies.

    It is estimated around the mean, with the usual bias towards -1/n.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 3:
        return 0.0
    centred = array - array.mean()
    square = float(centred @ centred)
    # Rounding of equal values is no variation.
    if square <= array.size * (4 * np.finfo(float).eps * float(np.abs(array).max())) ** 2:
        return 0.0
    return float(centred[:-1] @ centred[1:]) / square


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with what its limits need.

    Attributes:
        value: The mean.
        error: Its standard error; infinite where one value cannot tell.
        freedom: Degrees of freedom of Student's t.
    """

    value: float
    error: float
    freedom: int

    def lower(self, alpha: float) -> float:
        """The one-sided lower limit that the true mean falls below with probability alpha."""
        if self.error == 0:
            return self.value
        return self.value - _quantile(self.freedom, alpha) * self.error

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The two-sided interval, as ``(low, high)``."""
        if self.error == 0:
            return self.value, self.value
        half = _quantile(self.freedom, (1 - confidence) / 2) * self.error
        return self.value - half, self.value + half


def _quantile(freedom: int, alpha: float) -> float:
    """What Student's t exceeds with probability ``alpha``."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), 1 - alpha))


def trimmed_mean(values: Values, trim: float = TRIM) -> Mean:
    """The trimmed mean, with the error of the winsorised values.

    ``floor(trim * n) - 1`` values are left out at each end, none of fewer than eight. Where
    neighbours correlate by more than ``MAX_CORRELATION`` (r), the error is that of
    ``n * (1 - r) / (1 + r)`` values.

    Args:
        values: In the order in which they were measured.
        trim: Share left out at each end, less one value; within [0, 0.5).

    Raises:
        ValueError: There are no values, or ``trim`` is out of range.

    Source: Tukey and McLaughlin, Sankhya A 25 (1963): error
    ``sqrt((n - 1) * s_w**2 / (h * (h - 1)))`` with ``h - 1`` degrees of freedom, where
    ``h`` values are left and ``s_w`` is the deviation of the winsorised ones.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not 0 <= trim < 0.5:
        raise ValueError("a trimmed mean needs values and a share within [0, 0.5).")
    count = array.size
    out = max(0, int(trim * count + 1e-9) - 1)
    left = count - 2 * out
    ordered = np.sort(array)
    value = float(ordered[out : count - out].mean())
    if left < 2:
        return Mean(value, math.inf, 1)
    winsorised = np.clip(array, ordered[out], ordered[count - out - 1])
    square = float(((winsorised - winsorised.mean()) ** 2).sum())
    error = math.sqrt(square / (left * (left - 1)))
    near = min(correlation(winsorised), _HIGHEST_CORRELATION)
    if near > MAX_CORRELATION:
        error *= math.sqrt((1 + near) / (1 - near))
    return Mean(value, error, left - 1)


def least_bound(means: Sequence[Mean], alpha: float) -> float:
    """The least x >= 0 such that improbably any of the true means is below ``-x``.

    That is: the probabilities of all means, by Student's t, add up to at most ``alpha``.
    0 where there are no means; infinite where they say nothing.
    """
    from scipy.special import stdtr

    values = np.array([mean.value for mean in means])
    errors = np.maximum([mean.error for mean in means], 1e-12)  # 0 where nothing varies
    freedoms = np.array([mean.freedom for mean in means])

    def odds(bound: float) -> float:
        return float(stdtr(freedoms, (-bound - values) / errors).sum())

    low = 1e-9  # what rounding makes of equal values
    if not means or odds(low) <= alpha:
        return 0.0
    high = 2 * low
    while odds(high) > alpha:
        if high > _FARTHEST:
            return math.inf
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if odds(middle) <= alpha else (middle, high)
    return high


def factor(log: float) -> float:
    """``exp``, kept within a million, so that limits of few values stay numbers."""
    return math.exp(min(max(log, -_HIGHEST_LOG), _HIGHEST_LOG))


def ratio_interval(logs: Values) -> Interval | None:
    """The ratio of which these are logarithms, with the two-sided 95 % interval.

    ``None`` with fewer than two values.
    """
    if len(logs) < 2:
        return None
    mean = trimmed_mean(logs)
    low, high = mean.interval(0.95)
    return Interval(value=factor(mean.value), low=factor(low), high=factor(high))


def bootstrap_median(
    values: Values, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """The median of blocks and its bootstrap interval, by percentiles of the resamples.

    Runs of neighbouring blocks are drawn (around the end to the start), of length 1 where
    neighbours correlate by at most ``MAX_CORRELATION``, else of the length that is best
    for an autoregressive series of that correlation.

    Args:
        values: The statistic of each block, in order.
        resamples: How often to draw.
        seed: Of the generator; equal seeds give equal intervals.
        confidence: Of the interval.

    Raises:
        ValueError: There are no values.

    Source: Carlstein, Annals of Statistics 14 (1986): ``(2r / (1 - r**2))**(2/3) * n**(1/3)``.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("a bootstrap needs values.")
    count = array.size
    near = min(correlation(array), _HIGHEST_CORRELATION)
    length = 1
    if near > MAX_CORRELATION:
        best = (2 * near / (1 - near**2)) ** (2 / 3) * count ** (1 / 3)
        length = max(1, min(math.ceil(best), count // 2))
    generator = np.random.default_rng(seed)
    starts = generator.integers(count, size=(resamples, math.ceil(count / length)))
    drawn = (starts[:, :, None] + np.arange(length)) % count
    medians = np.median(array[drawn.reshape(resamples, -1)[:, :count]], axis=1)
    rest = (1 - confidence) / 2
    return Interval(
        value=median(array), low=percentile(medians, rest), high=percentile(medians, 1 - rest)
    )


def duel(times: Sequence[float | None], others: Sequence[float | None]) -> Interval:
    """The ratio of two arms' times over the blocks that both took part in.

    Args:
        times: Of one arm, a time per block.
        others: Of the other, in the same blocks.

    Returns:
        ``times`` over ``others`` with the two-sided 95 % interval: above 1 is slower.

    Raises:
        MeasureError: Fewer than two blocks are shared.
    """
    pairs = [(a, b) for a, b in zip(times, others, strict=True) if a is not None and b is not None]
    found = ratio_interval(np.array([math.log(a / b) for a, b in pairs]))
    if found is None:
        raise MeasureError(
            f"Two arms can be compared over two blocks or more, and these share {len(pairs)}.",
            fix="Measure more blocks.",
            blocks=len(pairs),
        )
    return found
