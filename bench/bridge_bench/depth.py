"""What the bridge's default costs or gains on real models: ``python -m bridge_bench.depth``.

For every installed backend and every model that it takes (the real ones that ``make``
unpacks, and a ranker of 60 MB with 1 to 512 rows) it prints the time of ``predict`` and
of a bound call over that of the backend's ``native.py``, which gets the same precision
and number of threads; besides, a model compiled ahead of time over its eager native call.

Both sides live in one process, and no other runtime does. Each block has a slice of calls
of each side, in random order and then in the reverse order; before a slice everything in
the process has come to rest, because threads of the other side may spin for a while after
its last call. Every call gets other inputs than the one before. A figure is the median
over blocks; intervals of 95 % are bootstrapped over blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from bridge.backend import Backend
from bridge.check import Arrays
from bridge.device import CPU
from bridge.errors import BridgeError, PredictError, PredictTimeout, UnsupportedModel
from bridge.loading import backends, load
from bridge.predictor import Predictor
from bridge.record import Interval
from bridge_bench.agreement import agreement
from bridge_bench.blocks import FULL, QUICK, VARIANTS, Pace, Side, measure
from bridge_bench.conditions import conditions, heading, sentence
from bridge_bench.process import SERVE, Process, serve
from bridge_bench.stats import bootstrap_median, median
from bridge_bench.subject import (
    MODELS_FOLDER,
    ZOO_FOLDER,
    Subject,
    cpu_backends,
    is_native,
    rankers,
    real_models,
    takes,
)

__all__ = ["Contest", "Goal", "contests", "goals", "main"]

TOLERANCE = 1e-3  # of outputs, absolute and relative: a check of the bench, not of the runtime
SHORT_US = 300.0
COMPILED = "aot_inductor"
QUICK_S = 52.0  # of the 60 s that are promised; the rest is for starting and for a last block
_LOAD_S = 2.5  # what loading one model of one backend takes, about
_MOST_LOAD_S = 1800.0  # compiling included
_LEFT_OUT = "left out: the time of --quick was over"
_REFUSED = "refused"
_NONE = "-"


@dataclass(frozen=True)
class Goal:
    """What a ratio has to reach.

    Attributes:
        side: ``predict`` or ``bound``.
        limit: Largest median.
        reach: The interval has to begin here or below.
    """

    side: str
    limit: float
    reach: float

    def verdict(self, ratio: Interval) -> str:
        """``met``, ``missed``, or ``open`` where only more blocks could tell."""
        if ratio.low > self.reach:
            return "missed"
        return "met" if ratio.value <= self.limit else "open"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One model on one backend, with these options against the native default."""

    backend: Backend
    subject: Subject
    options: Mapping[str, Any] = field(default_factory=dict)


def contests(
    given: Sequence[Backend], subjects: Callable[[Sequence[str]], Sequence[Subject]]
) -> list[Contest]:
    """Every backend with every model that it takes, backend by backend.

    Args:
        given: The backends.
        subjects: Models of these formats.
    """
    formats = frozenset[str]().union(*(one.capabilities(CPU).formats for one in given))
    every = subjects(sorted(formats))
    found = []
    for backend in given:
        theirs = [one for one in every if takes(one.format, backend)]
        found += [Contest(backend=backend, subject=one) for one in theirs]
        # Last, because compiling may take longer than there is time for.
        found += [
            Contest(backend=backend, subject=one, options=options)
            for one in theirs
            if one.format == "exported_program"
            for options in _compiling(backend)
        ]
    return found


def goals(contest: Contest, rows: int, native_us: float) -> list[Goal]:
    """What this ratio has to reach; the stricter goal where there are two."""
    subject, backend = contest.subject, contest.backend
    if contest.options:
        return [Goal("predict", 0.85, 0.85)]
    found = [Goal("predict", 1.00, 1.00) if native_us < SHORT_US else Goal("predict", 1.02, 1.00)]
    if not subject.size:
        return found
    if subject.format == "saved_model" and rows == 1 and is_native(subject.format, backend):
        found = [Goal("predict", 0.70, 0.70)]
    if subject.format == "onnx" and rows <= 16 and backend.capabilities(CPU).bind:
        found.append(Goal("bound", 0.97, 0.97))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status, 1 on a missed goal, a failure or no rows."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_bench.depth",
        description="Time of the bridge over that of each runtime's own call, on real models.",
    )
    parser.add_argument("--backend", action="append", help="only this one; may be repeated")
    parser.add_argument("--model", action="append", help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="the same in 60 s, less sharply")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seconds", type=float, help="time for each row of the table")
    parser.add_argument("--models", type=Path, default=MODELS_FOLDER, metavar="DIR")
    parser.add_argument("--zoo", type=Path, default=ZOO_FOLDER, metavar="DIR")
    parser.add_argument("--size", default="real", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)

    def subjects(formats: Sequence[str]) -> list[Subject]:
        found = [one for one in real_models(given.models) if one.format in formats]
        if not given.model or "ranker" in given.model:
            found += rankers(given.zoo, given.size, formats)
        return [one for one in found if not given.model or one.name in given.model]

    pace = QUICK if given.quick else FULL
    if given.seconds:
        pace = dataclasses.replace(pace, row_s=given.seconds)
    every = contests(cpu_backends(given.backend or ()), subjects)
    about = {**conditions(), "quick": given.quick, "pace": dataclasses.asdict(pace)}
    rows = []
    for row in _rows(every, pace, QUICK_S if given.quick else math.inf):
        rows.append(row)
        told = row["error"] or f"{row['predict_ratio']['value']:.3f}, {row['verdict']}"
        what = f"{row['backend']}, {row['model']} ({row['format']}), {row['rows']} rows"
        print(f"{what}: {told}", file=sys.stderr, flush=True)
    print(json.dumps({**about, "rows": rows}, indent=2) if given.json else _table(about, rows))
    return int(not rows or any(row["verdict"] in ("missed", "failed") for row in rows))


class _Pair:
    """In the measuring process: a predictor, and the native call of the same model."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        backend = backends()[request["backend"]]
        self._subject = Subject.from_dict(request["subject"])
        self._model = self._subject.open()
        # The bridge first: a runtime whose first use in a process decides whether sessions
        # have threads of their own is used by the bridge as in a process without native code.
        self.predictor = load(self._model, backend=backend.name, options=dict(request["options"]))
        package = type(backend).__module__.rpartition(".")[0]
        native = importlib.import_module(f"{package}.native")
        self._native, self._named = native.load(self._model, threads=self.predictor.info.threads)
        self._is_checked = False

    def measure(self, rows: int, pace: Pace) -> dict[str, Any]:
        """One row of the table, as far as it can be told here."""
        variants = self._subject.inputs(self._model, self.predictor.signature, rows, VARIANTS)
        self._check(variants[0])
        sides = {
            "native": Side(variants.__getitem__, self._native),
            "predict": Side(variants.__getitem__, self.predictor.predict),
            "bound": _bound(self.predictor, variants),
        }
        blocks = measure(sides, pace)
        row: dict[str, Any] = {f"{name}_us": median(found) for name, found in blocks.items()}
        for name in ("predict", "bound"):
            pairs = zip(blocks[name], blocks["native"], strict=True)
            row[f"{name}_ratio"] = dataclasses.asdict(
                bootstrap_median([mine / theirs for mine, theirs in pairs])
            )
        return {**row, "blocks": len(blocks["native"]), "threads": self.predictor.info.threads}

    def _check(self, inputs: Arrays) -> None:
        """Raises ``PredictError`` where the two do not say the same."""
        if self._is_checked and self.predictor.info.stateful:
            return  # their states have diverged since
        self._is_checked = True
        wanted, got = self._named(self._native(inputs)), self.predictor.predict(inputs)
        names = dict.fromkeys(wanted)
        theirs = list(wanted) if set(wanted) == set(got) else list(got)
        for name, mine in zip(names, theirs, strict=True):
            found = agreement(name, np.asarray(wanted[name]), mine, got[mine])
            if not found.passes(TOLERANCE):
                raise PredictError(f"the bridge and the native call disagree: {found}.")


def _bound(predictor: Predictor, variants: Sequence[Arrays]) -> Side:
    """Whoever binds writes inputs into the buffers at once, so that filling is not timed."""
    bound = predictor.bind({name: array.shape for name, array in variants[0].items()})
    buffers, run = bound.inputs, bound.predict

    def fill(index: int) -> None:
        for name, array in variants[index].items():
            buffers[name][...] = array

    return Side(fill, lambda _: run())


def _serve() -> int:
    pairs: list[_Pair] = []

    def answer(request: dict[str, Any]) -> Mapping[str, Any]:
        if request["do"] == "measure":
            return pairs[0].measure(request["rows"], Pace(**request["pace"]))
        for pair in pairs:
            pair.predictor.close()
        pairs.clear()
        gc.collect()
        pairs.append(_Pair(request))
        return {}

    return serve(answer)


def _rows(every: Sequence[Contest], pace: Pace, limit_s: float) -> Iterator[dict[str, Any]]:
    """Rows of the table, in order.

    Each contest has a process of its own; with a limit of time, each backend.
    """
    ends, left = monotonic() + limit_s, sum(len(one.subject.rows) for one in every)
    is_limited, process = limit_s < math.inf, None
    try:
        for index, contest in enumerate(every):
            is_same = index > 0 and every[index - 1].backend is contest.backend
            if process is not None and not (is_limited and is_same):
                process.close()
            if process is None or process.is_closed:
                process = Process("bridge_bench.depth")
            timeout_s = max(1.0, min(ends - monotonic(), _MOST_LOAD_S))
            failure = _LEFT_OUT if monotonic() > ends else _loading(process, contest, timeout_s)
            for rows in contest.subject.rows:
                here = pace
                if is_limited:
                    loading_s = _LOAD_S * (len(every) - index - 1)
                    row_s = (ends - monotonic() - loading_s) / left
                    here = dataclasses.replace(pace, row_s=min(pace.row_s, row_s))
                left -= 1
                if failure is None and monotonic() > ends:
                    failure = _LEFT_OUT
                row = _row(process, contest, rows, here, failure)
                failure = row["error"]
                yield row
    finally:
        if process is not None:
            process.close()


def _loading(process: Process, contest: Contest, timeout_s: float) -> str | None:
    """Has the model loaded; why it could not be."""
    request = {
        "do": "load",
        "backend": contest.backend.name,
        "options": dict(contest.options),
        "subject": contest.subject.to_dict(),
    }
    return _asked(process, request, timeout_s)[1]


def _row(
    process: Process, contest: Contest, rows: int, pace: Pace, failure: str | None
) -> dict[str, Any]:
    subject = contest.subject
    row: dict[str, Any] = {
        "backend": contest.backend.name,
        "version": contest.backend.probe().version,
        "options": dict(contest.options),
        "model": subject.name,
        "format": subject.format,
        "rows": rows,
        "goals": [],
        "verdict": _NONE,
        "error": failure,
    }
    if failure is None:
        request = {"do": "measure", "rows": rows, "pace": dataclasses.asdict(pace)}
        found, row["error"] = _asked(process, request, _MOST_LOAD_S)
        row.update(found)
    if row["error"] is not None:
        is_excused = row["error"].startswith((_LEFT_OUT, _REFUSED))
        row["verdict"] = _NONE if is_excused else "failed"
        return row
    verdicts = []
    for goal in goals(contest, rows, row["native_us"]):
        verdict = goal.verdict(Interval(**row[f"{goal.side}_ratio"]))
        row["goals"].append({**dataclasses.asdict(goal), "verdict": verdict})
        verdicts.append(verdict)
    row["verdict"] = next((one for one in ("missed", "open") if one in verdicts), "met")
    return row


def _asked(
    process: Process, request: Mapping[str, Any], timeout_s: float
) -> tuple[dict[str, Any], str | None]:
    """The answer, or why there is none."""
    try:
        return process.ask(request, timeout_s=timeout_s), None
    except UnsupportedModel as error:
        return {}, f"{_REFUSED}: {error.message}"
    except PredictTimeout as error:
        is_short = timeout_s < _MOST_LOAD_S
        return {}, _LEFT_OUT if is_short else f"{type(error).__name__}: {error.message}"
    except BridgeError as error:
        return {}, f"{type(error).__name__}: {error.message}"


def _compiling(backend: Backend) -> list[dict[str, Any]]:
    """Options that compile ahead of time: as they are, and with the weights laid out anew."""
    fields = {one.name: one for one in backend.options_type.describe()}
    if "execution" not in fields or COMPILED not in (fields["execution"].choices or ()):
        return []
    plain: dict[str, Any] = {"execution": COMPILED}
    return [plain, {**plain, "freezing": True}] if "freezing" in fields else [plain]


def _table(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    pace = about["pace"]
    how = f"{pace['row_s']:g} s a row, {pace['least_blocks']} blocks or more"
    if about["quick"]:
        how = f"--quick: about {pace['least_blocks']} blocks a row, so that intervals are wide"
    columns = (
        "backend",
        "model",
        "rows",
        "native, µs",
        "predict, µs",
        "predict ÷ native",
        "bound ÷ native",
        "goal",
    )
    lines = [sentence(about, how), "", *heading(columns)]
    for row in rows:
        words = [f"{name}={value}" for name, value in row["options"].items()]
        cells = [
            " ".join([row["backend"], row["version"] or "", *words]),
            f"{row['model']}, {row['format']}",
            str(row["rows"]),
        ]
        if row["error"] is not None:
            cells += [_NONE] * 4 + [f"{row['verdict']}: {row['error']}".removeprefix("-: ")]
        else:
            cells += [f"{row[side]:.1f}" for side in ("native_us", "predict_us")]
            cells += [_interval(row[f"{side}_ratio"]) for side in ("predict", "bound")]
            cells.append("; ".join(_outcome(one) for one in row["goals"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _outcome(goal: Mapping[str, Any]) -> str:
    side = "" if goal["side"] == "predict" else f"{goal['side']} "
    return f"{side}≤ {goal['limit']:.2f} {goal['verdict']}"


if __name__ == "__main__":
    sys.exit(_serve() if sys.argv[1:] == [SERVE] else main())
