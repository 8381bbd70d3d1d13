from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from bridge.errors import MeasureError
from bridge.record import Protocol
from bridge_bench.race import Race
from bridge_bench.simulation import (
    NOISY,
    QUIET,
    USUAL,
    Noise,
    Slices,
    aa,
    exhaustive,
    field,
    known,
    main,
    many,
    run_race,
)
from bridge_bench.stats import duel


def noisy(times: Mapping[str, float], noise: float, seed: int = 0) -> Iterator[dict[str, float]]:
    random = np.random.default_rng(seed)
    while True:
        shared = random.normal()  # a whole block may be fast or slow
        yield {
            arm: time * math.exp(shared + noise * random.normal()) for arm, time in times.items()
        }


def run(
    times: Mapping[str, float], noise: float = 0.01, *, seed: int = 0, default: str | None = None
) -> Race:
    race = Race(list(times), default=default)
    for block in noisy(times, noise, seed):
        if race.is_over:
            return race
        race.add({arm: block[arm] for arm in race.living})
    raise AssertionError


def test_a_clear_winner_is_proven() -> None:
    race = run({"a": 1.0, "b": 1.2, "c": 1.5, "d": 3.0}, default="b")
    assert race.blocks == 6
    assert race.living == ("a",)
    verdict = race.verdict(16)
    assert (verdict.rows, verdict.status, verdict.winner) == (16, "proven", "a")
    assert verdict.ranking == ("a", "b", "c", "d")
    assert verdict.ties == ()
    assert verdict.regret == 0
    assert verdict.default_ratio is not None
    assert verdict.default_ratio.low < 1.2 < verdict.default_ratio.high
    assert verdict.reason == "a is faster than each of the 3 other arms (95 %)."
    standings = race.standings(verdict)
    assert [standings[arm].status for arm in "abcd"] == ["won", *["eliminated"] * 3]
    assert [standings[arm].look for arm in "abcd"] == [None, 6, 6, 2]
    assert standings["c"].by == "a"
    assert "slower than a, over 6 blocks" in standings["c"].reason
    assert "in each of the first 2 blocks" in standings["d"].reason
    assert standings["a"].slower is None
    assert standings["d"].slower is not None
    assert standings["d"].slower.value == pytest.approx(3, rel=0.1)


def test_arms_within_epsilon_tie() -> None:
    race = run({"a": 1.0, "b": 1.002, "c": 1.6}, 0.005)
    verdict = race.verdict(1)
    assert verdict.status == "tied"
    assert {verdict.winner, *verdict.ties} == {"a", "b"}
    assert verdict.regret is not None
    assert 0 <= verdict.regret <= 0.02
    assert "no other arm is more than" in verdict.reason
    assert {race.standings(verdict)[arm].status for arm in "ab"} == {"tied"}


def test_a_tie_is_the_callers_to_choose() -> None:
    race = run({"a": 1.0, "b": 1.002, "c": 1.001, "d": 1.6}, 0.002)
    order = {"a": 2, "b": 1, "c": 3, "d": 0}
    verdict = race.verdict(1, preference=lambda arm: order[arm])
    assert verdict.winner == "b"
    assert verdict.ranking[0] == "b"
    assert verdict.ranking[-1] == "d"
    assert verdict.regret is not None
    assert 0 < verdict.regret <= 0.02
    leader = race.leader
    assert race.verdict(1, preference=lambda arm: 0).winner == leader


def test_a_preferred_arm_that_may_be_slower_than_epsilon_is_not_chosen() -> None:
    race = Race(["a", "b"])
    for block in noisy({"a": 1.0, "b": 1.03}, 0.03, seed=4):
        if race.is_over:
            break
        race.add(block)
    verdict = race.verdict(1, preference=lambda arm: arm == "a")
    regret = race.regret("b")
    assert regret is None or regret > 0.02
    assert verdict.winner == "a"


def test_the_default_is_kept_where_nothing_is_measurably_faster() -> None:
    race = run({"a": 1.0, "b": 1.0, "c": 1.0}, 0.01, default="c")
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner) == ("default", "c")
    assert set(verdict.ties) == {"a", "b"}
    assert verdict.default_ratio is not None
    assert verdict.default_ratio.value == 1
    assert "default c" in verdict.reason
    assert race.standings(verdict)["c"].status == "tied"


def test_a_default_that_is_measurably_slower_is_not_kept() -> None:
    verdict = run({"a": 1.0, "b": 1.001, "c": 1.05}, 0.005, default="c").verdict(1)
    assert verdict.winner in {"a", "b"}
    assert verdict.status == "tied"
    assert verdict.default_ratio is not None
    assert verdict.default_ratio.low > 1


def test_a_default_that_is_hopeless_is_measured_to_the_first_look() -> None:
    race = run({"a": 1.0, "b": 5.0, "c": 5.0}, default="b")
    standings = race.standings()
    assert standings["b"].look == 6
    assert standings["c"].look == 2
    ratio = race.verdict(1).default_ratio
    assert ratio is not None
    assert ratio.high / ratio.low < 1.1  # two blocks would not tell as much


@pytest.mark.parametrize("blocks", [0, 1, 2, 4])
def test_a_budget_that_ends_early_decides_nothing(blocks: int) -> None:
    race = Race(["a", "b", "c"], default="b")
    source = noisy({"a": 1.0, "b": 1.0, "c": 1.3}, 0.03)
    for _ in range(blocks):
        race.add(next(source))
    assert not race.is_over
    verdict = race.verdict(1)
    assert verdict.status == "undecided"
    assert verdict.winner == "b"  # nothing was shown to be faster than the default
    assert f"after {blocks} block" in verdict.reason
    assert "too early to be sure: b, the default, is kept" in verdict.reason
    if blocks < 2:
        assert verdict.regret is None
        assert "is not known" in verdict.reason
    assert race.standings(verdict)["b"].status == "undecided"
    assert race.verdict(1, is_interrupted=True).status == "interrupted"


def test_a_verdict_without_a_default_takes_the_leader() -> None:
    race = Race(["a", "b"])
    race.add({"a": 1.1, "b": 1.0})
    assert race.verdict(1).winner == "b"
    assert race.verdict(1).default_ratio is None


def test_the_looks_run_out_on_a_noisy_machine() -> None:
    race = run({"a": 1.0, "b": 1.0, "c": 1.0}, 0.2)
    assert race.blocks == 45
    verdict = race.verdict(1)
    assert verdict.status == "undecided"
    assert verdict.regret is not None
    assert verdict.regret > 0.02


def test_a_single_arm_runs_to_the_first_look() -> None:
    race = run({"a": 1.0})
    assert race.blocks == 6
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner, verdict.regret) == ("proven", "a", 0)
    assert verdict.reason == "a is the only arm that may serve."
    assert Race(["a"]).verdict(1).winner == "a"


def test_no_arms() -> None:
    race = Race([])
    assert race.is_over
    assert race.verdict(1).status == "none"
    assert race.verdict(1).winner is None
    assert race.standings() == {}


def test_equal_times_tie_without_any_variance() -> None:
    race = Race(["a", "b", "c"])
    while not race.is_over:
        race.add(dict.fromkeys(race.living, 0.001))
    assert race.blocks == 6
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner, verdict.regret) == ("tied", "a", 0)
    assert verdict.ties == ("b", "c")


def test_exact_ratios_without_any_variance() -> None:
    race = Race(["a", "b", "c"])
    while not race.is_over:
        race.add({arm: {"a": 1.02, "b": 1.0, "c": 1.001}[arm] for arm in race.living})
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner) == ("tied", "b")
    assert verdict.ties == ("c",)  # within the margin: two loads of one arm differ as much
    assert race.standings(verdict)["a"].status == "eliminated"


def test_one_long_interruption_cuts_no_arm() -> None:
    race = Race(["a", "b"])
    race.add({"a": 10.0, "b": 1.01})
    race.add({"a": 1.0, "b": 1.01})
    assert race.living == ("a", "b")


def test_blocks_may_lack_arms() -> None:
    race = Race(["a", "b", "c"])
    source = noisy({"a": 1.0, "b": 1.1, "c": 1.3}, 0.01)
    for index in range(9):
        block = next(source)
        del block["abc"[index % 3]]
        race.add(block)
    assert race.times("a")[0] is None
    assert race.times("a").count(None) == 3
    assert race.verdict(1).winner == "a"
    assert race.ratio("b", "a") is not None
    late = Race(["a", "b"])
    for _ in range(6):
        late.add({"a": 1.0})
    assert not late.is_over
    assert late.ratio("b", "a") is None
    assert late.verdict(1).winner == "a"
    assert late.verdict(1).regret is None
    late.add({})
    assert late.blocks == 7


def test_nothing_in_any_block() -> None:
    race = Race(["a", "b"])
    for _ in range(45):
        race.add({})
    assert race.is_over
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner, verdict.regret) == ("undecided", "a", None)


def test_an_arm_that_failed_leaves_the_others() -> None:
    race = Race(["a", "b", "c"], default="a")
    source = noisy({"a": 1.0, "b": 1.1, "c": 1.3}, 0.01)
    for _ in range(4):
        race.add(next(source))
    race.remove("a", "It crashed.")
    assert race.living == ("b", "c")
    with pytest.raises(ValueError, match="not in the race"):
        race.add({"a": 1.0})
    while not race.is_over:
        block = next(source)
        race.add({arm: block[arm] for arm in race.living})
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner) == ("proven", "b")
    assert verdict.ranking == ("b", "c")
    assert verdict.default_ratio is None
    standing = race.standings(verdict)["a"]
    assert (standing.status, standing.look, standing.reason) == ("removed", 4, "It crashed.")
    for arm in "bc":
        race.remove(arm)
    assert race.verdict(1).status == "none"


def test_a_race_that_is_ended_early_takes_a_last_look() -> None:
    race = Race(["a", "b", "c"])
    source = noisy({"a": 1.0, "b": 1.001, "c": 1.6}, 0.01)
    for _ in range(5):
        race.add(next(source))
    assert race.living == ("a", "b", "c")
    assert not race.is_over
    verdict = race.verdict(1)
    assert race.living == ("a", "b")
    assert race.standings(verdict)["c"].look == 5
    assert race.verdict(1) == verdict


def test_an_arm_of_two_speeds_is_eliminated_though_it_varies() -> None:
    race = Race(["a", "b"])
    for index, block in enumerate(noisy({"a": 1.0, "b": 1.3}, 0.02)):
        if race.is_over:
            break
        race.add({"a": block["a"], "b": block["b"] * (1 if index % 3 == 1 else 100)})
    assert race.blocks == 6
    assert race.verdict(1).status == "proven"
    slower = race.standings()["b"].slower
    assert slower is not None
    assert slower.value > 10


def test_arms_that_a_failed_leader_eliminated_return() -> None:
    race = run({"a": 1.0, "b": 1.2, "c": 1.22, "d": 1.6})
    assert race.living == ("a",)
    race.remove("a")
    assert race.living == ("b", "c")  # and d was eliminated again, by b
    assert race.standings()["d"].by == "b"
    verdict = race.verdict(1)
    assert (verdict.status, verdict.winner, verdict.ties) == ("tied", "b", ("c",))
    assert verdict.ranking == ("b", "c", "d")


def test_replay_gives_the_same_race() -> None:
    race = Race(["a", "b", "c", "d"], default="d")
    blocks: list[dict[str, float]] = []
    for block in noisy({"a": 1.0, "b": 1.004, "c": 1.02, "d": 1.05}, 0.01):
        if race.is_over:
            break
        blocks.append({arm: block[arm] for arm in race.living})
        race.add(blocks[-1])
        if race.blocks == 7:
            race.remove("b")
    for count in (0, 3, 7, len(blocks)):
        again = Race.replay(
            race.arms, blocks[:count], default="d", removed=race.removed if count >= 7 else None
        )
        for block in blocks[count:]:
            again.add({arm: time for arm, time in block.items() if arm in again.living})
            if again.blocks == 7 and count < 7:
                again.remove("b")
        assert again.verdict(4) == race.verdict(4)
        assert again.standings() == race.standings()
        assert (again.blocks, again.living) == (race.blocks, race.living)


def test_unfit_blocks_are_refused_and_leave_no_trace() -> None:
    race = Race(["a", "b"])
    for time in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(MeasureError, match="not a positive number") as raised:
            race.add({"a": 1.0, "b": time})
        assert raised.value.detail["arm"] == "b"
    with pytest.raises(ValueError, match="not in the race"):
        race.add({"c": 1.0})
    assert race.blocks == 0
    assert race.times("a") == ()
    with pytest.raises(ValueError, match="not in the race"):
        race.remove("c")
    with pytest.raises(ValueError, match="same id"):
        Race(["a", "a"])
    with pytest.raises(ValueError, match="default"):
        Race(["a"], default="b")


def test_huge_ratios_stay_numbers() -> None:
    race = Race(["a", "b"])
    race.add({"a": 1e-300, "b": 1e300})
    race.add({"a": 1e-300, "b": 1e-200})
    assert race.living == ("a",)
    slower = race.standings()["b"].slower
    assert slower is not None
    assert math.isfinite(slower.high)
    assert slower.low > 0


def test_the_protocol_is_obeyed() -> None:
    protocol = Protocol(looks=(3, 5), cut_ratio=1.5, epsilon=0.5)
    race = Race(["a", "b", "c"], protocol=protocol)
    source = noisy({"a": 1.0, "b": 1.2, "c": 1.7}, 0.01)
    while not race.is_over:
        block = next(source)
        race.add({arm: block[arm] for arm in race.living})
    assert race.blocks == 3
    assert race.standings()["c"].look == 2


def test_a_duel_gives_the_ratio() -> None:
    source = noisy({"a": 1.1, "b": 1.0}, 0.01)
    blocks = [next(source) for _ in range(6)]
    ratio = duel([block["a"] for block in blocks], [block["b"] for block in blocks])
    assert 1 < ratio.low < ratio.value < ratio.high < 1.2
    assert ratio.low < 1.1 < ratio.high
    with pytest.raises(MeasureError, match="two blocks or more"):
        duel([1.0, None], [1.0, 2.0])


@pytest.mark.parametrize("noise", [QUIET, USUAL, Noise(drift=0.01, slices=0.003, bias=0.003)])
def test_identical_arms_give_no_proven_winner(noise: Noise) -> None:
    row = aa(noise, 100)
    assert row.proven <= 0.05
    assert row.bound_holds >= 0.95


@pytest.mark.parametrize("change", [{}, {"change": 1.3, "change_after": 3}])
def test_known_ratios_are_chosen_within_two_percent(change: dict[str, float]) -> None:
    for noise in (QUIET, USUAL, NOISY):
        row = known(noise, 60, **{"change": 1.0, **change})
        assert row.near >= 0.95, noise
        assert row.bound_holds >= 0.95, noise


def test_an_arm_that_slows_down_does_not_win() -> None:
    row = known(USUAL, 60, change=1.3, change_after=3, changed=0)
    assert row.near >= 0.95


def test_drift_of_the_machine_changes_no_winner() -> None:
    ratios = (1.0, 1.01, 1.03, 1.1)
    for seed in range(20):
        plain, count, _ = run_race(ratios, Slices(ratios, QUIET, seed))
        drifted = Slices(ratios, QUIET, seed, change=1.3, change_after=3)
        verdict, again, _ = run_race(ratios, drifted)
        assert (verdict.winner, again) == (plain.winner, count)


def test_the_race_of_many_arms_is_right_and_cheap() -> None:
    row = many("24 arms", 20, lambda seed: (field(seed), Slices(field(seed), USUAL, seed), None))
    assert row.near >= 0.95
    assert row.cost <= 0.3
    alone = exhaustive(USUAL, 20, is_interleaved=False)
    assert alone.cost == 1
    assert row.regret < alone.regret


def test_a_budget_of_blocks_ends_a_simulated_race() -> None:
    ratios = (1.0, 1.01)
    verdict, count, race = run_race(ratios, Slices(ratios, NOISY, 0), max_blocks=4)
    assert (verdict.status, count, race.blocks) == ("undecided", 8, 4)


def test_the_simulation_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scale", "0.005"]) == 0
    text = capsys.readouterr().out
    assert text.count("### ") == 11
    assert "| 5 % / 3 % |" in text
    assert "wander 1 %" in text
    assert main(["--scale", "0.005", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert len(tables) == 11
    assert {"setting", "runs", "near", "regret", "cost"} <= set(tables[0]["rows"][0])
