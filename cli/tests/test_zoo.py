"""``bridge zoo``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_ls_shows_every_model_in_every_size(bridge: Any) -> None:
    document = bridge("zoo", "ls", "--json").document("zoo-ls")
    by_name = {(one["model"], one["size"]): one for one in document["models"]}
    assert len(by_name) == 22
    assert by_name["mmoe", "real"]["outputs"] == ["click", "buy"]
    assert by_name["mmoe", "real"]["table_bytes"] >= 50e6
    text = bridge("zoo", "ls").out
    assert "dual_tower" in text
    assert "51.3 MiB" in text


def test_build_writes_the_formats_and_the_rows(bridge: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    words = ("zoo", "build", "fm", "--weights", "seeded", "--format", "onnx", "-o", tmp_path / "z")
    document = bridge(*words, "--json").document("zoo-build")
    assert document["files"] == {"onnx": str(tmp_path / "z" / "fm.onnx")}
    assert Path(document["files"]["onnx"]).is_file()
    assert document["aucs"] is None
    with np.load(document["samples"]) as samples:
        assert set(samples.files) == set(document["inputs"])
    with np.load(document["labels"]) as labels:
        assert labels.files == ["click"]
    assert "fm_labels.npz" in bridge(*words).out


def test_build_says_what_is_wrong(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ("-o", tmp_path / "z")
    found = bridge("zoo", "build", "mmo", *target)
    assert (found.code, "mmoe" in found.err) == (2, True)
    found = bridge("zoo", "build", "mmoe", "--size", "reel", *target)
    assert (found.code, "real" in found.err) == (2, True)
    # Formats are checked before minutes go into training.
    found = bridge("zoo", "build", "mmoe", "--format", "onx", *target)
    assert (found.code, "onnx" in found.err) == (2, True)
    taken = tmp_path / "taken"
    taken.touch()
    found = bridge("zoo", "build", "mmoe", "-o", taken)
    assert (found.code, "cannot be written to: File exists" in found.err) == (2, True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = bridge("zoo", "build", "fm", "--weights", "seeded", "--format", "onnx", *target)
    assert (found.code, "'onnx', which is not installed" in found.err) == (4, True)
