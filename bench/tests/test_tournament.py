"""The measurement's limits, over a crew that only pretends to measure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import numpy as np
import pytest

from bridge.device import CPU
from bridge.errors import PredictError, WorkerDied
from bridge.isolation import Slice
from bridge.record import Limits, Protocol
from bridge_bench.canary import CanaryBird
from bridge_bench.entrant import Entrant, Trial
from bridge_bench.plan import PlannedArm
from bridge_bench.race import Race
from bridge_bench.tournament import Heat, Tournament

PROTOCOL = Protocol(looks=(3, 5, 8), max_calls=200)


class FakeCrew:
    """Arms take the times that they are said to; some fail, drift, or do both late."""

    def __init__(self, seconds: Mapping[str, float], act: Callable[[str, int], float | None]):
        self.seconds = seconds
        self.act = act
        self.slices: dict[str, int] = dict.fromkeys(seconds, 0)
        self.calls: list[tuple[str, int, int, Any]] = []
        self.dropped: list[str] = []
        self.random = random.Random(0)

    def keep(self, name: str, variants: object) -> None:
        pass

    def predict(self, entrant: Entrant, inputs: object) -> tuple[dict[str, Any], float]:
        return {}, self.seconds[entrant.id]

    def measure(self, entrant: Entrant, name: str, calls: int, **words: Any) -> Slice:
        self.slices[entrant.id] += 1
        self.calls.append((entrant.id, calls, words.get("discard", 2), words.get("split")))
        drift = self.act(entrant.id, self.slices[entrant.id])
        # Now and then a call takes twice as long.
        times = [
            self.seconds[entrant.id]
            * (1 + 0.001 * self.random.random())
            * (2 if index % 10 == 9 else 1)
            for index in range(calls)
        ]
        ns = np.array([1e9 * time for time in times], np.int64)
        return Slice(ns=ns, elapsed_ns=int(ns.sum()), cpu_ns=int(ns.sum()), drift=drift)

    def drop(self, entrant: Entrant) -> None:
        self.dropped.append(entrant.id)


def entrants(*names: str) -> dict[str, Entrant]:
    return {
        name: Entrant.of(
            PlannedArm(id=name, model=0, backend="fake", device=CPU, options=None), slot
        )
        for slot, name in enumerate(names)
    }


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CanaryBird, "sing", lambda self: 0.005)


def held(
    seconds: Mapping[str, float],
    *,
    act: Callable[[str, int], float | None] = lambda name, turn: None,
    limits: Limits | None = None,
    rows: tuple[int, ...] = (1,),
    **words: Any,
) -> tuple[list[Heat], FakeCrew, Tournament]:
    crew = FakeCrew(seconds, act)
    heats = [Heat(size, [{}]) for size in rows]
    arms = entrants(*seconds)
    for heat in heats:
        heat.entrants = dict(arms)
    given: dict[str, Any] = {
        "protocol": PROTOCOL,
        "default": None,
        "tolerance": {},
        "seed": 0,
        "deadline": monotonic() + 60,
        "stop": lambda: False,
        "tell": lambda text: None,
        **words,
    }
    found = Tournament(crew, heats, limits=limits or Limits(), **given)  # type: ignore[arg-type]
    found.run()
    return heats, crew, found


def test_the_fastest_arm_is_left_in_every_bucket() -> None:
    heats, _, found = held({"a": 1e-3, "b": 1.2e-3, "c": 5e-3}, rows=(1, 16))
    assert not found.was_stopped
    for heat in heats:
        assert heat.race is not None
        assert heat.race.living == ("a",)
        assert heat.race.standings()["c"].look == 2
        assert heat.entrants["c"].trials[heat.rows].blocks[2:] == [None]
        assert heat.entrants["a"].trials[heat.rows].is_stable


def test_slices_last_as_long_as_asked_within_limits() -> None:
    _, crew, _ = held({"a": 1e-3, "b": 1e-6, "c": 0.9, "d": 1.5})
    last = {name: (calls, discard) for name, calls, discard, _ in crew.calls}
    # Halves of 50 ms and of the most calls; calls too few for two halves; one call.
    assert last == {"a": (25, 2), "b": (100, 2), "c": (3, 2), "d": (1, 0)}


def test_a_tail_needs_calls() -> None:
    _, crew, _ = held({"a": 1e-2, "b": 1.1e-2}, limits=Limits(objective="p99"))
    assert {calls for _, calls, discard, _ in crew.calls if discard} == {50}  # twice in each block


def test_rates_are_seconds_per_row() -> None:
    heats, _, _ = held({"a": 1e-3, "b": 2e-3}, limits=Limits(objective="throughput"), rows=(10,))
    blocks = [time for time in heats[0].entrants["a"].trials[10].blocks if time is not None]
    assert blocks[0] == pytest.approx(1.08e-4, rel=0.01)  # 2 of 25 calls take twice as long


def test_an_arm_over_the_limit_of_latency_leaves_the_race() -> None:
    limits = Limits(sla_percentile=0.99, sla_s=1.5e-3)
    heats, _, _ = held({"a": 1e-3, "b": 0.7e-3}, limits=limits)
    race = heats[0].race
    assert race is not None
    assert race.living == ("b",)
    trial = heats[0].entrants["a"].trials[1]
    assert trial.status == "infeasible"
    assert "calls took longer than 1.5 ms; its p99 is 2 ms" in trial.reason
    assert heats[0].entrants["a"].takes_part()  # it may serve other sizes


def test_a_rare_miss_is_no_proof() -> None:
    limits = Limits(sla_percentile=0.8, sla_s=1.5e-3)  # a tenth of the calls is over it
    heats, _, _ = held({"a": 1e-3}, limits=limits)
    assert heats[0].entrants["a"].trials[1].status == "undecided"


def test_an_arm_that_crashes_ends_in_every_bucket_and_the_rest_goes_on() -> None:
    def act(name: str, turn: int) -> None:
        if name == "b" and turn == 9:
            raise WorkerDied("the worker process ended by signal SIGSEGV.")

    heats, crew, _ = held({"a": 1e-3, "b": 0.5e-3, "c": 0.9e-3}, act=act, rows=(1, 16))
    assert heats[0].entrants["b"].status == "crashed"
    assert "SIGSEGV" in heats[0].entrants["b"].reason
    assert crew.dropped == ["b"]
    for heat in heats:
        assert heat.race is not None
        assert heat.race.living == ("c",)
        assert "b" not in heat.race.verdict(heat.rows).ranking


def test_an_arm_whose_outputs_change_is_wrong_and_is_freed() -> None:
    heats, crew, _ = held(
        {"a": 1e-3, "b": 0.5e-3},
        act=lambda name, turn: 0.1 if name == "b" and turn > 4 else 0.0,
        tolerance={"a": 1e-4, "b": 1e-4},
    )
    assert heats[0].entrants["b"].status == "not_conformant"
    assert "changed during the race, by 0.1" in heats[0].entrants["b"].reason
    assert crew.dropped == ["b"]
    assert heats[0].race is not None
    assert heats[0].race.living == ("a",)


def test_a_drift_that_is_no_number_is_wrong_too() -> None:
    heats, _, _ = held({"a": 1e-3}, act=lambda name, turn: float("nan"), tolerance={"a": 1.0})
    assert heats[0].entrants["a"].status == "not_conformant"
    assert heats[0].is_over


def test_a_race_in_which_nobody_can_be_measured_ends() -> None:
    def act(name: str, turn: int) -> None:
        raise PredictError("no.")

    heats, _, found = held({"a": 1e-3, "b": 1e-3}, act=act)
    assert heats[0].race is None
    assert {one.status for one in heats[0].entrants.values()} == {"failed"}
    assert not found.was_stopped


def test_no_time_leaves_everything_unknown() -> None:
    heats, crew, found = held({"a": 1e-3, "b": 1e-3}, deadline=monotonic() - 1)
    assert not crew.calls
    assert not found.was_stopped
    race = heats[0].race
    assert race is not None
    verdict = race.verdict(1)
    assert (verdict.status, verdict.regret) == ("undecided", None)


def test_a_stop_is_seen_between_blocks() -> None:
    lines: list[str] = []
    heats, _, found = held(
        {"a": 1e-3, "b": 1.0001e-3},
        stop=lambda: any("block 2/8" in line for line in lines),
        tell=lines.append,
    )
    assert found.was_stopped
    assert heats[0].race is not None
    assert heats[0].race.blocks == 2
    assert len(heats[0].entrants["a"].trials[1].durations) == 2


def test_a_disturbed_block_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    songs = iter([0.005] * 12 + [0.05] * 2)
    monkeypatch.setattr(CanaryBird, "sing", lambda self: next(songs, 0.005))
    # Arms that nothing tells apart, so that the race goes on.
    heats, crew, found = held({"a": 1e-3, "b": 1.0004e-3}, protocol=Protocol(looks=(8,)))
    assert heats[0].race is not None
    assert heats[0].race.blocks == 8
    assert found.canary.redone == 1
    trial = heats[0].entrants["a"].trials[1]
    assert len(trial.blocks) == len(trial.durations) == 8
    timed = [calls for name, calls, discard, _ in crew.calls if name == "a" and discard]
    assert len(timed) == 2 * 9


def test_an_arm_that_comes_later_has_blocks_in_step_with_the_others() -> None:
    crew = FakeCrew({"a": 1e-3, "b": 1e-3}, lambda name, turn: None)
    heat = Heat(1, [{}])
    heat.entrants = entrants("a", "b")
    heat.race = Race(["a", "b"], protocol=PROTOCOL)
    for _ in range(2):  # of an earlier run, in which there was no time to warm "b"
        heat.race.add({"a": 1e-3})
    heat.entrants["a"].trials[1] = Trial(1, blocks=[1e-3, 1e-3])
    found = Tournament(
        crew,  # type: ignore[arg-type]
        [heat],
        limits=Limits(),
        protocol=PROTOCOL,
        default=None,
        tolerance={},
        seed=0,
        deadline=monotonic() + 60,
        stop=lambda: False,
        tell=lambda text: None,
    )
    found.run()
    first, late = (heat.entrants[name].trials[1].blocks for name in "ab")
    assert len(first) == len(late) == heat.race.blocks
    assert late[:2] == [None, None]
    assert None not in late[2:]


def test_a_duel_takes_turns_and_hands_on_how_calls_are_cut() -> None:
    crew = FakeCrew({"a": 1e-3, "b": 2e-3}, lambda name, turn: None)
    heat = Heat(16, [{}])
    heat.entrants = entrants("a", "b")
    found = Tournament(
        crew,  # type: ignore[arg-type]
        [heat],
        limits=Limits(),
        protocol=PROTOCOL,
        default=None,
        tolerance={},
        seed=0,
        deadline=monotonic() + 60,
        stop=lambda: False,
        tell=lambda text: None,
    )
    found.warm(heat)
    crew.calls.clear()
    cut = (4, {"x": 0}, {"y": 0})
    times = found.duel(heat, [(heat.entrants["a"], cut), (heat.entrants["b"], None)], 3)
    assert [len(one) for one in times] == [3, 3]
    assert times[1] == pytest.approx([2e-3] * 3, rel=0.01)
    assert [split for name, _, _, split in crew.calls if name == "a"] == [cut] * 6
    assert [split for name, _, _, split in crew.calls if name == "b"] == [None] * 6
