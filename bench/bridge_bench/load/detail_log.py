"""LoadGen's ``mlperf_log_detail.txt``, read defensively.

Each line is a mark and a JSON object, but LoadGen does not escape strings, and writes
doubles in its own way: a line that is no JSON is taken apart by its fixed layout, and one
that has not that either is counted, not fatal.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

__all__ = ["DetailLog", "parse"]

_MARK = ":::MLLOG"
_LAYOUT = re.compile(r'"key":\s*"(?P<key>[^"]+)",\s*"value":\s*(?P<value>.*?),\s*"time_ms":')
_PERCENTILE = re.compile(r"result_(\d+(?:\.\d+)?)_percentile_latency_ns")


@dataclass(frozen=True, slots=True)
class DetailLog:
    """What the log says.

    Attributes:
        values: The last value of each key.
        errors: Values of all keys that start with ``error``, in order.
        unread: Lines with the mark that could not be read.
    """

    values: dict[str, Any]
    errors: tuple[str, ...]
    unread: int

    @property
    def is_complete(self) -> bool:
        """Whether LoadGen came to its end: it says whether the run is valid."""
        return self.values.get("result_validity") in ("VALID", "INVALID")

    @property
    def ended_early(self) -> str | None:
        """Why LoadGen stopped before it should, in its own words."""
        return next((text for text in self.errors if "Ending early" in text), None)

    def text(self, key: str) -> str:
        """A value in one line; empty if it is not there."""
        return " ".join(str(self.values.get(key, "")).split())

    def number(self, key: str) -> float | None:
        """A finite number; ``None`` if it is not there or none."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if math.isfinite(value) else None

    def flag(self, key: str) -> bool | None:
        """A truth value; ``None`` if it is not there or none."""
        value = self.values.get(key)
        return value if isinstance(value, bool) else None

    def to_dict(self) -> dict[str, Any]:
        """What is worth keeping, in JSON types, times in seconds."""

        def seconds(key: str) -> float | None:
            value = self.number(key)
            return None if value is None else value / 1e9

        found = ((key, _PERCENTILE.fullmatch(key)) for key in self.values)
        return {
            "version": self.text("loadgen_version"),
            "validity": self.text("result_validity") or None,
            "invalid_reason": self.text("result_invalid_reason"),
            "min_duration_met": self.flag("result_min_duration_met"),
            "min_queries_met": self.flag("result_min_queries_met"),
            "perf_constraints_met": self.flag("result_perf_constraints_met"),
            "early_stopping_met": self.flag("early_stopping_met"),
            "early_stopping_result": self.text("early_stopping_result"),
            "queries": self.number("result_query_count"),
            "overlatency_queries": self.number("result_overlatency_query_count"),
            "scheduled_per_s": self.number("result_scheduled_samples_per_sec"),
            "completed_per_s": self.number("result_completed_samples_per_sec"),
            "samples_per_s": self.number("result_samples_per_second"),
            "qps_with_overhead": self.number("result_qps_with_loadgen_overhead"),
            "qps_without_overhead": self.number("result_qps_without_loadgen_overhead"),
            "mean_latency_s": seconds("result_mean_latency_ns"),
            "percentiles_s": {match[1]: seconds(key) for key, match in found if match},
            "errors": list(self.errors),
            "unread_lines": self.unread,
        }


def parse(text: str) -> DetailLog:
    """Reads the whole log; never raises for what is in it."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    unread = 0
    for line in text.splitlines():
        _, mark, rest = line.partition(_MARK)
        if not mark:
            continue
        entry = _entry(rest.strip())
        if entry is None:
            unread += 1
            continue
        key, value = entry
        values[key] = value
        if key.startswith("error"):
            errors.append(" ".join(str(value).split()))
    return DetailLog(values, tuple(errors), unread)


def _entry(text: str) -> tuple[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        match = _LAYOUT.search(text)
        return None if match is None else (match["key"], _value(match["value"]))
    if isinstance(found, dict) and isinstance(found.get("key"), str):
        return found["key"], found.get("value")
    return None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.removeprefix('"').removesuffix('"')
