"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["age", "count", "duration", "number", "percent", "ratio", "size"]

_NONE = "-"


def size(size_bytes: int | None) -> str:
    """Bytes in powers of 1024, such as ``225 KiB``."""
    if size_bytes is None:
        return _NONE
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5:
            return f"{_short(value)} {unit}"
        value /= 1024
    return f"{_short(value)} TiB"


def duration(seconds: float | None) -> str:
    """A time span in the unit that suits it, three digits, such as ``12.3 ms``."""
    if seconds is None:
        return _NONE
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{_short(seconds * scale)} {unit}"
    return f"{_short(seconds)} s"


def age(seconds: float) -> str:
    """How long ago, in the largest whole unit, such as ``3 days``."""
    for unit, scale in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= scale:
            count = int(seconds // scale)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "moments"


def number(value: float | None) -> str:
    """Three digits, such as ``1.6e-06``; a dash for none."""
    return _NONE if value is None else f"{value:.3g}"


def ratio(value: float | None) -> str:
    """A factor, such as ``1.25x``; beyond 0.01 and 999 only that it is."""
    if value is None:
        return _NONE
    if value < 0.005:
        return "<0.01x"
    if value >= 999.5:
        return ">999x"
    return (
        f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x" if value < 99.95 else f"{value:.0f}x"
    )


def percent(share: float | None) -> str:
    """A share as percent, such as ``1.7 %``."""
    if share is None:
        return _NONE
    value = 100 * share
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f} %"
    if abs(value) < 0.05:
        return f"{value:.1g} %"
    return f"{value:.1f}".removesuffix(".0") + " %"


def count(number: int, noun: str) -> str:
    """A number and its noun, such as ``1 arm`` and ``2 arms``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _short(value: float) -> str:
    """Three digits without an exponent."""
    return f"{value:.0f}" if value >= 99.95 or float(value).is_integer() else f"{value:.3g}"
