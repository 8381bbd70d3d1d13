"""The bench of shared CPUs, in short turns on the reference evaluator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bridge_zoo
from bridge.cpus import set_thread_budget, usable_cpus
from bridge.errors import BackendUnavailable
from bridge.loading import backends
from bridge_bench import sharing
from bridge_bench.subject import Subject, rankers

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    bridge_zoo.build("ranker", folder=folder, formats=["onnx"])
    return folder


def test_callers_count_calls_and_compare_answers(zoo: Path) -> None:
    (model,) = rankers(zoo, "small", ["onnx"])
    callers = sharing.Callers()
    request = {"backend": "reference", "subject": model.to_dict(), "options": {}, "rows": 2}
    try:
        for name in ("a", "b"):
            callers.load({**request, "name": name, "budget": 1, "warm_calls": 1})
    finally:
        set_thread_budget(None)
    assert callers.drift("a", 2) == {"drift": 0.0}
    found = callers.run(["a", "b"], 0.02)
    assert found["per_s"] > 0
    assert len(found["p50_us"]) == len(found["p99_us"]) == 2
    assert found["p99_us"][0] >= found["p50_us"][0] > 0


def test_a_failing_caller_is_heard() -> None:
    def fail() -> None:
        raise BackendUnavailable("it broke.")

    with pytest.raises(BackendUnavailable, match="it broke"):
        sharing._side_by_side([fail, lambda: None])


def test_each_way_to_compute_by_one_thread_is_tried(tmp_path: Path) -> None:
    known = backends()
    models = {
        one: Subject(name="ranker", format=one, path=tmp_path, size="small")
        for one in ("onnx", "saved_model", "exported_program")
    }
    names = ("onnxruntime", "openvino", "tensorflow", "torch")
    arms = sharing._arms([known[one] for one in names], models)
    found = [(arm["backend"], arm["subject"]["format"], arm["options"]) for arm in arms]
    assert found == [
        ("onnxruntime", "onnx", {"threads": 1}),
        ("openvino", "onnx", {"threads": 1}),
        ("openvino", "onnx", {"threads": 2, "streams": 2}),
        ("tensorflow", "saved_model", {"threads": 1}),
        ("torch", "exported_program", {"threads": 1}),
        ("torch", "exported_program", {"threads": 1, "execution": "aot_inductor"}),
    ]
    assert [arm["is_shared"] for arm in arms].count(False) == 1


def test_the_tables(zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    if usable_cpus() < 2:
        pytest.skip("needs two CPUs")
    (only,) = sharing.cpu_backends(["reference"])
    monkeypatch.setattr(sharing, "cpu_backends", lambda names: [only, only])
    arms = sharing._arms
    monkeypatch.setattr(sharing, "_arms", lambda known, models: arms(known[:1], models))
    monkeypatch.setattr(sharing, "PAUSE_S", 0.0)
    monkeypatch.setattr(sharing, "ROWS", 2)
    monkeypatch.setattr(sharing, "WARM_CALLS", 1)
    loaded = sharing._loaded
    # The reference evaluator has no option for threads.
    monkeypatch.setattr(
        sharing,
        "_loaded",
        lambda process, arm, *more: loaded(process, {**arm, "options": {}}, *more),
    )
    words = ["--zoo", str(zoo), "--size", "small", "--rounds", "2", "--seconds", "0.02", "--json"]
    status = sharing.main(words)
    found = json.loads(capsys.readouterr().out)
    assert status in (0, 1)
    assert [row["error"] for row in (*found["threads"], *found["together"])] == [None] * 3
    for row in found["threads"]:
        assert row["drift"] == 0
        assert row["gain"]["value"] == pytest.approx(row["two_per_s"] / row["one_per_s"], rel=0.9)
        assert row["verdict"] in ("met", "open", "missed")
    for row in found["together"]:
        assert set(row["p99_us"]) == {"alone", "budget", "none"}
        assert set(row["p99_ratio"]) == {"budget", "none"}
    text = sharing._tables(found).splitlines()
    assert [line.count("|") for line in text if line.startswith("|")] == [8] * 3 + [9] * 4


def test_failures_are_rows(zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    if usable_cpus() < 2:
        pytest.skip("needs two CPUs")

    def break_it(*_: Any) -> Any:
        raise BackendUnavailable("it broke.")

    monkeypatch.setattr(sharing, "_loaded", break_it)
    (only,) = sharing.cpu_backends(["reference"])
    monkeypatch.setattr(sharing, "cpu_backends", lambda names: [only, only])
    assert sharing.main(["--zoo", str(zoo), "--size", "small"]) == 1
    assert capsys.readouterr().out.count("failed: BackendUnavailable: it broke.") == 4
