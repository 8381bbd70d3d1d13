"""Does the selection choose right? Trials on arms whose truth is known or measured.

``python -m bridge_bench.validation spin`` races arms that spin for a set time: eight
equal ones, and four of known ratio, with a machine that drifts and stumbles on purpose.
``python -m bridge_bench.validation real MODEL`` races a model's real arms twenty times,
with the truth (200 interleaved blocks of all arms) measured in between. Both print a
table; ``--json`` prints the figures. Nothing here is simulated: see
``bridge_bench.simulation`` for that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from bridge.record import Limits, Protocol
from bridge_bench.crew import Crew
from bridge_bench.request import Request, request
from bridge_bench.selection import Selection
from bridge_bench.stats import duel
from bridge_bench.tournament import Heat, Tournament

__all__ = ["Trial", "main", "races"]

RUNS = 20
TRUTH_BLOCKS = 200
EPSILON = 0.02

_PLUGIN = """
import math, random, sys, time
from dataclasses import dataclass
import numpy as np
import bridge
from bridge.backend import Backend

class Spinning(bridge.Format):
    name, title, native_backend, devices = "spin", "Spin", "spin", ("cpu",)
    def sniff(self, file):
        return file.head.startswith(b"SPIN ")

@dataclass(frozen=True, kw_only=True)
class SpinOptions(bridge.Options):
    percent: float = bridge.option(100.0, help="Time, in per cent of 400 us.")
    copy: int = bridge.option(0, help="Tells equal arms apart.")
    is_rough: bool = bridge.option(False, help="Drift, noise and spikes.")

class Spinner(bridge.Predictor):
    def __init__(self, options):
        f32 = bridge.DType.FLOAT32
        spec = bridge.TensorSpec
        super().__init__(
            bridge.Signature((spec("x", f32, ("n",)),), (spec("y", f32, ("n",)),)),
            bridge.PredictorInfo(threads=1),
        )
        self._seconds = 400e-6 * options.percent / 100
        self._rough = options.is_rough
        self._random = random.Random(options.copy)
    def _predict(self, inputs, outputs):
        started = time.perf_counter()
        wait = self._seconds
        if self._rough:
            # The drift is the machine's: the same for all arms at the same time.
            wait *= 1 + 0.1 * math.sin(started / 7) + 0.05 * math.sin(started / 1.3)
            wait *= math.exp(self._random.gauss(0, 0.03))
            if self._random.random() < 0.01:
                wait *= 1 + self._random.expovariate(2)
        while time.perf_counter() - started < wait:
            pass
        return {"y": inputs["x"]}
    def _close(self):
        pass

class Spin(Backend):
    name, options_type = "spin", SpinOptions
    def probe(self):
        return bridge.Availability(installed=True, version="1")
    def capabilities(self, device):
        return bridge.Capabilities(
            formats=frozenset({"spin"}), dynamic_dims=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )
    def search_space(self, model, device):
        words = model.file.read_text().split()[1:]
        rough = words.pop(0) == "rough"
        return tuple(
            SpinOptions(percent=float(word), copy=index, is_rough=rough)
            for index, word in enumerate(words)
        )
    def _load(self, model, device, options):
        return Spinner(options)

@bridge.hookimpl
def register_backends(register):
    register(Spin())

@bridge.hookimpl
def register_formats(register):
    register(Spinning())
"""

SPINS = {
    "8 equal arms, quiet": "SPIN smooth " + "100 " * 8,
    "8 equal arms, drift, noise and spikes": "SPIN rough " + "100 " * 8,
    "1.00, 1.01, 1.03, 1.10, quiet": "SPIN smooth 103 100 110 101",
    "1.00, 1.01, 1.03, 1.10, drift, noise and spikes": "SPIN rough 103 100 110 101",
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of some races over the same arms.

    Attributes:
        arms: Number of arms.
        runs: Number of races.
        proven: Races that claimed a proven winner.
        close: Races whose choice was within 2 % of the best, by the truth.
        plausible: Races of which the truth, as sure as it is (95 %), does not say otherwise.
        regrets: By how much each choice was slower than the best, by the truth.
        slices: Slices of each race over those of 45 blocks of all arms.
        settled: Races that ended before the last look.
        truth: Time of each arm over that of the best.
    """

    arms: int
    runs: int
    proven: int
    close: int
    plausible: int
    regrets: tuple[float, ...]
    slices: tuple[float, ...]
    settled: int
    truth: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "arms": self.arms,
            "runs": self.runs,
            "proven": self.proven,
            "close": self.close,
            "plausible": self.plausible,
            "regrets": list(self.regrets),
            "slices": list(self.slices),
            "settled": self.settled,
            "truth": self.truth,
        }


def races(
    asked: Request,
    *,
    runs: int = RUNS,
    truth_blocks: int = TRUTH_BLOCKS,
    truth: dict[str, float] | None = None,
    limit_s: float = float("inf"),
    tell: Any = lambda _: None,
) -> Trial:
    """Races the arms of a request again and again, with the truth measured in between.

    Args:
        asked: The request; of its buckets the first is used.
        runs: Number of races.
        truth_blocks: Blocks of all arms from which the truth comes, spread over the runs.
        truth: The truth, where it is known: time by arm.
        limit_s: Time after which no further race begins.
        tell: Called with one line of text now and then.
    """
    selection = Selection(asked, tell=tell)
    with asked.crew() as crew:
        yardstick = selection.open(crew)
        for entrant in selection.entrants:
            selection.admit(crew, entrant)
        arms = [one for one in selection.entrants if one.takes_part()]
        default = next((one.id for one in arms if one.plan.is_default), None)
        first = yardstick.heats[0]
        times: dict[str, list[float]] = {one.id: [] for one in arms}
        everyone = Heat(first.rows, first.variants)
        everyone.entrants = {one.id: replace(one, trials={}) for one in arms}
        if truth is None:
            _tournament(crew, asked, [everyone], None, 0).warm(everyone)
        choices: list[str] = []
        slices: list[float] = []
        proven = settled = 0
        started = monotonic()
        for run in range(runs):
            if choices and monotonic() - started > limit_s:
                break
            if truth is None:
                tell(f"truth, run {run + 1} of {runs}")
                _measure_all(crew, asked, everyone, truth_blocks // runs, run, times)
            heat = Heat(first.rows, first.variants)
            heat.entrants = {one.id: replace(one, trials={}) for one in arms}
            tournament = _tournament(crew, asked, [heat], default, run)
            tournament.run()
            assert heat.race is not None
            verdict = heat.race.verdict(heat.rows)
            choices.append(str(verdict.winner))
            used = sum(
                len(trial.durations)
                for one in heat.entrants.values()
                for trial in one.trials.values()
            )
            slices.append(used / (len(arms) * asked.protocol.looks[-1]))
            proven += verdict.status == "proven"
            settled += heat.race.blocks < asked.protocol.looks[-1]
            tell(f"run {run + 1}: {verdict.winner}, {verdict.status}, {used} slices")
    known = truth or _truth(times)
    best = min(known.values())
    regrets = tuple(known[name] / best - 1 for name in choices)
    first_best = min(known, key=lambda name: known[name])
    plausible = 0
    for name in choices:
        low = known[name] / best
        if truth is None and name != first_best:
            low = duel(times[name], times[first_best]).low
        plausible += low <= 1 + EPSILON
    return Trial(
        arms=len(arms),
        runs=len(choices),
        proven=proven,
        close=sum(one <= EPSILON for one in regrets),
        plausible=plausible,
        regrets=regrets,
        slices=tuple(slices),
        settled=settled,
        truth={name: time / best for name, time in known.items()},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.validation", description=__doc__)
    parser.add_argument("what", choices=("spin", "real"))
    parser.add_argument("models", nargs="*", help="with real: the model's files")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds in all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(arguments)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if given.what == "spin" and "BRIDGE_SPIN" not in os.environ:
        return _with_plugin(list(sys.argv[1:] if arguments is None else arguments))
    found: dict[str, Trial] = {}
    if given.what == "spin":
        for name, text in SPINS.items():
            tell(name)
            path = Path(os.environ["BRIDGE_SPIN"]) / "model.spin"
            path.write_text(text, encoding="utf-8")
            asked = request(path, batches=[1], protocol=Protocol(slice_s=0.02))
            percents = [float(word) for word in text.split()[2:]]
            planned = [one.id for one in Selection(asked).entrants if one.takes_part()]
            known = dict(zip(planned, percents, strict=True))
            found[name] = races(asked, runs=given.runs, truth=known, tell=tell)
    else:
        asked = request(given.models, batches=[given.rows])
        names = " + ".join(Path(one).name for one in given.models)
        found[f"{names}, {given.rows} rows"] = races(
            asked, runs=given.runs, limit_s=given.limit, tell=tell
        )
    if given.json:
        print(json.dumps({name: one.to_dict() for name, one in found.items()}, indent=1))
    else:
        print(_table(found))
    return 0


def _tournament(
    crew: Crew,
    asked: Request,
    heats: Sequence[Heat],
    default: str | None,
    seed: int,
) -> Tournament:
    return Tournament(
        crew,
        heats,
        limits=Limits(),
        protocol=asked.protocol,
        default=default,
        tolerance={},
        seed=seed,
        deadline=float("inf"),
        stop=lambda: False,
        tell=lambda _: None,
    )


def _measure_all(
    crew: Crew,
    asked: Request,
    heat: Heat,
    blocks: int,
    seed: int,
    times: dict[str, list[float]],
) -> None:
    """Blocks of all arms, none left out however slow."""
    tournament = _tournament(crew, asked, [heat], None, 1000 + seed)
    found = tournament.duel(heat, [(one, None) for one in heat.entrants.values()], blocks)
    for name, more in zip(heat.entrants, found, strict=True):
        times[name].extend(more)


def _truth(times: dict[str, list[float]]) -> dict[str, float]:
    """Time of each arm over that of the first one, paired by block."""
    first = next(iter(times))
    return {
        name: 1.0 if name == first else duel(mine, times[first]).value
        for name, mine in times.items()
    }


def _with_plugin(arguments: list[str]) -> int:
    """Runs this module again, with the spinning backend installed."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        about = site / "spin-1.dist-info"
        about.mkdir(parents=True)
        (site / "spin.py").write_text(_PLUGIN, encoding="utf-8")
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: spin\nVersion: 1\n")
        (about / "entry_points.txt").write_text("[bridge]\nspin = spin\n")
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "BRIDGE_SPIN": folder,
            "BRIDGE_PLUGINS": "spin",
        }
        return subprocess.run(
            [sys.executable, "-m", "bridge_bench.validation", *arguments],
            env=environment,
            check=False,
        ).returncode


def _table(found: dict[str, Trial]) -> str:
    columns = (
        "arms",
        "races",
        "proven winner claimed",
        "within 2 % of the best",
        "or not told apart from that",
        "worst regret",
        "slices, of 45 blocks of all",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, one in found.items():
        lines.append(
            f"| {name} ({one.arms}) | {one.runs} | {one.proven} | {one.close} of {one.runs} "
            f"| {one.plausible} of {one.runs} "
            f"| {100 * max(one.regrets):.1f} % | {100 * float(np.mean(one.slices)):.0f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
