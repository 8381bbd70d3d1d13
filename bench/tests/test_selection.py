"""Whole selections, over a plugin whose arms are quick, slow, wrong or broken on demand."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import load, recording
from bridge.errors import (
    InputError,
    InvalidRecord,
    OptionError,
    StaleRecord,
    UnsupportedModel,
)
from bridge.record import Limits, Protocol, SelectionRecord
from bridge.registry import registry
from bridge_bench import selection
from bridge_bench.profile import InputProfile, Samples
from bridge_bench.request import request
from bridge_bench.selection import Selection, select
from bridge_bench.verification import verify

PLUGIN = """
import os, time
from dataclasses import dataclass
import numpy as np
import bridge

class Staged(bridge.Format):
    name, title, native_backend, devices = "staged", "Staged", "stage", ("cpu",)
    def sniff(self, file):
        return file.head.startswith(b"STAGE ")

@dataclass(frozen=True, kw_only=True)
class StageOptions(bridge.Options):
    act: str = bridge.option("plain", help="How it acts.")
    @property
    def tier(self):
        return "half" if self.act.startswith("rounded") else "strict"

last = [None]

class Actor(bridge.Predictor):
    def __init__(self, act):
        f32 = bridge.DType.FLOAT32
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("x", f32, ("n", 4)),), (bridge.TensorSpec("y", f32, ("n", 4)),)
            ),
            bridge.PredictorInfo(threads=1, stateful=act == "stateful"),
        )
        self.act, self.calls = act, 0
        if act == "heavy":
            self.ballast = np.ones(12_000_000)
    def _predict(self, inputs, outputs):
        self.calls += 1
        x = inputs["x"]
        rows = len(x)
        # Far apart, so that no load of the machine that runs the tests turns them round.
        base = {"plain": 6e-3, "quick": 5e-4, "slow": 4e-2}.get(self.act, 5e-4)
        if self.act == "small":  # best with few rows
            base = 3e-4 * rows
        if self.act == "large":  # best with many
            base = 2e-3
        if self.act == "jealous":  # as large, unless another one was called just before
            base = 2e-3 if last[0] in (None, self.act) else 5e-2
        last[0] = self.act
        if self.act == "jagged":  # a large call costs more than its pieces
            base = 3e-4 if rows <= 4 else 1e-2
        if self.act == "crash":
            os.write(2, b"about to abort\\n")
            os.abort()
        if self.act == "late-crash" and self.calls > 40:
            os.abort()
        if self.act == "hang":
            time.sleep(600)
        time.sleep(base)  # not spinning: whoever else wants the processor may have it
        y = x * np.float32(2)
        if self.act == "wrong":
            y = y + np.float32(0.01)
        if self.act == "rounded":
            y = (y.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        if self.act == "decays" and self.calls > 60:
            y = y + np.float32(1)
        return {"y": y}
    def _close(self):
        pass

class Stage(bridge.Backend):
    name, options_type = "stage", StageOptions
    def probe(self):
        return bridge.Availability(installed=True, version="1.0")
    def capabilities(self, device):
        return bridge.Capabilities(
            formats=frozenset({"staged"}), dynamic_dims=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )
    def search_space(self, model, device):
        words = model.file.read_text().split()[1:]
        return (StageOptions(), *(StageOptions(act=word) for word in words))
    def _load(self, model, device, options):
        if options.act == "refuses":
            raise bridge.errors.UnsupportedModel("operator 'Odd' is unknown.", fix="Avoid it.")
        return Actor(options.act)

@bridge.hookimpl
def register_backends(register):
    register(Stage())

@bridge.hookimpl
def register_formats(register):
    register(Staged())
"""

# The looks end it, not the time: a busy machine takes longer, and decides the same.
FAST = Protocol(budget_s=60.0, slice_s=0.004, looks=(3, 5, 8), call_timeout_s=2.0, variants=2)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Installs the plugin; makes model files whose words are arms besides the default."""
    site = tmp_path / "site"
    info = site / "stage-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "stage.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stage\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nstage = stage\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("BRIDGE_PLUGINS", "stage")
    registry.cache_clear()

    def make(words: str) -> Path:
        path = tmp_path / "model.staged"
        path.write_text(f"STAGE {words}")
        return path

    yield make
    registry.cache_clear()
    sys.modules.pop("stage", None)


def statuses(record: SelectionRecord) -> dict[str, str]:
    return {one.id.partition("act=")[2] or "plain": one.status for one in record.arms}


def test_the_fastest_arm_wins_and_every_other_has_a_status(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    model = stage("quick slow wrong crash hang refuses stateful rounded late-crash decays")
    record = select(model, out=tmp_path / "record", protocol=FAST, launches=1)
    found = statuses(record)
    assert found["quick"] in {"won", "tied", "undecided"}
    assert record.decision.routes[0].arm == "stage/act=quick"
    assert found["plain"] == "eliminated"
    assert found["slow"] == "eliminated"
    assert found["wrong"] == "not_conformant"
    assert found["crash"] == "crashed"
    assert found["hang"] == "timed_out"
    assert found["refuses"] == "failed"
    assert found["stateful"] == found["rounded"] == "skipped"
    assert found["late-crash"] == "crashed"
    assert found["decays"] == "not_conformant"
    assert record.arm("stage/act=rounded").rule == "precision-tier"
    assert record.arm("stage/act=stateful").rule == "stateful"
    assert "SIGABRT" in record.arm("stage/act=crash").reason
    error = record.arm("stage/act=crash").error
    assert error is not None
    assert "about to abort" in error["detail"]["log"]
    wrong = record.arm("stage/act=wrong")
    assert wrong.agreement[0].max_abs == pytest.approx(0.01, rel=0.01)
    assert not wrong.agreement[0].passes
    assert "y" in wrong.reason
    slow = record.arm("stage/act=slow").bucket(1)
    assert slow is not None
    assert slow.look == 2
    assert slow.slower is not None
    assert slow.slower.value > 2
    verdict = record.decision.verdicts[0]
    assert verdict.default_ratio is not None
    assert verdict.default_ratio.value > 2
    assert record.decision.confirmations[0].arm == "stage/act=quick"
    assert recording.read(tmp_path / "record").decision == record.decision
    with load(tmp_path / "record") as predictor:
        assert predictor.info.options == {"act": "quick"}
        results = predictor.predict({"x": np.ones((3, 4), np.float32)})
        np.testing.assert_array_equal(results["y"], np.full((3, 4), 2, np.float32))


def test_each_batch_size_gets_its_winner(stage: Callable[[str], Path], tmp_path: Path) -> None:
    record = select(
        stage("small large"), out=tmp_path / "r", batches=[1, 64], protocol=FAST, launches=0
    )
    assert [one.arm for one in record.decision.routes] == ["stage/act=small", "stage/act=large"]
    assert [one.to_rows for one in record.decision.routes] == [8, None]
    with load(tmp_path / "r") as predictor:
        assert predictor.predict({"x": np.ones((64, 4), np.float32)})["y"].shape == (64, 4)


def test_arms_that_disturb_each_other_do_not_serve_together(stage: Callable[[str], Path]) -> None:
    record = select(stage("small jealous"), batches=[1, 64], protocol=FAST, launches=1)
    assert [one.arm for one in record.decision.routes] == ["stage/act=jealous"]
    assert any("therefore serves all calls" in one for one in record.warnings)
    assert "stage/act=jealous serves all calls." in record.decision.summary


def test_large_calls_are_split_where_that_was_measured_faster(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    record = select(stage("jagged"), out=tmp_path / "r", batches=[4, 8], protocol=FAST, launches=0)
    last = record.decision.routes[-1]
    assert (last.arm, last.split_rows) == ("stage/act=jagged", 4)
    assert record.decision.verdicts[-1].winner == "stage"  # of the whole calls
    # Its whole calls are slower than the default's; what serves is compared, which is not.
    found = verify(record, blocks=2)
    assert [one.arm for one in found.checks] == ["stage/act=jagged"] * 2
    assert found.holds
    now = found.checks[1].now
    assert now is not None
    assert now.value > 2
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    with load(tmp_path / "r") as predictor:
        np.testing.assert_array_equal(predictor.predict({"x": x})["y"], 2 * x)


def test_reduced_precision_wins_only_where_the_gate_lets_it_in(
    stage: Callable[[str], Path],
) -> None:
    from bridge_bench.gate import Gate

    model = stage("rounded")
    record = select(model, protocol=FAST, launches=0, gate=Gate(tier="half"))
    assert statuses(record)["rounded"] in {"won", "tied", "undecided"}
    assert record.arm("stage/act=rounded").tier == "half"
    assert record.arm("stage/act=rounded").agreement[0].max_rel > 1e-4  # type: ignore[operator]


def test_nothing_is_chosen_that_misses_the_gate_of_expected_outputs(
    stage: Callable[[str], Path],
) -> None:
    x = np.ones((6, 4), np.float32)
    record = select(
        stage("quick"),
        protocol=FAST,
        launches=0,
        profile=InputProfile(samples=Samples("x.npz", "0" * 64, {"x": x})),
        expected={"y": 3 * x},
    )
    assert set(statuses(record).values()) == {"not_conformant"}
    assert record.decision.status == "none"
    assert not record.decision.routes
    assert "No arm passed the gate" in record.decision.summary
    assert record.gate.reference == "arrays"


def test_an_sla_that_nobody_keeps_says_what_was_achieved(stage: Callable[[str], Path]) -> None:
    limits = Limits(sla_percentile=0.99, sla_s=1e-4)
    record = select(stage("quick"), protocol=FAST, launches=0, limits=limits)
    assert record.decision.status == "none"
    assert "No arm keeps 0.1 ms; the best achieved is" in record.decision.summary
    assert {one.buckets[0].status for one in record.arms} == {"infeasible"}


def test_an_sla_leaves_out_those_that_break_it(stage: Callable[[str], Path]) -> None:
    limits = Limits(sla_percentile=0.5, sla_s=3e-2)
    record = select(stage("slow"), protocol=FAST, launches=0, limits=limits)
    assert statuses(record)["slow"] == "infeasible"
    assert record.decision.routes[0].arm == "stage"
    assert not any("was not shown to keep" in one for one in record.warnings)
    tail = Limits(sla_percentile=0.999, sla_s=3e-2)
    record = select(stage(""), protocol=FAST, launches=0, limits=tail)
    assert any("p99.9 within 30 ms" in one and "too few" in one for one in record.warnings)


def test_memory_is_a_limit_and_an_objective(
    stage: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stage("heavy")
    record = select(model, protocol=FAST, launches=0, limits=Limits(max_memory_bytes=60 * 2**20))
    assert statuses(record)["heavy"] == "infeasible"
    assert "MiB are allowed" in record.arm("stage/act=heavy").reason
    # That it is faster than the default is not asked of it, so there is nothing to confirm.
    monkeypatch.setattr(selection, "confirm", None)
    record = select(model, protocol=FAST, launches=3, limits=Limits(objective="memory"))
    assert "needs the least memory" in record.decision.summary
    assert "faster" not in record.decision.summary
    assert record.decision.routes[0].arm == "stage"
    assert statuses(record)["heavy"] == "eliminated"
    assert record.arm("stage/act=heavy").memory_bytes > 90_000_000  # type: ignore[operator]


def test_arms_share_a_process_unless_memory_matters(stage: Callable[[str], Path]) -> None:
    for limits, processes in (
        (Limits(), 1),
        (Limits(objective="memory"), 3),
        (Limits(max_memory_bytes=2**30), 3),
    ):
        chosen = Selection(request(stage("quick slow"), limits=limits))
        assert len({one.plan.process_key for one in chosen.entrants}) == processes


def test_throughput_counts_rows_of_several_callers(stage: Callable[[str], Path]) -> None:
    limits = Limits(objective="throughput", concurrency=2)
    record = select(stage("quick"), batches=[8], protocol=FAST, launches=0, limits=limits)
    assert record.decision.routes[0].arm == "stage/act=quick"
    found = record.arm("stage/act=quick").bucket(8)
    assert found is not None
    # Two callers, each with 8 rows in half a millisecond at best.
    assert 0 < found.rows_per_s < 32_000  # type: ignore[operator]


def test_a_dry_run_loads_nothing(stage: Callable[[str], Path]) -> None:
    record = select(stage("crash hang rounded"), dry_run=True)
    assert record.decision.status == "planned"
    assert statuses(record) == {
        "plain": "planned",
        "crash": "planned",
        "hang": "planned",
        "rounded": "skipped",
    }
    assert all(not one.buckets for one in record.arms)


def test_an_interrupted_selection_decides_and_can_be_resumed(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    model = stage("quick wrong slow")
    lines: list[str] = []

    def stop() -> bool:
        return any("block 2/" in line for line in lines)

    asked = request(model, protocol=FAST, launches=0)
    selection = Selection(asked, stop=stop, tell=lines.append)
    assert selection.run().decision.status == "interrupted"
    record = selection.write(tmp_path / "r")
    assert record.decision.routes
    before = record.arm("stage/act=quick").bucket(1)
    assert before is not None
    lines.clear()
    again = select(
        model,
        out=tmp_path / "r",
        protocol=FAST,
        launches=0,
        resume=recording.read(tmp_path / "r"),
        progress=lines.append,
    )
    after = again.arm("stage/act=quick").bucket(1)
    assert after is not None
    assert after.blocks[: len(before.blocks)] == before.blocks
    assert len(after.blocks) > len(before.blocks)
    assert after.calls > before.calls
    assert statuses(again)["wrong"] == "not_conformant"
    assert not any("loading stage/act=wrong" in line for line in lines)
    assert again.decision.status != "interrupted"


def test_an_arm_that_was_not_checked_may_not_serve(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    model = stage("quick slow")
    lines: list[str] = []
    asked = request(model, protocol=FAST, launches=0)
    selection = Selection(
        asked, stop=lambda: any("checking stage" in line for line in lines), tell=lines.append
    )
    assert selection.run().decision.status == "interrupted"
    record = selection.write(tmp_path / "r")
    assert statuses(record) == {"plain": "undecided", "quick": "skipped", "slow": "skipped"}
    assert record.arm("stage/act=quick").rule == "interrupted"
    verdict = record.decision.verdicts[0]
    assert (verdict.status, verdict.winner, verdict.regret) == ("interrupted", "stage", None)
    assert verdict.ranking == ("stage",)
    assert "No other arm" not in record.decision.summary
    again = select(model, protocol=FAST, launches=0, resume=record)
    assert again.decision.routes[0].arm == "stage/act=quick"


def test_only_the_same_request_is_resumed(stage: Callable[[str], Path], tmp_path: Path) -> None:
    model = stage("quick")
    record = select(model, out=tmp_path / "r", protocol=FAST, launches=0)
    with pytest.raises(StaleRecord, match="protocol"):
        select(model, protocol=dataclasses.replace(FAST, epsilon=0.1), resume=record)
    with pytest.raises(StaleRecord, match="reference"):
        select(model, protocol=FAST, resume=record, expected={"y": np.ones((1, 4), np.float32)})
    older = dataclasses.replace(record, versions={**record.versions, "numpy": "0.1"})
    with pytest.raises(StaleRecord, match="versions"):
        select(model, protocol=FAST, resume=older)
    with pytest.raises(StaleRecord, match="batch sizes"):
        select(model, protocol=FAST, batches=[2], resume=record)
    stage("quick slow")
    with pytest.raises(StaleRecord, match="models"):
        select(model, protocol=FAST, resume=record)


def test_too_short_a_budget_says_so(stage: Callable[[str], Path]) -> None:
    protocol = dataclasses.replace(FAST, budget_s=0.01)
    record = select(stage("quick"), protocol=protocol, launches=0)
    assert record.decision.status == "undecided"
    assert record.arm("stage/act=quick").rule == "budget"
    assert record.decision.verdicts[0].status == "undecided"
    assert "The budget ended before 1 arm could be loaded" in record.decision.verdicts[0].reason
    assert "No other arm was measured" in record.decision.summary
    record = select(stage("quick"), batches=[1, 8], protocol=protocol, launches=0)
    assert record.decision.status == "undecided"
    assert [one.arm for one in record.decision.routes] == ["stage"]


def test_requests_that_cannot_be_met_are_refused(stage: Callable[[str], Path]) -> None:
    model = stage("quick")
    with pytest.raises(OptionError, match="wanted at least one"):
        select(model, batches=[])
    with pytest.raises(OptionError, match="1 row or more"):
        select(model, batches=[0])
    for limits in (
        Limits(objective="speed"),
        Limits(objective="cost"),
        Limits(sla_s=1.0),
        Limits(sla_s=1.0, sla_percentile=99),
        Limits(concurrency=0),
    ):
        with pytest.raises(OptionError, match="wanted"):
            select(model, limits=limits)
    for looks in ((), (1, 6), (6, 6), (9, 6)):
        with pytest.raises(OptionError, match="looks are"):
            select(model, protocol=Protocol(looks=looks))
    with pytest.raises(UnsupportedModel):
        select(stage("stateful"), protocol=FAST, skip=["stage"])
    with pytest.raises(InputError, match="no samples that they belong to"):
        select(model, protocol=FAST, expected={"y": np.ones((2, 4), np.float32)})


def test_verify_lets_winner_and_default_race_again(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    select(stage("quick"), out=tmp_path / "r", protocol=FAST, launches=0)
    found = verify(recording.read(tmp_path / "r"), blocks=3)
    assert found.holds
    assert not found.differences
    assert found.checks[0].arm == "stage/act=quick"
    assert found.checks[0].now is not None
    assert found.checks[0].now.value > 2
    assert json.loads(json.dumps(found.to_dict()))["holds"] is True


def test_verify_starts_a_default_that_has_nothing_to_race(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    record = select(stage("slow"), out=tmp_path / "r", protocol=FAST, launches=0)
    lines: list[str] = []
    found = verify(record, progress=lines.append)
    assert "starting stage" in lines
    assert found.holds
    assert found.checks[0].now is None
    odd = dataclasses.replace(record, profile={"samples": None})
    with pytest.raises(InvalidRecord, match="no profile of inputs"):
        verify(odd)


def test_calls_are_kept_and_the_record_is_whole(
    stage: Callable[[str], Path], tmp_path: Path
) -> None:
    record = select(stage("quick"), out=tmp_path / "r", protocol=FAST, launches=0)
    with np.load(tmp_path / "r" / "calls.npz", allow_pickle=False) as calls:
        found: Any = record.arm("stage/act=quick").bucket(1)
        assert len(calls["stage/act=quick|1"]) == found.calls
    recording.verify(record)
    assert record.floor_s is not None
    assert 0 < record.floor_s < 1e-4
    assert record.canary is not None
    assert os.fspath(tmp_path) not in (tmp_path / "r" / "record.json").read_text()
