"""Comparisons, tried with an external plugin that is exact, or off, or broken, on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_bench import comparison

PLUGIN = """
import os, time
import numpy as np
import bridge

class Acting(bridge.Format):
    name, title, native_backend = "acting", "Acting", "exact"
    def sniff(self, file):
        return file.head.startswith(b"ACT")

F32 = bridge.DType.FLOAT32

class Player(bridge.Predictor):
    def __init__(self, backend):
        self.backend = backend
        prefix = "native_" if backend == "renamed" else ""
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("x", F32, ("n", 3)),),
                (bridge.TensorSpec(prefix + "y", F32, ("n", 3), native_name="native_y"),),
            ),
            bridge.PredictorInfo(),
        )
    def _predict(self, inputs, outputs):
        y = inputs["x"] * np.float32(2)
        if self.backend == "off":
            y = y + np.float32(0.01)
        if self.backend == "dies":
            os.abort()
        if self.backend == "slow":
            time.sleep(0.002)
        return {outputs[0]: y}
    def _close(self):
        pass

class Backend(bridge.Backend):
    def __init__(self, name):
        self.name = name
    def probe(self):
        if self.name == "absent":
            return bridge.Availability(installed=False, reason="it is not there", fix="Get it.")
        return bridge.Availability(installed=True)
    def capabilities(self, device):
        formats = {"other"} if self.name == "unable" else {"acting"}
        return bridge.Capabilities(
            formats=frozenset(formats),
            dynamic_dims=True,
            zero_rows=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )
    def _load(self, model, device, options):
        if self.name == "refuses" or model.file.read_text() == "ACT broken":
            raise bridge.errors.UnsupportedModel("operator 'Odd' is unknown.", fix="Avoid it.")
        return Player(self.name)

@bridge.hookimpl
def register_backends(register):
    for name in ("exact", "off", "renamed", "slow", "dies", "refuses", "absent", "unable"):
        register(Backend(name))

@bridge.hookimpl
def register_formats(register):
    register(Acting())
"""

RUN = """
import json, sys
from bridge.errors import BridgeError
from bridge_bench.comparison import compare
from bridge_bench.profile import InputProfile
lines = []
try:
    found = compare(
        sys.argv[2:], progress=lines.append, profile=InputProfile(rows=4), **json.loads(sys.argv[1])
    )
except BridgeError as error:
    print(json.dumps({"raised": type(error).__name__, "text": str(error)}))
else:
    print(json.dumps({**found.to_dict(), "lines": lines}, allow_nan=False))
"""


@pytest.fixture
def compare(tmp_path: Path) -> Any:
    site = tmp_path / "site"
    info = site / "acting-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "acting.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nacting = acting\n")
    model = tmp_path / "m.act"
    model.write_text("ACT")

    def run(*more: Path, env: dict[str, str] | None = None, **settings: Any) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps({"rounds": 3, **settings}), str(model)]
            + [str(one) for one in more],
            env={**os.environ, "PYTHONPATH": str(site), **(env or {})},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return run


def by_backend(found: Any) -> dict[str, Any]:
    return {arm["backend"]: arm for arm in found["arms"]}


def test_every_capable_backend_is_an_arm_and_failures_are_rows(compare: Any) -> None:
    found = compare()
    arms = by_backend(found)
    assert set(arms) == {"exact", "off", "renamed", "slow", "dies", "refuses"}
    assert found["arms"][0]["backend"] == "exact"
    assert arms["exact"]["is_reference"]
    assert arms["dies"]["error"]["class"] == "WorkerDied"
    assert arms["refuses"]["error"]["class"] == "UnsupportedModel"
    assert not found["all_agree"]  # `off` ran and is off by 0.01
    assert found["fastest"]["backend"] in {"exact", "renamed"}
    off = arms["off"]["agreement"][0]
    assert off["max_abs"] == pytest.approx(0.01, rel=1e-3)
    assert 0 < off["tolerance"] <= off["max_abs"]
    assert arms["renamed"]["agreement"][0]["other"] == "native_y"
    assert arms["renamed"]["agreement"][0]["tolerance"] == 0
    assert arms["slow"]["relative"] > 1
    best = arms[found["fastest"]["backend"]]
    assert best["relative"] == 1
    for name in ("exact", "slow", "renamed"):
        arm = arms[name]
        assert 0 < arm["median_s"] <= (arm["p99_s"] or 1)
        assert arm["load_s"] > 0
        assert arm["first_call_s"] > 0
        assert arm["peak_rss_bytes"] > 1e6
    assert found["lines"][-1] == "round 3/3"


def test_quick_arms_make_the_calls_that_a_p99_needs(compare: Any) -> None:
    slow = by_backend(compare(backends=["exact", "slow"]))["slow"]
    assert slow["calls"] >= 100
    assert slow["p99_s"] >= slow["median_s"]


def test_a_model_that_ran_nowhere_does_not_agree(compare: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.act"
    other.write_text("ACT")
    assert compare(other, backends=["exact", "slow"], rounds=0)["all_agree"]
    other.write_text("ACT broken")
    found = compare(other, backends=["exact", "slow"], rounds=0)
    assert [arm["error"] is None for arm in found["arms"]] == [True, True, False, False]
    assert not found["all_agree"]


def test_a_model_that_no_backend_takes_is_not_left_out(compare: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.ort"
    other.write_bytes(b"\0\0\0\0ORTM" + bytes(8))
    found = compare(other, env={"BRIDGE_PLUGINS": "acting"}, rounds=0)
    assert found["raised"] == "UnsupportedModel"
    assert "no installed backend takes other.ort" in found["text"]


def test_a_looser_tolerance_lets_everything_agree(compare: Any) -> None:
    found = compare(backends=["exact", "off"], tolerance=0.02, rounds=0)
    assert found["all_agree"]
    assert by_backend(found)["off"]["median_s"] is None


def test_backends_asked_for_by_name_are_shown_even_when_they_cannot(compare: Any) -> None:
    found = compare(backends=["unable", "absent", "exact"], rounds=0)
    arms = by_backend(found)
    assert arms["unable"]["error"]["class"] == "UnsupportedModel"
    assert arms["absent"]["error"]["class"] == "BackendUnavailable"
    assert arms["exact"]["is_reference"]
    assert found["all_agree"]


def test_the_reference_is_the_first_arm_that_runs(compare: Any) -> None:
    found = compare(backends=["refuses", "dies", "renamed", "off"], rounds=0)
    arms = by_backend(found)
    assert arms["renamed"]["is_reference"]
    assert sum(arm["is_reference"] for arm in found["arms"]) == 1
    assert arms["off"]["agreement"][0]["output"] == "native_y"


def test_unknown_backends_and_wrong_maps_are_told(compare: Any) -> None:
    assert compare(backends=["exat"])["raised"] == "BackendNotFound"
    found = compare(backends=["exact", "off"], output_map={"yy": "y"}, rounds=0)
    assert by_backend(found)["off"]["error"]["class"] == "InputError"


def test_inputs_with_a_default_reach_every_arm(tmp_path: Path) -> None:
    for runtime in ("onnxruntime", "onnx"):
        pytest.importorskip(runtime)
    from onnx import TensorProto, helper

    def model(name: str, initializers: list[Any]) -> Path:
        x, k, y = (
            helper.make_tensor_value_info(item, TensorProto.FLOAT, [None] if item != "k" else [1])
            for item in "xky"
        )
        node = helper.make_node("Mul", ["x", "k"], ["y"])
        graph = helper.make_graph([node], "scaled", [x, k], [y], initializers)
        opsets = [helper.make_opsetid("", 17)]
        path = tmp_path / name
        made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        path.write_bytes(made.SerializeToString())
        return path

    default = helper.make_tensor("k", TensorProto.FLOAT, [1], [2.0])
    optional, required = model("optional.onnx", [default]), model("required.onnx", [])
    samples = {"x": np.ones(3, np.float32), "k": np.full(1, 5, np.float32)}
    names = ["onnxruntime", "reference"]
    found = comparison.compare([optional], backends=names, samples=samples, rounds=0)
    assert [arm.error for arm in found.arms] == [None, None]
    assert found.all_agree
    found = comparison.compare([optional, required], backends=names[:1], rounds=0)
    assert found.arms[0].error is None
    assert "no counterpart" in str(found.arms[1].error)
