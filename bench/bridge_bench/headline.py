"""What choosing by measurement gains over what was replaced: ``python -m bridge_bench.headline``.

Three ranking models of the zoo, at 1 to 2048 candidates of one request: the SavedModel's
own signature call with defaults, against the best options of each runtime and against
what ``select`` chooses, under the strict gate and under the AUC gate, on the model as it
is and on the model that takes the user of a request once. ``select`` only chooses. The
table is measured afterwards: each side has a process, one computes at a time, and in each
block every side has two turns, in random order and then in the reverse order, so that no
figure is the one by which its side was chosen. A ratio is the median over blocks of the
stock call's time over the side's, with a bootstrapped interval of 95 %.

Every finished step goes into a JSON file at once; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

import bridge_zoo
from bridge.errors import BridgeError, MeasureError
from bridge.record import ArmRecord, SelectionRecord
from bridge_bench import peak, throughput
from bridge_bench.choices import (
    CHOICES,
    Choice,
    Files,
    Judge,
    arm_contender,
    beaten,
    best_of_each,
    build,
    choose,
    served,
    stock,
)
from bridge_bench.contender import Contender, Field
from bridge_bench.headline_state import State
from bridge_bench.headline_table import render, table
from bridge_bench.stats import bootstrap_median, median, percentile
from bridge_bench.subject import ZOO_FOLDER

__all__ = ["Pace", "main"]

MODELS = ("dual_tower", "cold_dnn", "ranker")
QUICK_MODELS = MODELS[-1:]
ROWS = (1, 16, 128, 512, 2048)
GOAL_ROWS = 512
"""Where throughput, AUC and the peak of the model's own shapes are measured."""
LIMIT = 2.0
"""Longest 99th percentile under load, in medians of the stock call alone."""
NEAR = 1.5
"""An arm slower than the chosen one by more than this is not tried for throughput."""
_QUICK_S = 285.0
_STATE = ZOO_FOLDER / "headline" / "headline.json"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long is measured.

    Attributes:
        rows: Sizes that are decided for; others are served by the nearest.
        choices_s: For each selection.
        prepare_s: For compiling and converting before the first of them.
        convert_s: The same before the others.
        blocks: Of the table, for each size.
        slice_s: Of a turn.
        users: Requests over which AUC is measured.
        load: How throughput is measured.
        peak_s: For each product.
    """

    rows: tuple[int, ...] = (1, 64, 512)
    choices_s: tuple[float, ...] = (75.0, 100.0, 35.0, 60.0)
    prepare_s: float = 90.0
    convert_s: float = 60.0
    blocks: int = 12
    slice_s: float = 0.03
    users: int = 24
    load: throughput.Pace = dataclasses.field(default_factory=throughput.Pace)
    peak_s: float = 0.4


FULL = Pace()
QUICK = Pace(
    rows=(1, 512),
    choices_s=(25.0, 30.0, 12.0, 20.0),
    prepare_s=10.0,
    convert_s=10.0,
    blocks=5,
    slice_s=0.015,
    users=8,
    load=throughput.Pace(search_s=0.2, round_s=0.4, rounds=3),
    peak_s=0.1,
)
_LEAST_CALLS, _MOST_CALLS = 4, 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status, 1 where nothing could be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_bench.headline",
        description="Latency and throughput of what select chooses over the stock call.",
    )
    parser.add_argument("--model", action="append", help="only this one; may be repeated")
    parser.add_argument("--rows", type=_numbers, metavar="N,N,...", help="sizes of requests")
    parser.add_argument("--quick", action="store_true", help="a smaller table in 5 minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--state", type=Path, metavar="FILE", help="where finished steps are kept")
    parser.add_argument("--fresh", action="store_true", help="forget finished steps and choices")
    parser.add_argument("--zoo", type=Path, default=ZOO_FOLDER / "headline", metavar="DIR")
    parser.add_argument(
        "--render", type=Path, metavar="FILE.md", help="also put the table into this page"
    )
    parser.add_argument(
        "--no-measure", action="store_true", help="only show or render what is in the state"
    )
    parser.add_argument("--size", default="real", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    quick_state = _STATE.with_name("quick.json")
    state = State(given.state or (quick_state if given.quick else _STATE))
    if not given.no_measure:
        rows = given.rows or ((1, GOAL_ROWS) if given.quick else ROWS)
        headline = Headline(state, given.zoo, given.size, rows, is_quick=given.quick)
        settings = {"quick": given.quick, "size": given.size}
        state.begin(settings, is_fresh=given.fresh or given.quick)
        for model in given.model or (QUICK_MODELS if given.quick else MODELS):
            headline.measure(model)
    if not state.data.get("models"):
        print("there is nothing to show: nothing was measured", file=sys.stderr)
        return 1
    print(json.dumps(state.data, indent=2) if given.json else table(state.data))
    if given.render is not None:
        render(state.data, given.render)
    return int(not any(one.get("rows") for one in state.data["models"].values()))


class Headline:
    """The steps of the measurement, each of which is left out where it is done already.

    Args:
        state: What has been done.
        folder: Where models and records are.
        size: Size in the zoo.
        rows: Sizes of requests.
        is_quick: Less of all, and nothing begins after five minutes.
    """

    def __init__(
        self, state: State, folder: Path, size: str, rows: Sequence[int], *, is_quick: bool
    ) -> None:
        self._state, self._folder, self._size, self._rows = state, folder, size, tuple(rows)
        self._is_quick = is_quick
        self._pace = QUICK if is_quick else FULL
        self._began = monotonic()
        self._model = ""

    def measure(self, model: str) -> None:
        """All steps of one model."""
        self._model = model
        data: dict[str, Any] = self._state.data["models"].setdefault(model, {})
        weights = "seeded" if self._is_quick else "trained"
        self._tell(f"writing files with {weights} weights")
        rows = 4096 if self._is_quick else None
        files = build(model, self._size, self._folder, weights=weights, rows=rows)
        data |= {"weights": weights, "aucs": dict(files.aucs), "load_before": os.getloadavg()[0]}
        description = bridge_zoo.describe(model, self._size)
        data["operations_per_row"] = peak.operations(description, 1)
        if "peaks" not in data:
            wanted = list(dict.fromkeys([*peak.LARGE, *peak.products(description, GOAL_ROWS)]))
            found = peak.peaks(wanted, seconds=self._pace.peak_s, tell=self._tell)
            data["peaks"] = [one.to_dict() for one in found]
            data["ideal_us"] = {
                one: 1e6 * peak.ideal_s(description, GOAL_ROWS, found, one)
                for one in peak.PRECISIONS
                if any(other.precision == one for other in found)
            }
            self._state.save()
        records = self._choices(files, data)
        with Field(model, self._size) as field:
            # Throughput first needs the stock call's time, thus the rows.
            self._latencies(files, records, field, data)
        with Field(model, self._size) as field:
            self._aucs(files, records, field, data)
        with Field(model, self._size) as field:
            self._throughput(files, records, field, data)

    def _choices(
        self, files: Files, data: dict[str, Any]
    ) -> dict[str, tuple[Choice, SelectionRecord]]:
        found: dict[str, tuple[Choice, SelectionRecord]] = {}
        told = data.setdefault("choices", {})
        pace, skip = self._pace, list[str]()
        names = (choice.name for choice in CHOICES)
        budgets_s = dict(zip(names, pace.choices_s, strict=True))
        for index, choice in enumerate(CHOICES):
            is_known = told.get(choice.name, {"error": ""})["error"] is None
            if not is_known and self._is_over():
                continue
            self._tell(f"choosing: {choice.name}")
            try:
                record = choose(
                    files,
                    choice,
                    rows=pace.rows,
                    budget_s=budgets_s[choice.name],
                    prepare_s=pace.convert_s if index else pace.prepare_s,
                    skip=skip,
                    is_fresh=not is_known,
                    tell=self._tell,
                )
            except BridgeError as error:
                what = f"{type(error).__name__}: {error.message}"
                told[choice.name] = {"error": what}
                self._state.save()
                continue
            found[choice.name] = choice, record
            skip = skip or beaten(files, record)
            if is_known:
                continue
            told[choice.name] = {
                "summary": record.decision.summary,
                "routes": [dataclasses.asdict(one) for one in record.decision.routes],
                "tiers": {arm.id: arm.tier for arm in record.arms},
                "refused": {
                    arm.id: arm.reason for arm in record.arms if arm.status == "not_conformant"
                },
                "rows": [one.rows for one in record.buckets],
                "error": None,
            }
            self._state.save()
        return found

    def _latencies(
        self,
        files: Files,
        records: Mapping[str, tuple[Choice, SelectionRecord]],
        field: Field,
        data: dict[str, Any],
    ) -> None:
        done = data.setdefault("rows", {})
        for rows in self._rows:
            if str(rows) in done or self._is_over():
                continue
            sides = self._sides(files, records, rows)
            done[str(rows)] = self._row(field, sides, rows)
            self._state.save()

    def _sides(
        self, files: Files, records: Mapping[str, tuple[Choice, SelectionRecord]], rows: int
    ) -> list[tuple[Contender, str]]:
        """Everybody who takes part, the stock call first, with what it is."""
        first = stock(files)
        sides = [(first, "the signature's call, defaults")]
        strict = records.get(CHOICES[0].name)
        if strict is not None:
            for backend, arm in best_of_each(files, strict[1], rows).items():
                one = arm_contender(files, arm)
                name = f"tuned {backend}" if backend == first.backend else one.name
                sides.append((dataclasses.replace(one, name=name), arm.id))
        for choice, record in records.values():
            try:
                one = served(record, choice)
            except MeasureError as error:
                print(f"{choice.name}: {error.message}", file=sys.stderr)
                continue
            route = next(
                one for one in record.decision.routes if one.to_rows is None or rows <= one.to_rows
            )
            cut = f", cut into {route.split_rows}" if route.split_rows else ""
            sides.append((one, f"{route.arm}{cut}"))
        return sides

    def _row(
        self, field: Field, sides: Sequence[tuple[Contender, str]], rows: int
    ) -> dict[str, Any]:
        """Measures all sides beside the first, which has to answer."""
        entries: dict[str, dict[str, Any]] = {}
        calls: dict[str, int] = {}
        right: Mapping[str, Any] = {}
        for one, what in sides:
            self._tell(f"{rows} candidates: loading {one.name} ({what})")
            entries[one.name] = {"name": one.name, "what": what, "error": None}
            try:
                scores = field.answer(one, rows)
                right = right or scores
                typical_us = field.warm(one, rows)
            except BridgeError as error:
                entries[one.name]["error"] = f"{type(error).__name__}: {error.message}"
                if one is sides[0][0]:
                    raise MeasureError(
                        f"the call that is replaced fails at {rows} candidates: {error.message}",
                        fix=error.fix or "Without it there is nothing to compare with.",
                    ) from error
                continue
            entries[one.name]["difference"] = max(
                float(np.abs(scores[name] - values).max()) for name, values in right.items()
            )
            share = 1e6 * self._pace.slice_s / typical_us
            calls[one.name] = min(max(_LEAST_CALLS, round(share / 2)), _MOST_CALLS)
        self._tell(f"{rows} candidates: measuring {len(calls)} sides by turns")
        able = [one for one, _ in sides if one.name in calls]
        blocks: dict[str, list[float]] = {one.name: [] for one in able}
        every: dict[str, list[float]] = {one.name: [] for one in able}
        order = random.Random(rows)  # noqa: S311 - an order, no secret
        for _ in range(self._pace.blocks):
            turns = order.sample(able, len(able))
            logs: dict[str, list[float]] = {one.name: [] for one in able}
            for one in (*turns, *turns[::-1]):
                us = field.time(one, rows, calls[one.name]).us
                every[one.name] += us
                logs[one.name].append(math.log(median(us)))
            for name, halves in logs.items():
                blocks[name].append(math.exp(sum(halves) / len(halves)))
        base = sides[0][0].name
        for name, found in blocks.items():
            ratios = [theirs / mine for mine, theirs in zip(found, blocks[base], strict=True)]
            entries[name] |= {
                "p50_us": median(every[name]),
                "p99_us": percentile(every[name], 0.99),
                "calls": len(every[name]),
                "ratio": dataclasses.asdict(bootstrap_median(ratios)),
            }
        return {
            "rows": rows,
            "blocks": self._pace.blocks,
            "load": os.getloadavg()[0],
            "entries": list(entries.values()),
        }

    def _aucs(
        self,
        files: Files,
        records: Mapping[str, tuple[Choice, SelectionRecord]],
        field: Field,
        data: dict[str, Any],
    ) -> None:
        """AUC over requests of many users, which no selection has seen."""
        if "auc" in data or self._is_over():
            return
        self._tell(f"AUC over {self._pace.users} requests of {GOAL_ROWS} candidates")
        first = stock(files)
        judge = Judge(files, field, first, GOAL_ROWS, self._pace.users)
        told: dict[str, Any] = {}
        for choice, record in records.values():
            try:
                found = judge.of(served(record, choice))
            except BridgeError as error:
                told[choice.name] = {"error": error.message}
                continue
            told[choice.name] = {"metrics": [dataclasses.asdict(one) for one in found]}
        data["auc"] = told
        self._state.save()

    def _throughput(
        self,
        files: Files,
        records: Mapping[str, tuple[Choice, SelectionRecord]],
        field: Field,
        data: dict[str, Any],
    ) -> None:
        rows = GOAL_ROWS
        latency = data["rows"].get(str(rows))
        if "throughput" in data or latency is None or self._is_over():
            return
        limit_us = LIMIT * latency["entries"][0]["p50_us"]
        rivals = [throughput.Rival(name="stock", configurations=(stock(files), stock(files, 1)))]
        rivals += [
            throughput.Rival(name=choice.name, configurations=self._ways(files, choice, record))
            for choice, record in records.values()
            if record.decision.routes
        ]
        try:
            entries = throughput.rates(
                field, rivals, rows, limit_us, pace=self._pace.load, tell=self._tell
            )
        except BridgeError as error:
            print(f"throughput: {type(error).__name__}: {error.message}", file=sys.stderr)
            return
        data["throughput"] = {"rows": rows, "limit_us": limit_us, "entries": entries}
        self._state.save()

    @staticmethod
    def _ways(files: Files, choice: Choice, record: SelectionRecord) -> tuple[Contender, ...]:
        """What a choice may be configured as: its arm, and others that are nearly as fast."""
        route = next(
            one for one in record.decision.routes if one.to_rows is None or one.to_rows >= GOAL_ROWS
        )
        arm = record.arm(route.arm)
        path = record.models[arm.model].path
        assert record.folder is not None
        assert path is not None, "models that serve are copied into the record"
        ways = [
            Contender(
                name=choice.name,
                path=record.folder / path,
                backend=arm.backend,
                options=dict(arm.options),
                takes_user_once=choice.takes_user_once,
            )
        ]
        limit_s = NEAR * _median_s(arm)
        if not choice.takes_user_once:
            ways += [
                arm_contender(files, other)
                for name, other in best_of_each(files, record, GOAL_ROWS).items()
                if name != arm.backend and _median_s(other) <= limit_s
            ]
        return throughput.configurations(ways)

    def _is_over(self) -> bool:
        """Whether the time of ``--quick`` is used up."""
        return self._is_quick and monotonic() > self._began + _QUICK_S * 0.85

    def _tell(self, text: str) -> None:
        print(f"{monotonic() - self._began:5.0f} s  {self._model}: {text}", file=sys.stderr)


def _median_s(arm: ArmRecord) -> float:
    seen = arm.bucket(GOAL_ROWS)
    return math.inf if seen is None or seen.median_s is None else seen.median_s


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(int(one) for one in text.split(","))
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError("wanted numbers from 1 on, such as 1,16,128")
    return found


if __name__ == "__main__":
    sys.exit(main())
