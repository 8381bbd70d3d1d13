"""``bridge select`` and ``bridge verify``: what they print, write and exit with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import RecordNotWritten
from bridge_bench import evidence

QUICK = ("--budget", "2s", "--launches", "0", "--backend", "exact", "--backend", "off")
Model = Callable[..., Path]
Run = Callable[..., Any]


def test_the_table_names_the_winner_and_how_to_load_it(
    bridge: Run, model: Model, tmp_path: Path
) -> None:
    done = bridge("select", model(), *QUICK, "-o", tmp_path / "r")
    assert done.code == 0, done.err
    assert "exact" in done.out
    assert "all calls" in done.out
    assert f"predictor = bridge.load({str(tmp_path / 'r')!r})" in done.out
    assert "off" in done.out
    assert (tmp_path / "r" / "record.json").is_file()
    verified = bridge("verify", tmp_path / "r")
    assert verified.code == 0
    assert "The record holds." in verified.out
    found = bridge("verify", tmp_path / "r", "--json").document("verify")
    assert found["holds"] is True
    assert found["checks"][0]["arm"] == "exact"


def test_json_is_the_record_by_its_schema(bridge: Run, model: Model) -> None:
    found = bridge("select", model(), *QUICK, "--json").document("select")
    by_id = {arm["id"]: arm for arm in found["arms"]}
    assert by_id["off"]["status"] == "not_conformant"
    assert by_id["off"]["agreement"][0]["max_abs"] == pytest.approx(0.01, rel=0.01)
    assert found["decision"]["routes"] == [{"to_rows": None, "arm": "exact", "split_rows": None}]
    assert found["command"][0] == "bridge"


def test_a_dry_run_shows_the_plan_with_reasons(bridge: Run, model: Model) -> None:
    done = bridge("select", model(), "--dry-run")
    assert done.code == 0
    assert "Nothing was measured" in done.out
    assert "not-installed" in done.out
    assert "'absent' is not installed" in done.out
    found = bridge("select", model(), "--dry-run", "--json").document("select")
    assert found["decision"]["status"] == "planned"


def test_when_no_arm_passes_the_gate_the_status_and_the_table_say_so(
    bridge: Run, model: Model, tmp_path: Path
) -> None:
    x = np.ones((4, 3), np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    right = {"y": x + 1, "file": np.full(4, "straße")}
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:  # savez cannot name one "file"
        for name, array in right.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    done = bridge(
        "select", model(), *QUICK, "--samples", tmp_path / "x.npz", "--expected", tmp_path / "y.npz"
    )
    assert done.code == 9
    assert "No arm passed the gate" in done.out
    assert "differs by" in done.out


def test_limits_that_nobody_keeps(bridge: Run, model: Model) -> None:
    done = bridge("select", model(), *QUICK, "--sla", "p99=1ns")
    assert done.code == 10
    assert "the best achieved is" in done.out
    done = bridge("select", model(), *QUICK, "--max-memory", "1B")
    assert done.code == 10
    assert "No arm fits into the memory allowed" in done.out


def test_a_full_disk_costs_the_record_and_not_the_result(
    bridge: Run, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RecordNotWritten("the disk is full.", fix="Make room.")

    monkeypatch.setattr(evidence.recording, "write", full)
    done = bridge("select", model(), *QUICK, "-o", tmp_path / "r")
    assert done.code == 7
    assert "error: the disk is full." in done.err
    assert "all calls" in done.out
    assert "The record was not written" in done.out
    assert not (tmp_path / "r").exists()


def test_bad_words_are_refused_before_anything_is_measured(
    bridge: Run, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "mix.txt").write_text("many calls\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("private")
    for words, text in (
        (("--objective", "speed"), "none of p50"),
        (("--objective", "cost"), "--price-per-hour belong together"),
        (("--tier", "quarter"), "none of strict"),
        (("--batch", "1,two"), "no list of sizes"),
        (("--batch", "0"), "no list of sizes"),
        (("--batch-mix", tmp_path / "mix.txt"), "no histogram"),
        (("--batch", "1", "--batch-mix", tmp_path / "mix.txt"), "not both"),
        (("--sla", "5ms"), "p99=5ms"),
        (("--budget", "soon"), "30s"),
        (("--option", "threads=2"), "openvino.threads=2"),
        (("-o", tmp_path / "full"), "other things than a record"),
        (("-o", tmp_path / "no" / "r"), "there is no folder"),
        (("--labels", tmp_path / "none.npy"), "cannot be read"),
        (("--metric", "beauty"), "beauty"),
        (("--input", "x=odd"), "odd"),
        (("--only", "nobody*", "--skip", "exact"), ""),
    ):
        done = bridge("select", model(), *QUICK, *words)
        assert done.code in {2, 3, 5}, (words, done.code)
        assert text in done.err, (words, done.err)
    assert bridge("select", tmp_path / "none.act").code == 3
    unable = bridge(
        "select", model(), "--backend", "unable", "--backend", "absent", "--skip", "ex*"
    )
    assert unable.code in {2, 3, 4}


def test_a_record_is_replaced_only_with_force(bridge: Run, model: Model, tmp_path: Path) -> None:
    file = model()
    words = ("select", file, *QUICK, "-o", tmp_path / "r")
    assert bridge(*words).code == 0
    assert bridge(*words).code == 2
    assert bridge(*words, "--force").code == 0
    before = (tmp_path / "r" / "record.json").read_bytes()
    done = bridge("select", file, *QUICK, "--resume", tmp_path / "r")
    assert done.code == 0, done.err
    assert f"predictor = bridge.load({str(tmp_path / 'r')!r})" in done.out
    assert (tmp_path / "r" / "record.json").read_bytes() != before
    shutil.copytree(tmp_path / "r", tmp_path / "other")
    other = bridge("select", file, *QUICK, "--resume", tmp_path / "r", "-o", tmp_path / "other")
    assert other.code == 2
    assert "--force" in other.err
    assert bridge("select", file, *QUICK, "--resume", tmp_path / "none").code == 3


def test_ctrl_c_decides_and_writes(
    environment: dict[str, str], model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    words = ["select", str(model()), "-o", str(out), "--budget", "120s", "--backend", "exact"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bridge_cli", *words, "--batch", "1,2,3,4,5,6,7,8"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    threads = Path(f"/proc/{process.pid}/task")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(
            path.read_text().strip() for path in threads.glob("*/children")
        ):
            time.sleep(0.05)  # until it has a worker
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    # One that was through before the signal came is as good.
    assert process.returncode in {0, 130}, errors
    assert json.loads((out / "record.json").read_text())["decision"]["status"] in {
        "interrupted",
        "decided",
        "none",
    }
