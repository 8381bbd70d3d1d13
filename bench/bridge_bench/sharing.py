"""How predictors share the CPUs: ``python -m bridge_bench.sharing`` prints two tables.

The first is about one predictor called by two threads: calls in a second over those of one
thread, each call computed by one thread; answers have to be those of serial calls. The
second is about two predictors of two runtimes in one process, each called by a thread of
its own without a pause: the 99th percentile over that of each alone, in a process of its
own that may use half of the CPUs; with a thread budget of one, and without any.

The model is the ranker of the zoo with 128 rows. Each configuration has a process, which
sleeps while another has its turn; turns are in random order. A figure is the median over
rounds, an interval of 95 % is bootstrapped over rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.backend import Backend
from bridge.check import Arrays
from bridge.cpus import set_thread_budget, usable_cpus
from bridge.device import CPU
from bridge.errors import BridgeError, MeasureError
from bridge.loading import load
from bridge.slice import await_rest, drift
from bridge_bench.conditions import conditions, heading, sentence
from bridge_bench.process import SERVE, Process, serve
from bridge_bench.stats import bootstrap_median, median, percentile
from bridge_bench.subject import ZOO_FOLDER, Subject, cpu_backends, is_native, rankers

__all__ = ["LEAST_GAIN", "MOST_P99", "Callers", "main"]

LEAST_GAIN = 1.7
"""Calls of two threads over those of one."""
MOST_P99 = 1.5
"""The 99th percentile beside another predictor over that alone on half the CPUs."""
ROWS = 128
VARIANTS = 8
WARM_CALLS = 30
PAUSE_S = 0.15  # until threads of the process before have stopped spinning
COMPILED = "aot_inductor"
# Which file of the ranker a backend gets: the first that it takes, of those native to it.
_PREFERRED = ("onnx", "saved_model", "exported_program", "torchscript")
_MODULE = "bridge_bench.sharing"


class Callers:
    """In the measuring process: predictors by name, and threads that call them."""

    def __init__(self) -> None:
        self._calls: dict[str, Callable[[Arrays], Arrays]] = {}
        self._variants: dict[str, list[Arrays]] = {}

    def load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Loads a model and warms it up; the threads that its runtime reports."""
        subject = Subject.from_dict(request["subject"])
        set_thread_budget(request["budget"])
        model = subject.open()
        predictor = load(model, backend=request["backend"], options=dict(request["options"]))
        name = request["name"]
        variants = subject.inputs(model, predictor.signature, request["rows"], VARIANTS)
        self._variants[name] = variants
        self._calls[name] = predictor.predict
        for turn in range(request["warm_calls"]):
            predictor.predict(variants[turn % VARIANTS])
        return {"threads": predictor.info.threads}

    def drift(self, name: str, threads: int) -> dict[str, Any]:
        """How far answers to several threads at once are from serial ones; 0 for equal."""
        call, variants = self._calls[name], self._variants[name]
        serial = [call(one) for one in variants]
        found: list[float] = []

        def ask(first: int) -> None:
            for turn in range(first, first + 2 * VARIANTS):
                index = turn % VARIANTS
                found.append(drift(call(variants[index]), serial[index]))

        _side_by_side([lambda first=first: ask(first) for first in range(threads)])  # type: ignore[misc]
        return {"drift": max(found)}

    def run(self, names: Sequence[str], seconds: float) -> dict[str, Any]:
        """One thread for each name, calling without a pause.

        Returns:
            ``per_s``, calls of all threads in a second; ``p50_us`` and ``p99_us`` of each.
        """
        await_rest()
        begun: list[int] = []
        times: list[list[int]] = [[] for _ in names]
        ended: list[int] = []
        together = threading.Barrier(len(names))

        def call_on(name: str, found: list[int]) -> None:
            call, variants, clock = self._calls[name], self._variants[name], perf_counter_ns
            together.wait()
            now = start = clock()
            ends = start + int(seconds * 1e9)
            turn = 0
            while now < ends:
                before = now
                call(variants[turn % VARIANTS])
                turn += 1
                now = clock()
                found.append(now - before)
            begun.append(start)
            ended.append(now)

        gc.collect()
        gc.disable()  # a collection in a call would be counted as the call's own time
        try:
            _side_by_side(
                [
                    lambda name=name, found=found: call_on(name, found)  # type: ignore[misc]
                    for name, found in zip(names, times, strict=True)
                ]
            )
        finally:
            gc.enable()
        count = sum(len(found) for found in times)
        arrays: list[npt.NDArray[Any]] = [np.array(found) / 1e3 for found in times]
        return {
            "per_s": count / ((max(ended) - min(begun)) / 1e9),
            "p50_us": [median(one) for one in arrays],
            "p99_us": [percentile(one, 0.99) for one in arrays],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; the exit status, 1 on a missed goal, a failure or no rows."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_bench.sharing",
        description="How predictors share the CPUs with other threads, and with each other.",
    )
    parser.add_argument("--backend", action="append", help="only this one; may be repeated")
    parser.add_argument("--part", choices=("threads", "together"), help="only one of the tables")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each; default: 7")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn; default: 2")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--zoo", type=Path, default=ZOO_FOLDER, metavar="DIR")
    parser.add_argument("--size", default="real", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if usable_cpus() < 2:
        print("two CPUs are needed: with one, nothing runs side by side", file=sys.stderr)
        return 1
    known = cpu_backends(given.backend or ())
    formats = frozenset[str]().union(*(one.capabilities(CPU).formats for one in known))
    models = {one.format: one for one in rankers(given.zoo, given.size, sorted(formats))}
    known = [one for one in known if one.capabilities(CPU).formats & models.keys()]
    about = {**conditions(), "rows": ROWS, "rounds": given.rounds, "seconds": given.seconds}
    alone: list[dict[str, Any]] = []
    together: list[dict[str, Any]] = []
    if given.part != "together":
        for arm in _arms(known, models):
            print(f"threads: {arm['label']} ...", file=sys.stderr, flush=True)
            alone.append(_gain(arm, given.rounds, given.seconds))
    if given.part != "threads":
        arms = [_arm(one, models) for one in known]
        for pair in itertools.combinations(arms, 2):
            both = " and ".join(one["label"] for one in pair)
            print(f"together: {both} ...", file=sys.stderr, flush=True)
            together += _beside(pair, given.rounds, given.seconds)
    found = {**about, "threads": alone, "together": together}
    print(json.dumps(found, indent=2) if given.json else _tables(found))
    every = alone + together
    return int(not every or any(row["verdict"] in ("missed", "failed") for row in every))


def _arms(known: Sequence[Backend], models: Mapping[str, Subject]) -> list[dict[str, Any]]:
    """What is called by two threads: each way of a backend to compute calls by one thread.

    Where an option divides the threads of all calls into streams, one thread makes one
    stream, so that two threads in two streams are tried as well.
    """
    found = []
    for backend in known:
        fields = {one.name: one for one in backend.options_type.describe()}
        one_thread: dict[str, Any] = {"threads": 1} if "threads" in fields else {}
        arm = _arm(backend, models, one_thread)
        found.append({**arm, "is_shared": "streams" not in fields})
        if "streams" in fields:
            found.append(_arm(backend, models, {"threads": 2, "streams": 2}))
        is_exported = arm["subject"]["format"] == "exported_program"
        if is_exported and any(COMPILED in (one.choices or ()) for one in fields.values()):
            found.append(_arm(backend, models, {**one_thread, "execution": COMPILED}))
    return found


def _arm(
    backend: Backend, models: Mapping[str, Subject], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    taken = backend.capabilities(CPU).formats
    fitting = [models[one] for one in _PREFERRED if one in taken and one in models]
    subject = next((one for one in fitting if is_native(one.format, backend)), fitting[0])
    words = [f"{name}={value}" for name, value in (options or {}).items()]
    return {
        "label": " ".join([backend.name, backend.probe().version or "", *words]),
        "backend": backend.name,
        "subject": subject.to_dict(),
        "options": dict(options or {}),
        "is_shared": True,
    }


def _loaded(process: Process, arm: Mapping[str, Any], name: str, budget: int | None) -> None:
    request = {key: arm[key] for key in ("backend", "subject", "options")}
    more = {"rows": ROWS, "warm_calls": WARM_CALLS, "budget": budget, "name": name}
    process.ask({**request, **more, "do": "load"}, timeout_s=1800)


def _run(process: Process, names: Sequence[str], seconds: float) -> dict[str, Any]:
    sleep(PAUSE_S)
    return process.ask({"do": "run", "names": list(names), "seconds": seconds})


def _gain(arm: Mapping[str, Any], rounds: int, seconds: float) -> dict[str, Any]:
    """A row of the first table."""
    row: dict[str, Any] = {key: arm[key] for key in ("label", "backend", "options")} | {
        "format": arm["subject"]["format"],
        "verdict": "failed",
        "error": None,
    }
    order = random.Random(0)  # noqa: S311 - an order, no secret
    per_s: dict[int, list[float]] = {1: [], 2: []}
    try:
        with Process(_MODULE) as process:
            _loaded(process, arm, "it", None)
            row["drift"] = process.ask({"do": "drift", "name": "it", "threads": 2})["drift"]
            for _ in range(rounds):
                for count in order.sample([1, 2], 2):
                    per_s[count].append(_run(process, ["it"] * count, seconds)["per_s"])
    except BridgeError as error:
        return {**row, "error": f"{type(error).__name__}: {error.message}"}
    gain = bootstrap_median([two / one for one, two in zip(*per_s.values(), strict=True)])
    row.update(one_per_s=median(per_s[1]), two_per_s=median(per_s[2]))
    row["gain"] = dataclasses.asdict(gain)
    if not arm["is_shared"]:
        row["verdict"] = "one thread for all calls"
    elif row["drift"] > 0:
        row["verdict"] = "missed"
    else:
        row["verdict"] = _verdict(gain.value >= LEAST_GAIN, gain.high >= LEAST_GAIN)
    return row


def _beside(pair: Sequence[Mapping[str, Any]], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Two rows of the second table, one for each of the two predictors."""
    rows = [
        {
            "label": one["label"],
            "beside": other["label"],
            "verdict": "failed",
            "error": None,
        }
        for one, other in zip(pair, pair[::-1], strict=True)
    ]
    names = ["first", "second"]
    order = random.Random(0)  # noqa: S311 - an order, no secret
    try:
        with ExitStack() as stack:
            turns: dict[str, tuple[Process, list[str]]] = {}
            half = _half_of_the_cpus()
            for name, arm in zip(names, pair, strict=True):
                process = stack.enter_context(Process(_MODULE, cpus=half))
                _loaded(process, {**arm, "options": {"threads": 1}}, name, None)
                turns[name] = process, [name]
            for label, budget in (("budget", 1), ("none", None)):
                process = stack.enter_context(Process(_MODULE))
                for name, arm in zip(names, pair, strict=True):
                    _loaded(process, arm, name, budget)
                turns[label] = process, names
            found: dict[str, list[dict[str, Any]]] = {label: [] for label in turns}
            for _ in range(rounds):
                for label in order.sample(list(turns), len(turns)):
                    found[label].append(_run(*turns[label], seconds))
    except BridgeError as error:
        return [{**row, "error": f"{type(error).__name__}: {error.message}"} for row in rows]
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        p99_us = {
            "alone": [one["p99_us"][0] for one in found[name]],
            "budget": [one["p99_us"][index] for one in found["budget"]],
            "none": [one["p99_us"][index] for one in found["none"]],
        }
        row["p50_us"] = {
            "alone": median([one["p50_us"][0] for one in found[name]]),
            "budget": median([one["p50_us"][index] for one in found["budget"]]),
            "none": median([one["p50_us"][index] for one in found["none"]]),
        }
        row["p99_us"] = {label: median(times) for label, times in p99_us.items()}
        ratios = {
            label: bootstrap_median(
                [mine / base for mine, base in zip(p99_us[label], p99_us["alone"], strict=True)]
            )
            for label in ("budget", "none")
        }
        row["p99_ratio"] = {label: dataclasses.asdict(one) for label, one in ratios.items()}
        with_budget = ratios["budget"]
        row["verdict"] = _verdict(with_budget.value <= MOST_P99, with_budget.low <= MOST_P99)
    return rows


def _half_of_the_cpus() -> list[int]:
    if not hasattr(os, "sched_getaffinity"):
        raise MeasureError(
            "this system cannot bind a process to CPUs.", fix="Measure this on Linux."
        )
    every = sorted(os.sched_getaffinity(0))
    return every[: max(1, usable_cpus() // 2)]


def _side_by_side(acts: Sequence[Callable[[], object]]) -> None:
    """Runs all at once, each in a thread; raises what the first to fail raised."""
    failures: list[BaseException] = []

    def work(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _verdict(is_met: bool, may_be: bool) -> str:
    return "met" if is_met else "open" if may_be else "missed"


def _serve() -> int:
    callers = Callers()

    def answer(request: dict[str, Any]) -> Mapping[str, Any]:
        if request["do"] == "load":
            return callers.load(request)
        if request["do"] == "drift":
            return callers.drift(request["name"], request["threads"])
        return callers.run(request["names"], request["seconds"])

    return serve(answer)


def _tables(found: Mapping[str, Any]) -> str:
    how = f"ranker, {found['rows']} rows; {found['rounds']} rounds of {found['seconds']:g} s each"
    lines = [sentence(found, how)]
    if found["threads"]:
        columns: tuple[str, ...] = (
            "predictor",
            "format",
            "1 thread, calls/s",
            "2 threads, calls/s",
            "gain",
            "answers",
            f"≥ {LEAST_GAIN}",
        )
        lines += ["", *heading(columns)]
    for row in found["threads"]:
        cells = [row["label"], row["format"]]
        if row["error"] is not None:
            cells += ["-"] * 4 + [f"failed: {row['error']}"]
        else:
            same = "as serial" if row["drift"] == 0 else f"off by {row['drift']:.2g}"
            cells += [f"{row['one_per_s']:.1f}", f"{row['two_per_s']:.1f}"]
            cells += [_interval(row["gain"]), same, row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    if found["together"]:
        columns = (
            "predictor",
            "beside",
            "alone on half the CPUs, p50 and p99, ms",
            "budget of 1, ms",
            "p99 ÷ alone",
            f"≤ {MOST_P99}",
            "no budget, ms",
            "p99 ÷ alone",
        )
        lines += ["", *heading(columns)]
    for row in found["together"]:
        cells = [row["label"], row["beside"]]
        if row["error"] is not None:
            cells += ["-"] * 3 + [f"failed: {row['error']}", "-", "-"]
        else:
            times = {
                label: f"{row['p50_us'][label] / 1e3:.2f}, {row['p99_us'][label] / 1e3:.2f}"
                for label in ("alone", "budget", "none")
            }
            ratios = {label: _interval(one) for label, one in row["p99_ratio"].items()}
            cells += [times["alone"], times["budget"], ratios["budget"], row["verdict"]]
            cells += [times["none"], ratios["none"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    sys.exit(_serve() if sys.argv[1:] == [SERVE] else main())
