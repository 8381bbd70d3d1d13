"""Runs under load, on an external backend whose predictor acts as its model's name says."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import (
    InputError,
    MeasureError,
    ModelNotFound,
    OptionError,
    PredictError,
)
from bridge_bench import load
from bridge_bench.load import floor, loadgen, peak, session
from bridge_bench.load.result import Floor
from bridge_bench.load.scenario import Issuer
from bridge_bench.profile import InputProfile

PLUGIN = """
import gc, os, time
import bridge

F32 = bridge.DType.FLOAT32

class Acting(bridge.Format):
    name, title, native_backend, suffixes = "acting", "Acting", "actor", (".act",)
    def sniff(self, file):
        return file.head.startswith(b"ACT")

class Player(bridge.Predictor):
    def __init__(self, role):
        self.role, self.calls, self.seen = role, 0, set()  # calls under load
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("x", F32, ("n", 3)),), (bridge.TensorSpec("y", F32, ("n", 3)),)
            ),
            bridge.PredictorInfo(),
        )
    def _predict(self, inputs, outputs):
        under_load = not gc.isenabled()  # nothing is collected in a run
        self.calls += under_load
        if self.role == "refuses":
            raise bridge.errors.InputError("it is not to its taste.", fix="Give another.")
        if self.role == "stalls":
            time.sleep(0.2 if self.calls == 30 else 0.0005)
        elif self.role == "fails" and self.calls > 5:
            raise RuntimeError("it forgot its lines")
        elif self.role == "hangs" and self.calls > 5:
            time.sleep(600)
        elif self.role == "dies" and self.calls > 5:
            print("last words", flush=True)
            os.abort()
        elif self.role not in ("plain", "dies"):
            time.sleep(0.002)
        if self.role == "varies" and under_load:
            self.seen.add(inputs["x"].tobytes())
            if len(self.seen) == 8:
                raise RuntimeError("it has seen eight samples")
        return {"y": inputs["x"]}
    def _close(self):
        pass

class Actor(bridge.Backend):
    name = "actor"
    def probe(self):
        return bridge.Availability(installed=True)
    def capabilities(self, device):
        return bridge.Capabilities(
            formats=frozenset({"acting"}),
            dynamic_dims=True,
            zero_rows=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )
    def _load(self, model, device, options):
        return Player(model.file.read_text()[4:])

@bridge.hookimpl
def register_backends(register):
    register(Actor())

@bridge.hookimpl
def register_formats(register):
    register(Acting())
"""

CHEAP = Floor(issuer="own", scenario="server", p50_s=1e-6, p99_s=2e-6, calls=100)

needs_loadgen = pytest.mark.skipif(
    not loadgen.is_installed(), reason="mlcommons-loadgen is not installed"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    info = folder / "acting-1.0.dist-info"
    info.mkdir()
    (folder / "acting.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nacting = acting\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _surroundings(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Child processes find the plugin, and leave nothing in the folder for temporary files."""
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("BRIDGE_PLUGINS", "acting")
        patch.setattr("tempfile.tempdir", str(scratch))
        patch.setattr(session, "WARMUP_S", 0.01)
        patch.setattr(floor, "SERVER_S", 0.2)
        patch.setattr(floor, "server_floor", lambda *_: CHEAP)
        patch.setattr(floor, "single_stream_floor", lambda *_: CHEAP)
        yield
    assert list(scratch.iterdir()) == []


@pytest.fixture
def act(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a model of a role."""

    def make(role: str) -> Path:
        path = tmp_path / f"{role}.act"
        path.write_text(f"ACT {role}")
        return path

    return make


Actors = Callable[[str], load.Session]


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Iterator[Actors]:
    """A predictor of 2 ms, loaded once for each issuer."""
    path = tmp_path_factory.mktemp("model") / "sleeps.act"
    path.write_text("ACT sleeps")
    with ExitStack() as stack:

        @cache
        def make(issuer: str) -> load.Session:
            return stack.enter_context(
                load.Session(path, issuer=issuer, profile=InputProfile(rows=4))
            )

        yield make


@pytest.fixture(params=[pytest.param("loadgen", marks=needs_loadgen), "own"])
def actor(request: pytest.FixtureRequest, actors: Actors) -> load.Session:
    return actors(request.param)


REAL_SINGLE_STREAM, REAL_SERVER = floor.single_stream_floor, floor.server_floor

ISSUERS = [pytest.param("loadgen", marks=needs_loadgen), "own"]


def test_single_stream(actor: load.Session) -> None:
    found = actor.run(scenario=load.Scenario.SINGLE_STREAM, duration_s=0.3, sla=(0.5, 1.0))
    assert found.status == "valid"
    assert found.latency is not None
    assert found.latency.count == found.queries == found.calls == len(found.latencies_s)
    assert found.latency.min_s >= 0.002
    assert found.latency_from == "issued"
    assert found.median_s >= 0.002
    assert found.rows_per_s == pytest.approx(4 * found.calls / found.elapsed_s)
    assert found.verdict is not None
    assert found.verdict.status == "met"
    assert found.is_good
    assert (found.loadgen is None) == (found.issuer == "own")
    json.dumps(found.to_dict(), allow_nan=False)


def test_multi_stream_answers_queries_of_several_samples(actor: load.Session) -> None:
    found = actor.run(
        scenario=load.Scenario.MULTI_STREAM, samples_per_query=4, concurrency=2, duration_s=0.2
    )
    assert found.calls == 4 * found.queries > 0
    assert found.latency is not None
    assert found.service is not None
    assert found.latency.min_s >= 0.004  # two threads make four calls in two rounds
    assert found.service.min_s >= 0.002
    alone = actor.run(scenario=load.Scenario.MULTI_STREAM, samples_per_query=4, duration_s=0.1)
    assert alone.latency is not None
    assert alone.latency.min_s >= 0.008


def test_offline_is_about_throughput(actor: load.Session) -> None:
    found = actor.run(
        scenario=load.Scenario.OFFLINE, concurrency=2, duration_s=0.2, sla=(0.99, 1.0)
    )
    assert found.status == "valid"
    assert found.queries == 1
    assert found.verdict is None
    assert 400 < found.rows_per_s < 4001  # two threads, 2 ms a call of four rows


def test_server_counts_from_when_a_query_was_due(actor: load.Session) -> None:
    found = actor.run(scenario=load.Scenario.SERVER, qps=150, sla=(0.5, 0.1), duration_s=0.5)
    assert found.status == "valid"
    assert found.latency_from == "due"
    assert found.keeps_up
    assert found.offered_qps == pytest.approx(150, rel=0.6)
    assert found.lateness is not None
    assert found.lateness.min_s >= 0
    assert found.verdict is not None
    assert found.verdict.status == "met"
    assert np.all(found.latencies_s >= 0.002)
    if found.loadgen is not None:
        # LoadGen hands out no latencies of queries; ours agree with its mean.
        assert found.loadgen["mean_latency_s"] == pytest.approx(found.latencies_s.mean(), rel=0.1)


def test_equal_seeds_make_equal_arrivals(actor: load.Session) -> None:
    one, same, other = (
        actor.run(scenario=load.Scenario.SERVER, qps=300, duration_s=0.1, seed=seed)
        for seed in (5, 5, 6)
    )
    assert one.seeds == same.seeds != other.seeds
    assert set(one.seeds) == {"qsl", "sample_index", "schedule"}
    assert one.queries == same.queries
    assert one.queries != other.queries or one.offered_qps != other.offered_qps


def test_several_threads_serve_what_one_cannot(actor: load.Session) -> None:
    found = actor.run(scenario=load.Scenario.SERVER, qps=700, concurrency=4, duration_s=0.4)
    assert found.keeps_up
    assert found.concurrency == 4
    assert found.calls == found.queries > 200


@pytest.mark.parametrize("issuer", ISSUERS)
def test_one_stall_moves_the_99th_percentile(act: Any, issuer: str) -> None:
    """Coordinated omission: what waits behind a stall of 200 ms is late as well."""
    found = load.run(
        act("stalls"),
        scenario="server",
        qps=300,
        issuer=issuer,
        duration_s=0.5,
        max_queue=1000,
    )
    assert found.latency is not None
    assert found.service is not None
    assert found.service.p99_s is not None
    assert found.latency.p99_s is not None
    assert (found.services_s > 0.19).sum() == 1
    assert found.service.p99_s < 0.1  # one call of some 150
    assert found.latency.p99_s > 0.1
    assert (found.latencies_s > 0.05).sum() > 10


def test_overload_ends_soon_and_says_so(actor: load.Session) -> None:
    found = actor.run(
        scenario=load.Scenario.SERVER, qps=3000, sla=(0.99, 0.02), duration_s=0.3, max_queue=20
    )
    assert found.status == "invalid"
    assert found.keeps_up is False
    assert any("did not keep up" in reason for reason in found.reasons)
    assert found.verdict is not None
    assert found.verdict.status == "not_met"
    assert found.elapsed_s < 2
    if found.issuer == "own":
        assert found.dropped > 0
    else:
        assert any("outstanding" in reason for reason in found.reasons)
    assert not found.is_good


def test_a_run_may_end_after_so_many_late_queries(actors: Actors) -> None:
    found = actors("own").run(
        scenario=load.Scenario.SERVER, qps=100, sla=(0.5, 0.001), duration_s=30, max_late=7
    )
    assert found.verdict is not None
    assert (found.verdict.queries, found.verdict.late) == (7, 7)
    assert found.abandoned == 0


@pytest.mark.parametrize("issuer", ISSUERS)
def test_a_failing_call_completes_its_sample_and_marks_the_run(act: Any, issuer: str) -> None:
    with load.Session(act("fails"), issuer=issuer) as running:
        for scenario in (load.Scenario.MULTI_STREAM, load.Scenario.SERVER):
            found = running.run(
                scenario=scenario, qps=300, sla=(0.99, 1.0), duration_s=0.1, timeout_s=10
            )
            assert found.status == "failed"
            assert isinstance(found.error, PredictError)
            assert "it forgot its lines" in found.error.message
            assert "calls failed" in found.reasons[0]
            assert found.failed_calls > 0
            assert found.verdict is None
            assert not found.is_good
            json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("issuer", ISSUERS)
def test_a_lost_completion_is_an_error_and_no_hang(act: Any, issuer: str) -> None:
    with pytest.raises(
        MeasureError, match=r"within 0.6 s: 1 of \d+ calls never came back"
    ) as caught:
        load.run(act("hangs"), issuer=issuer, duration_s=0.3, timeout_s=0.6)
    assert caught.value.detail["issued"] == caught.value.detail["completed"] + 1
    assert "_predict" in caught.value.detail["log"]  # where it hangs


def test_a_crash_is_an_error_with_the_last_output(act: Any) -> None:
    with pytest.raises(MeasureError, match="ended by signal SIGABRT during 'run'") as caught:
        load.run(act("dies"), issuer="own", duration_s=0.3)
    assert "last words" in caught.value.detail["log"]


def test_ctrl_c_ends_the_child_as_well(act: Any, site: Path) -> None:
    code = """
import os, signal, sys
from bridge_bench import load
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
load.run(sys.argv[1], issuer="own", duration_s=60, progress=lambda line: print(line, flush=True))
"""
    words = [sys.executable, "-c", code, str(act("sleeps"))]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert any("single_stream, 60 s" in line for line in running.stdout)
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=20)
        assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):  # nobody is left in the group
        os.killpg(running.pid, 0)


def test_errors_of_loading_and_of_inputs_are_themselves(act: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load.run(tmp_path / "none.act")
    with pytest.raises(InputError, match="not to its taste"):
        load.run(act("refuses"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scenario": "sever"}, "no scenario 'sever'"),
        ({"scenario": "server"}, "no rate of queries"),
        ({"scenario": "server", "qps": 0}, "qps is 0"),
        ({"scenario": "server", "qps": float("nan")}, "qps is nan"),
        ({"scenario": "server", "qps": 1e12}, r"1e\+13 queries; at most 20,000,000"),
        ({"duration_s": -1}, "duration_s is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"issuer": "mine"}, "no issuer 'mine'"),
        ({"sla": (1.5, 1)}, "has no meaning"),
        ({"sla": (0.5, 0)}, "has no meaning"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"min_queries": 0}, "min_queries is 0"),
    ],
)
def test_settings_that_make_no_sense(act: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        load.run(act("plain"), **settings)


def test_samples_vary_from_call_to_call(act: Any) -> None:
    found = load.run(act("varies"), issuer="own", duration_s=0.3)
    assert found.error is not None
    assert "eight samples" in found.error.message


def test_without_loadgen_only_our_own_issuer_is_left(
    act: Any, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadgen, "is_installed", lambda: False)
    with pytest.raises(MeasureError, match="LoadGen is not installed") as caught:
        load.run(act("plain"), issuer="loadgen")
    assert "inference-bridge[loadgen]" in str(caught.value.fix)
    running = actors("own")
    monkeypatch.setattr(running, "_issuer", None)
    found = running.run(scenario=load.Scenario.SINGLE_STREAM, duration_s=0.05)
    assert found.issuer == "own"
    assert "not installed" in found.issuer_reason


def test_auto_takes_loadgen_where_its_cost_does_not_matter(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadgen, "is_installed", lambda: True)
    running = actors("own")
    monkeypatch.setattr(running, "_issuer", None)
    server = load.Scenario.SERVER
    assert running._choose(server, 100.0, None, 1)[0] is Issuer.LOADGEN
    assert running._choose(load.Scenario.OFFLINE, None, None, 1)[0] is Issuer.LOADGEN
    running._floors.clear()
    costly = dataclasses.replace(CHEAP, p50_s=1e-4, p99_s=2e-4)
    monkeypatch.setattr(floor, "server_floor", lambda *_: costly)
    issuer, reason = running._choose(server, 100.0, None, 1)
    assert issuer is Issuer.OWN
    assert "adds 100 µs" in reason
    assert "of the median call" in reason
    running._floors.clear()
    slow = dataclasses.replace(running.warmup, median_s=0.02)
    monkeypatch.setattr(running, "warmup", slow)
    assert running._choose(server, 100.0, load.Sla(0.99, 1.0), 1)[0] is Issuer.LOADGEN
    issuer, reason = running._choose(server, 100.0, load.Sla(0.99, 0.0025), 1)
    assert issuer is Issuer.OWN
    assert "4 % of the latency allowed" in reason
    running._floors.clear()


@needs_loadgen
def test_expecting_too_high_a_latency_is_told(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadGen makes its queries ahead, as many as the expected latency allows."""
    running = actors("loadgen")
    slow = dataclasses.replace(running.warmup, median_s=0.2)
    monkeypatch.setattr(running, "warmup", slow)
    found = running.run(scenario=load.Scenario.SINGLE_STREAM, duration_s=0.5)
    assert found.status == "invalid"
    assert any("Ran out of generated queries" in reason for reason in found.reasons)
    assert any("the least duration was not reached" in reason for reason in found.reasons)
    assert found.loadgen is not None
    assert found.loadgen["validity"] == "INVALID"


@needs_loadgen
def test_an_audit_config_of_the_current_folder_is_not_read(
    act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audit.config").write_text("*.SingleStream.max_query_count = 3\n")
    model = act("sleeps")
    monkeypatch.chdir(tmp_path)
    found = load.run(model.name, issuer="loadgen", duration_s=0.3)
    assert found.queries > 10


@needs_loadgen
def test_a_folder_that_loadgen_cannot_write_to_is_told(tmp_path: Path) -> None:
    """LoadGen returns at once, and says so on standard error only."""
    code = """
import sys
from pathlib import Path
from bridge.errors import MeasureError
from bridge_bench.load import loadgen
from bridge_bench.load.calls import Calls
from bridge_bench.load.scenario import Issuer, Order, Scenario
order = Order(scenario=Scenario.SINGLE_STREAM, issuer=Issuer.LOADGEN, duration_s=0.1)
try:
    loadgen.run(order, Calls(lambda _: None, [{}]), 1e-3, Path(sys.argv[1]))
except MeasureError as error:
    print(error)
sys.stdout.flush()
import os
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LoadGen did not start: it left no log" in done.stdout
    assert "TMPDIR" in done.stdout


@needs_loadgen
def test_logs_of_loadgen_are_without_a_trace(actors: Actors) -> None:
    """Tracing is on by default, and would be part of what is measured."""
    running = actors("loadgen")
    running.run(scenario=load.Scenario.SINGLE_STREAM, duration_s=0.05)
    traces = list(Path(running._process._folder.name).glob("*/mlperf_log_trace.json"))
    assert traces
    assert all(trace.stat().st_size < 100 for trace in traces)


def test_what_the_harness_costs() -> None:
    issuer = Issuer.LOADGEN if loadgen.is_installed() else Issuer.OWN
    for one in (REAL_SINGLE_STREAM(issuer), REAL_SERVER(Issuer.OWN, 1000.0, 2)):
        assert 0 < one.p50_s <= one.p99_s
        assert one.calls > 100


def test_no_folder_for_temporary_files(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    with pytest.raises(MeasureError, match="no temporary folder can be made") as caught:
        load.run(act("plain"))
    assert "TMPDIR" in str(caught.value.fix)


@pytest.fixture
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "MIN_PROBE_S", 0.2)
    monkeypatch.setattr(peak, "MAX_HALVINGS", 1)


@pytest.mark.usefixtures("_short_probes")
def test_the_highest_rate_is_found(act: Any) -> None:
    """Calls of 2 ms and one thread: 500 a second is the most; waiting eats into it."""
    found = load.find_max_qps(act("sleeps"), (0.9, 0.02), issuer="own", budget_s=20)
    assert found.status == "found"
    assert found.max_qps is not None
    assert found.failing_qps is not None
    assert 100 < found.max_qps < found.failing_qps <= found.max_qps * 1.051
    assert found.failing_qps < 600
    assert found.result.qps == found.max_qps
    assert found.result.is_good
    assert len(found.probes) > 2
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.usefixtures("_short_probes")
def test_a_promise_that_no_rate_keeps(act: Any) -> None:
    found = load.find_max_qps(act("sleeps"), (0.5, 0.001), issuer="own", budget_s=3)
    assert found.max_qps is None
    assert found.status in ("none", "undecided")
    assert "ms" in found.reason
    assert found.result.sla_latency_s is not None
    assert found.result.sla_latency_s >= 0.002


def test_a_search_that_makes_no_sense_or_fails(act: Any) -> None:
    with pytest.raises(OptionError, match="budget is 0"):
        load.find_max_qps(act("sleeps"), (0.5, 0.001), budget_s=0)
    with pytest.raises(PredictError, match="forgot"):
        load.find_max_qps(act("fails"), (0.5, 0.05), issuer="own", budget_s=2)


def test_a_budget_too_short_leaves_it_undecided(act: Any) -> None:
    found = load.find_max_qps(act("sleeps"), (0.99, 0.05), issuer="own", budget_s=0.6)
    assert found.status == "undecided"
    assert len(found.probes) == 1
