"""compare-records: what is proven of two records, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bridge.errors import MeasureError, OptionError
from bridge.record import (
    SCHEMA,
    ArmRecord,
    BucketRecord,
    Canary,
    Decision,
    GateRecord,
    Limits,
    Measurement,
    Protocol,
    Route,
    SelectionRecord,
)
from bridge_bench.regression import compare_records, parse_limits
from bridge_bench.report.calls import Calls, key
from bridge_bench.stats import median, percentile

LIMIT = {"median": 0.05}


def record(
    times: dict[str, float], *, seed: int, noise: float = 0.01, blocks: int = 20, **fields: Any
) -> tuple[SelectionRecord, Calls]:
    """A record of arms with these times at 16 rows, the first of which serves; and its calls."""
    generator = np.random.default_rng(seed)
    arms, calls = [], {}
    for name, time in times.items():
        levels = time * generator.lognormal(0, noise, blocks)
        each = levels[:, None] * (1 + generator.gamma(2, 0.01, (blocks, 25)))
        calls[key(name, 16)] = (each * 1e9).astype(np.int64).ravel()
        arms.append(
            ArmRecord(
                id=name,
                model=0,
                backend=name,
                device="cpu",
                options={},
                tier="strict",
                status="tied",
                buckets=(
                    Measurement(
                        rows=16,
                        status="tied",
                        median_s=median(levels),
                        p99_s=percentile(calls[key(name, 16)], 0.99) * 1e-9,
                        blocks=tuple(map(float, levels)),
                    ),
                ),
            )
        )
    given: dict[str, Any] = {
        "schema": SCHEMA,
        "created": "2026-11-24T10:00:00Z",
        "bridge_version": "0.1.0",
        "command": (),
        "seed": 0,
        "models": (),
        "signature": {},
        "batch_axes": {"x": 0},
        "output_batch_axes": {"y": 0},
        "profile": {},
        "limits": Limits(),
        "gate": GateRecord(tier="strict", reference="alpha", tolerances={}),
        "protocol": Protocol(),
        "machine": {"cpu_model": "A", "usable_cpus": 2},
        "versions": {"alpha": "1.0"},
        "variables": {},
        "buckets": (BucketRecord(rows=16, to_rows=None, weight=1.0),),
        "arms": tuple(arms),
        "decision": Decision(
            status="decided", summary="", routes=(Route(to_rows=None, arm=next(iter(times))),)
        ),
        "canary": Canary(median_s=5e-3, times_s=(5e-3,), redone=0, is_noisy=False),
    }
    return SelectionRecord(**{**given, **fields}), calls


def served(record: SelectionRecord, arm: str | None) -> SelectionRecord:
    routes = () if arm is None else (Route(to_rows=None, arm=arm),)
    return replace(record, decision=replace(record.decision, routes=routes))


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, "same"), (1.03, "slower"), (1.12, "regression"), (0.9, "faster")],
)
def test_the_interval_decides(factor: float, verdict: str) -> None:
    before, _ = record({"alpha": 1e-3}, seed=1)
    after, _ = record({"alpha": factor * 1e-3}, seed=2)
    found = compare_records(before, after, limits=LIMIT)
    (change,) = found.serving
    assert change.verdict == verdict
    assert change.ratio is not None
    assert change.ratio.low <= factor <= change.ratio.high
    assert change.ratio.low <= change.ratio.value <= change.ratio.high
    assert bool(found.regressions) == (verdict == "regression")
    assert found.is_comparable
    assert found.is_telling


def test_equal_speed_is_seldom_called_a_change_and_never_a_regression() -> None:
    pairs = [
        (record({"alpha": 1e-3}, seed=seed)[0], record({"alpha": 1e-3}, seed=1000 + seed)[0])
        for seed in range(60)
    ]
    found = [compare_records(*pair, limits=LIMIT, resamples=300) for pair in pairs]
    assert sum(one.serving[0].verdict != "same" for one in found) <= 8  # 5 % of 60, and chance
    assert not any(one.regressions for one in found)


def test_noise_hides_what_is_then_not_proven() -> None:
    before, _ = record({"alpha": 1e-3}, seed=1, noise=0.3)
    after, _ = record({"alpha": 1.1e-3}, seed=2, noise=0.3)
    assert compare_records(before, after, limits=LIMIT).serving[0].verdict == "same"


def test_the_tail_is_compared_where_the_calls_are_known() -> None:
    limits = {"median": 0.05, "p99": 0.1}
    before, early = record({"alpha": 1e-3}, seed=1)
    after, late = record({"alpha": 1e-3}, seed=2)
    slow = {
        name: np.where(np.arange(times.size) % 40 == 0, 3 * times, times)
        for name, times in late.items()
    }
    found = compare_records(before, after, limits=limits, before_calls=early, after_calls=slow)
    assert [one.verdict for one in found.serving] == ["same", "regression"]
    assert found.serving[1].ratio is not None
    assert found.serving[1].ratio.value > 2
    same = compare_records(before, after, limits=limits, before_calls=early, after_calls=late)
    assert [one.verdict for one in same.serving] == ["same", "same"]
    blind = compare_records(before, after, limits=limits)
    assert blind.serving[1].verdict == "unknown"
    assert "does not hold the times" in blind.serving[1].reason


def test_what_serves_decides_and_not_what_lost() -> None:
    before, _ = record({"alpha": 1e-3, "beta": 2e-3}, seed=1)
    after, _ = record({"alpha": 1e-3, "beta": 3e-3}, seed=2)
    found = compare_records(before, after, limits=LIMIT)
    assert not found.regressions
    assert {one.before: one.verdict for one in found.arms} == {"alpha": "same", "beta": "slower"}


def test_another_arm_may_serve() -> None:
    before, _ = record({"alpha": 1e-3, "beta": 2e-3}, seed=1)
    after, _ = record({"beta": 1.01e-3, "alpha": 2e-3}, seed=2)
    (change,) = compare_records(before, after, limits=LIMIT).serving
    assert (change.before, change.after) == ("alpha", "beta")
    assert change.ratio is not None
    assert change.ratio.value == pytest.approx(1.01, rel=0.02)


def test_what_is_served_no_more_is_a_finding() -> None:
    before, _ = record({"alpha": 1e-3}, seed=1)
    after = served(record({"alpha": 1e-3}, seed=2)[0], None)
    lost = compare_records(before, after, limits=LIMIT)
    assert [one.verdict for one in lost.regressions] == ["lost"]
    new = compare_records(after, before, limits=LIMIT)
    assert not new.regressions
    assert not new.is_telling


def test_calls_in_pieces_are_not_compared_by_the_time_of_whole_ones() -> None:
    before, _ = record({"alpha": 1e-3}, seed=1)

    def cut(rows: int) -> SelectionRecord:
        route = Route(to_rows=None, arm="alpha", split_rows=rows)
        return replace(before, decision=replace(before.decision, routes=(route,)))

    found = compare_records(before, cut(4), limits=LIMIT)
    assert found.serving[0].verdict == "unknown"
    assert "alpha served it in pieces of 4 rows after" in found.serving[0].reason
    assert not found.is_telling
    assert "4 rows before" in compare_records(cut(4), before).serving[0].reason
    assert compare_records(before, cut(16), limits=LIMIT).serving[0].verdict == "same"


def test_the_numbers_are_those_that_the_ratio_is_of() -> None:
    """Of a selection by p99, blocks hold 99th percentiles of slices."""
    given, _ = record({"alpha": 2e-3}, seed=1, limits=Limits(objective="p99"))
    arm = given.arms[0]
    middle = replace(arm.buckets[0], median_s=1e-3)
    given = replace(given, arms=(replace(arm, buckets=(middle,)),))
    (change,) = compare_records(given, given).serving
    assert change.before_s == pytest.approx(2e-3, rel=0.05)


def test_too_few_blocks_prove_nothing() -> None:
    before, _ = record({"alpha": 1e-3}, seed=1)
    after, _ = record({"alpha": 2e-3}, seed=2, blocks=5)
    found = compare_records(before, after, limits=LIMIT)
    assert found.serving[0].verdict == "unknown"
    assert "5 blocks" in found.serving[0].reason
    assert not found.is_telling
    idle = replace(after, arms=tuple(replace(arm, buckets=()) for arm in after.arms))
    assert "not measured" in compare_records(before, idle).serving[0].reason


def test_machines_objectives_and_callers_stand_against_comparing() -> None:
    before, _ = record({"alpha": 1e-3}, seed=1)
    for fields in (
        {"machine": {"cpu_model": "B", "usable_cpus": 2}},
        {"limits": Limits(objective="throughput")},
        {"limits": Limits(concurrency=4)},
    ):
        after, _ = record({"alpha": 1e-3}, seed=2, **fields)
        found = compare_records(before, after)
        assert len(found.obstacles) == 1
        assert not found.is_comparable


def test_what_else_differs_is_told() -> None:
    before, _ = record({"alpha": 1e-3, "old": 1e-3}, seed=1)
    after, _ = record(
        {"alpha": 1e-3, "new": 1e-3},
        seed=2,
        versions={"alpha": "1.1", "beta": "2"},
        variables={"OMP_NUM_THREADS": "1"},
        profile={"seed": 3},
        canary=Canary(median_s=6e-3, times_s=(6e-3,), redone=0, is_noisy=False),
    )
    found = compare_records(before, after)
    assert found.is_comparable
    assert found.canary == pytest.approx(1.2)
    assert list(found.notes) == [
        "The inputs are not the same.",
        "alpha changed from 1.0 to 1.1.",
        "beta changed from not there to 2.",
        "OMP_NUM_THREADS changed from unset to '1'.",
        "Measured only before: old.",
        "Measured only after: new.",
        "The machine itself was not equally fast: the canary took 1.20 times as long as before.",
    ]


def test_records_without_a_size_in_common_are_refused() -> None:
    before, _ = record({"alpha": 1e-3}, seed=1)
    after = replace(before, buckets=(BucketRecord(rows=8, to_rows=None, weight=1.0),))
    with pytest.raises(MeasureError, match="16 and 8"):
        compare_records(before, after)


def test_limits_are_read() -> None:
    assert parse_limits(["median:5%", "p99:12.5%"]) == {"median": 0.05, "p99": 0.125}
    assert parse_limits(["median:5%, p99:10%"]) == {"median": 0.05, "p99": 0.1}
    assert parse_limits([]) == {}
    for text in ("median", "median:5", "mean:5%", "median:-5%", "", "median:5%,median:6%"):
        with pytest.raises(OptionError, match="limit"):
            parse_limits([text])
