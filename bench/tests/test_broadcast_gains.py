"""The measurement of models that take the user once, in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge_zoo
from bridge.errors import MeasureError, OptionError
from bridge.loading import load, open_model
from bridge.registry import registry
from bridge_bench.blocks import Pace
from bridge_bench.broadcast import main, requests, row, verdict
from bridge_zoo.requests import user_inputs

PACE = Pace(row_s=0.02, slice_s=0.001, least_calls=1, least_blocks=2, halves=False, warm_s=0.0)


def test_a_request_repeats_its_user() -> None:
    described = bridge_zoo.describe("dual_tower")
    users = user_inputs(described)
    assert users[0] == "user_00"
    assert "user_dense" in users
    for full, once in requests(described, 5, count=2):
        assert list(full) == list(once)
        for name, array in full.items():
            assert len(array) == 5
            if name in users:
                assert np.array_equal(array, np.repeat(once[name], 5, 0))
            else:
                assert np.array_equal(once[name], array)


def test_models_that_agree_are_measured_and_others_are_not(tmp_path: Path) -> None:
    pytest.importorskip("onnxslim")
    pytest.importorskip("onnxruntime")
    described = bridge_zoo.describe("cold_dnn")
    plain = bridge_zoo.build("cold_dnn", folder=tmp_path, formats=["onnx"])["onnx"]
    other = bridge_zoo.build("cold_dnn", folder=tmp_path / "b", formats=["onnx"], seed=1)["onnx"]
    adapter = registry().adapters.get("onnx-broadcast")
    for source, name in ((plain, "once.onnx"), (other, "other.onnx")):
        options = {"inputs": user_inputs(described)}
        adapter.convert(open_model(source), tmp_path / name, options=options)
    with (
        load(plain) as first,
        load(tmp_path / "once.onnx") as once,
        load(tmp_path / "other.onnx") as wrong,
    ):
        found = row(first, once, described, 8, PACE)
        assert found["rows"] == 8
        assert found["blocks"] >= 2
        assert found["low"] <= found["gain"] <= found["high"]
        assert found["plain_us"] > 0 < found["once_us"]
        with pytest.raises(MeasureError, match="gives another 'click'"):
            row(first, wrong, described, 8, PACE)


@pytest.mark.parametrize(
    ("model", "rows", "gain", "high", "said"),
    [
        ("mmoe", 512, 1.31, 1.4, ""),
        ("mmoe", 512, 1.2, 1.29, "missed"),
        ("mmoe", 512, 1.2, 1.31, "in doubt"),
        ("mmoe", 1, 0.99, 1.0, ""),
        ("fm", 512, 0.97, 0.975, "missed"),
        ("wdl", 512, 1.05, 1.2, "in doubt"),
    ],
)
def test_what_is_good_enough(model: str, rows: int, gain: float, high: float, said: str) -> None:
    assert verdict(model, {"rows": rows, "gain": gain, "high": high}) == said


def test_a_request_without_candidates_is_not_measured() -> None:
    with pytest.raises(OptionError, match="one candidate or more"):
        main(["mmoe", "--rows", "0"])
