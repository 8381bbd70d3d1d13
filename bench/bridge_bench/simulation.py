"""How often the race is right, on a simulated clock: ``python -m bridge_bench.simulation``.

No time is measured: slices come from a model of a machine whose true times are known. The
log time of a slice is that of the arm, plus a drift that all arms share (autoregressive
from slice to slice, coefficient 0.97), plus noise, plus a spike in 5 % of the slices
(exponential, 20 % on average); optionally plus a wander that each arm has of its own from
block to block, and a bias that each arm keeps for the whole run, as another load of the
same arm would have another. Seeds are fixed, so that the same tables come out each time.

*Within 2 %* is the share of runs that choose an arm at most 2 % slower than the fastest;
*regret* is how much slower the chosen arm truly is, on average; *cost* is the share of the
slices that measuring each arm in 45 blocks takes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.record import Protocol, Verdict
from bridge_bench.race import Race
from bridge_bench.stats import clopper_pearson

__all__ = [
    "NOISES",
    "Noise",
    "Row",
    "Slices",
    "aa",
    "exhaustive",
    "field",
    "known",
    "main",
    "many",
    "run_race",
    "slippage",
    "tables",
]

PACE = 0.97
"""What is left of the drift after one slice."""
SPIKES, SPIKE = 0.05, 0.2
"""Share of the slices with a spike, and its mean size in log time."""
EXHAUSTIVE = 45
"""Slices per arm of the exhaustive runs that the race is compared with."""
NEAR = math.log(1.02)
RATIOS = (1.0, 1.01, 1.03, 1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A machine: standard deviations of log time.

    Attributes:
        drift: Of what all arms share.
        slices: Of one slice, independent of all else.
        wander: Of what an arm has of its own, autoregressive from block to block.
        pace: What is left of the wander after one block.
        bias: Of what an arm keeps for the whole run.
    """

    drift: float
    slices: float
    wander: float = 0.0
    pace: float = 0.7
    bias: float = 0.0

    def __str__(self) -> str:
        text = f"{self.drift:.0%} / {self.slices:.1%}"
        text += f", wander {self.wander:.1%}" if self.wander else ""
        text += f", bias {self.bias:.1%}" if self.bias else ""
        return text.replace(".0%", "%").replace("%", " %")


QUIET, USUAL, NOISY = (
    Noise(drift=0.01, slices=0.01),
    Noise(drift=0.05, slices=0.03),
    Noise(drift=0.1, slices=0.06),
)
NOISES = (QUIET, USUAL, NOISY)


class Slices:
    """A source of slices: the simulated machine.

    Args:
        ratios: True time of each arm, in seconds.
        noise: The machine.
        seed: Of the generator.
        change: Factor on the times of all arms after ``change_after`` blocks; or, with
            ``changed``, on those of this arm alone.
        change_after: Number of blocks.
        changed: Index of the arm; ``None`` for all.
    """

    def __init__(
        self,
        ratios: Sequence[float],
        noise: Noise,
        seed: int,
        *,
        change: float = 1.0,
        change_after: int = 0,
        changed: int | None = None,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._logs = np.log(ratios) + noise.bias * self._random.normal(size=len(ratios))
        self._noise = noise
        self._drift = noise.drift * self._random.normal()
        self._wander = noise.wander * self._random.normal(size=len(ratios))
        self._change = (math.log(change), change_after, changed)
        self._block = 0

    def block(self, arms: Sequence[int]) -> dict[int, float]:
        """One slice of each arm, in random order."""
        random, noise = self._random, self._noise
        if noise.wander:
            step = noise.wander * math.sqrt(1 - noise.pace**2)
            self._wander = noise.pace * self._wander + step * random.normal(size=len(self._logs))
        change, after, changed = self._change
        count = len(arms)
        order = random.permutation(count)
        steps = noise.drift * math.sqrt(1 - PACE**2) * random.normal(size=count)
        own = noise.slices * random.normal(size=count)
        own += np.where(random.random(count) < SPIKES, random.exponential(SPIKE, count), 0.0)
        times = {}
        for place, index in enumerate(order):
            arm = arms[index]
            self._drift = PACE * self._drift + steps[place]
            log = self._logs[arm] + self._wander[arm] + self._drift + own[place]
            if self._block >= after and changed in {None, arm}:
                log += change
            times[arm] = math.exp(log)
        self._block += 1
        return times

    def alone(self, arm: int, count: int) -> npt.NDArray[np.float64]:
        """So many slices of one arm, one after the other."""
        return np.array([self.block([arm])[arm] for _ in range(count)])


def run_race(
    ratios: Sequence[float],
    slices: Slices,
    *,
    default: int | None = None,
    protocol: Protocol | None = None,
    max_blocks: int | None = None,
) -> tuple[Verdict, int, Race]:
    """One race on a simulated machine: the verdict, the slices that it took, and the race.

    Ids of arms are their indices as text. ``max_blocks`` ends it as a budget would.
    """
    run = Race(
        [str(arm) for arm in range(len(ratios))],
        default=None if default is None else str(default),
        protocol=protocol,
    )
    count = 0
    while not run.is_over and (max_blocks is None or run.blocks < max_blocks):
        times = slices.block([int(arm) for arm in run.wanted])
        run.add({str(arm): time for arm, time in times.items()})
        count += len(times)
    return run.verdict(1), count, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What many runs of one setting came to; shares are within 0..1.

    Attributes:
        setting: In words.
        runs: Their number.
        near: Share within 2 % of the fastest.
        regret: How much slower the chosen arm truly is, on average.
        cost: Slices, as a share of 45 per arm.
        proven, settled: Share with a proven winner; and share that ended before the looks
            ran out, proven or not.
        proven_high: Upper 95 % limit of the share with a proven winner.
        bound_holds: Share in which the true regret is not above the one that was stated.
        kept: Share that kept the default.
    """

    setting: str
    runs: int
    near: float
    regret: float
    cost: float
    proven: float
    settled: float
    proven_high: float
    bound_holds: float
    kept: float


def many(
    setting: str,
    runs: int,
    case: Callable[[int], tuple[Sequence[float], Slices, int | None]],
    *,
    truth: Callable[[Sequence[float]], Sequence[float]] = lambda ratios: ratios,
    protocol: Protocol | None = None,
    max_blocks: int | None = None,
) -> Row:
    """Runs a case with the seeds 0, 1, 2, ...

    Args:
        setting: Its name.
        runs: How many.
        case: Seed -> true times, a machine, and the default arm.
        truth: True times -> those by which the choice is judged.
        protocol: As for ``Race``.
        max_blocks: A budget.
    """
    losses, costs, counts = [], [], {"proven": 0, "settled": 0, "holds": 0, "kept": 0}
    for seed in range(runs):
        ratios, slices, default = case(seed)
        verdict, count, _ = run_race(
            ratios, slices, default=default, protocol=protocol, max_blocks=max_blocks
        )
        times = truth(ratios)
        assert verdict.winner is not None
        loss = math.log(times[int(verdict.winner)] / min(times))
        losses.append(loss)
        costs.append(count / (EXHAUSTIVE * len(ratios)))
        counts["proven"] += verdict.status == "proven"
        counts["settled"] += verdict.status in {"proven", "tied", "default"}
        counts["holds"] += verdict.regret is None or math.expm1(loss) <= verdict.regret + 1e-9
        counts["kept"] += verdict.winner == str(default)
    return Row(
        setting=setting,
        runs=runs,
        near=float(np.mean(np.array(losses) <= NEAR + 1e-9)),
        regret=float(np.mean(np.expm1(losses))),
        cost=float(np.mean(costs)),
        proven=counts["proven"] / runs,
        settled=counts["settled"] / runs,
        proven_high=clopper_pearson(counts["proven"], runs, 0.9)[1],
        bound_holds=counts["holds"] / runs,
        kept=counts["kept"] / runs,
    )


def aa(noise: Noise, runs: int, arms: int = 8) -> Row:
    """Identical arms, the first of them the default."""
    ratios = (1.0,) * arms
    return many(str(noise), runs, lambda seed: (ratios, Slices(ratios, noise, seed), 0))


def known(noise: Noise, runs: int, *, default: int | None = None, **change: Any) -> Row:
    """The arms 1.00, 1.01, 1.03 and 1.10; ``change`` as for ``Slices``."""
    changed = change.get("changed")

    def truth(ratios: Sequence[float]) -> Sequence[float]:
        return [
            time * (change["change"] if index == changed else 1)
            for index, time in enumerate(ratios)
        ]

    return many(
        str(noise),
        runs,
        lambda seed: (RATIOS, Slices(RATIOS, noise, seed, **change), default),
        truth=truth,
    )


def field(seed: int, arms: int = 24) -> list[float]:
    """True times: five within 5 %, the others up to four times as long, shuffled."""
    random = np.random.default_rng([seed, arms])
    logs = np.concatenate(
        [[0, 0.01, 0.015, 0.03, 0.05], random.uniform(0.05, math.log(4), size=arms - 5)]
    )
    return [float(time) for time in np.exp(random.permutation(logs))]


def slippage(noise: Noise, runs: int, arms: int) -> Row:
    """The least favourable case: all arms but one slower than it by just over 2 %."""
    ratios = (1.0, *(1.0205,) * (arms - 1))
    return many(
        f"{noise}, {arms} arms", runs, lambda seed: (ratios, Slices(ratios, noise, seed), None)
    )


def exhaustive(noise: Noise, runs: int, *, is_interleaved: bool, share: float = 1.0) -> Row:
    """Every arm in 45 slices (or a share of that), the least median chosen, for comparison."""
    losses = []
    count = max(1, round(EXHAUSTIVE * share))
    for seed in range(runs):
        ratios = field(seed)
        slices = Slices(ratios, noise, seed)
        arms = range(len(ratios))
        if is_interleaved:
            blocks = [slices.block(arms) for _ in range(count)]
            medians = [np.median([block[arm] for block in blocks]) for arm in arms]
        else:
            medians = [np.median(slices.alone(arm, count)) for arm in arms]
        losses.append(math.log(ratios[int(np.argmin(medians))] / min(ratios)))
    return Row(
        setting=str(noise),
        runs=runs,
        near=float(np.mean(np.array(losses) <= NEAR + 1e-9)),
        regret=float(np.mean(np.expm1(losses))),
        cost=count / EXHAUSTIVE,
        proven=0.0,
        settled=0.0,
        proven_high=0.0,
        bound_holds=0.0,
        kept=0.0,
    )


def tables(scale: float = 1.0) -> Iterator[tuple[str, list[Row], tuple[str, ...]]]:
    """All tables: title, rows, and the columns that mean something in it.

    Args:
        scale: Share of the usual number of runs.
    """

    def runs(usual: int) -> int:
        return max(2, round(usual * scale))

    biased = Noise(drift=0.01, slices=0.003, bias=0.003)
    wandering = Noise(drift=0.05, slices=0.02, wander=0.01)
    yield (
        "Eight identical arms, one of them the default",
        [aa(noise, runs(400)) for noise in (*NOISES, biased, wandering)],
        ("proven", "proven_high", "settled", "kept", "cost", "bound_holds"),
    )
    usual = ("near", "regret", "settled", "proven", "cost", "bound_holds")
    yield (
        "Arms of 1.00, 1.01, 1.03 and 1.10",
        [known(noise, runs(200)) for noise in (*NOISES, biased, wandering)],
        usual,
    )
    yield (
        "The same, with the arm of 1.10 as the default",
        [known(noise, runs(200), default=3) for noise in NOISES],
        (*usual, "kept"),
    )
    yield (
        "The same, all arms 1.3 times slower from the fourth block on",
        [known(noise, runs(200), change=1.3, change_after=3) for noise in NOISES],
        usual,
    )
    yield (
        "The same, the fastest arm alone 1.3 times slower from then on (judged by that)",
        [known(noise, runs(200), change=1.3, change_after=3, changed=0) for noise in NOISES],
        usual,
    )
    yield (
        "One arm of 1.00 and all others of 1.0205, the least favourable case",
        [slippage(noise, runs(200), arms) for noise in (*NOISES, wandering) for arms in (2, 8)],
        ("near", "regret", "settled", "cost", "bound_holds"),
    )
    launches = Noise(drift=0.05, slices=0.03, bias=0.01)
    for title, max_blocks, noises in (
        ("24 arms, five of them within 5 %", None, (*NOISES, launches)),
        ("The same, ended by a budget of 5 blocks", 5, NOISES),
    ):
        yield (
            title,
            [
                many(
                    str(noise),
                    runs(150),
                    lambda seed, noise=noise: (  # type: ignore[misc]
                        (ratios := field(seed)),
                        Slices(ratios, noise, seed),
                        None,
                    ),
                    max_blocks=max_blocks,
                )
                for noise in noises
            ],
            usual,
        )
    for title, is_interleaved, share in (
        ("24 arms, 45 slices of each in blocks, no race", True, 1.0),
        ("24 arms, 45 slices of each, one arm after the other", False, 1.0),
        ("24 arms, one after the other, at about the cost of the race", False, 0.25),
    ):
        yield (
            title,
            [
                exhaustive(noise, runs(100), is_interleaved=is_interleaved, share=share)
                for noise in NOISES
            ],
            ("near", "regret", "cost"),
        )


HEADS: Mapping[str, str] = {
    "near": "within 2 %",
    "regret": "regret",
    "cost": "cost",
    "proven": "proven",
    "proven_high": "at most (95 %)",
    "settled": "settled",
    "bound_holds": "bound holds",
    "kept": "default kept",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.simulation")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual runs")
    chosen = parser.parse_args(arguments)
    documents = []
    for title, rows, columns in tables(chosen.scale):
        if chosen.json:
            documents.append({"title": title, "rows": [asdict(row) for row in rows]})
            continue
        heads = ["drift / noise", "runs", *(HEADS[column] for column in columns)]
        print(f"### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for row in rows:
            values = [f"{100 * getattr(row, column):.1f} %" for column in columns]
            print(f"| {row.setting} | {row.runs} | {' | '.join(values)} |")
        print(flush=True)
    if chosen.json:
        print(json.dumps({"tables": documents}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
