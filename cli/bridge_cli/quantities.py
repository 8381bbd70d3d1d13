"""Numbers with units, as options take them: times, sizes, latency limits."""

from __future__ import annotations

import re

import typer

__all__ = ["parse_duration_s", "parse_size_bytes", "parse_sla"]

_TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES = {
    unit: 1024**power
    for power, units in enumerate((("b", ""), ("k", "kb", "kib"), ("m", "mb", "mib"),
                                   ("g", "gb", "gib"), ("t", "tb", "tib")))
    for unit in units
}  # fmt: skip
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zµ]*)\s*")


def parse_duration_s(text: str, option: str) -> float:
    """Seconds of ``30s``, ``5ms``, ``250us``, ``2m`` or ``1h``; a bare number is seconds.

    Raises:
        typer.BadParameter: It is no time, or is 0.
    """
    number, unit = _parts(text)
    scale = _TIMES.get(unit or "s")
    if number is None or scale is None or number * scale <= 0:
        raise typer.BadParameter(
            f"{text!r} is no time; wanted for example 30s, 5ms or 2m", param_hint=option
        )
    return number * scale


def parse_size_bytes(text: str, option: str) -> int:
    """Bytes of ``2GiB``, ``500M`` or ``1024``; units are powers of 1024.

    Raises:
        typer.BadParameter: It is no size, or is 0.
    """
    number, unit = _parts(text)
    scale = _SIZES.get(unit)
    if number is None or scale is None or int(number * scale) <= 0:
        raise typer.BadParameter(
            f"{text!r} is no size; wanted for example 2GiB or 500M", param_hint=option
        )
    return int(number * scale)


def parse_sla(text: str, option: str) -> tuple[float, float]:
    """The fraction and the seconds of ``p99=5ms``; ``p99.9=20ms`` works as well.

    Raises:
        typer.BadParameter: It is not of that form, or no percentile between 0 and 100.
    """
    name, sign, limit = text.strip().partition("=")
    found = re.fullmatch(r"p(\d+(?:\.\d+)?)", name.strip().lower())
    if not sign or found is None or not 0 < float(found[1]) < 100:
        raise typer.BadParameter(
            f"{text!r} is no latency limit; wanted for example p99=5ms", param_hint=option
        )
    return float(found[1]) / 100, parse_duration_s(limit, option)


def _parts(text: str) -> tuple[float | None, str]:
    found = _NUMBER.fullmatch(text.lower())
    return (None, "") if found is None else (float(found[1]), found[2])
