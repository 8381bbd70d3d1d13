"""A record's predictor on a mixed trace of batches: ``python -m bridge_bench.trace RECORD``.

A trace is some hundred calls whose sizes are drawn from the record's buckets, in random
order. It is run by the predictor that the record loads, which routes each call, and by
each single arm that could serve all of it, each in a process of its own, one pass after
another in random order. Printed is the time of the routed predictor over that of the
best single arm, and over what the medians in the record predict.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bridge import recording
from bridge.isolation import Worker
from bridge.record import Interval, SelectionRecord
from bridge.signature import Signature
from bridge_bench.profile import InputProfile
from bridge_bench.stats import duel

__all__ = ["Outcome", "main", "run"]

CALLS = 120
PASSES = 20
ROUTED = "routed"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trace took.

    Attributes:
        sizes: Rows of each call.
        predicted_s: Sum of the medians that the record has for its routes.
        passes_s: Time of each pass, by arm; ``routed`` is the record's predictor.
        best: The single arm that took least.
        over_best: Routed over the best single arm.
        over_predicted: Median pass of the routed predictor over what was predicted.
        leads: Lead of the winner over the best other arm among those that serve another
            bucket, at the smallest and at the largest size.
    """

    sizes: tuple[int, ...]
    predicted_s: float
    passes_s: dict[str, list[float]]
    best: str
    over_best: Interval
    over_predicted: float
    leads: tuple[float, float]


def run(
    folder: Path,
    *,
    calls: int = CALLS,
    passes: int = PASSES,
    seed: int = 0,
    trust: bool = False,
) -> Outcome:
    """Runs a trace over a record.

    Args:
        folder: The record.
        calls: Calls of the trace.
        passes: Passes of the trace by each contender.
        seed: Of sizes, inputs and order.
        trust: The models of the record may run code of their own.
    """
    record = recording.read(folder)
    chance = random.Random(seed)  # noqa: S311 - a trace, no secret
    sizes = [one.rows for one in record.buckets]
    trace = chance.choices(sizes, [one.weight for one in record.buckets], k=calls)
    signature = Signature.from_dict(record.signature)
    profile = InputProfile.from_dict({**record.profile, "samples": None})
    inputs = [profile.make(signature, index, rows) for index, rows in enumerate(trace)]
    arms = _contenders(record)
    times: dict[str, list[float]] = {name: [] for name in (ROUTED, *arms)}
    with ExitStack() as stack:
        workers = {}
        for name in times:
            worker = workers[name] = stack.enter_context(Worker())
            worker.load(folder, options=None if name == ROUTED else {"arm": name}, trust=trust)
            worker.keep_inputs("trace", inputs)
            for _ in range(2):
                worker.measure(calls, key="trace", timeout_s=300)
            worker.pause()
        for _ in range(passes):
            for name in chance.sample(list(times), len(times)):
                workers[name].resume()
                # Two calls are discarded, so that the pass begins two calls further on: a
                # whole round of the trace nonetheless.
                found = workers[name].measure(calls, key="trace", timeout_s=300)
                workers[name].pause()
                times[name].append(float(found.ns.sum()) / 1e9)
    best = min(arms, key=lambda name: sorted(times[name])[passes // 2])
    predicted = sum(_predicted(record, rows) for rows in trace)
    return Outcome(
        sizes=tuple(trace),
        predicted_s=predicted,
        passes_s=times,
        best=best,
        over_best=duel(times[ROUTED], times[best]),
        over_predicted=sorted(times[ROUTED])[passes // 2] / predicted,
        leads=(_lead(record, sizes[0]), _lead(record, sizes[-1])),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.trace", description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--trust", action="store_true", help="its models may run code of their own")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(arguments)
    found = run(given.record, calls=given.calls, passes=given.passes, trust=given.trust)
    if given.json:
        print(json.dumps({"best": found.best, "passes_s": found.passes_s}, indent=1))
        return 0
    print("| contender | median pass, ms | over the best single arm |")
    print("|---|---|---|")
    for name, passes in found.passes_s.items():
        ratio = duel(passes, found.passes_s[found.best])
        middle = sorted(passes)[len(passes) // 2]
        print(
            f"| {name} | {1e3 * middle:.1f} | {ratio.value:.3f} "
            f"({ratio.low:.3f} to {ratio.high:.3f}) |"
        )
    print(
        f"\nRouted over what the record's medians predict ({1e3 * found.predicted_s:.1f} ms): "
        f"{found.over_predicted:.3f}. Leads of the winners over the other serving arms, at the "
        f"smallest and the largest size: {100 * found.leads[0]:.0f} % and "
        f"{100 * found.leads[1]:.0f} %."
    )
    return 0


def _contenders(record: SelectionRecord) -> list[str]:
    """The arms that serve, the default, and the best others over all buckets."""
    serving = [route.arm for route in record.decision.routes]
    default = [one.id for one in record.arms if one.is_default]
    ranks: dict[str, int] = {}
    for verdict in record.decision.verdicts:
        for rank, name in enumerate(verdict.ranking):
            ranks[name] = ranks.get(name, 0) + rank
    everywhere = [
        name
        for name in ranks
        if all(name in verdict.ranking for verdict in record.decision.verdicts)
    ]
    best = sorted(everywhere, key=lambda name: ranks[name])[:3]
    return list(dict.fromkeys([*serving, *default, *best]))


def _predicted(record: SelectionRecord, rows: int) -> float:
    for route in record.decision.routes:
        if route.to_rows is None or rows <= route.to_rows:
            if route.split_rows is None or rows <= route.split_rows:
                return _median(record, route.arm, rows)
            return -(-rows // route.split_rows) * _median(record, route.arm, route.split_rows)
    raise AssertionError("the last route has no upper limit")


def _median(record: SelectionRecord, arm: str, rows: int) -> float:
    found = record.arm(arm).bucket(rows)
    assert found is not None
    assert found.median_s is not None
    return found.median_s


def _lead(record: SelectionRecord, rows: int) -> float:
    """How much slower the fastest of the other serving arms is at a size; 0 without another."""
    serving = list(dict.fromkeys(route.arm for route in record.decision.routes))
    times = sorted(
        found.median_s
        for name in serving
        if (found := record.arm(name).bucket(rows)) is not None and found.median_s is not None
    )
    return times[1] / times[0] - 1 if len(times) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
