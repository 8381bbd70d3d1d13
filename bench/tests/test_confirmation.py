"""What fresh processes change of a verdict; their times are made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest

from bridge.device import CPU
from bridge.errors import BridgeError, PredictError, WorkerDied
from bridge.record import Verdict
from bridge_bench import confirmation
from bridge_bench.entrant import Entrant, Trial
from bridge_bench.plan import PlannedArm
from bridge_bench.request import Request
from bridge_bench.tournament import Heat

Times = Mapping[int, tuple[list[float], list[float]]]


def entrant(name: str, slot: int, *, is_default: bool = False) -> Entrant:
    planned = PlannedArm(
        id=name, model=0, backend="fake", device=CPU, options=None, is_default=is_default
    )
    found = Entrant.of(planned, slot)
    found.trials[1] = Trial(1)
    return found


VERDICT = Verdict(
    rows=1,
    status="tied",
    winner="quick",
    ties=("other",),
    regret=0.01,
    ranking=("quick", "other", "default"),
)


def confirm(
    monkeypatch: pytest.MonkeyPatch,
    launches: list[Times | BridgeError],
    *,
    verdict: Verdict = VERDICT,
    stops: int = 99,
    seconds: float = 60.0,
) -> tuple[Verdict, tuple[Any, ...], list[str], dict[str, Entrant], int]:
    arms = {
        "default": entrant("default", 0, is_default=True),
        "quick": entrant("quick", 1),
        "other": entrant("other", 2),
    }
    heat = Heat(1, [{}], arms)
    done = 0

    def rematch(*_: Any) -> Times:
        nonlocal done
        found = launches[done]
        done += 1
        if isinstance(found, BridgeError):
            raise found
        return found

    monkeypatch.setattr(confirmation, "rematch", rematch)
    request = Request(models=(), buckets=(), launches=len(launches))
    verdicts, found, notes = confirmation.confirm(
        request,
        [heat],
        [verdict],
        deadline=monotonic() + seconds,
        stop=lambda: done >= stops,
        tell=lambda text: None,
    )
    return verdicts[0], found, notes, arms, done


FASTER: Times = {1: ([1.0, 1.01, 0.99], [1.5, 1.52, 1.49])}
EQUAL: Times = {1: ([1.0, 1.02, 0.99], [1.01, 1.0, 1.0])}


def test_a_winner_that_is_faster_again_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, found, notes, _, done = confirm(monkeypatch, [FASTER, FASTER, FASTER])
    assert verdict == VERDICT
    assert (notes, done) == ([], 3)
    assert found[0].arm == "quick"
    assert found[0].launches == (1.0, 1.0, 1.0)
    assert found[0].ratio.low > 1.4


def test_the_default_is_kept_where_the_gain_does_not_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict, found, notes, _, _ = confirm(monkeypatch, [EQUAL, EQUAL])
    assert (verdict.status, verdict.winner) == ("default", "default")
    assert verdict.ties == ("quick", "other")
    assert verdict.ranking == ("default", "quick", "other")
    assert verdict.default_ratio is not None
    assert verdict.default_ratio.value == 1
    # Another may be 1 % faster than the winner, and that a little faster than the default.
    assert verdict.regret == pytest.approx(1.01 * found[0].ratio.high - 1)
    assert "was not measurably faster" in notes[0]


def test_what_was_undecided_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    open_race = replace(VERDICT, status="undecided", regret=None)
    verdict, _, _, _, _ = confirm(monkeypatch, [EQUAL], verdict=open_race)
    assert (verdict.status, verdict.winner, verdict.regret) == ("undecided", "default", None)


def test_a_winner_that_does_not_start_again_does_not_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    died = WorkerDied("the worker process ended by signal SIGSEGV.", arm="quick")
    verdict, found, notes, arms, done = confirm(monkeypatch, [FASTER, died, FASTER])
    assert done == 2
    assert (verdict.status, verdict.winner, verdict.regret) == ("undecided", "default", None)
    assert verdict.ties == ("other",)
    assert verdict.ranking == ("default", "other")
    assert arms["quick"].status == arms["quick"].trials[1].status == "crashed"
    assert not arms["quick"].takes_part()
    assert len(notes) == 1
    assert notes[0].startswith("quick failed when it was started again to confirm: the worker")
    assert found == ()


def test_a_default_that_does_not_start_again_leaves_the_winner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = PredictError("no.", arm="default")
    verdict, found, _, arms, _ = confirm(monkeypatch, [EQUAL, error])
    assert verdict.winner == "quick"
    assert verdict.ranking == ("quick", "other")
    assert len(found) == 1
    assert arms["default"].status == "failed"


def test_a_failure_of_nobody_in_particular_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict, found, notes, _, _ = confirm(monkeypatch, [PredictError("no process.")])
    assert (verdict, found) == (VERDICT, ())
    assert notes == ["an arm failed when it was started again to confirm: no process."]


def test_a_default_that_a_limit_forbids_is_nothing_to_fall_back_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = replace(VERDICT, ranking=("quick", "other"))
    verdict, found, _, _, done = confirm(monkeypatch, [EQUAL], verdict=alone)
    assert (verdict, found, done) == (alone, (), 0)


def test_time_and_the_user_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, notes, _, done = confirm(monkeypatch, [FASTER] * 3, seconds=-1)
    assert (done, len(found[0].launches)) == (1, 1)
    assert notes == ["the budget allowed 1 of 3 fresh processes for confirmation"]
    _, found, notes, _, done = confirm(monkeypatch, [FASTER] * 3, stops=2)
    assert (done, len(found[0].launches)) == (2, 2)
    assert notes == ["it was interrupted after 2 of 3 fresh processes for confirmation"]
    verdict, found, _, _, done = confirm(monkeypatch, [FASTER] * 3, stops=0)
    assert (verdict, found, done) == (VERDICT, (), 0)
