"""The table of the bridge over native calls: goals, blocks, and a run on the reference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import bridge_zoo
from bridge.backend import Availability
from bridge.errors import BackendNotFound, BackendUnavailable
from bridge.loading import backends
from bridge.record import Interval
from bridge_bench import blocks, depth, subject
from bridge_bench.blocks import Pace, Side, measure
from bridge_bench.depth import Contest, Goal, goals
from bridge_bench.subject import Subject, rankers, real_models

SHORT = Pace(row_s=0.01, slice_s=1e-4, least_blocks=3, warm_s=0.0)


@pytest.mark.parametrize(
    ("goal", "ratio", "verdict"),
    [
        (Goal("predict", 1.0, 1.0), (0.99, 0.97, 1.01), "met"),
        (Goal("predict", 1.0, 1.0), (1.005, 0.99, 1.02), "open"),
        (Goal("predict", 1.0, 1.0), (1.02, 1.01, 1.03), "missed"),
        (Goal("predict", 1.02, 1.0), (1.015, 0.99, 1.03), "met"),
        (Goal("predict", 1.02, 1.0), (1.01, 1.005, 1.015), "missed"),
        (Goal("predict", 1.02, 1.0), (1.05, 0.99, 1.1), "open"),
        (Goal("bound", 0.97, 0.97), (0.98, 0.975, 0.99), "missed"),
    ],
)
def test_verdicts(goal: Goal, ratio: tuple[float, float, float], verdict: str) -> None:
    assert goal.verdict(Interval(value=ratio[0], low=ratio[1], high=ratio[2])) == verdict


def test_goals_follow_the_model_and_the_time() -> None:
    known = backends()
    real = Subject(name="other", format="onnx", path=Path("x.onnx"))
    ranker = dataclasses.replace(real, name="ranker", size="real")
    ours = known["onnxruntime"]

    def limits(contest: Contest, rows: int, native_us: float) -> dict[str, float]:
        return {one.side: one.limit for one in goals(contest, rows, native_us)}

    assert limits(Contest(backend=ours, subject=real), 1, 299) == {"predict": 1.0}
    assert limits(Contest(backend=ours, subject=real), 1, 301) == {"predict": 1.02}
    plain = Contest(backend=ours, subject=ranker)
    assert limits(plain, 16, 100) == {"predict": 1.0, "bound": 0.97}
    assert limits(plain, 128, 1000) == {"predict": 1.02}
    saved = dataclasses.replace(ranker, format="saved_model")
    native = Contest(backend=known["tensorflow"], subject=saved)
    assert limits(native, 1, 3000) == {"predict": 0.70}
    assert limits(native, 16, 3000) == {"predict": 1.02}
    assert limits(Contest(backend=known["openvino"], subject=saved), 1, 3000) == {"predict": 1.02}
    compiled = Contest(
        backend=known["torch"],
        subject=dataclasses.replace(ranker, format="exported_program"),
        options={"execution": "aot_inductor"},
    )
    assert limits(compiled, 1, 100) == {"predict": 0.85}


@pytest.mark.parametrize("halves", [True, False])
def test_sides_take_turns_on_changing_inputs(halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[int] = []
    monkeypatch.setattr(blocks, "await_rest", lambda: rests.append(1))
    seen: dict[str, list[int]] = {"a": [], "b": []}
    sides = {name: Side(lambda index: index, found.append) for name, found in seen.items()}
    found = measure(sides, dataclasses.replace(SHORT, halves=halves), variants=4)
    count = len(found["a"])
    assert [len(times) for times in found.values()] == [count, count]
    assert count >= 2
    assert min(min(times) for times in found.values()) > 0
    assert len(rests) == count * 2 * (2 if halves else 1)
    for turns in seen.values():
        assert set(turns) == {0, 1, 2, 3}


def test_every_contest_of_a_backend_comes_before_what_is_compiled(tmp_path: Path) -> None:
    known = backends()
    every = [
        Subject(name="ranker", format=one, path=tmp_path, rows=(1, 16), size="small")
        for one in ("onnx", "saved_model", "torchscript", "exported_program")
    ]
    asked: list[Any] = []

    def subjects(formats: Any) -> list[Subject]:
        asked.extend(formats)
        return every

    found = depth.contests([known["onnxruntime"], known["torch"]], subjects)
    assert {"onnx", "torchscript", "exported_program"} <= set(asked)
    assert [(one.backend.name, one.subject.format, dict(one.options)) for one in found] == [
        ("onnxruntime", "onnx", {}),
        ("torch", "torchscript", {}),
        ("torch", "exported_program", {}),
        ("torch", "exported_program", {"execution": "aot_inductor"}),
        ("torch", "exported_program", {"execution": "aot_inductor", "freezing": True}),
    ]


def test_subjects_travel_as_json() -> None:
    for one in real_models():
        again = Subject.from_dict(json.loads(json.dumps(one.to_dict())))
        assert again == one


def test_a_ranker_that_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.sys, "executable", "/bin/false")
    with pytest.raises(BackendUnavailable, match="could not be built as onnx"):
        rankers(tmp_path, "small", ["onnx", "unknown"])


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    bridge_zoo.build("ranker", folder=tmp_path, formats=["onnx"])
    return tmp_path


@pytest.fixture
def run(zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(subject, "ROWS", (1, 2))
    monkeypatch.setattr(depth, "FULL", SHORT)
    monkeypatch.setattr(depth, "QUICK", dataclasses.replace(SHORT, halves=False))

    def run(*words: str) -> tuple[int, str]:
        where = ["--zoo", str(zoo), "--size", "small", "--models", str(zoo / "none")]
        status = depth.main(["--backend", "reference", *where, *words])
        return status, capsys.readouterr().out

    return run


def test_it_prints_a_row_for_each_number_of_rows(run: Any) -> None:
    _, out = run("--quick", "--json")
    found = json.loads(out)
    assert found["quick"]
    assert [row["rows"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert (row["backend"], row["model"], row["format"]) == ("reference", "ranker", "onnx")
        assert row["error"] is None
        assert row["blocks"] >= 2
        assert row["verdict"] in ("met", "missed", "open")
        assert row["predict_ratio"]["low"] <= row["predict_ratio"]["value"]
        assert min(row["native_us"], row["predict_us"], row["bound_us"]) > 0
    table = depth._table(found, found["rows"]).splitlines()
    assert "--quick" in table[0]
    assert [line.count("|") for line in table[2:]] == [9] * 4


def test_backends_and_models_that_are_not_there_are_no_success(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendNotFound, match="no backend 'refrence'"):
        run("--backend", "refrence")
    assert run("--model", "rankr")[0] == 1
    absent = Availability(installed=False, reason="it is absent", fix="Install it.")
    monkeypatch.setattr(type(backends()["torch"]), "probe", lambda self: absent)
    with pytest.raises(BackendUnavailable, match="'torch' cannot be measured: it is absent"):
        run("--backend", "torch")


def test_failures_and_lack_of_time_are_rows(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_it(self: Any, request: Any, *, timeout_s: float) -> Any:
        raise BackendUnavailable("it broke.")

    monkeypatch.setattr(depth.Process, "ask", break_it)
    status, out = run()
    assert status == 1
    assert out.count("failed: BackendUnavailable: it broke.") == 2
    monkeypatch.setattr(depth, "QUICK_S", -1.0)
    status, out = run("--quick")
    assert status == 0
    assert out.count("left out: the time of --quick was over") == 2
