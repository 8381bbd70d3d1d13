"""Quantities as people type them: ``30s``, ``2GiB``, ``p99=5ms``.

A unit is always wanted: a bare number says seconds to one and milliseconds to another.
"""

from __future__ import annotations

import math
import re

import typer

__all__ = ["parse_duration_s", "parse_size_bytes", "parse_sla"]

_QUANTITY = re.compile(r"\s*(?P<number>[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[^\s\d]+)\s*")
_SLA = re.compile(r"\s*p(?P<percent>[0-9]{1,2}(?:\.[0-9]+)?)\s*=(?P<duration>.*)")
_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # the micro sign, which keyboards have
    "\u03bcs": 1e-6,  # the Greek letter, which looks the same
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
}
_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_duration_s(text: str, option: str) -> float:
    """Seconds, more than 0; units are ns, us, ms, s, min and h.

    Args:
        text: Such as ``30s`` or ``1.5 ms``.
        option: The option that it belongs to, for the error.

    Raises:
        typer.BadParameter: It is no duration.
    """
    number, unit = _split(text)
    value = number * _SECONDS.get(unit, math.nan)
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(
            f"{text!r} is no duration above 0, as in 30s, 5ms or 2min", param_hint=option
        )
    return value


def parse_size_bytes(text: str, option: str) -> int:
    """Bytes, at least 1; units are B, KiB, MiB, GiB, TiB and kB, MB, GB, TB.

    Args:
        text: Such as ``2GiB``.
        option: The option that it belongs to, for the error.

    Raises:
        typer.BadParameter: It is no size.
    """
    number, unit = _split(text)
    value = number * _BYTES.get(unit.lower(), math.nan)
    if not (math.isfinite(value) and value >= 1):
        raise typer.BadParameter(
            f"{text!r} is no size of a byte or more, as in 2GiB or 500MB", param_hint=option
        )
    return round(value)


def parse_sla(text: str, option: str = "--sla") -> tuple[float, float]:
    """Percentile within (0, 1) and seconds.

    Args:
        text: Such as ``p99=5ms`` or ``p99.9=20ms``.
        option: The option that it belongs to, for the error.

    Raises:
        typer.BadParameter: It is neither a percentile nor a duration.
    """
    match = _SLA.fullmatch(text)
    percent = 0.0 if match is None else float(match["percent"])
    if match is None or not 0 < percent < 100:
        raise typer.BadParameter(
            f"{text!r} is not of the form p99=5ms or p99.9=20ms", param_hint=option
        )
    return round(percent / 100, 12), parse_duration_s(match["duration"], option)


def _split(text: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    return (math.nan, "") if match is None else (float(match["number"]), match["unit"])
