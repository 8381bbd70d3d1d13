"""The bench of memory, on a ranker of 1 MB in the reference evaluator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import bridge_zoo
from bridge.errors import MeasureError
from bridge_bench import footprint

pytest.importorskip("onnx")


def weights_bytes(ranker: bridge_zoo.Ranker) -> int:
    return sum(4 * math.prod(shape) for shape in bridge_zoo.weight_shapes(ranker).values())


@pytest.mark.parametrize("wanted", [0, 100_000_000, 512_000_000])
def test_the_large_ranker_has_the_weights_asked_for(wanted: int) -> None:
    found = weights_bytes(footprint.large(wanted))
    least = weights_bytes(bridge_zoo.describe("ranker", "real"))
    assert max(wanted, least) <= found <= max(wanted, least) + 10_000


def test_the_tiny_ranker_is_a_kilobyte(tmp_path: Path) -> None:
    assert weights_bytes(footprint.tiny()) < 200
    path = footprint.write(footprint.tiny(), "onnx", tmp_path)
    assert 500 < path.stat().st_size < 5000
    before = path.stat().st_mtime_ns
    assert footprint.write(footprint.tiny(), "onnx", tmp_path) == path
    assert path.stat().st_mtime_ns == before


def test_it_weighs_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = ["--backend", "reference", "--size", "small", "--megabytes", "30", "--rounds", "1"]
    status = footprint.main([*words, "--folder", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert row["error"] is None
    assert (row["backend"], row["format"]) == ("reference", "onnx")
    assert status == (0 if row["verdict"] == "met" else 1)
    for side in ("native", "bridge"):
        assert row[side]["called_bytes"] > found["weights_bytes"] / 2
    assert row["bridge"]["info_bytes"] > found["weights_bytes"] / 2
    assert row["native"]["info_bytes"] == 0
    kept = sorted(tmp_path.iterdir())
    assert [one.name.partition("-")[0] for one in kept] == ["large", "tiny"]
    assert kept[0].name == f"large-{found['weights_bytes']}"  # not taken for one of another size
    text = footprint._table(found, found["rows"]).splitlines()
    assert [line.count("|") for line in text[2:]] == [8] * 3


def test_a_failure_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def break_it(*_: Any, **__: Any) -> Any:
        raise MeasureError("it broke.")

    monkeypatch.setattr(footprint.Process, "ask", break_it)
    assert footprint.main(["--backend", "reference", "--rounds", "1"]) == 1
    assert "failed: MeasureError: it broke." in capsys.readouterr().out


def test_systems_that_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "resident_bytes", lambda: None)
    with pytest.raises(MeasureError, match="does not tell"):
        footprint._resident()
