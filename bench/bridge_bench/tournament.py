"""The measurement: warm-up, blocks in random order, one race for each bucket.

A block is one slice (some calls) of every arm still in the race: half of it in fresh
random order, the other half in the reverse order, after a look at the canary. (On a real
machine that halved the error of a ratio, as against one turn for each arm; four turns
doubled it again, since after each switch caches are cold.) Buckets take turns block by
block, so that whenever the time runs out each has about as much evidence. What the numbers
of a block mean is the business of ``bridge_bench.race``; this module gets them from the
workers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from bridge.check import Arrays
from bridge.errors import BridgeError
from bridge.isolation import Slice
from bridge.record import Limits, Protocol
from bridge_bench.canary import CanaryBird
from bridge_bench.crew import Crew
from bridge_bench.entrant import Entrant, Trial, status_of
from bridge_bench.race import Race
from bridge_bench.stats import clopper_pearson, median, percentile

__all__ = ["Heat", "Split", "Tournament"]

SCREEN_S = 0.05  # warm-up before the first block; the rest follows for those that survive
SCREEN_SHARE = 0.6  # of the time, after which no further arm is warmed up for the first block
GRACE_S = 5.0  # after the deadline, for the block that has begun
WARM_S = 0.2
WARM_WINDOW_S = 0.1
WARM_SPREAD = 1.05  # largest over smallest of three window medians that counts as stable
WARM_WINDOWS = 10
SLOW_CALL_S = 1.0  # from here on a slice is one call
CUT_BLOCKS = 2

Tell = Callable[[str], None]
Split = tuple[int, Mapping[str, int], Mapping[str, int]]
"""Most rows of a piece, and the axes that count rows, of inputs and of outputs."""


@dataclass
class Heat:
    """The race of one bucket.

    Attributes:
        rows: Rows per call.
        variants: The inputs.
        entrants: Arms that began it, by id.
        race: Decides who goes on.
        is_warm: Those that survived the cut have been warmed up.
        is_stalled: No arm of the race can be measured any more.
    """

    rows: int
    variants: Sequence[Arrays]
    entrants: dict[str, Entrant] = field(default_factory=dict)
    race: Race | None = None
    is_warm: bool = False
    is_stalled: bool = False

    @property
    def name(self) -> str:
        """Name of its inputs in the crew."""
        return f"rows={self.rows}"

    @property
    def is_over(self) -> bool:
        """Whether no more blocks are wanted."""
        return self.race is None or self.race.is_over or self.is_stalled


class Tournament:
    """Runs the races of all buckets until they are decided or the time is up.

    Args:
        crew: Workers with the arms loaded.
        heats: One per bucket.
        limits, protocol: What was asked for, and the numbers.
        default: Id of the default arm.
        tolerance: Largest drift of an arm's outputs during the race that is let pass,
            by arm id.
        seed: Seed of the order of turns.
        deadline: ``time.monotonic()`` at which to stop.
        stop: Asked between blocks; true ends the races.
        tell: Called with one line of text now and then.
    """

    def __init__(
        self,
        crew: Crew,
        heats: Sequence[Heat],
        *,
        limits: Limits,
        protocol: Protocol,
        default: str | None,
        tolerance: Mapping[str, float],
        seed: int,
        deadline: float,
        stop: Callable[[], bool],
        tell: Tell,
    ) -> None:
        self._crew = crew
        self._heats = heats
        self._limits = limits
        self._protocol = protocol
        self._default = default
        self._tolerance = tolerance
        self._order = random.Random(seed)  # noqa: S311 - an order, no secret
        self._deadline = deadline
        self._stop = stop
        self._tell = tell
        self.canary = CanaryBird(protocol.canary_tolerance, protocol.canary_redo_share)
        self.was_stopped = False

    @property
    def is_rate(self) -> bool:
        """Whether blocks hold seconds per row instead of seconds per call."""
        return self._limits.objective in ("throughput", "cost")

    def run(self) -> None:
        """Blocks for every bucket in turn; returns when all are over, or at the deadline."""
        for heat in self._heats:
            self._crew.keep(heat.name, heat.variants)
        # Arm by arm, so that those that the time suffices for are known at every size.
        until = monotonic() + SCREEN_SHARE * (self._deadline - monotonic())
        for name in dict.fromkeys(name for heat in self._heats for name in heat.entrants):
            if self._is_out_of_time() or monotonic() > until:
                break
            for heat in self._heats:
                entrant = heat.entrants.get(name)
                if entrant is None or (heat.race is not None and name not in heat.race.living):
                    continue  # an earlier run eliminated it
                self._tell(f"warming {name}, {heat.rows} rows")
                self._guard(heat, entrant, self._screen)
        for heat in self._heats:
            # Those that the time did not suffice to screen are in the race as well: nothing is
            # known of them, and the verdict has to say so.
            living = [one for one in heat.entrants.values() if self._may_run(heat, one)]
            if not living:
                continue
            heat.race = heat.race or Race(
                [one.id for one in living],
                default=self._default if self._default in {one.id for one in living} else None,
                protocol=self._protocol,
            )
        while not self._is_out_of_time():
            open_heats = [heat for heat in self._heats if not heat.is_over]
            if not open_heats:
                return
            for heat in self._order.sample(open_heats, len(open_heats)):
                if self._is_out_of_time():
                    return
                self._block(heat)

    def warm(self, heat: Heat) -> None:
        """Warms every arm of a bucket, for a duel without a race.

        Raises:
            BridgeError: One of them failed.
        """
        self._crew.keep(heat.name, heat.variants)
        for entrant in heat.entrants.values():
            self._screen(heat, entrant)
            self._warm(heat, entrant)

    def duel(
        self,
        heat: Heat,
        arms: Sequence[tuple[Entrant, Split | None]],
        blocks: int,
    ) -> list[list[float]]:
        """Statistics of a few arms, or of one cut and whole, block by block.

        Raises:
            BridgeError: One of them failed.
        """
        times: list[list[float]] = [[] for _ in arms]
        for _ in range(blocks):
            slices: dict[int, list[Slice]] = {}
            for index, share in self._turns(heat, [one for one, _ in arms]):
                entrant, split = arms[index]
                slices.setdefault(index, []).append(self._calls(heat, entrant, share, split))
            for index, found in slices.items():
                times[index].append(self._statistic(found, heat.rows))
        return times

    def _turns(self, heat: Heat, entrants: Sequence[Entrant]) -> list[tuple[int, float]]:
        """Indices in random order, then in the reverse order, each with its share of a slice.

        What drifts while a block lasts falls on all alike then. An arm with too few calls
        for two halves has one turn.
        """
        order = self._order.sample(range(len(entrants)), len(entrants))
        least = 2 * self._protocol.min_calls
        halves = {index for index in order if entrants[index].trials[heat.rows].calls >= least}
        there = [(index, 0.5 if index in halves else 1.0) for index in order]
        return there + [(index, 0.5) for index in reversed(order) if index in halves]

    def _screen(self, heat: Heat, entrant: Entrant) -> None:
        """First call, a short warm-up, and the number of calls in a slice."""
        trial = entrant.trials.setdefault(heat.rows, Trial(heat.rows))
        if trial.first_call_s is None:
            _, trial.first_call_s = self._crew.predict(entrant, heat.variants[0])
        found = self._crew.measure(entrant, heat.name, 3, discard=0)
        warmed = found.warmed
        self._settle(trial, found.ns)
        more = math.ceil(SCREEN_S / trial.call_s) - 3
        if more > 0 and trial.call_s < SLOW_CALL_S:
            found = self._crew.measure(
                entrant, heat.name, min(more, self._protocol.max_calls), discard=0
            )
            self._settle(trial, found.ns)
            trial.warmup_calls += len(found.ns)
        trial.warmup_calls += 4 + warmed

    def _warm(self, heat: Heat, entrant: Entrant) -> None:
        """Calls until three windows agree."""
        trial = entrant.trials[heat.rows]
        if trial.call_s >= SLOW_CALL_S:
            trial.is_stable = None
            return
        calls = max(1, min(25, round(WARM_WINDOW_S / trial.call_s)))
        calls = max(calls, min(self._protocol.max_calls, round(WARM_S / 3 / trial.call_s)))
        medians: list[float] = []
        trial.is_stable = False
        for _ in range(WARM_WINDOWS):
            found = self._crew.measure(entrant, heat.name, calls, discard=0)
            medians.append(median(found.ns))
            trial.warmup_calls += len(found.ns)
            self._settle(trial, found.ns)
            last = medians[-3:]
            if len(last) == 3 and max(last) <= WARM_SPREAD * min(last):
                trial.is_stable = True
                break
            if self._is_out_of_time():
                break

    def _block(self, heat: Heat) -> None:
        race = heat.race
        assert race is not None
        if race.blocks >= CUT_BLOCKS and not heat.is_warm:
            heat.is_warm = True
            for name in race.living:
                self._tell(f"warming {name}, {heat.rows} rows")
                self._guard(heat, heat.entrants[name], self._warm)
        living = [name for name in race.wanted if self._is_running(heat, heat.entrants[name])]
        if not living:
            heat.is_stalled = True
            return
        bird = self.canary.sing()
        slices: dict[str, list[Slice]] = {}
        for index, share in self._turns(heat, [heat.entrants[name] for name in living]):
            if monotonic() > self._deadline + GRACE_S:
                return  # a block that would take far too long is given up

            def measure(heat: Heat, entrant: Entrant, share: float = share) -> None:
                slices.setdefault(entrant.id, []).append(self._slice(heat, entrant, share))

            self._guard(heat, heat.entrants[living[index]], measure)
        if not self.canary.accepts(max(bird, self.canary.sing())):
            return
        block: dict[str, float] = {}
        for name, entrant in heat.entrants.items():
            trial = entrant.trials.get(heat.rows)
            if trial is None:
                continue
            # It may have come later than others, when an earlier run was resumed.
            trial.blocks.extend([None] * (race.blocks - len(trial.blocks)))
            found = slices.get(name)
            if found is None or not self._is_running(heat, entrant):
                trial.blocks.append(None)
                continue
            block[name] = self._statistic(found, heat.rows)
            trial.blocks.append(block[name])
            trial.durations.append(np.concatenate([one.ns for one in found]))
            trial.elapsed_ns += sum(one.elapsed_ns for one in found)
            trial.cpu_ns += sum(one.cpu_ns for one in found)
        race.add(block)
        self._enforce(heat)
        left = max(0.0, self._deadline - monotonic())
        self._tell(
            f"{heat.rows} rows, block {race.blocks}/{self._protocol.looks[-1]}: "
            f"{len(race.living)} of {len(heat.entrants)} arms left, {left:.0f} s left"
        )

    def _calls(
        self,
        heat: Heat,
        entrant: Entrant,
        share: float,
        split: Split | None = None,
    ) -> Slice:
        """A share of a slice."""
        trial = entrant.trials[heat.rows]
        found = self._crew.measure(
            entrant,
            heat.name,
            math.ceil(share * trial.calls),
            discard=0 if trial.call_s >= SLOW_CALL_S else self._protocol.discarded_calls,
            callers=self._limits.concurrency,
            split=split,
            timeout_s=self._timeout_s(trial),
        )
        # Anew each time: an arm that threads of others slow down a lot would hold up the block.
        self._settle(trial, found.ns)
        return found

    def _slice(self, heat: Heat, entrant: Entrant, share: float) -> Slice:
        found, trial = self._calls(heat, entrant, share), entrant.trials[heat.rows]
        limit = self._tolerance.get(entrant.id, math.inf)
        if found.drift is not None and not found.drift <= limit:
            entrant.end(
                "not_conformant",
                f"its outputs for equal inputs changed during the race, by {found.drift:.2g} "
                f"relative to 1 + |value|; at most {limit:.2g} is let pass",
            )
            trial.status, trial.reason = "not_conformant", entrant.reason
        return found

    def _enforce(self, heat: Heat) -> None:
        """Takes arms out of the race that cannot keep the latency that was asked for."""
        limit, fraction = self._limits.sla_s, self._limits.sla_percentile
        assert heat.race is not None
        if limit is None or fraction is None:
            return
        for name in heat.race.living:
            entrant = heat.entrants[name]
            trial, calls = entrant.trials[heat.rows], entrant.calls_ns(heat.rows) / 1e9
            misses = int(np.sum(calls > limit))
            lower, _ = clopper_pearson(misses, len(calls), 0.95)
            if median(calls) > limit or lower > 1 - fraction:
                trial.status = "infeasible"
                trial.reason = (
                    f"{misses} of {len(calls)} calls took longer than {limit * 1e3:g} ms; its "
                    f"p{100 * fraction:g} is {percentile(calls, fraction) * 1e3:.3g} ms"
                )
                heat.race.remove(name)

    def _statistic(self, found: Sequence[Slice], rows: int) -> float:
        """What a block counts for an arm: lower is better."""
        every = np.concatenate([one.ns for one in found])
        if self.is_rate:
            return sum(one.elapsed_ns for one in found) / 1e9 / (len(every) * rows)
        if self._limits.objective == "p99":
            return percentile(every, 0.99) / 1e9
        logs = [math.log(max(median(one.ns), 1.0)) for one in found]
        return math.exp(sum(logs) / len(logs)) / 1e9

    def _settle(self, trial: Trial, durations: object) -> None:
        trial.call_s = max(median(durations) / 1e9, 1e-8)  # type: ignore[arg-type]
        if trial.call_s >= SLOW_CALL_S:
            trial.calls = 1
            return
        least = 100 if self._limits.objective == "p99" else self._protocol.min_calls
        wanted = round(self._protocol.slice_s / trial.call_s) * self._limits.concurrency
        trial.calls = max(least, min(self._protocol.max_calls, wanted))

    def _timeout_s(self, trial: Trial) -> float:
        return self._protocol.call_timeout_s + 20 * trial.call_s * (
            trial.calls + self._protocol.discarded_calls
        )

    def _guard(self, heat: Heat, entrant: Entrant, act: Callable[[Heat, Entrant], object]) -> None:
        """Does something with an arm; a failure ends the arm, not the race."""
        if not entrant.takes_part():
            return
        try:
            act(heat, entrant)
        except BridgeError as error:
            entrant.fail(error, f"with {heat.rows} rows")
            trial = entrant.trials.setdefault(heat.rows, Trial(heat.rows))
            trial.status, trial.reason = status_of(error), entrant.reason
        if not entrant.takes_part():
            self._crew.drop(entrant)
            for other in self._heats:
                # Also where it was eliminated already: it may not be ranked as a runner-up.
                race = other.race
                if race is not None and entrant.id in race.arms and entrant.id not in race.removed:
                    race.remove(entrant.id)

    def _is_running(self, heat: Heat, entrant: Entrant) -> bool:
        return heat.rows in entrant.trials and self._may_run(heat, entrant)

    def _may_run(self, heat: Heat, entrant: Entrant) -> bool:
        trial = entrant.trials.get(heat.rows)
        return entrant.takes_part() and (trial is None or trial.status == "undecided")

    def _is_out_of_time(self) -> bool:
        self.was_stopped = self.was_stopped or self._stop()
        return self.was_stopped or monotonic() >= self._deadline
