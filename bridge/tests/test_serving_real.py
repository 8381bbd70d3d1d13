"""A record over real runtimes: two arms of the zoo's ranker, weights in a file beside it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import bridge
from bridge import recording
from bridge.errors import ModelNotFound, StaleRecord
from bridge.loading import open_model
from bridge.record import Route, SelectionRecord

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
zoo = pytest.importorskip("bridge_zoo")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, records: ModuleType) -> SelectionRecord:
    place = tmp_path_factory.mktemp("real")
    built = zoo.build("ranker", size="small", formats=("onnx",), folder=place / "zoo")["onnx"]
    (place / "model").mkdir()
    path = place / "model" / "ranker.onnx"
    onnx.save_model(
        onnx.load(built),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1024,
    )
    model = open_model(path)
    arms = [
        records.arm_record("onnxruntime", backend="onnxruntime", options={"threads": 1}),
        records.arm_record("openvino", backend="openvino"),
    ]
    routes = [
        Route(to_rows=4, arm="onnxruntime"),
        Route(to_rows=64, arm="openvino"),
        Route(to_rows=None, arm="openvino", split_rows=32),
    ]
    made = records.make_record([model], arms, routes, next(iter(model.facts.signatures.values())))
    written = records.write_record(made, [model], place / "written")
    shutil.rmtree(place / "model")
    return recording.read(written.rename(place / "moved"))


def test_answers_are_those_of_the_arms(record: SelectionRecord) -> None:
    assert record.folder is not None
    model = record.folder / "models/0/ranker.onnx"
    ranker = zoo.describe("ranker", "small")
    with (
        bridge.load(record, strict=True) as served,
        bridge.load(model, backend="openvino") as openvino,
    ):
        served.warmup(batches=(1, 8))
        for rows in (1, 4, 5, 64, 80):
            inputs = zoo.inputs(ranker, rows, seed=rows)
            found, wanted = served.predict(inputs), openvino.predict(inputs)
            assert list(found) == list(wanted)
            for name in wanted:
                assert found[name].shape == (rows,)
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
        arms = served.info.details["arms"]
        assert arms["onnxruntime"]["threads"] == 1
        assert served.info.provider == "mixed"


def test_changed_weights_are_noticed(record: SelectionRecord, tmp_path: Path) -> None:
    assert record.folder is not None
    copied = Path(shutil.copytree(record.folder, tmp_path / "copy"))
    weights = copied / "models/0/weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StaleRecord, match="its content was changed"):
        bridge.load(copied)
    weights.unlink()
    with pytest.raises(ModelNotFound, match="weights.bin"):
        bridge.load(copied)
    assert dataclasses.replace(recording.read(copied), folder=None) == record
