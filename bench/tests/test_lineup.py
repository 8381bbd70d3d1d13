"""Arms on converted models, over a plugin whose second runtime reads another format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from bridge import load, recording
from bridge.errors import ConversionError
from bridge.record import Protocol, SelectionRecord
from bridge.registry import registry
from bridge_bench.gate import Gate
from bridge_bench.lineup import awaited, converted, lineup
from bridge_bench.profile import InputProfile
from bridge_bench.request import request
from bridge_bench.samples import Samples
from bridge_bench.selection import select

PLUGIN = """
import os
import time
import numpy as np
import bridge
from bridge.errors import ConversionError

class Kind(bridge.Format):
    devices = ("cpu",)
    def __init__(self, name, native):
        self.name, self.title, self.native_backend = name, name.title(), native
        self.suffixes = (f".{name}",)
    def sniff(self, file):
        return file.head.startswith(self.name.encode())

class Actor(bridge.Predictor):
    def __init__(self, nap_s, off):
        f32 = bridge.DType.FLOAT32
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("x", f32, ("n", 4)),), (bridge.TensorSpec("y", f32, ("n", 4)),)
            ),
            bridge.PredictorInfo(threads=1),
        )
        self.nap_s, self.off = nap_s, off
    def _predict(self, inputs, outputs):
        time.sleep(self.nap_s)
        return {"y": inputs["x"] * 2 + self.off}
    def _close(self):
        pass

class Backend(bridge.Backend):
    def __init__(self, name, formats, nap_s):
        self.name, self.formats, self.nap_s = name, frozenset(formats), nap_s
    def probe(self):
        return bridge.Availability(installed=self.name != "absent", reason="it is absent")
    def capabilities(self, device):
        return bridge.Capabilities(formats=self.formats, dynamic_dims=True)
    def _load(self, model, device, options):
        text = model.file.read_bytes()
        off = np.float32(0.1 if b"off" in text else 0)
        if text.startswith(b"slow coarse"):
            return Actor(0.0, np.float32(0.5 if b"outlier" in text else 0.01))
        return Actor(self.nap_s, off if model.format.name == "quick" else np.float32(0))

class Turn(bridge.Adapter):
    distributions = ("double",)
    def __init__(self, name, source, target, fails=False):
        self.name, self.sources, self.target = name, frozenset({source}), target
        self.fails = fails
    def probe(self):
        return bridge.Availability(installed=True)
    def _convert(self, model, target, options):
        text = model.file.read_text()
        if self.fails and "odd" in text or "worst" in text:
            raise ConversionError("Frobnicate cannot be converted.", fix="Avoid it.")
        target.write_text(f"{self.target} {text.partition(' ')[2]}")
        return {"bytes": len(text)}

class Coarse(bridge.Adapter):
    name, sources, target = "coarse", frozenset({"slow"}), "slow"
    precision, distributions = "int8", ("double",)
    def probe(self):
        return bridge.Availability(installed=True)
    def _convert(self, model, target, options):
        target.write_text("slow coarse " + model.file.read_text())
        return {}

class Half(Coarse):
    name, precision, pays_on = "half", "float16", frozenset({"cuda"})

class Ranged(bridge.CalibratedAdapter, Coarse):
    name = "ranged"
    def _calibrate(self, model, target, options, samples):
        target.write_text(f"slow coarse {samples['x'].shape}")
        return {}

@bridge.hookimpl
def register_backends(register):
    register(Backend("native", {"slow"}, 0.002))
    register(Backend("second", {"quick", "between"}, 0.0))
    register(Backend("both", {"slow", "quick"}, 0.004))
    register(Backend("absent", {"quick"}, 0.0))

@bridge.hookimpl
def register_formats(register):
    register(Kind("slow", "native"))
    register(Kind("quick", "second"))
    register(Kind("between", "nobody"))

@bridge.hookimpl
def register_adapters(register):
    register(Turn("slow-to-quick", "slow", "quick", fails=True))
    register(Turn("slow-to-between", "slow", "between"))
    register(Turn("between-to-quick", "between", "quick"))
    if "DOUBLE_REDUCED" in os.environ:
        for adapter in (Coarse(), Half(), Ranged()):
            register(adapter)
"""
FAST = Protocol(budget_s=60.0, slice_s=0.004, looks=(3, 5), call_timeout_s=5.0, variants=2)
LONG = "slow-to-between+between-to-quick"

Make = Callable[[str], Path]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    site = tmp_path / "site"
    info = site / "double-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "double.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: double\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\ndouble = double\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("BRIDGE_PLUGINS", "double")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    registry.cache_clear()

    def make(words: str) -> Path:
        path = tmp_path / "net.slow"
        path.write_text(f"slow {words}")
        return path

    yield make
    registry.cache_clear()
    sys.modules.pop("double", None)


def statuses(record: SelectionRecord) -> dict[str, str]:
    return {one.id: one.status for one in record.arms if one.rule != "format"}


def test_an_arm_on_a_converted_model_wins_and_serves(stage: Make, tmp_path: Path) -> None:
    model = stage("")
    record = select(model, out=tmp_path / "record", protocol=FAST, launches=0)
    assert [one.arm for one in record.decision.routes] == ["second<slow-to-quick"]
    found = statuses(record)
    assert found["native"] == "eliminated"
    assert {"both", "both<slow-to-quick"} <= set(found)  # its own file too, as of any format
    assert not [one for one in record.arms if one.rule == "format" and "<" in one.id]
    assert [(one.format, one.route) for one in record.models] == [
        ("slow", ""),
        ("quick", "slow-to-quick"),
    ]
    assert (tmp_path / "record" / "models" / "1" / "net.quick").is_file()
    kept = recording.read(tmp_path / "record")
    assert kept.models[1].route == "slow-to-quick"
    model.unlink()
    with load(tmp_path / "record") as predictor:
        assert predictor.info.backend == "second"
        x = np.ones((3, 4), np.float32)
        np.testing.assert_array_equal(predictor.predict({"x": x})["y"], 2 * x)


def test_a_record_with_converted_models_is_resumed(stage: Make) -> None:
    model = stage("")
    record = select(model, protocol=FAST, launches=0)
    again = select(model, protocol=FAST, launches=0, resume=record)
    assert statuses(again).keys() == statuses(record).keys()
    assert again.decision.routes[0].arm == "second<slow-to-quick"
    first, second = (one.arm("native").bucket(1) for one in (record, again))
    assert first is not None
    assert second is not None
    assert second.blocks[: len(first.blocks)] == first.blocks


def test_a_route_that_fails_is_a_row_and_the_next_is_taken(stage: Make) -> None:
    record = select(stage("odd"), protocol=FAST, launches=0)
    failed = record.arm("second<slow-to-quick")
    assert (failed.status, failed.rule) == ("skipped", "conversion")
    assert failed.reason == "Frobnicate cannot be converted."
    assert record.decision.routes[0].arm == f"second<{LONG}"
    assert record.models[1].route == LONG


def test_where_every_route_fails_the_others_go_on(stage: Make) -> None:
    record = select(stage("worst"), protocol=FAST, launches=0)
    rows = {one.id: one.reason for one in record.arms if one.rule == "conversion"}
    assert set(rows) == {"second<slow-to-quick", f"second<{LONG}"}
    assert set(rows.values()) == {"Frobnicate cannot be converted."}
    assert record.decision.routes[0].arm == "native"
    assert len(record.models) == 1


def test_a_conversion_that_changes_results_may_not_win(stage: Make) -> None:
    record = select(stage("off"), protocol=FAST, launches=0)
    arm = record.arm("second<slow-to-quick")
    assert arm.status == "not_conformant"
    assert arm.agreement[0].max_abs == pytest.approx(0.1, rel=0.01)
    assert record.decision.routes[0].arm == "native"


def test_a_plan_says_what_would_be_converted(stage: Make) -> None:
    asked = request(stage(""), routes=True)
    (row,) = awaited(asked)
    assert (row.id, row.rule) == ("second<slow-to-quick", "conversion")
    assert "converted by slow-to-quick first" in row.reason
    record = select(asked.models[0].file, dry_run=True)
    assert record.arm(row.id).reason == row.reason


def test_nothing_is_converted_that_nobody_wants(stage: Make, tmp_path: Path) -> None:
    model = stage("")
    quick = tmp_path / "net.quick"
    quick.write_text("quick ")
    assert not awaited(request(model))  # routes are off
    assert not awaited(request([model, quick], routes=True))  # it is there already
    assert not awaited(request(model, routes=True, backends=["native"]))
    assert not awaited(request(model, routes=True, only=["native"]))
    assert awaited(request(model, routes=True, only=["second*"]))


def test_budget_and_interrupts_leave_conversions_out(stage: Make) -> None:
    asked = request(stage(""), routes=True)
    for deadline, stop, rule in ((0.0, False, "prepare-budget"), (1e12, True, "interrupted")):
        same, rows = converted(
            asked, deadline=deadline, stop=lambda stop=stop: stop, tell=lambda _: None
        )
        assert same == asked
        assert [(one.id, one.rule) for one in rows] == [("second<slow-to-quick", rule)]
        entrants = lineup(same, rows)
        assert [one.id for one in entrants if one.rule == rule] == ["second<slow-to-quick"]


def test_an_error_names_the_operator(stage: Make) -> None:
    from bridge.conversion import convert

    with pytest.raises(ConversionError, match="Frobnicate"):
        convert(stage("worst"), "quick")


@pytest.fixture
def reduced(stage: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The same stage with adapters that reduce precision."""
    monkeypatch.setenv("DOUBLE_REDUCED", "1")
    return stage


def test_strict_leaves_reduced_precision_out_and_says_why(reduced: Make) -> None:
    asked = request(reduced(""), routes=True, backends=["native", "both"])
    rows = {one.id: one for one in awaited(asked)}
    assert {name: one.rule for name, one in rows.items()} == dict.fromkeys(
        ("native<coarse", "native<half", "native<ranged"), "precision-tier"
    )
    row = rows["native<coarse"]
    assert (row.tier, row.fix) == ("int8", "Admit tier 'int8'.")
    assert "'strict' is the most reduced that is admitted" in row.reason
    gate = Gate(tier="int8")
    asked = request(reduced(""), routes=True, backends=["native"], gate=gate)
    assert {one.id: one.rule for one in awaited(asked)} == {
        "native<coarse": "conversion",
        "native<half": "no-gain",
        "native<ranged": "no-samples",
    }


def test_a_precision_is_tried_where_any_backend_gains_by_it(
    reduced: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"native": "cpu", "both": "cuda"}
    monkeypatch.setattr(
        "bridge_bench.lineup.device_kinds", lambda one, _: frozenset({kinds[one.name]})
    )
    asked = request(reduced(""), routes=True, backends=["native", "both"], gate=Gate(tier="int8"))
    rows = {one.id: one.rule for one in awaited(asked)}
    assert rows["both<half"] == rows["native<half"] == "conversion"


def test_reduced_precision_is_an_arm_where_it_is_admitted(reduced: Make) -> None:
    gate = Gate(tier="int8")
    record = select(reduced(""), protocol=FAST, launches=0, gate=gate, backends=["native", "both"])
    assert record.decision.routes[0].arm in ("native<coarse", "both<coarse")
    arm = record.arm("native<coarse")
    assert (arm.tier, record.models[arm.model].route) == ("int8", "coarse")
    assert arm.agreement[0].max_abs == pytest.approx(0.01, rel=0.01)
    assert record.arm("native").is_reference


def test_reduced_precision_that_is_wrong_is_rejected_with_its_figures(reduced: Make) -> None:
    gate = Gate(tier="int8")
    model = reduced("outlier")
    record = select(model, protocol=FAST, launches=0, gate=gate, backends=["native"])
    arm = record.arm("native<coarse")
    assert (arm.status, arm.tier) == ("not_conformant", "int8")
    assert arm.agreement[0].max_abs == pytest.approx(0.5, rel=0.01)
    assert record.decision.routes[0].arm == "native"


def test_samples_of_the_profile_calibrate(reduced: Make) -> None:
    samples = Samples.of({"x": np.ones((5, 4), np.float32)})
    asked = request(
        reduced(""),
        routes=True,
        backends=["native"],
        gate=Gate(tier="int8"),
        profile=InputProfile(samples=samples),
    )
    until = monotonic() + 60
    made, rows = converted(asked, deadline=until, stop=lambda: False, tell=lambda _: None)
    assert made.converted_by == ("coarse", "ranged")
    assert made.models[2].file.read_text() == "slow coarse (5, 4)"
    assert [one.rule for one in rows] == ["no-gain"]
    assert {one.id: one.plan.tier for one in lineup(made)} == {
        "native": "strict",
        "native<coarse": "int8",
        "native<ranged": "int8",
    }
