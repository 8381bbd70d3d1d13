from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.binding import Bound
from bridge.errors import (
    BridgeError,
    ForkedPredictor,
    InputError,
    OutOfMemory,
    PredictError,
    PredictorClosed,
    ShapeMismatch,
    UnknownOutput,
    UnsupportedModel,
)

Arrays = dict[str, np.ndarray[Any, Any]]


def expected(inputs: Arrays) -> np.ndarray[Any, Any]:
    return inputs["x"] + inputs["ids"][:, None]


def test_predict_answers_by_name(tiny: Any, tiny_model: Path, tiny_inputs: Arrays) -> None:
    with bridge.load(tiny_model) as predictor:
        outputs = predictor.predict(tiny_inputs)
        np.testing.assert_array_equal(outputs["y"], expected(tiny_inputs))
        assert list(outputs) == ["y", "total"]
        assert list(predictor.predict(tiny_inputs, ["total"])) == ["total"]
        assert list(predictor.predict(tiny_inputs, "total")) == ["total"]
        assert predictor.predict(tiny_inputs, []) == {}
        with pytest.raises(UnknownOutput, match="Did you mean 'total'"):
            predictor.predict(tiny_inputs, ["totl"])


def test_info_says_what_was_loaded(tiny: Any, tiny_model: Path) -> None:
    with bridge.load(tiny_model, options=["threads=2"]) as predictor:
        info = predictor.info
        assert (info.backend, info.format, info.model) == ("tiny", "tiny", "model.tiny")
        assert info.options == {"threads": 2}
        assert info.to_dict()["device"] == "cpu"
        assert "model.tiny" in repr(predictor)
    assert "closed" in repr(predictor)


def test_input_errors_name_backend_and_model(
    tiny: Any, tiny_model: Path, tiny_inputs: Arrays
) -> None:
    with bridge.load(tiny_model) as predictor, pytest.raises(InputError) as caught:
        predictor.predict({"x": tiny_inputs["x"]})
    assert (caught.value.backend, caught.value.model, caught.value.device) == (
        "tiny",
        "model.tiny",
        "cpu",
    )


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (KeyError("operator Foo"), UnsupportedModel),
        (MemoryError(), OutOfMemory),
        (RuntimeError("odd"), PredictError),
    ],
)
def test_foreign_errors_are_mapped_and_chained(
    tiny: Any, tiny_model: Path, tiny_inputs: Arrays, foreign: Exception, ours: type[BridgeError]
) -> None:
    def fail(inputs: object) -> None:
        raise foreign

    with bridge.load(tiny_model) as predictor:
        tiny.during = fail
        with pytest.raises(BridgeError) as caught:
            predictor.predict(tiny_inputs)
        assert type(caught.value) is ours
        assert caught.value.__cause__ is foreign
        assert caught.value.backend == "tiny"
        tiny.during = lambda inputs: None
        assert predictor.predict(tiny_inputs)  # it stays usable


def test_close_twice_then_predict(tiny: Any, tiny_model: Path, tiny_inputs: Arrays) -> None:
    predictor = bridge.load(tiny_model)
    bound = predictor.bind({"x": (2, 4), "ids": (2,)})
    predictor.close()
    predictor.close()
    assert tiny.closed == 1
    with pytest.raises(PredictorClosed, match="model.tiny is closed"):
        predictor.predict(tiny_inputs)
    with pytest.raises(PredictorClosed):
        predictor.bind({"x": (2, 4), "ids": (2,)})
    with pytest.raises(PredictorClosed):
        bound.predict()
    assert tiny.closed == 1


def test_close_lets_running_calls_finish(tiny: Any, tiny_model: Path, tiny_inputs: Arrays) -> None:
    predictor = bridge.load(tiny_model)
    entered, go_on = threading.Event(), threading.Event()

    def wait(inputs: object) -> None:
        entered.set()
        assert go_on.wait(10)

    tiny.during = wait
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(predictor.predict, tiny_inputs)
        assert entered.wait(10)
        predictor.close()  # returns at once
        assert tiny.closed == 0
        with pytest.raises(PredictorClosed):
            predictor.predict(tiny_inputs)
        assert tiny.closed == 0
        go_on.set()
        np.testing.assert_array_equal(running.result(10)["y"], expected(tiny_inputs))
    assert tiny.closed == 1


@pytest.mark.parametrize("safety", list(bridge.ThreadSafety), ids=lambda one: one.value)
def test_threads_get_their_own_answers(
    tiny: Any, tiny_model: Path, safety: bridge.ThreadSafety
) -> None:
    tiny.safety = safety
    with bridge.load(tiny_model) as predictor:

        def ask(seed: int) -> bool:
            inputs = {
                "x": np.full((3, 4), seed, np.float32),
                "ids": np.arange(3, dtype=np.int64) * seed,
            }
            return bool(np.array_equal(predictor.predict(inputs)["y"], expected(inputs)))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(64)))
        if safety is bridge.ThreadSafety.SHARED:
            assert tiny.most_running > 1
        else:
            assert tiny.most_running == 1
        if safety is bridge.ThreadSafety.NONE:
            assert predictor.threads == {"bridge-tiny_0"}  # type: ignore[attr-defined]
    assert tiny.closed == 1


def test_bind_reuses_its_buffers(tiny: Any, tiny_model: Path, tiny_inputs: Arrays) -> None:
    with bridge.load(tiny_model) as predictor:
        bound = predictor.bind({"x": (2, 4), "ids": (2,)})
        bound.inputs["x"][...] = tiny_inputs["x"]
        bound.inputs["ids"][...] = tiny_inputs["ids"]
        bound.predict()
        held = bound.outputs["y"]
        np.testing.assert_array_equal(held, expected(tiny_inputs))
        bound.inputs["ids"][...] = 0
        bound.predict()
        assert bound.outputs["y"] is held
        np.testing.assert_array_equal(held, tiny_inputs["x"])
        with pytest.raises(ShapeMismatch):
            predictor.bind({"x": (2, 5), "ids": (2,)})
        with pytest.raises(InputError, match="Did you mean 'ids'"):
            predictor.bind({"x": (2, 4), "idss": (2,)})


def test_warmup_makes_its_own_inputs(tiny: Any, tiny_model: Path, tiny_inputs: Arrays) -> None:
    seen: list[int] = []
    tiny.during = lambda inputs: seen.append(len(inputs["ids"]))
    with bridge.load(tiny_model) as predictor:
        predictor.warmup(batches=[1, 5])
        predictor.warmup(tiny_inputs)
    assert seen == [1, 1, 5, 5, 2, 2]


def test_empty_batches_are_refused_where_the_backend_says_so(tiny: Any, tiny_model: Path) -> None:
    empty = {"x": np.zeros((0, 4), np.float32), "ids": np.zeros(0, np.int64)}
    with bridge.load(tiny_model) as predictor:
        assert predictor.predict(empty)["y"].shape == (0, 4)
    tiny.zero_rows = False
    with bridge.load(tiny_model) as predictor, pytest.raises(ShapeMismatch, match="empty batches"):
        predictor.predict(empty)


def test_a_dropped_predictor_is_collected(tiny: Any, tiny_model: Path) -> None:
    predictor = bridge.load(tiny_model)
    gone = weakref.ref(predictor)
    del predictor
    gc.collect()
    assert gone() is None


def test_a_forked_child_is_refused_and_destroys_nothing(
    tiny: Any, tiny_model: Path, tiny_inputs: Arrays, tmp_path: Path
) -> None:
    predictor = bridge.load(tiny_model)
    bound = predictor.bind({"x": (2, 4), "ids": (2,)})
    report = tmp_path / "child"
    child = os.fork()
    if child == 0:
        seen = []
        for call in (lambda: predictor.predict(tiny_inputs), bound.predict):
            try:
                call()
            except ForkedPredictor as error:
                seen.append(str(error))
        predictor.close()
        gone = weakref.ref(predictor)
        del predictor, call
        bound._predictor = None  # type: ignore[assignment]
        gc.collect()
        seen.append(f"alive={gone() is not None} closed={tiny.closed}")
        report.write_text("\n".join(seen))
        os._exit(0)
    deadline = time.monotonic() + 30
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    lines = report.read_text().splitlines()
    assert "before this process was forked" in lines[0]
    assert "before this process was forked" in lines[1]
    assert lines[2] == "alive=True closed=0"
    assert predictor.predict(tiny_inputs)  # the parent goes on
    predictor.close()


def test_importing_starts_no_thread() -> None:
    code = "import threading, bridge; bridge.backends(); print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_names_of_outputs_may_come_from_an_iterator(
    tiny: Any, tiny_model: Path, tiny_inputs: Arrays
) -> None:
    with bridge.load(tiny_model) as predictor:
        names: Any = iter(["total"])
        assert list(predictor.predict(tiny_inputs, names)) == ["total"]
        for odd, error in ((5, InputError), ([5], UnknownOutput)):
            with pytest.raises(error) as caught:
                predictor.predict(tiny_inputs, odd)  # type: ignore[arg-type]
            assert caught.value.backend == "tiny"


@pytest.mark.parametrize(
    ("shapes", "error"),
    [
        (None, InputError),
        ([("x", (2, 4)), ("ids", (2,))], InputError),
        ({"x": 5, "ids": (2,)}, ShapeMismatch),
        ({"x": (-1, 4), "ids": (2,)}, ShapeMismatch),
        ({"x": (2.0, 4), "ids": (2,)}, ShapeMismatch),
        ({"x": ("rows", 4), "ids": (2,)}, ShapeMismatch),
        ({"x": (2**50, 4), "ids": (2**50,)}, OutOfMemory),
    ],
)
def test_odd_shapes_to_bind_are_refused(
    tiny: Any, tiny_model: Path, shapes: Any, error: type[BridgeError]
) -> None:
    with bridge.load(tiny_model) as predictor, pytest.raises(error) as caught:
        predictor.bind(shapes)
    assert (caught.value.backend, caught.value.model) == ("tiny", "model.tiny")


def test_close_waits_for_a_bind_that_is_under_way(
    tiny: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_inside = []
    predictor = bridge.load(tiny_model)

    def closing(inputs: Arrays) -> Bound:
        predictor.close()
        closed_inside.append(tiny.closed)
        return Bound(predictor, inputs)

    monkeypatch.setattr(predictor, "_bind", closing)
    bound = predictor.bind({"x": (2, 4), "ids": (2,)})
    assert closed_inside == [0]
    assert tiny.closed == 1
    with pytest.raises(PredictorClosed):
        bound.predict()
