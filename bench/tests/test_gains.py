from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bridge_zoo
from bridge import Options, option
from bridge.errors import OptionError
from bridge_bench.gains import Trial, trials, values


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    threads: int | None = option(None, help="T.", minimum=1)
    passes: int = option(1, help="P.", minimum=0, maximum=1)
    mode: str = option("plain", help="M.", choices=("plain", "fused", "deep"))
    spin: bool | None = option(None, help="S.")
    quiet: bool = option(False, help="Q.")
    side: int | None = option(None, help="Needs mode=deep.", minimum=1)
    never: bool = option(False, help="N.")
    scratch: int | None = option(None, help="B.", unit="bytes", minimum=1)
    share: float = option(0.5, help="F.", minimum=0, maximum=1)
    folder: Path | None = option(None, help="D.")
    names: tuple[str, ...] = option((), help="L.")
    tf32: bool = option(False, help="C.", devices=("cuda",))

    def check(self) -> None:
        if self.side is not None and self.mode != "deep":
            raise OptionError("side has no use without mode=deep.", fix="Leave it out.")
        if self.never:
            raise OptionError("never is not for you.", fix="Leave it out.")

    def effective(self) -> Settings:
        return Settings(threads=self.threads, mode=self.mode) if self.quiet else self


def test_values_follow_from_the_type_of_an_option() -> None:
    found = {one.name: values(one) for one in Settings.describe()}
    assert found == {
        "threads": (1, 2),
        "passes": (0,),
        "mode": ("fused", "deep"),
        "spin": (True, False),
        "quiet": (True,),
        "side": (1, 2),
        "never": (True,),
        "scratch": (),
        "share": (),
        "folder": (),
        "names": (),
        "tf32": (True,),
    }


def test_what_is_illegal_alone_is_tried_beside_another_option() -> None:
    found: dict[str, list[Trial]] = {}
    for one in trials(Settings):
        found.setdefault(one.option, []).append(one)
    assert list(found) == [one.name for one in Settings.describe()]
    assert [(one.value, one.beside, one.reason) for one in found["side"]] == [
        (1, {"mode": "deep"}, ""),
        (2, {"mode": "deep"}, ""),
    ]
    assert [one.reason for one in found["never"]] == ["never is not for you"]
    assert "means the same as the default" in found["quiet"][0].reason
    assert "bytes" in found["scratch"][0].reason
    assert found["folder"][0].value is None
    assert "depends on the model" in found["folder"][0].reason
    assert [one.reason for one in found["tf32"]] == ["it acts on cuda only"]
    assert [one.reason for one in trials(Settings, "cuda") if one.option == "tf32"] == [""]


PLUGIN = """
import os, time
from dataclasses import dataclass
import numpy as np
import bridge
from bridge.errors import UnsupportedModel

class Player(bridge.Predictor):
    def __init__(self, signature, options):
        super().__init__(signature, bridge.PredictorInfo())
        self.options = options
        self.calls = 0
    def _predict(self, inputs, outputs):
        self.calls += 1
        if self.options.mode == "dies":
            os.abort()
        time.sleep(0.0005 if self.options.mode == "fast" else 0.004)
        return {name: np.zeros(len(inputs["dense"]), np.float32) for name in outputs}
    def _close(self):
        pass

@dataclass(frozen=True, kw_only=True)
class Props(bridge.Options):
    mode: str = bridge.option("plain", help="M.", choices=("plain", "fast", "dies", "refused"))
    whole: bool = bridge.option(False, help="W.", process_wide=True)
    @property
    def tier(self):
        return "half" if self.mode == "fast" else "strict"

class Backend(bridge.Backend):
    name = "acting"
    options_type = Props
    def probe(self):
        return bridge.Availability(installed=True, version="1.0")
    def capabilities(self, device):
        return bridge.Capabilities(
            formats=frozenset({"onnx"}), dynamic_dims=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )
    def _load(self, model, device, options):
        if options.mode == "refused":
            raise UnsupportedModel("it is too deep.", fix="Cut it.")
        return Player(model.facts.signatures[""], options)

@bridge.hookimpl
def register_backends(register):
    register(Backend())
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("gains")
    site = folder / "site"
    info = site / "acting-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "acting.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nacting = acting\n")
    model = bridge_zoo.build("ranker", folder=folder, formats=["onnx"])["onnx"]
    out = folder / "gains.json"
    out.write_text('{"other": {"about": {}, "results": []}}')
    words = [str(model), "-o", str(out), "--size", "small", "--cases", "2,3x2", "--blocks", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "bridge_bench.gains", *words],
        env={**os.environ, "PYTHONPATH": str(site), "BRIDGE_PLUGINS": "acting"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_gains_are_measured_and_failures_are_rows(measured: Any) -> None:
    assert set(measured) == {"acting", "other"}  # what was not measured now is kept
    assert measured["acting"]["about"]["version"] == "1.0"
    results = {(one["option"], one["value"]): one for one in measured["acting"]["results"]}
    assert list(results) == [
        ("mode", "fast"), ("mode", "dies"), ("mode", "refused"), ("whole", True),
    ]  # fmt: skip
    fast = results["mode", "fast"]
    assert (fast["format"], fast["tier"], fast["reason"]) == ("onnx", "half", "")
    assert set(fast["gains"]) == {"2", "3x2"}
    gain = fast["gains"]["2"]
    assert gain["low"] <= gain["gain"] <= gain["high"]
    assert gain["gain"] > 1
    assert gain["us"] < gain["default_us"]
    assert results["mode", "refused"]["reason"] == "it is too deep"
    assert "gains" not in results["mode", "refused"]
    assert "ended" in results["mode", "dies"]["reason"]
    # In two processes, the first anew after the crash.
    whole = results["whole", True]
    assert whole["reason"] == ""
    assert whole["gains"]["2"]["gain"] > 0
