"""Rows in a second that a contender answers while it keeps a limit of latency.

Callers are threads of one process, each of which begins a call when its last one has
ended. How many of them, and how many threads a call may use, is searched in short turns;
the best two of each side then meet again in longer turns, in random order, beside the
best two of what is replaced. A 99th percentile is that of all calls of these turns, and
does not count waiting in a queue: ``bridge bench`` measures that.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.cpus import usable_cpus
from bridge.loading import backends
from bridge_bench.contender import Contender, Field
from bridge_bench.stats import bootstrap_median, median, percentile

__all__ = ["Pace", "Rival", "configurations", "rates"]

_SPARE = 0.9  # of the limit, within which a short turn has to stay to be believed
_FINALISTS = 2
_LEAST_CALLS = 20
_THREADING = frozenset({"threads", "streams", "hint", "inter_threads"})


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long is measured.

    Attributes:
        search_s: Of each turn of the search.
        round_s: Of each turn of the finalists.
        rounds: Their turns.
    """

    search_s: float = 0.4
    round_s: float = 0.8
    rounds: int = 6


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One side of the comparison.

    Attributes:
        name: As tables call it.
        configurations: What it may be configured as; all compute the same.
    """

    name: str
    configurations: tuple[Contender, ...]


@dataclass(frozen=True)
class _Try:
    contender: Contender
    callers: int
    per_s: float
    p99_us: float


def configurations(given: Sequence[Contender]) -> tuple[Contender, ...]:
    """Contenders as they are, and with a thread or a stream for each CPU.

    Args:
        given: Models on backends.
    """
    cpus = usable_cpus()
    found: dict[str, Contender] = {}
    for one in given:
        fields = {field.name for field in backends()[one.backend].options_type.describe()}
        plain = {name: value for name, value in one.options.items() if name not in _THREADING}
        ways = [dict(one.options)]
        if "streams" in fields:
            ways.append({**plain, "threads": cpus, "streams": cpus})
        elif "threads" in fields:
            ways += [{**plain, "threads": 1}, plain]
        for options in ways:
            way = dataclasses.replace(one, options=options)
            found.setdefault(way.key, way)
    return tuple(found.values())


def rates(
    field: Field,
    rivals: Sequence[Rival],
    rows: int,
    limit_us: float,
    *,
    pace: Pace,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Rows in a second of each rival over those of the first, which need not keep the limit.

    Args:
        field: Where they are asked.
        rivals: All sides; the first is what is replaced.
        rows: Rows of a call.
        limit_us: What a 99th percentile may be at most.
        pace: How long is measured.
        tell: Called with one line of text now and then.

    Returns:
        For each rival ``name``, ``backend``, ``options`` and ``callers`` of its best
        configuration, ``rows_per_s``, ``p50_us``, ``p99_us``, ``keeps`` (whether that is
        within the limit) and ``ratio`` (value, low and high, 95 %).
    """
    finalists: list[tuple[int, _Try]] = []
    for index, rival in enumerate(rivals):
        tell(f"searching clients and threads of '{rival.name}'")
        tried = [
            one
            for contender in rival.configurations
            for one in _tried(field, contender, rows, pace.search_s)
        ]
        best = _best(tried, limit_us if index else None)
        finalists += [(index, one) for one in best]
        kept = {one.contender.key for one in best}
        for contender in rival.configurations:
            if contender.key not in kept:
                field.drop(contender)
    tell("measuring the best of each side by turns")
    order = random.Random(0)  # noqa: S311 - an order, no secret
    seen: list[list[tuple[float, list[float]]]] = [[] for _ in finalists]
    for _ in range(pace.rounds):
        for place in order.sample(range(len(finalists)), len(finalists)):
            one = finalists[place][1]
            calls = _calls(one, rows, pace.round_s)
            turn = field.time(one.contender, rows, calls, one.callers)
            seen[place].append((rows * calls / turn.elapsed_s, turn.us))
    return _told(rivals, finalists, seen, limit_us)


def _told(
    rivals: Sequence[Rival],
    finalists: Sequence[tuple[int, _Try]],
    seen: Sequence[Sequence[tuple[float, list[float]]]],
    limit_us: float,
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    base: list[float] = []
    for index, rival in enumerate(rivals):
        entries = []
        for (owner, one), turns in zip(finalists, seen, strict=True):
            if owner != index:
                continue
            us = [value for _, values in turns for value in values]
            per_s = [rate for rate, _ in turns]
            p99_us = percentile(us, 0.99)
            entry: dict[str, Any] = {
                "name": rival.name,
                "backend": one.contender.backend,
                "options": dict(one.contender.options),
                "callers": one.callers,
                "rows_per_s": median(per_s),
                "p50_us": median(us),
                "p99_us": p99_us,
                "keeps": p99_us <= limit_us,
            }
            entries.append((entry, per_s))
        # What is replaced counts with its best, whether or not that keeps the limit.
        fit = [one for one in entries if one[0]["keeps"]] if index else entries
        entry, per_s = max(fit or entries, key=lambda one: one[0]["rows_per_s"])
        base = base or per_s
        ratio = bootstrap_median([mine / theirs for mine, theirs in zip(per_s, base, strict=True)])
        found.append({**entry, "ratio": dataclasses.asdict(ratio)})
    return found


def _tried(field: Field, contender: Contender, rows: int, seconds: float) -> list[_Try]:
    typical_us = field.warm(contender, rows)
    found: list[_Try] = []
    for callers in range(1, 2 * usable_cpus() + 1):
        calls = max(_LEAST_CALLS, round(seconds * 1e6 / typical_us))
        turn = field.time(contender, rows, calls, callers)
        found.append(
            _Try(contender, callers, rows * calls / turn.elapsed_s, percentile(turn.us, 0.99))
        )
    return found


def _best(tried: Sequence[_Try], limit_us: float | None) -> list[_Try]:
    """The fastest that seem to keep the limit; else those that come nearest to it."""
    fit = [one for one in tried if limit_us is None or one.p99_us <= _SPARE * limit_us]
    if not fit:
        return sorted(tried, key=lambda one: one.p99_us)[:_FINALISTS]
    return sorted(fit, key=lambda one: -one.per_s)[:_FINALISTS]


def _calls(one: _Try, rows: int, seconds: float) -> int:
    return max(_LEAST_CALLS, round(seconds * one.per_s / rows))
