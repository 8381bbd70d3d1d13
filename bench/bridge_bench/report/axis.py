"""Axes: from a value to its place, and the ticks that people expect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "linear", "logarithmic"]

_LEAST, _MOST = 1e-100, 1e100  # what is beyond is drawn there: room for margins has to be left


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a plot.

    Attributes:
        low, high: Ends of what is shown, ``low < high``.
        is_log: Equal factors take equal space; both ends are then above zero.
        ticks: Values with a line and a text, in order.
        text: Makes the text of a tick.
        title: What the axis shows, with its unit.
    """

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]
    text: Callable[[float], str]
    title: str = ""

    def place(self, value: float) -> float:
        """Where the value lies: 0 at ``low``, 1 at ``high``; what is beyond is at the end."""
        if self.is_log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


def logarithmic(
    values: Iterable[float],
    text: Callable[[float], str],
    title: str = "",
    *,
    margin: float = 1.08,
    ticks: int = 6,
) -> Axis:
    """An axis of equal factors that holds the values; those not above zero are left out.

    Args:
        values: What must be on it.
        text: Makes the text of a tick.
        title: What it shows.
        margin: Factor of room at both ends.
        ticks: About how many ticks at most.
    """
    known = [min(max(value, _LEAST), _MOST) for value in values if 0 < value < math.inf]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    low, high = low / margin, high * margin
    if high / low < 1.05:
        low, high = low / 1.05, high * 1.05
    return Axis(
        low=low,
        high=high,
        is_log=True,
        ticks=_log_ticks(low, high, ticks),
        text=text,
        title=title,
    )


def linear(
    low: float, high: float, text: Callable[[float], str], title: str = "", *, ticks: int = 6
) -> Axis:
    """An axis of equal steps from ``low`` to ``high``."""
    if not high > low:
        low, high = low - 0.5, low + 0.5
    step = _step((high - low) / ticks)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return Axis(
        low=low,
        high=high,
        is_log=False,
        ticks=tuple(index * step for index in range(first, last + 1)),
        text=text,
        title=title,
    )


def _log_ticks(low: float, high: float, wanted: int) -> tuple[float, ...]:
    """Round values within the range: the densest series that is not too many."""
    if high / low < 4:  # there, round steps read better than round factors
        return linear(low, high, str, ticks=wanted).ticks
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    series: tuple[Sequence[float], ...] = (
        (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9),
        (1, 2, 3, 5),
        (1, 2, 5),
        (1, 3),
        (1,),
    )
    found: tuple[float, ...] = ()
    for digits in series:
        found = tuple(
            value
            for exponent in range(first, last + 1)
            for digit in digits
            if low <= (value := digit * 10.0**exponent) <= high
        )
        if len(found) <= wanted:
            break
    if len(found) > wanted:
        return found[:: math.ceil(len(found) / wanted)]
    return found


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999)
