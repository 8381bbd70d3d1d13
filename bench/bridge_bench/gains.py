"""What each option of each backend gains on the ranker of the zoo.

``python -m bridge_bench.gains MODEL... -o FILE`` takes the ranker in several formats,
tries the values that follow from the type of each option, and writes what came of them
as JSON. A gain is the time of a call with the defaults, divided by that with the value:
above 1 the value is faster. Both predictors live in one process (in two, one of them
stopped, where an option takes hold of the whole process) and take turns in short slices,
in random order, so that the ups and downs of the machine fall on both. A case ``16x2`` is
of 16 rows, with two threads that call at once: what counts then is how many calls end.

Values that are illegal alone are tried beside another option that makes them legal, and
then both sides have that option. What is refused, crashes or cannot be tried is part of
the result, with the reason.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import bridge_zoo
from bridge.backend import Backend
from bridge.cpus import usable_cpus
from bridge.device import CPU, driver_devices
from bridge.errors import BridgeError, OptionError, PredictTimeout, WorkerDied
from bridge.isolation import Worker
from bridge.loading import backends, open_model
from bridge.model import ModelRef
from bridge.options import OptionField, Options
from bridge.registry import registry
from bridge_bench.stats import duel, median
from bridge_bench.subject import ranker_signature
from bridge_zoo import SIZES, Ranker

__all__ = ["Trial", "main", "trials", "values"]

CASES = ("16", "512", "16x2")  # rows, and how many threads call at once
BLOCKS = 10
SLICE_S = 0.05  # long against a context switch, short against drift
CALLS = (2, 300)  # least and most in a slice
VARIANTS = 4  # sets of inputs used in turn, because equal inputs flatter caches
WAIT_S = 240.0  # for a load that compiles, and for first calls that do


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One value of one option, or why there is none to try.

    Attributes:
        option: Name of the option.
        value: The value; ``None`` where there is none.
        beside: Options that both sides have, because the value is illegal without.
        reason: Why it is not measured, one sentence without the full stop; empty if it is.
    """

    option: str
    value: Any = None
    beside: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def values(one: OptionField) -> tuple[Any, ...]:
    """Values worth trying that follow from the type of an option, its default left out.

    Every choice; both truths; of whole numbers without a unit the least, 1 and 2.
    """
    kinds = one.type.split(" | ")
    found: list[Any] = []
    if one.choices is not None:
        found = list(one.choices)
    elif "bool" in kinds:
        found = [True, False]
    elif "int" in kinds and one.unit is None:
        low, high = one.minimum, one.maximum
        numbers = {1, 2} if low is None else {1, 2, int(low)}
        found = [
            number
            for number in sorted(numbers)
            if (low is None or number >= low) and (high is None or number <= high)
        ]
    # By type as well, because True is 1.
    return tuple(item for item in found if (type(item), item) != (type(one.default), one.default))


def trials(options_type: type[Options], device: str = "cpu") -> list[Trial]:
    """What to try of each option, in their order; at least one entry for each."""
    fields = options_type.describe()
    found = []
    for one in fields:
        if one.devices is not None and device not in one.devices:
            found.append(Trial(option=one.name, reason=f"it acts on {_listed(one.devices)} only"))
            continue
        tried = values(one)
        if not tried:
            found.append(Trial(option=one.name, reason=_why_none(one)))
        found += [_trial(options_type, one.name, value) for value in tried]
    return found


def _why_none(one: OptionField) -> str:
    if one.unit is not None:
        return f"how many {one.unit} are right depends on the model"
    return f"its value ({one.type}) depends on the model or the machine"


def _trial(options_type: type[Options], name: str, value: Any) -> Trial:
    """The trial of a value, beside whatever other option makes it legal."""
    try:
        options_type.make({name: value})
    except OptionError as error:
        reason = error.message
    else:
        return _unless_same(options_type, Trial(option=name, value=value))
    for other in options_type.describe():
        for beside in values(other) if other.name != name else ():
            both = {other.name: beside}
            try:
                options_type.make(both)
                options_type.make({**both, name: value})
            except OptionError:
                continue
            return _unless_same(options_type, Trial(option=name, value=value, beside=both))
    return Trial(option=name, value=value, reason=reason.rstrip("."))


def _unless_same(options_type: type[Options], trial: Trial) -> Trial:
    without = options_type.make(trial.beside)
    having = options_type.make({**trial.beside, trial.option: trial.value})
    if having.effective() != without.effective():
        return trial
    return Trial(
        option=trial.option,
        value=trial.value,
        beside=trial.beside,
        reason=f"it means the same as the default with {usable_cpus()} CPUs",
    )


class _Stage:
    """The workers of one backend, and what the first of them has in slot 0."""

    def __init__(
        self,
        backend: Backend,
        cases: Sequence[str],
        ranker: Ranker,
        blocks: int,
    ) -> None:
        self._backend = backend
        self._cases = cases
        self._batches = {
            rows: [dict(bridge_zoo.inputs(ranker, rows, seed)) for seed in range(VARIANTS)]
            for rows in {_read(case)[0] for case in cases}
        }
        self._blocks = blocks
        self._signature = ranker_signature(ranker)
        self._worker: Worker | None = None
        self._standing: tuple[Path, dict[str, Any]] | None = None
        self._standing_load_s = 0.0

    def close(self) -> None:
        """Ends the worker; the next trial starts another."""
        if self._worker is not None:
            self._worker.close()
        self._worker = self._standing = None

    def measured(self, trial: Trial, model: ModelRef) -> dict[str, Any]:
        """Gain by case, and how long both sides take to load.

        Raises:
            BridgeError: A side cannot be loaded or run.
        """
        own = {**trial.beside, trial.option: trial.value}
        make = self._backend.options_type.make
        with self._apart(make(own).process_key() != make(trial.beside).process_key()) as other:
            ours = self._stand(model, dict(trial.beside))
            slot = 1 if other is ours else 0
            if other is not ours:
                ours.pause()
            load_s = self._load(other, model, own, slot)
            sides = ((ours, 0), (other, slot))
            gains = {case: self._duel(sides, case) for case in self._cases}
            if other is ours:
                ours.unload(1)
            return {
                "gains": gains,
                "load_s": load_s,
                "default_load_s": self._standing_load_s,
                "tier": make(own).tier,
            }

    @contextmanager
    def _apart(self, is_apart: bool) -> Iterator[Worker]:
        """The worker for the value: the first one, or one that ends with the trial."""
        if self._worker is None:
            self._worker = self._start()
        first = self._worker
        if not is_apart:
            yield first
            return
        with self._start() as other:
            try:
                yield other
            finally:
                first.resume()

    def _start(self) -> Worker:
        worker = Worker()
        try:
            worker.prepare_runtime(self._backend.name)
            for rows, variants in self._batches.items():
                worker.keep_inputs(str(rows), variants)
        except BaseException:
            worker.close()
            raise
        return worker

    def _stand(self, model: ModelRef, beside: dict[str, Any]) -> Worker:
        """The first worker, with the side to compare with in slot 0."""
        assert self._worker is not None
        if self._standing != (model.file, beside):
            self._standing = None
            self._standing_load_s = self._load(self._worker, model, beside, 0)
            self._standing = (model.file, beside)
        return self._worker

    def _load(self, worker: Worker, model: ModelRef, options: dict[str, Any], slot: int) -> float:
        """Loads twice, because the first time may fill a cache; seconds of the quicker one."""
        signature = None if model.facts.tells_inputs else self._signature
        return min(
            worker.load(
                model.file,
                backend=self._backend.name,
                device=CPU,
                options=options,
                signature=signature,
                slot=slot,
                timeout_s=WAIT_S,
            ).load_s
            for _ in range(2)
        )

    def _duel(self, sides: Sequence[tuple[Worker, int]], case: str) -> dict[str, float]:
        calls = [self._calls(side, sides, case) for side in sides]
        times: list[list[float]] = [[] for _ in sides]
        order = random.Random(case)  # noqa: S311 - an order, no secret
        for _ in range(self._blocks):
            for index in order.sample(range(len(sides)), len(sides)):
                times[index].append(self._slice(sides[index], sides, case, calls[index]))
        found = duel(times[0], times[1])
        return {
            "gain": round(found.value, 4),
            "low": round(found.low, 4),
            "high": round(found.high, 4),
            "default_us": round(median(times[0]) / 1e3, 1),
            "us": round(median(times[1]) / 1e3, 1),
        }

    def _calls(
        self, side: tuple[Worker, int], sides: Sequence[tuple[Worker, int]], case: str
    ) -> int:
        """Calls in a slice; what the first calls compile or allocate is done by then."""
        for _ in range(2):
            call_s = self._slice(side, sides, case, 3) / 1e9
        return min(max(round(SLICE_S / call_s), CALLS[0]), CALLS[1])

    def _slice(
        self, side: tuple[Worker, int], sides: Sequence[tuple[Worker, int]], case: str, calls: int
    ) -> float:
        """Time of a call in one turn, in nanoseconds; another process is stopped meanwhile."""
        worker, slot = side
        rows, callers = _read(case)
        for other, _ in sides:
            if other is not worker:
                other.pause()
        worker.resume()
        found = worker.measure(
            calls * callers,
            slot=slot,
            key=str(rows),
            discard=1,
            callers=callers,
            timeout_s=WAIT_S,
        )
        return median(found.ns) if callers == 1 else found.elapsed_ns / len(found.ns)


def _read(case: str) -> tuple[int, int]:
    """Rows and callers of a case."""
    rows, _, callers = case.partition("x")
    return int(rows), int(callers or 1)


def measure(
    backend: Backend,
    models: Sequence[ModelRef],
    ranker: Ranker,
    *,
    cases: Sequence[str] = CASES,
    blocks: int = BLOCKS,
    budget_s: float = 600.0,
) -> list[dict[str, Any]]:
    """Tries every option of one backend.

    Args:
        backend: The backend; if it cannot run here, the result says so of each option.
        models: The ranker in formats of which it loads one at least.
        ranker: Its description.
        cases: Rows, and with ``x2`` behind them two callers.
        blocks: Turns of each side, two at least.
        budget_s: No trial begins later.

    Returns:
        For each trial ``option``, ``value``, ``beside`` and ``reason``; where that is empty
        also ``format``, ``tier``, ``load_s``, ``default_load_s`` and ``gains``: by case the
        ``gain`` with its 95 % interval ``low`` to ``high``, and the medians ``default_us``
        and ``us``.
    """
    ends = time.monotonic() + budget_s
    reason = _why_not(backend)
    if reason:
        return [
            {"option": one.name, "value": None, "beside": {}, "reason": reason}
            for one in backend.options_type.describe()
        ]
    formats = backend.capabilities(CPU).formats
    able = [model for model in models if model.format.name in formats]
    able.sort(key=lambda model: model.format.native_backend != backend.name)
    stage = _Stage(backend, cases, ranker, blocks)
    asked = trials(backend.options_type)
    found: dict[int, dict[str, Any]] = {}
    # Equal neighbours are loaded once; what compiles may use up the time, so it comes last.
    order = sorted(range(len(asked)), key=lambda one: _turn(backend.options_type, asked[one]))
    try:
        for index in order:
            trial = asked[index]
            found[index] = {
                "option": trial.option,
                "value": trial.value,
                "beside": dict(trial.beside),
                "reason": trial.reason,
            }
            if not trial.reason and time.monotonic() > ends:
                found[index]["reason"] = "there was no time left"
            if not found[index]["reason"]:
                print(f"{backend.name} {trial.option}={trial.value}", file=sys.stderr, flush=True)
                found[index].update(_tried(stage, trial, able))
    finally:
        stage.close()
    return [found[index] for index in range(len(asked))]


def _why_not(backend: Backend) -> str:
    """Why nothing of a backend can be measured here; empty if it can."""
    if not backend.probe().installed:
        return "its runtime is not installed"
    if not backend.capabilities(CPU).predicts:
        return f"it runs on {_listed(backend.device_kinds)} only"
    return ""


def _count(backend: Backend) -> int:
    """How many trials of a backend are to be measured."""
    if _why_not(backend):
        return 0
    return sum(not one.reason for one in trials(backend.options_type))


def _turn(options_type: type[Options], trial: Trial) -> tuple[bool, bool, str]:
    prepares = (
        not trial.reason and options_type.make({**trial.beside, trial.option: trial.value}).prepares
    )
    return prepares, bool(trial.beside), str(dict(trial.beside))


def _tried(stage: _Stage, trial: Trial, models: Sequence[ModelRef]) -> dict[str, Any]:
    """What came of a trial on the first model whose format allows it."""
    reason = "the ranker is in no format that it loads"
    refusals = []
    for model in models:
        try:
            return {"format": model.format.name, **stage.measured(trial, model)}
        except (WorkerDied, PredictTimeout) as error:
            stage.close()
            return {"reason": error.message.rstrip(".")}
        except BridgeError as error:  # of another format it may be legal
            refusals.append(error.message.rstrip("."))
    return {"reason": refusals[0] if refusals else reason}


def about(backend: Backend, command: str) -> dict[str, Any]:
    """What the figures of one backend depend on besides the ranker."""
    (_, processor), *_ = driver_devices()
    return {
        "version": backend.probe().version,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{processor}, {usable_cpus()} CPUs, {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "command": command,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.gains", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--backend", action="append", help="only this backend; may be repeated")
    parser.add_argument("--size", choices=SIZES, default="real", help="size of the ranker")
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="default: %(default)s")
    parser.add_argument("--budget-s", type=float, default=540.0, help="default: %(default)s")
    given = parser.parse_args(arguments)
    models = [open_model(path) for path in given.models]
    ranker = bridge_zoo.describe("ranker", given.size)
    names = given.backend or list(backends())
    known = {name: registry().backends.get(name) for name in names}
    ends = time.monotonic() + given.budget_s
    # Backends that are not measured now keep what was measured before.
    document = json.loads(given.output.read_text("utf-8")) if given.output.exists() else {}
    command = f"python -m bridge_bench.gains {' '.join(path.name for path in given.models)}"
    shares = {name: _count(known[name]) for name in names}
    for name in names:
        backend = known[name]
        left = max(sum(shares.values()), 1)
        share_s = (ends - time.monotonic()) * shares.pop(name) / left
        document[name] = {
            "about": about(backend, command),
            "results": measure(
                backend,
                models,
                ranker,
                cases=given.cases.split(","),
                blocks=given.blocks,
                budget_s=share_s,
            ),
        }
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    given.output.write_text(text + "\n", encoding="utf-8")
    return 0


def _listed(words: Sequence[str]) -> str:
    return " and ".join(words)


if __name__ == "__main__":
    sys.exit(main())
