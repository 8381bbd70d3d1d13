"""The headline table: goals, what is kept on disk, its sides, and the search for throughput."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bridge_zoo
from bridge.errors import MeasureError, ModelNotFound, OptionError, WorkerDied
from bridge.record import ArmRecord, BucketRecord, Measurement, Route
from bridge_bench import choices, headline, peak, throughput
from bridge_bench.contender import Contender, Field, Turn
from bridge_bench.headline_state import State
from bridge_bench.headline_table import BEGIN, END, Goal, render, table
from bridge_bench.peak import Peak, Product
from bridge_bench.throughput import Pace, Rival, configurations, rates
from bridge_zoo.requests import RequestLog, request, user_inputs

GOAL = Goal(model="ranker", rows=512, what="latency", side="strict", least=1.2)


@pytest.mark.parametrize(
    ("value", "high", "verdict"),
    [(1.2, 1.3, "met"), (1.19, 1.21, "open"), (1.1, 1.19, "missed")],
)
def test_verdicts(value: float, high: float, verdict: str) -> None:
    assert GOAL.verdict({"value": value, "low": 1.0, "high": high}) == verdict


def entry(name: str, ratio: float, p50_us: float, what: str = "arm") -> dict[str, Any]:
    return {
        "name": name,
        "what": what,
        "error": None,
        "difference": 0.0,
        "p50_us": p50_us,
        "p99_us": 2 * p50_us,
        "calls": 100,
        "ratio": {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1},
    }


@pytest.fixture
def measured() -> dict[str, Any]:
    """A document as a run leaves it."""
    entries = [entry("stock", 1.0, 8000.0), entry("strict", 1.25, 6400.0)]
    entries.append(entry("AUC gate", 2.5, 3200.0, "quantized"))
    failed = {"name": "best other", "what": "x", "error": "WorkerDied: gone"}
    rate = {"options": {"threads": 1}, "backend": "some", "callers": 2, "rows_per_s": 9e4}
    ratio = {"value": 2.8, "low": 2.7, "high": 2.9}
    rate |= {"p50_us": 9.0, "p99_us": 11.0, "ratio": ratio}
    return {
        "quick": False,
        "conditions": {
            "processor": "CPU",
            "cpus": 2,
            "architecture": "x86_64",
            "system": "Linux",
            "python": "3.11",
            "numpy": "2",
            "load_before": 0.1,
            "versions": {"some": "1.0"},
        },
        "models": {
            "ranker": {
                "weights": "trained",
                "aucs": {"click": 0.75},
                "operations_per_row": 4_000_000,
                "peaks": [Peak(Product(1024, 1024, 1024), "float32", 4e11, "some").to_dict()],
                "ideal_us": {"float32": 5000.0},
                "choices": {
                    "strict": {"error": None, "tiers": {"arm": "strict"}},
                    "AUC gate": {"error": None, "tiers": {"quantized": "int8"}},
                    "strict, user once": {"error": "BackendNotFound: none"},
                },
                "rows": {"512": {"rows": 512, "blocks": 9, "entries": [*entries, failed]}},
                "throughput": {
                    "rows": 512,
                    "limit_us": 16_000.0,
                    "entries": [
                        {**rate, "name": "AUC gate", "keeps": True},
                        {**rate, "name": "strict", "keeps": False},
                    ],
                },
                "auc": {
                    "AUC gate": {
                        "metrics": [
                            {"output": "click", "reference": 0.75, "value": 0.7, "passes": False}
                        ]
                    }
                },
            }
        },
    }


def test_the_table_says_what_is_met_and_missed(measured: dict[str, Any]) -> None:
    text = table(measured)
    lines = text.splitlines()

    def line(*words: str) -> str:
        return next(one for one in lines if all(word in one for word in words))

    assert line("latency, fine", "512", "≥ 1.2 ").endswith("| 1.25 [1.15, 1.35] | met |")
    assert line("latency, fine", "512", "≥ 3 ").endswith("| 2.50 [2.40, 2.60] | missed |")
    assert line("throughput, fine", "AUC gate").endswith("| 2.80 [2.70, 2.90] | met |")
    # A throughput whose p99 is too long is none.
    assert line("throughput, fine", "≥ 1.15").endswith("| - | not measured |")
    assert line("latency, fine", "| 1 |").endswith("| - | not measured |")
    assert "-60 % | -50 % | +180 % | +30 %" in line("fine ranking", "AUC gate", "-50 %")
    assert "failed: WorkerDied: gone" in line("best other", "`x`")
    assert "Nothing was chosen under 'strict, user once': BackendNotFound: none" in text
    assert "(**more than is allowed**)" in line("AUC gate: click -0.05000 of 0.7500")
    # 512 rows of 4 million operations in 6.4 ms are 320 of 400 billion; at best it is 5 ms.
    assert line("| 512 | strict | float32").endswith("| 320.0 | 80% | 78% |")
    assert "cold" not in text


def test_a_page_gets_the_table_between_its_marks(measured: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    render(measured, page)
    render(measured, page)
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert text.count("| goal |") == 1
    page.write_text("# no marks\n")
    with pytest.raises(OptionError, match="no place for the table"):
        render(measured, page)


def test_the_command_shows_what_is_kept_and_measures_nothing(
    measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "state.json"
    assert headline.main(["--no-measure", "--state", str(kept)]) == 1
    kept.write_text(json.dumps(measured))
    assert headline.main(["--no-measure", "--state", str(kept), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == measured
    kept.write_text("{")
    with pytest.raises(MeasureError, match="is no JSON"):
        headline.main(["--no-measure", "--state", str(kept)])
    with pytest.raises(SystemExit):
        headline.main(["--rows", "0"])
    assert "numbers from 1 on" in capsys.readouterr().err


def test_what_is_finished_stays_unless_it_was_measured_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    settings = {"quick": False, "size": "real"}
    state = State(path)
    state.begin(settings, is_fresh=False)
    state.data["models"]["ranker"] = {"rows": {}}
    state.save()
    again = State(path)
    again.begin(settings, is_fresh=False)
    assert again.data["models"] == {"ranker": {"rows": {}}}
    again.begin({**settings, "size": "small"}, is_fresh=False)
    assert again.data["models"] == {}
    other = State(path)
    other.data["models"]["ranker"] = {}
    other.data["conditions"]["versions"] = {}
    other.begin({**settings, "size": "small"}, is_fresh=False)
    assert other.data["models"] == {}
    assert [one.name for one in path.parent.iterdir()] == ["state.json"]


def test_requests_hold_one_user_and_labels_that_scores_can_predict() -> None:
    ranker = bridge_zoo.describe("ranker", "small")
    users = user_inputs(ranker)
    assert 0 < len(users) < len(ranker.input_names)
    whole, once = request(ranker, 64, 3), request(ranker, 64, 3, is_broadcast=True)
    for name, values in whole.items():
        assert len(values) == 64
        if name in users:
            assert len(once[name]) == 1
            assert (values == once[name]).all()
        else:
            assert np.array_equal(values, once[name])
            assert len(np.unique(values)) > 1
    log = RequestLog(ranker)
    batch, labels = log.request(64, 3)
    assert all(np.array_equal(batch[name], whole[name]) for name in whole)
    assert labels.keys() == {"click", "like", "share"}
    assert all(one.dtype == bool and one.shape == (64,) for one in labels.values())
    ceilings = [log.ceiling(*log.request(2000, seed))["click"] for seed in range(3)]
    assert min(ceilings) > 0.6


def test_operations_and_ideal_times_of_a_model() -> None:
    ranker = bridge_zoo.describe("ranker", "real")
    shapes = bridge_zoo.weight_shapes(ranker)
    kernels = [shape for name, shape in shapes.items() if name.endswith(".kernel")]
    assert peak.operations(ranker, 3) == 3 * 2 * sum(one * two for one, two in kernels)
    parts = peak.products(ranker, 8)
    assert parts[Product(8, ranker.joined_width, 512)] == 4
    assert parts[Product(8, 512, 256)] == 4
    found = [Peak(one, "float32", 1e9, "some") for one in parts]
    seconds = peak.ideal_s(ranker, 8, found, "float32")
    assert seconds == pytest.approx(peak.operations(ranker, 8) / 1e9)


def test_peaks_are_measured_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak.cpu_backends(["onnxruntime"])
    monkeypatch.setattr(peak, "cpu_backends", lambda: known)
    product = Product(32, 64, 16)
    found = peak.peaks([product], seconds=0.0)
    assert {one.precision for one in found} == {"float32", "int8"}
    assert all(one.per_s > 0 and one.backend == "onnxruntime" for one in found)
    assert json.loads(json.dumps(found[0].to_dict()))["product"] == [32, 64, 16]


class Fake(Field):
    """Contenders of known times: option ``us``, and all of it shared by the callers."""

    def __init__(self) -> None:
        super().__init__("ranker", "small")
        self.dropped: list[str] = []

    def warm(self, contender: Contender, rows: int, seconds: float = 0.0) -> float:
        return float(contender.options["us"])

    def time(self, contender: Contender, rows: int, calls: int, callers: int = 1) -> Turn:
        us, able = float(contender.options["us"]), min(callers, contender.options.get("able", 1))
        return Turn([us * callers / able] * calls, calls * us / able / 1e6)

    def drop(self, contender: Contender) -> None:
        self.dropped.append(contender.key)


def test_throughput_takes_the_best_that_keeps_the_limit() -> None:
    stock = Contender(name="stock", path=Path("s"), options={"us": 1000.0})
    slow = Contender(name="it", path=Path("m"), options={"us": 400.0})
    fast = Contender(name="it", path=Path("m"), options={"us": 500.0, "able": 4})
    late = Contender(name="late", path=Path("m"), options={"us": 9000.0})
    field = Fake()
    found = rates(
        field,
        [
            Rival(name="stock", configurations=(stock,)),
            Rival(name="it", configurations=(slow, fast)),
            Rival(name="late", configurations=(late,)),
        ],
        128,
        2000.0,
        pace=Pace(search_s=0.01, round_s=0.01, rounds=2),
    )
    first, it, last = found
    assert first["rows_per_s"] == pytest.approx(128_000)
    assert first["ratio"]["value"] == 1.0
    assert it["options"] == {"us": 500.0, "able": 4}
    assert it["callers"] == 4
    assert it["ratio"]["value"] == pytest.approx(8.0)
    assert it["keeps"]
    assert not last["keeps"]
    assert field.dropped == [slow.key]


def test_configurations_give_each_call_a_thread_or_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "usable_cpus", lambda: 2)
    given = [
        Contender(name="x", path=Path("m"), backend="onnxruntime", options={"spinning": False}),
        Contender(name="x", path=Path("m"), backend="openvino", options={"hint": "throughput"}),
    ]
    assert [(one.backend, dict(one.options)) for one in configurations(given)] == [
        ("onnxruntime", {"spinning": False}),
        ("onnxruntime", {"spinning": False, "threads": 1}),
        ("openvino", {"hint": "throughput"}),
        ("openvino", {"threads": 2, "streams": 2}),
    ]


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    with Field("cold_dnn", "small") as found:
        yield found


def test_contenders_answer_and_are_timed_in_their_process(field: Field, tmp_path: Path) -> None:
    described = bridge_zoo.describe("cold_dnn", "small")
    (path,) = bridge_zoo.build("cold_dnn", folder=tmp_path, formats=["onnx"]).values()
    bridged = Contender(name="it", path=path, backend="onnxruntime", options={"threads": 1})
    scores = field.answer(bridged, 5, seed=7)
    weights = bridge_zoo.seeded_weights(described)
    right = bridge_zoo.forward(described, weights, request(described, 5, 7))
    assert np.abs(scores["click"] - right["click"]).max() < 1e-5
    assert field.info(bridged)["backend"] == "onnxruntime"
    assert field.warm(bridged, 5, seconds=0.0) > 0
    turn = field.time(bridged, 5, calls=6, callers=2)
    assert len(turn.us) == 6
    assert min(turn.us) > 0
    assert turn.elapsed_s > 0
    missing = Contender(name="gone", path=tmp_path / "no.onnx")
    with pytest.raises(ModelNotFound, match="no.onnx"):
        field.warm(missing, 1)


def test_the_stock_call_is_that_of_the_first_files_runtime(tmp_path: Path) -> None:
    files = choices.Files(
        model="ranker",
        size="small",
        folder=tmp_path,
        weights="seeded",
        models=(tmp_path / "a", tmp_path / "b"),
        samples={},
        labels={},
    )
    found = choices.stock(files)
    assert found.is_native
    assert found.path == tmp_path / "a"
    assert found.backend == "tensorflow"
    assert not found.options
    assert choices.stock(files, 1).options == {"threads": 1}


def arm(name: str, model: int, status: str, **medians_s: float) -> ArmRecord:
    seen = [
        Measurement(rows=int(rows[1:]), status=status, median_s=value)
        for rows, value in medians_s.items()
    ]
    return ArmRecord(
        id=name,
        model=model,
        backend=name.partition("/")[0],
        device="cpu",
        options={},
        tier="strict",
        status=status,
        buckets=tuple(seen),
    )


def test_the_best_of_each_backend_is_that_of_the_size_and_of_the_models_own_files(
    tmp_path: Path,
) -> None:
    files = choices.Files(
        model="ranker",
        size="small",
        folder=tmp_path,
        weights="seeded",
        models=(tmp_path / "a", tmp_path / "b.onnx"),
        samples={},
        labels={},
    )
    record: Any = SimpleNamespace(
        models=[SimpleNamespace(route=route) for route in ("", "", "onnx-int8")],
        buckets=[
            BucketRecord(rows=1, to_rows=22, weight=0.5),
            BucketRecord(rows=512, to_rows=None, weight=0.5),
        ],
        arms=[
            arm("a", 0, "eliminated", r1=3.0, r512=9.0),
            arm("a/x", 0, "tied", r1=4.0, r512=8.0),
            arm("a/y", 0, "eliminated", r1=5.0, r512=10.0),
            arm("a/wrong", 0, "not_conformant", r1=1.0, r512=1.0),
            arm("b", 1, "won", r1=1.0, r512=2.0),
            arm("b/int8", 2, "won", r1=0.5, r512=1.0),
            arm("c", 1, "skipped"),
        ],
        decision=SimpleNamespace(routes=[Route(to_rows=None, arm="b/int8")]),
    )

    def best(rows: int) -> dict[str, str]:
        return {name: one.id for name, one in choices.best_of_each(files, record, rows).items()}

    assert best(16) == {"a": "a", "b": "b"}
    assert best(2048) == {"a": "a/x", "b": "b"}
    assert choices.beaten(files, record) == ["a/y", "a/wrong"]


def test_nothing_is_compared_where_what_is_replaced_fails(tmp_path: Path) -> None:
    class Silent(Fake):
        def answer(self, contender: Contender, rows: int, seed: int = 0) -> dict[str, Any]:
            if contender.is_native:
                raise WorkerDied("it is gone.")
            return {"click": np.zeros(rows)}

    first = Contender(name="stock", path=Path("s"), options={"us": 9.0}, is_native=True)
    other = Contender(name="strict", path=Path("m"), options={"us": 3.0})
    table = headline.Headline(State(tmp_path / "s.json"), tmp_path, "small", (1,), is_quick=True)
    with pytest.raises(MeasureError, match="replaced fails at 1 candidates: it is gone"):
        table._row(Silent(), [(first, "the call"), (other, "arm")], 1)
    again = dataclasses.replace(first, is_native=False)
    entries = table._row(Silent(), [(again, "the call"), (other, "arm")], 1)["entries"]
    assert [one["ratio"]["value"] for one in entries] == [1.0, pytest.approx(3.0)]


def test_a_contender_that_died_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    class Mortal:
        def __init__(self, module: str) -> None:
            self.is_closed = False
            begun.append(module)

        def ask(self, wanted: dict[str, Any], timeout_s: float = 0.0) -> dict[str, Any]:
            assert not self.is_closed
            if wanted["do"] == "answer":
                self.close()
                raise WorkerDied("it is gone.")
            return {"us": 5.0}

        def close(self) -> None:
            self.is_closed = True

    monkeypatch.setattr("bridge_bench.contender.Process", Mortal)
    one = Contender(name="it", path=Path("m"), backend="some")
    with Field("ranker", "small") as field:
        assert field.warm(one, 1) == 5.0
        with pytest.raises(WorkerDied):
            field.answer(one, 1)
        assert field.warm(one, 1) == 5.0
    assert len(begun) == 2
