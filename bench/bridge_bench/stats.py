"""The few statistics that a comparison needs, each with its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_P99_SAMPLES", "median", "percentile"]

MIN_P99_SAMPLES = 100
"""Fewest samples for which a 99th percentile is not simply the maximum, by nearest rank."""


def median(values: Sequence[float] | npt.NDArray[Any]) -> float:
    """The middle value, or the mean of the two middle ones."""
    return float(np.median(np.asarray(values)))


def percentile(values: Sequence[float] | npt.NDArray[Any], fraction: float) -> float:
    """The nearest-rank percentile: the value at rank ``ceil(fraction * n)``, from 1.

    Raises:
        ValueError: There are no values, or the fraction is not within (0, 1].
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=None)
    if ordered.size == 0 or not 0 < fraction <= 1:
        raise ValueError("a percentile needs values and a fraction within (0, 1].")
    return float(ordered[math.ceil(fraction * ordered.size) - 1])
