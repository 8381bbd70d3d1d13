"""A selection record for people: one HTML page, and the words it shares with the terminal."""

from __future__ import annotations

from bridge_bench.report.page import render

__all__ = ["render"]
