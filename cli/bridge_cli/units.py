"""Numbers as people read them, the same on the terminal as in reports."""

from __future__ import annotations

from bridge_bench.units import age, duration, number, ratio, size

__all__ = ["age", "duration", "number", "ratio", "size"]
