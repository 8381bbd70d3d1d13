"""What a record says of itself in words, over records made up for it."""

from __future__ import annotations

from dataclasses import replace

from bridge.record import (
    SCHEMA,
    ArmRecord,
    BucketRecord,
    Decision,
    GateRecord,
    Interval,
    Limits,
    Measurement,
    Protocol,
    Route,
    SelectionRecord,
    Verdict,
)
from bridge_bench.summary import sentence

ONE = (BucketRecord(rows=1, to_rows=None, weight=1.0),)
TWO = (
    BucketRecord(rows=1, to_rows=11, weight=0.5),
    BucketRecord(rows=128, to_rows=None, weight=0.5),
)


def arm(name: str, *measured: Measurement, status: str = "tied", reason: str = "") -> ArmRecord:
    return ArmRecord(
        id=name,
        model=0,
        backend=name,
        device="cpu",
        options={},
        tier="strict",
        status=status,
        reason=reason,
        is_default=name == "default",
        buckets=measured,
    )


def slower(rows: int, value: float) -> Measurement:
    ratio = Interval(value=value, low=value - 0.005, high=value + 0.005)
    return Measurement(rows=rows, status="tied", slower=ratio, median_s=1e-3)


def verdict(rows: int, winner: str | None, regret: float | None, gain: float = 1.5) -> Verdict:
    return Verdict(
        rows=rows,
        status="tied" if winner is not None else "none",
        winner=winner,
        regret=regret,
        ranking=() if winner is None else (winner, "other"),
        default_ratio=None
        if winner is None
        else Interval(value=gain, low=gain - 0.1, high=gain + 0.1),
    )


def record(
    arms: tuple[ArmRecord, ...],
    verdicts: tuple[Verdict, ...],
    routes: tuple[Route, ...],
    *,
    buckets: tuple[BucketRecord, ...] = ONE,
    status: str = "decided",
    limits: Limits | None = None,
) -> SelectionRecord:
    return SelectionRecord(
        schema=SCHEMA,
        created="2026-01-01T00:00:00+00:00",
        bridge_version="1",
        command=(),
        seed=0,
        models=(),
        signature={},
        batch_axes={},
        output_batch_axes={},
        profile={},
        limits=limits or Limits(),
        gate=GateRecord(tier="strict", reference="default", tolerances={}),
        protocol=Protocol(),
        machine={},
        versions={},
        variables={},
        buckets=buckets,
        arms=arms,
        decision=Decision(status=status, summary="", verdicts=verdicts, routes=routes),
    )


ARMS = (arm("default"), arm("quick"))
ALL = (Route(to_rows=None, arm="quick"),)


def test_the_winner_with_its_bound_and_its_gain() -> None:
    assert sentence(record(ARMS, (verdict(1, "quick", 0.017),), ALL)) == (
        "quick serves all calls. No other arm is more than 1.7 % faster at any size measured "
        "(95 %). It is 1.50 times as fast as the default default (1.40 to 1.60)."
    )


def test_a_proven_winner_and_a_default_that_is_kept() -> None:
    text = sentence(record(ARMS, (verdict(1, "quick", 0.0),), ALL))
    assert "No other arm is as fast (95 %)." in text
    tied = replace(verdict(1, "quick", 0.0), ties=("default",))
    assert "No other arm is faster at any size measured (95 %)." in sentence(
        record(ARMS, (tied,), ALL)
    )
    kept = record(ARMS, (verdict(1, "default", 0.01, 1.0),), (Route(to_rows=None, arm="default"),))
    assert sentence(kept).endswith("It is the default, default.")


def test_the_only_arm_is_not_proven_to_be_the_fastest() -> None:
    alone = replace(verdict(1, "quick", 0.0), ranking=("quick",), default_ratio=None)
    assert (
        sentence(record(ARMS, (alone,), ALL)) == "quick serves all calls. No other arm may serve."
    )


def test_without_a_bound_none_is_claimed() -> None:
    one = replace(verdict(1, "quick", None), default_ratio=None)
    text = sentence(record(ARMS, (one,), ALL, status="undecided"))
    assert text == (
        "quick serves all calls. The budget ended before every race was decided; a longer "
        "--budget narrows that."
    )
    text = sentence(record(ARMS, (one,), ALL, status="interrupted"))
    assert text == "quick serves all calls. It was interrupted; --resume goes on from here."


def test_the_bound_is_that_of_the_arm_that_serves() -> None:
    arms = (arm("default", slower(1, 1.5)), arm("quick"), arm("both", slower(1, 1.01)))
    verdicts = (verdict(1, "quick", 0.01), verdict(128, "both", 0.0))
    found = record(arms, verdicts, (Route(to_rows=None, arm="both"),), buckets=TWO)
    text = sentence(found)
    # 1.01 times the bound of the winner, and 1.015 at most from it to the arm that serves.
    assert "No other arm is more than 2.5 % faster" in text
    assert "With 1 row, quick is the fastest; both serves in 1.01 times its time." in text
    assert "With 128 rows it is 1.50 times as fast as the default" in text


def test_routes_and_pieces_are_named() -> None:
    routes = (Route(to_rows=11, arm="quick"), Route(to_rows=None, arm="quick", split_rows=16))
    verdicts = (verdict(1, "quick", 0.01), verdict(128, "default", 0.01, 1.0))
    text = sentence(record(ARMS, verdicts, routes, buckets=TWO))
    assert text.startswith("quick serves all calls.")
    assert "With 128 rows, pieces of 16 for quick are faster than the default." in text
    routes = (Route(to_rows=11, arm="default"), Route(to_rows=None, arm="quick", split_rows=16))
    text = sentence(record(ARMS, verdicts, routes, buckets=TWO))
    assert "2 arms serve, by rows per call: 1 to 11: default, 12 and more: quick in pieces" in text


def over(rows: int, **times: float) -> Measurement:
    return Measurement(rows=rows, status="infeasible", **times)  # type: ignore[arg-type]


def test_an_unreachable_limit_shows_the_best_at_the_size_that_has_none() -> None:
    arms = (
        arm("default", over(1, median_s=3e-3, p99_s=6e-3), over(128, median_s=0.03, p99_s=0.05)),
        arm("quick", slower(1, 1.0), over(128, median_s=0.02, p99_s=0.04)),
    )
    limits = Limits(sla_percentile=0.99, sla_s=5e-3)
    verdicts = (verdict(1, "quick", 0.0), verdict(128, None, None))
    found = record(arms, verdicts, (), buckets=TWO, status="none", limits=limits)
    assert sentence(found) == (
        "No arm keeps 5 ms with 128 rows; the best achieved is 40 ms, by quick."
    )


def test_a_percentile_that_few_calls_do_not_tell_is_not_made_up() -> None:
    limits = Limits(sla_percentile=0.99, sla_s=1e-3)
    arms = (arm("default", over(1, median_s=8e-4, p90_s=9e-4)),)
    found = record(arms, (verdict(1, None, None),), (), status="none", limits=limits)
    assert sentence(found) == (
        "No arm keeps 1 ms; the best achieved is 0.9 ms at the 90th percentile, by default."
    )
    arms = (arm("default", over(1, median_s=2e-3)),)
    found = replace(found, arms=arms)
    assert "2 ms at the median, by default" in sentence(found)
    found = replace(found, limits=Limits(sla_percentile=0.5, sla_s=1e-3))
    assert "the best achieved is 2 ms, by default" in sentence(found)


def test_why_nothing_serves() -> None:
    nothing = (verdict(1, None, None),)
    heavy = arm("default", status="infeasible", reason="it needs 9 MiB")
    wrong = arm("quick", status="not_conformant", reason="output 'y' differs")
    for arms, text in (
        ((heavy, wrong), "No arm fits into the memory allowed: default: it needs 9 MiB."),
        ((wrong,), "No arm passed the gate: quick: output 'y' differs."),
        ((arm("default", status="crashed"),), "No arm ran to the end."),
    ):
        assert sentence(record(arms, nothing, (), status="none")) == text
    assert sentence(record(ARMS, nothing, (), status="interrupted")) == (
        "It was interrupted before anything was decided."
    )
    won = (verdict(1, "quick", 0.0),)
    assert "do not fit into the memory allowed" in sentence(record(ARMS, won, (), status="none"))
