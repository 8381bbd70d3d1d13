"""report and compare-records, on records that a simulated clock made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import recording
from bridge.record import (
    SCHEMA,
    ArmRecord,
    BucketRecord,
    Decision,
    GateRecord,
    Interval,
    Limits,
    LoadRecord,
    Measurement,
    ModelRecord,
    OutputRecord,
    Protocol,
    Route,
    SelectionRecord,
    Verdict,
)
from bridge_bench.report import render
from bridge_cli import selection_view

EVIL = "[bold red]y[/]\x1b[2J\u202e"


def arm(name: str, times: dict[int, float], winner: str, **fields: Any) -> ArmRecord:
    generator = np.random.default_rng(len(name))
    given: dict[str, Any] = {
        "model": 0,
        "backend": name.partition("/")[0],
        "device": "cpu",
        "options": {},
        "tier": "strict",
        "status": "won" if name == winner else "eliminated",
        "agreement": (OutputRecord(output="y", passes=True, max_abs=3e-7, excess=0.02),),
        "buckets": tuple(
            Measurement(
                rows=rows,
                status="won" if name == winner else "eliminated",
                look=None if name == winner else 6,
                slower=None if name == winner else Interval(value=1.4, low=1.38, high=1.42),
                median_s=time,
                median_low_s=0.99 * time,
                median_high_s=1.01 * time,
                p99_s=1.2 * time,
                calls=400,
                blocks=tuple(map(float, time * generator.lognormal(0, 0.01, 12))),
            )
            for rows, time in times.items()
        ),
    }
    return ArmRecord(id=name, **{**given, **fields})


def make_record(scale: float = 1.0, **fields: Any) -> SelectionRecord:
    """Two arms, of which ``fast`` wins, one that fails, and two that were skipped."""
    given: dict[str, Any] = {
        "schema": SCHEMA,
        "created": "2026-11-24T10:00:00Z",
        "bridge_version": "0.1.0",
        "command": ("bridge", "select", "m.act"),
        "seed": 0,
        "models": (
            ModelRecord(
                name="m.act",
                format="acting",
                path="models/0/m.act",
                digest="0" * 64,
                size_bytes=9,
            ),
        ),
        "signature": {
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 3]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 3]}],
        },
        "batch_axes": {"x": 0},
        "output_batch_axes": {"y": 0},
        "profile": {},
        "limits": Limits(),
        "gate": GateRecord(tier="strict", reference="plain", tolerances={}),
        "protocol": Protocol(),
        "machine": {"cpu_model": "A", "usable_cpus": 2},
        "versions": {},
        "variables": {},
        "buckets": (
            BucketRecord(rows=1, to_rows=4, weight=0.5),
            BucketRecord(rows=16, to_rows=None, weight=0.5),
        ),
        "arms": (
            arm(
                "plain",
                {1: 1.4e-4, 16: 1.4e-3},
                "fast/threads=1",
                is_default=True,
                is_reference=True,
                agreement=(),
            ),
            arm("fast/threads=1", {1: scale * 1e-4, 16: scale * 1e-3}, "fast/threads=1"),
            arm(
                "odd",
                {},
                "",
                status="not_conformant",
                reason="Output y is off by 3.",
                agreement=(OutputRecord(output="y", passes=False, max_abs=3.0, excess=99.0),),
            ),
            arm(
                "gone/a=1",
                {},
                "",
                status="skipped",
                rule="not-installed",
                reason="Not there.",
                agreement=(),
            ),
            arm(
                "gone/a=2",
                {},
                "",
                status="skipped",
                rule="not-installed",
                reason="Not there.",
                agreement=(),
            ),
        ),
        "decision": Decision(
            status="decided",
            summary="fast/threads=1 serves every call.",
            verdicts=tuple(
                Verdict(
                    rows=rows,
                    status="proven",
                    winner="fast/threads=1",
                    regret=0.0,
                    default_ratio=Interval(value=1.4, low=1.38, high=1.42),
                    ranking=("fast/threads=1", "plain"),
                )
                for rows in (1, 16)
            ),
            routes=(Route(to_rows=None, arm="fast/threads=1"),),
        ),
    }
    return SelectionRecord(**{**given, **fields})


def write(record: SelectionRecord, folder: Path) -> Path:
    """The record in a folder, with the times of its calls; the model itself is not there."""
    file = io.BytesIO()
    np.savez(
        file,
        **{
            f"{one.id}|{bucket.rows}": (np.repeat(bucket.blocks, 40) * 1e9).astype(np.int64)
            for one in record.arms
            for bucket in one.buckets
        },
    )
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    record = replace(record, attachments={"calls.npz": digest})
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(recording.to_document(record)))
    (folder / "calls.npz").write_bytes(file.getvalue())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(make_record(), tmp_path / "record")


def test_the_terminal_shows_verdict_and_tables(bridge: Any, folder: Path) -> None:
    found = bridge("report", folder)
    assert found.code == 0
    assert "Fastest: fast/threads=1" in found.out
    assert "1.40x as fast as the default (1.38x to 1.42x)." in found.out
    assert "Every other arm is slower (95 % confidence)." in found.out
    assert "1 row a call (stands for 1 to 4 rows)" in found.out
    assert "plain (default, ref)" in found.out
    assert "100 µs (99 to 101)" in found.out
    assert "Output y is off by 3." in found.out
    assert "not-installed" in found.out
    assert f"predictor = bridge.load('{folder}')" in found.out.splitlines()[-2]


def test_the_page_is_written_once(bridge: Any, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    found = bridge("report", folder, "-o", page)
    assert (found.code, found.out) == (0, f"report: {page}\n")
    text = page.read_text(encoding="utf-8")
    assert "Fastest: fast/threads=1" in text
    assert "The slow calls" in text
    again = bridge("report", folder, "-o", page)
    assert again.code == 2
    assert "--force" in again.err
    page.write_text("old")
    assert bridge("report", folder / "record.json", "-o", page, "--force").code == 0
    assert page.read_text(encoding="utf-8") == text
    assert bridge("report", folder, "-o", tmp_path).code == 2
    assert bridge("report", folder, "-o", tmp_path / "no" / "report.html").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record", "report.html"]


def test_a_full_disk_leaves_the_old_page(
    bridge: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = bridge("report", folder, "-o", page, "--force")
    assert found.code == 7
    assert "No space left" in found.err
    assert page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record", "report.html"]


def test_json_is_the_record(bridge: Any, folder: Path) -> None:
    found = bridge("report", folder, "--json")
    assert json.loads(found.out) == json.loads((folder / "record.json").read_text())


def test_what_is_no_record_is_told(bridge: Any, folder: Path, tmp_path: Path) -> None:
    assert bridge("report", tmp_path / "nothing").code == 3
    (folder / "calls.npz").write_bytes(b"changed")
    found = bridge("report", folder, "-o", tmp_path / "report.html")
    assert found.code != 0
    assert "calls.npz" in found.err
    assert not (tmp_path / "report.html").exists()
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(text[:-9])
    assert bridge("report", folder).code != 0


def show(record: SelectionRecord, capsys: pytest.CaptureFixture[str]) -> str:
    selection_view.show(record, None)
    return capsys.readouterr().out


def test_records_without_a_winner_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    lost = replace(
        record,
        arms=record.arms[2:],
        decision=Decision(
            status="none",
            summary="The gate refused all.",
            verdicts=(Verdict(rows=1, status="none", winner=None, reason="No arm is left."),),
        ),
    )
    text = show(lost, capsys)
    assert "No arm may serve this model" in text
    assert "Output y is off by 3." in text
    assert "bridge.load" not in text
    plan = replace(
        record,
        arms=tuple(replace(one, status="planned", buckets=()) for one in record.arms),
        decision=Decision(status="planned", summary=""),
    )
    text = show(plan, capsys)
    assert "Plan: 5 arms to measure" in text
    assert "Would be measured" in text


def test_many_arms_are_folded_and_hindrances_told(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(limits=Limits(sla_percentile=0.99, sla_s=5e-3, concurrency=2))
    many = tuple(arm(f"s/n={i}", {1: 1e-3, 16: 2e-3}, "") for i in range(20))
    slow = replace(
        record.arms[0],
        id="late",
        is_default=False,
        buckets=(
            Measurement(rows=1, status="infeasible", reason="p99 is 7 ms, over 5 ms."),
            *record.arms[0].buckets[1:],
        ),
    )
    text = show(replace(record, arms=(*record.arms, *many, slow)), capsys)
    assert re.search(r"^and 1\d more: 1\d slower", text, re.MULTILINE)
    assert "late: p99 is 7 ms, over 5 ms." in text
    assert "p99 within 5 ms" in text
    assert "With -o DIR" in text


@pytest.mark.parametrize(
    ("limits", "texts"),
    [
        (Limits(objective="throughput"), ("rows/s", "10,000")),
        (Limits(objective="cost", price_per_hour=3.6), ("price per million rows", "0.1")),
        (Limits(objective="memory"), ("memory", "20 MiB")),
    ],
)
def test_other_objectives_have_a_column(
    limits: Limits, texts: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record(limits=limits)
    arms = tuple(
        replace(
            one,
            memory_bytes=20 * 2**20,
            buckets=tuple(replace(bucket, rows_per_s=1e4) for bucket in one.buckets),
        )
        for one in record.arms
    )
    record = replace(record, arms=arms)
    table = show(record, capsys).partition("1 row a call")[2].splitlines()
    assert texts[0] in table[1]
    assert f" {texts[1]} " in table[3]
    assert f"{texts[1]} {texts[0]}" in render(record)


def test_runs_under_load_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    given: dict[str, Any] = {"rows": 16, "scenario": "single_stream", "issuer": "loadgen"}
    loads = (
        LoadRecord(
            arm="fast/threads=1", status="valid", queries=900, p99_s=2e-3, sla="met", **given
        ),
        LoadRecord(arm="plain", status="failed", queries=0, reason="The worker died.", **given),
    )
    text = show(replace(record, decision=replace(record.decision, under_load=loads)), capsys)
    assert "Under load, by MLPerf LoadGen" in text
    assert "plain at 16 rows: The worker died." in text


def test_routes_are_shown_with_their_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    routes = (
        Route(to_rows=4, arm="plain"),
        Route(to_rows=None, arm="fast/threads=1", split_rows=16),
    )
    text = show(replace(record, decision=replace(record.decision, routes=routes)), capsys)
    assert "Fastest: 2 arms, by rows per call" in text
    assert "5 rows or more  fast/threads=1, in pieces of 16 rows" in text


def test_hostile_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    arms = tuple(
        replace(one, id=f"{one.id}{EVIL}", reason=EVIL, rule=one.rule and EVIL)
        for one in record.arms
    )
    decision = Decision(status="none", summary=EVIL)
    text = show(replace(record, arms=arms, decision=decision, warnings=(EVIL,)), capsys)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("[bold red]y[/]") >= 6


Records = Callable[..., tuple[Path, Path]]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    def make(scale: float, **fields: Any) -> tuple[Path, Path]:
        before = write(make_record(), tmp_path / "before")
        return before, write(make_record(scale, **fields), tmp_path / "after")

    return make


def test_a_regression_fails(bridge: Any, records: Records) -> None:
    paths = records(1.2)
    found = bridge("compare-records", *paths, "--fail", "median:5%,p99:10%")
    assert found.code == 1
    assert "Regression proven at 1, 16 rows." in found.out
    document = bridge("compare-records", *paths, "--fail", "median:5%", "--json")
    assert document.code == 1
    told = document.document("compare-records")
    assert told["regression"]
    assert told["serving"][0]["verdict"] == "regression"
    assert told["serving"][0]["ratio"]["value"] == pytest.approx(1.2, rel=0.01)
    assert told["limits"] == {"median": 0.05, "p99": None}
    assert bridge("compare-records", *paths, "--fail", "median:30%").code == 0
    unjudged = bridge("compare-records", *paths)
    assert unjudged.code == 0
    assert "nothing was judged" in unjudged.out


def test_no_regression_passes(bridge: Any, records: Records) -> None:
    found = bridge("compare-records", *records(1.0), "--fail", "median:5%")
    assert found.code == 0
    assert "No regression is proven." in found.out


def test_another_machine_is_told(bridge: Any, records: Records) -> None:
    paths = records(1.2, machine={"cpu_model": "B", "usable_cpus": 2})
    found = bridge("compare-records", *paths, "--fail", "median:5%")
    assert found.code == 8
    assert "The machine differs" in found.out
    assert "--any-machine" in found.out
    assert not bridge("compare-records", *paths, "--json").document("compare-records")["judged"]
    assert bridge("compare-records", *paths, "--fail", "median:5%", "--any-machine").code == 1


def test_limits_that_are_none_are_told(bridge: Any, folder: Path) -> None:
    found = bridge("compare-records", folder, folder, "--fail", "median=5")
    assert found.code == 2
    assert "median:5%" in found.err
