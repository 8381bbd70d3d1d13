"""Verdicts, schedules, LoadGen's log and the account of a run: no processes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import MeasureError, OptionError, PredictError
from bridge_bench.load import Issuer, Latency, Scenario, Sla, judge, loadgen
from bridge_bench.load.account import Subject, account
from bridge_bench.load.calls import Calls, Timed, Warmup
from bridge_bench.load.detail_log import parse
from bridge_bench.load.result import Floor
from bridge_bench.load.scenario import Order, scenario_of
from bridge_bench.load.schedule import loadgen_arrivals, poisson_arrivals
from bridge_bench.load.sla import late_to_fail

SLA = Sla(0.99, 0.005)


def at_most(late: int, count: int, share: float) -> float:
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(late + 1))


@pytest.mark.parametrize(("queries", "late"), [(299, 0), (473, 1), (628, 2), (773, 3)])
def test_a_promise_is_met_from_so_many_queries_on(queries: int, late: int) -> None:
    assert judge(SLA, queries, late).status == "met"
    fewer = judge(SLA, queries - 1, late)
    assert (fewer.status, fewer.more) == ("undecided", 1)


@given(st.integers(0, 400), st.integers(0, 40), st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=60, deadline=None)
def test_verdicts_are_those_of_the_binomial(queries: int, late: int, percentile: float) -> None:
    late = min(late, queries)
    found = judge(Sla(percentile, 1.0), queries, late)
    share = 1 - percentile
    if at_most(late, queries, share) <= 0.05:
        assert (found.status, found.more) == ("met", 0)
    elif late and 1 - at_most(late - 1, queries, share) <= 0.05:
        assert (found.status, found.more) == ("not_met", None)
    else:
        assert found.status == "undecided"
        assert found.more is not None
        assert judge(Sla(percentile, 1.0), queries + found.more, late).status == "met"


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("queries", [5, 100, 1000])
def test_so_many_late_queries_disprove_a_promise(percentile: float, queries: int) -> None:
    sla = Sla(percentile, 1.0)
    late = late_to_fail(sla, queries)
    assert judge(sla, queries, late - 1).status != "not_met"
    if late <= queries:
        assert judge(sla, queries, late).status == "not_met"
        assert judge(sla, late, late).status == "not_met"


def test_names_of_promises_and_scenarios() -> None:
    assert Sla(0.99, 1).name == "p99"
    assert Sla(0.999, 1).name == "p99.9"
    assert Sla(0.5, 1).name == "p50"
    assert scenario_of("server") is Scenario.SERVER
    with pytest.raises(OptionError, match="Did you mean 'offline'"):
        scenario_of("of-line")


def test_arrivals_are_poisson_seeded_and_within_the_time() -> None:
    times = poisson_arrivals(1000, 20, 1, seed=4)
    gaps = np.diff(times) / 1e9
    assert times[-1] < 20e9
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() == pytest.approx(1e-3, rel=0.03)  # an exponential's deviation is its mean
    assert np.array_equal(times, poisson_arrivals(1000, 20, 1, seed=4))
    assert not np.array_equal(times[:9], poisson_arrivals(1000, 20, 1, seed=5)[:9])
    assert len(poisson_arrivals(1, 0.001, 50, seed=4)) == 50
    assert len(poisson_arrivals(0.001, 0.001, 1, seed=4)) == 1


def test_loadgen_arrivals_are_those_that_it_logged() -> None:
    """Seen in a log of LoadGen 6.0.17: 500 queries per second for 500 ms, seed 0."""
    times, after = loadgen_arrivals(500, 235, 0)
    assert (len(times), times[0]) == (235, 0)
    assert abs(after - 500_499_901) <= 235
    assert np.all(np.diff(times) >= 0)


LOG = """
:::MLLOG {"key": "loadgen_version", "value": "6.0", "time_ms": 1.0, "metadata": {}}
a line of something else
:::MLLOG {"key": "result_validity", "value": "INVALID", "time_ms": 1.0}
:::MLLOG {"key": "result_invalid_reason", "value": "Say "more", please", "time_ms": 2}
:::MLLOG {"key": "result_mean_latency_ns", "value": 1500000, "time_ms": 2}
:::MLLOG {"key": "result_99.00_percentile_latency_ns", "value": 2e6, "time_ms": 2}
:::MLLOG {"key": "result_qps_with_loadgen_overhead", "value": inf, "time_ms": 2}
:::MLLOG {"key": "result_min_duration_met", "value": false, "time_ms": 2}
:::MLLOG {"key": "error_runtime", "value": "Ending early: Ran out.", "time_ms": 2}
:::MLLOG {half a line
:::MLLOG [1, 2]
:::MLLOG {"key": "result_query_count", "value": 12, "time_ms": 3}
"""


def test_a_log_is_read_line_by_line_whatever_is_in_it() -> None:
    log = parse(LOG)
    assert log.is_complete
    assert log.ended_early == "Ending early: Ran out."
    assert log.unread == 2
    found = log.to_dict()
    assert found["invalid_reason"] == 'Say "more", please'
    assert found["mean_latency_s"] == 0.0015
    assert found["percentiles_s"] == {"99.00": 0.002}
    assert found["qps_with_overhead"] is None
    assert found["min_duration_met"] is False
    assert found["queries"] == 12
    json.dumps(found, allow_nan=False)
    assert not parse("").is_complete


def test_a_log_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    """As on a full disk: LoadGen says nothing of it."""
    (tmp_path / "mlperf_log_detail.txt").write_text(LOG.partition("result_validity")[0])
    with pytest.raises(MeasureError, match="does not say whether the run is valid") as caught:
        loadgen._read(tmp_path)
    assert "loadgen_version" in caught.value.detail["log_end"]


@given(st.text(max_size=200), st.integers(0, len(LOG)))
@settings(max_examples=60, deadline=None)
def test_a_damaged_log_never_raises(noise: str, at: int) -> None:
    json.dumps(parse(LOG[:at] + noise + LOG[at:]).to_dict(), allow_nan=False)
    parse(":::MLLOG " + noise)


def test_percentiles_are_given_where_there_are_enough_values() -> None:
    few = Latency.of(np.arange(1, 10) / 1e3)
    assert few is not None
    assert (few.p50_s, few.p90_s, few.p99_s, few.p99_upper_s) == (0.005, None, None, None)
    many = Latency.of(np.arange(1, 1001) / 1e3)
    assert many is not None
    assert (many.p50_s, many.p90_s, many.p99_s, many.p999_s) == (0.5, 0.9, 0.99, 0.999)
    assert many.p99_upper_s is not None
    assert many.p99_upper_s > 0.99
    assert Latency.of(np.zeros(0)) is None


def test_calls_go_on_after_a_failure_without_calling() -> None:
    called: list[int] = []

    def predict(sample: Any) -> None:
        called.append(1)
        raise ZeroDivisionError("by zero")

    calls = Calls(predict, [{}, {}])
    calls(0)
    calls(1)
    assert (calls.issued, calls.completed, calls.failed, len(called)) == (2, 2, 2, 1)
    assert isinstance(calls.error, PredictError)
    assert "ZeroDivisionError: by zero" in calls.error.message
    with pytest.raises(ZeroDivisionError):
        calls.warm(0.01)


def test_warming_up_goes_over_all_samples() -> None:
    seen: list[int] = []
    calls = Calls(lambda sample: seen.append(sample["n"]), [{"n": 0}, {"n": 1}])  # type: ignore[dict-item,arg-type]
    found = calls.warm(0.01)
    assert found.calls == len(seen) >= 9
    assert set(seen) == {0, 1}
    assert found.first_call_s > 0


WARM = Warmup(first_call_s=0.1, calls=10, median_s=0.001, is_stable=True)
SUBJECT = Subject(target="m", info={}, load_s=1.0, warnings=("mind",), rows=4, warmup=WARM)
SERVER = Order(
    scenario=Scenario.SERVER,
    issuer=Issuer.OWN,
    duration_s=1,
    qps=1000,
    sla_s=0.005,
    sla_percentile=0.9,
)
MS = 1_000_000


def timed(latency_ms: float = 1.0, count: int = 100, **more: Any) -> Timed:
    due = np.arange(count) * MS
    done = due + round(latency_ms * MS)
    return Timed(scheduled=due, issued=due, done=done, started=due, ended=done, **more)


def log(**more: Any) -> dict[str, Any]:
    return {**parse("").to_dict(), "validity": "INVALID", **more}


def test_an_account_of_a_good_run() -> None:
    floor = Floor(issuer="own", scenario="server", p50_s=1e-5, p99_s=1e-4, calls=10)
    found = account(SUBJECT, SERVER, timed(), 0, None, floor=floor, issuer_reason="so")
    assert found.status == "valid"
    assert found.is_good
    assert found.keeps_up
    assert found.offered_qps == pytest.approx(1000)
    assert found.achieved_qps == pytest.approx(1000)
    assert found.rows_per_s == pytest.approx(4000)
    assert found.sla_latency_s == pytest.approx(0.001)
    assert found.warnings == ("mind",)
    dear = dataclasses.replace(floor, p50_s=1e-4)
    found = account(SUBJECT, SERVER, timed(), 0, None, floor=dear, issuer_reason="so")
    assert "costs 100 µs by itself, 10 % of the median call" in found.warnings[-1]


def test_queries_that_were_sent_late_are_told() -> None:
    late = timed()
    late.issued = late.scheduled + MS // 2
    found = account(SUBJECT, SERVER, late, 0, None, floor=None, issuer_reason="")
    assert "sent up to 500 µs after they were due" in found.warnings[-1]
    assert found.lateness is not None
    assert found.lateness.p50_s == pytest.approx(0.0005)


def test_what_was_dropped_is_late_and_did_not_keep_up() -> None:
    lost = timed(dropped=20, abandoned=10)
    found = account(SUBJECT, SERVER, lost, 0, None, floor=None, issuer_reason="")
    assert found.verdict is not None
    assert (found.verdict.status, found.verdict.queries, found.verdict.late) == ("not_met", 130, 30)
    assert found.keeps_up is False
    assert found.status == "invalid"
    assert "20 were dropped and 10 never sent" in found.reasons[0]


def test_the_rate_of_what_was_never_sent_is_the_one_asked_for() -> None:
    half = timed(count=500, abandoned=500)  # of a second, the latter half
    found = account(SUBJECT, SERVER, half, 0, None, floor=None, issuer_reason="")
    assert found.offered_qps == 1000
    assert found.keeps_up is False


def test_answers_that_fall_behind_did_not_keep_up() -> None:
    slow = timed()
    slow.done = slow.scheduled * 2 + MS
    found = account(SUBJECT, SERVER, slow, 0, None, floor=None, issuer_reason="")
    assert found.keeps_up is False
    assert not found.is_good


def test_nothing_was_answered() -> None:
    nothing = timed(count=0, abandoned=7)
    found = account(SUBJECT, SERVER, nothing, 0, None, floor=None, issuer_reason="")
    assert (found.status, found.queries, found.latency) == ("invalid", 0, None)
    assert found.verdict is not None
    assert found.verdict.late == 7
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        ({"validity": "VALID"}, "valid", ""),
        ({"min_duration_met": False, "invalid_reason": "Do more."}, "invalid", "Do more."),
        ({"min_queries_met": False}, "invalid", "number of queries was not reached"),
        ({"errors": ["Ending early: why"]}, "invalid", "Ending early: why"),
        # The latency that LoadGen was told to keep: that is the verdict's matter.
        ({"perf_constraints_met": False, "early_stopping_met": False}, "valid", ""),
        ({"early_stopping_met": False, "early_stopping_result": "12 more"}, "valid", "12 more"),
        ({}, "invalid", "calls the run INVALID"),
        ({"validity": "VALID", "mean_latency_s": 0.5}, "valid", "LoadGen's mean latency"),
    ],
)
def test_what_loadgen_says_counts(said: dict[str, Any], status: str, text: str) -> None:
    found = account(
        SUBJECT, SERVER, timed(loadgen=log(**said)), 0, None, floor=None, issuer_reason=""
    )
    assert found.status == status
    assert text in " ".join((*found.reasons, *found.warnings))
    if status == "valid" and not text:
        assert (found.reasons, found.warnings) == ((), ("mind",))


def test_an_order_survives_the_way_to_the_child() -> None:
    assert Order.from_dict(json.loads(json.dumps(SERVER.to_dict()))) == SERVER
