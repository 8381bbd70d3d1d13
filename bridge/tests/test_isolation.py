"""Workers, tried with an external plugin whose models misbehave on demand."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import DType, ThreadSafety, message
from bridge.errors import (
    BackendNotFound,
    BackendUnavailable,
    BridgeError,
    DTypeMismatch,
    InputError,
    ModelLoadFailed,
    ModelNotFound,
    OptionError,
    PredictError,
    PredictorClosed,
    PredictTimeout,
    WorkerDied,
)
from bridge.isolation import Worker
from bridge.slice import drift

PLUGIN = """
import os, time
import numpy as np
import bridge

class Acting(bridge.Format):
    name, title, native_backend = "acting", "Acting", "acting"
    def sniff(self, file):
        return file.head.startswith(b"ACT ")

class Player(bridge.Predictor):
    def __init__(self, act):
        f32 = bridge.DType.FLOAT32
        word = os.environ.get("ACTING_WORD")
        details = {"word": word, "path": "PATH" in os.environ} if word else {}
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("x", f32, ("n",)),), (bridge.TensorSpec("y", f32, ("n",)),)
            ),
            bridge.PredictorInfo(threads=3, details=details),
        )
        self.act = act
        self.sizes = []
    def _predict(self, inputs, outputs):
        if self.act == "abort":
            os.write(2, b"about to abort\\n")
            os.abort()
        if self.act == "exit":
            os._exit(7)
        if self.act == "hang":
            time.sleep(600)
        if self.act == "nap":
            time.sleep(0.02)
        if self.act == "add":
            return {"y": inputs["x"] + 100}
        self.sizes.append(len(inputs["x"]))
        if self.act == "count":
            return {"y": np.array(self.sizes[:-1], np.float32)}
        if self.act == "sizes":
            is_last = inputs["x"][0] == 99
            return {"y": np.array(self.sizes, np.float32) if is_last else inputs["x"]}
        if self.act == "drift":
            return {"y": inputs["x"] + np.float32(len(self.sizes))}
        if self.act == "print":
            print("noise on stdout", flush=True)
            os.write(1, b"native noise\\n")
        if self.act == "garble":
            for number in range(3, 64):  # the pipe of answers is one of them
                try:
                    os.write(number, b"x" * 64)
                except OSError:
                    pass
        if self.act == "raise":
            raise ZeroDivisionError("odd")
        if self.act == "odd-output":
            return {"y": np.zeros(2, "datetime64[s]")}
        return {"y": inputs["x"] * 2}
    def _close(self):
        pass

class Backend(bridge.Backend):
    name = "acting"
    def probe(self):
        return bridge.Availability(installed=True)
    def devices(self):
        self.runtime = np.ones(5_000_000)
        return (bridge.CPU,)
    def capabilities(self, device):
        return bridge.Capabilities(
            formats=frozenset({"acting"}), zero_rows=True, thread_safety=bridge.ThreadSafety.SHARED
        )
    def _load(self, model, device, options):
        act = model.file.read_text().split()[1]
        if act == "abort-on-load":
            os.write(1, b"last words of a runtime\\n")
            os.abort()
        if act == "raise-on-load":
            os.write(1, b"the reason, printed\\n")
            raise ValueError("see above")
        return Player(act)

@bridge.hookimpl
def register_backends(register):
    register(Backend())

@bridge.hookimpl
def register_formats(register):
    register(Acting())
"""


def install(site: Path) -> None:
    """Puts the plugin where children whose path has this folder find it."""
    info = site / "acting-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "acting.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nacting = acting\n")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plugin on the path of child processes, and a folder for models."""
    install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return tmp_path


@pytest.fixture
def fresh(stage: Path) -> Iterator[Worker]:
    with Worker() as made:
        yield made


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Worker]]:
    """A worker for all tests that leave it alive; another one after those that do not."""
    site = tmp_path_factory.mktemp("stage") / "site"
    install(site)
    made: list[Worker] = []

    def worker() -> Worker:
        with contextlib.suppress(BridgeError, IndexError):
            made[-1].memory()  # one that is just ending does not answer
            return made[-1]
        made.append(Worker(environment={"PYTHONPATH": str(site)}))
        return made[-1]

    yield worker
    for one in made:
        one.close()


@pytest.fixture
def worker(living: Callable[[], Worker]) -> Worker:
    return living()


def model(stage: Path, act: str) -> Path:
    path = stage / f"{act}.model"
    path.write_text(f"ACT {act}")
    return path


X = {"x": np.array([1, 2, 3], np.float32)}


def test_a_worker_answers_like_a_predictor(stage: Path, worker: Worker) -> None:
    loaded = worker.load(model(stage, "fine"))
    assert loaded.signature.input_names == ("x",)
    assert loaded.info["threads"] == 3
    assert loaded.load_s > 0
    assert loaded.rss_growth_bytes >= 0
    assert loaded.thread_safety is ThreadSafety.SHARED
    assert loaded.zero_rows
    outputs, call_s = worker.predict(X)
    np.testing.assert_array_equal(outputs["y"], [2, 4, 6])
    assert outputs["y"].flags.writeable
    assert call_s > 0
    empty, _ = worker.predict({"x": np.zeros(0, np.float32)})
    assert empty["y"].shape == (0,)
    memory = worker.memory()
    assert 0 < memory["rss_bytes"] <= memory["peak_rss_bytes"]


def test_measuring_takes_turns_over_the_kept_inputs(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "count"))
    sizes = (3, 5, 7)
    worker.keep_inputs("some", [{"x": np.zeros(size, np.float32)} for size in sizes])
    slice_ = worker.measure(7, key="some")
    assert slice_.ns.shape == (7,)
    assert slice_.ns.dtype == np.int64
    assert (slice_.ns > 0).all()
    assert slice_.elapsed_ns >= slice_.ns.sum()
    assert slice_.cpu_ns >= 0
    assert slice_.drift is None
    worker.measure(2, key="some", discard=0)
    # Nine calls and two that were discarded, in turn; then this one.
    seen, _ = worker.predict({"x": np.zeros(1, np.float32)})
    assert seen["y"].tolist() == [float(sizes[turn % 3]) for turn in range(11)]
    worker.pause()
    with pytest.raises(PredictTimeout):
        worker.measure(1, key="some", timeout_s=0.2)


def test_slots_hold_models_side_by_side(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "fine"), slot=0)
    worker.load(model(stage, "add"), slot=3)
    assert worker.predict(X)[0]["y"].tolist() == [2, 4, 6]
    assert worker.predict(X, slot=3)[0]["y"].tolist() == [101, 102, 103]
    worker.keep_inputs("a", [X])
    worker.keep_outputs(slot=3, key="a")
    assert worker.measure(2, slot=0, key="a").drift is None
    assert worker.measure(2, slot=3, key="a").drift == 0.0
    worker.load(model(stage, "fine"), slot=3)  # in the place of the other
    assert worker.predict(X, slot=3)[0]["y"].tolist() == [2, 4, 6]
    assert worker.measure(2, slot=3, key="a").drift is None
    worker.unload(0)
    worker.unload(0)
    with pytest.raises(PredictError, match="no model yet in slot 0"):
        worker.predict(X)
    assert worker.predict(X, slot=3)[0]["y"].tolist() == [2, 4, 6]
    worker.unload(3)


def test_answers_that_drift_are_noticed(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "drift"))
    worker.keep_inputs("a", [X, {"x": np.full(2, 9.0, np.float32)}])
    calls_s = worker.keep_outputs(key="a")  # calls 1 and 2
    assert len(calls_s) == 2
    assert min(calls_s) > 0
    # The last of calls 3 to 8 is the second variant's: 9 + 8 against 9 + 2.
    found = worker.measure(4, key="a").drift
    assert found == pytest.approx((17 - 11) / 12)
    worker.keep_inputs("a", [X])  # its outputs are forgotten with the inputs
    assert worker.measure(1, key="a").drift is None


def test_a_call_cut_into_pieces_can_be_timed(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "sizes"))
    worker.keep_inputs("a", [{"x": np.zeros(7, np.float32)}])
    assert worker.measure(2, key="a", discard=0, split_rows=3).ns.shape == (2,)
    worker.measure(
        1, key="a", discard=0, split_rows=5, batch_axes={"x": 0}, output_batch_axes={"y": 0}
    )
    seen = worker.predict({"x": np.full(1, 99, np.float32)})[0]["y"]
    assert seen.tolist() == [3, 3, 1, 3, 3, 1, 5, 2, 1]


def test_callers_side_by_side_share_the_calls(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "nap"))  # 20 ms
    worker.keep_inputs("a", [X])
    worker.keep_outputs(key="a")
    found = worker.measure(8, key="a", discard=0, callers=4)
    assert found.ns.shape == (8,)
    assert (found.ns >= 20_000_000).all()
    assert found.elapsed_ns < found.ns.sum()
    assert found.drift == 0.0
    worker.load(model(stage, "raise"))
    with pytest.raises(PredictError, match="ZeroDivisionError"):
        worker.measure(8, key="a", discard=0, callers=4)


def test_the_loop_over_nothing(worker: Worker) -> None:
    found = worker.null_call_ns(1000)
    assert found.shape == (1000,)
    assert (found > 0).all()


def test_memory_starts_anew(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "fine"))
    worker.predict({"x": np.zeros(20_000_000, np.float32)})  # 80 MB and more
    high = worker.memory(reset_peak=True)
    assert high["peak_rss_bytes"] > high["rss_bytes"] + 50_000_000
    assert worker.memory()["peak_rss_bytes"] < high["peak_rss_bytes"] - 50_000_000


def test_the_runtime_alone_can_be_imported(stage: Path, fresh: Worker) -> None:
    before = fresh.memory()["rss_bytes"]
    assert fresh.prepare_runtime("acting") > before + 30_000_000
    with pytest.raises(BackendNotFound):
        fresh.prepare_runtime("nothing")


def test_what_a_runtime_runs_cannot_read_the_requests(worker: Worker) -> None:
    assert Path(f"/proc/{worker.pid}/fd/0").readlink() == Path(os.devnull)
    assert worker.null_call_ns(1).shape == (1,)


def test_options_that_json_does_not_know_go_as_text(stage: Path, worker: Worker) -> None:
    with pytest.raises(OptionError, match="option 'file' is unknown"):
        worker.load(model(stage, "fine"), options={"file": stage})
    assert worker.null_call_ns(1).shape == (1,)  # nothing was half sent


def test_variables_reach_the_child(stage: Path) -> None:
    with Worker(environment={"ACTING_WORD": "7"}) as worker:
        loaded = worker.load(model(stage, "fine"))
        assert loaded.info["details"] == {"word": "7", "path": True}


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 5.0], [1.0, 3.0], 0.5),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_drift(new: list[float], old: list[float], expected: float) -> None:
    found = drift({"y": np.array(new)}, {"y": np.array(old)})
    assert found == pytest.approx(expected)


def test_drift_of_other_kinds() -> None:
    ints = {"y": np.array([1, 2])}
    assert drift(ints, {"y": np.array([1, 2])}) == 0.0
    assert drift(ints, {"y": np.array([1.0, 2.0])}) == np.inf
    assert drift(ints, {"z": np.array([1, 2])}) == np.inf
    texts = {"y": np.array(["a", "b"], object)}
    assert drift(texts, {"y": np.array(["a", "b"], object)}) == 0.0
    assert drift(texts, {"y": np.array(["a", "c"], object)}) == np.inf
    assert drift({"y": np.array([3 + 4j])}, {"y": np.array([0j])}) == pytest.approx(5.0)
    assert drift({"y": np.array([True])}, {"y": np.array([False])}) == 1.0


def test_what_runtimes_print_does_not_garble_answers(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "print"))
    np.testing.assert_array_equal(worker.predict(X)[0]["y"], [2, 4, 6])
    np.testing.assert_array_equal(worker.predict(X)[0]["y"], [2, 4, 6])


def test_what_else_writes_to_the_pipe_of_answers_ends_the_worker(
    stage: Path, worker: Worker
) -> None:
    worker.load(model(stage, "garble"))
    with pytest.raises(WorkerDied, match="cannot be read"):
        worker.predict(X)


def test_errors_keep_their_class_and_facts(stage: Path, worker: Worker) -> None:
    with pytest.raises(ModelNotFound):
        worker.load(stage / "nothing.model")
    worker.load(model(stage, "raise"))
    with pytest.raises(DTypeMismatch) as caught:
        worker.predict({"x": np.zeros(3)})
    assert caught.value.detail["wanted"] == "float32"
    assert caught.value.backend == "acting"
    with pytest.raises(PredictError, match="ZeroDivisionError: odd"):
        worker.predict(X)
    with pytest.raises(PredictError, match="no model yet in slot 7"):
        worker.predict(X, slot=7)


@pytest.mark.parametrize(
    ("act", "how"), [("abort", "by signal SIGABRT"), ("exit", "with exit status 7")]
)
def test_a_crash_is_an_error_with_the_log(stage: Path, worker: Worker, act: str, how: str) -> None:
    worker.load(model(stage, act))
    with pytest.raises(WorkerDied, match=how) as caught:
        worker.predict(X)
    if act == "abort":
        assert "about to abort" in caught.value.detail["log"]
    with pytest.raises(WorkerDied):
        worker.predict(X)
    worker.close()
    worker.close()


def test_a_crash_while_loading(stage: Path, worker: Worker) -> None:
    with pytest.raises(WorkerDied, match="SIGABRT") as caught:
        worker.load(model(stage, "abort-on-load"))
    assert "last words of a runtime" in caught.value.detail["log"]


def test_what_a_failing_load_prints_is_in_the_error(stage: Path, worker: Worker) -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        worker.load(model(stage, "raise-on-load"))
    assert caught.value.detail["native_log"] == ["the reason, printed"]


def test_a_hang_ends_at_the_deadline(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "hang"))
    started = time.monotonic()
    with pytest.raises(PredictTimeout, match="within 0.3 s"):
        worker.predict(X, timeout_s=0.3)
    assert time.monotonic() - started < 10
    assert worker._child.process.wait(10) != 0


def test_a_worker_does_not_outlive_a_killed_parent(stage: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bridge.isolation import Worker;"
        f"w = Worker(); w.load(Path({str(model(stage, 'fine'))!r}));"
        "print(w.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while _is_running(child):
        assert time.monotonic() < deadline, "the worker is an orphan"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_the_current_folder_is_not_on_the_workers_path(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = stage / "cwd"
    trap.mkdir()
    (trap / "numpy.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(trap)
    with Worker() as worker:
        worker.load(model(stage, "fine"))


def test_ctrl_c_is_left_to_the_parent(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "fine"))
    worker._child.process.send_signal(signal.SIGINT)
    np.testing.assert_array_equal(worker.predict(X)[0]["y"], [2, 4, 6])


def test_messages_round_trip_every_dtype() -> None:
    pytest.importorskip("ml_dtypes")
    arrays = {}
    for dtype in DType:
        if dtype is DType.STRING:
            arrays["string"] = np.array([["a", "é\0"], ["", "b"]], object)
        else:
            arrays[str(dtype)] = np.arange(1, 7).reshape(2, 3).astype(dtype.numpy)
    arrays["fortran"] = np.asfortranarray(np.arange(6).reshape(2, 3))
    arrays["scalar"] = np.array(3.5, np.float32)
    arrays["empty"] = np.zeros((0, 3), np.int8)
    stream = io.BytesIO()
    message.write(stream, {"do": "x"}, arrays)
    stream.seek(0)
    fields, back = message.read(stream)
    assert fields == {"do": "x"}
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back[name], array)
    whole = stream.getvalue()
    for cut in (0, 3, 8, 50, len(whole) - 1):
        with pytest.raises(EOFError):
            message.read(io.BytesIO(whole[:cut]))
    with pytest.raises(ValueError, match="no header of ours"):
        message.read(io.BytesIO(b"\xff" * 100))


def test_a_worker_that_cannot_import_says_so(stage: Path, fresh: Worker) -> None:
    (stage / "site" / "acting.py").write_text("raise RuntimeError('broken plugin')")
    with pytest.raises(BridgeError) as caught:
        fresh.load(model(stage, "fine"), backend="acting")
    assert not isinstance(caught.value, (WorkerDied, BackendUnavailable))


def test_a_worker_outlives_the_thread_that_started_it(stage: Path) -> None:
    made: list[Worker] = []

    def start() -> None:
        made.append(Worker())
        made[0].load(model(stage, "fine"))  # it has asked for its signal by then

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with made[0] as worker:
        np.testing.assert_array_equal(worker.predict(X)[0]["y"], [2, 4, 6])


def test_an_interrupted_call_never_answers_a_later_one(
    stage: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.load(model(stage, "fine"))

    def interrupted(stream: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(message, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.predict(X)
    with pytest.raises(WorkerDied):
        worker.predict({"x": np.zeros(5, np.float32)})


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (X["x"].astype(">f4"), DTypeMismatch),
        (np.array([1.0, None], object), DTypeMismatch),
        (np.zeros(2, [("field", np.float32)]), DTypeMismatch),
        ([1.0, 2.0], InputError),
    ],
    ids=["byte-swapped", "object", "structured", "list"],
)
def test_arrays_that_cannot_be_sent_are_refused(
    stage: Path, worker: Worker, array: Any, error: type[BridgeError]
) -> None:
    worker.load(model(stage, "fine"))
    with pytest.raises(error):
        worker.predict({"x": array})
    np.testing.assert_array_equal(worker.predict(X)[0]["y"], [2, 4, 6])


def test_an_output_that_cannot_be_sent_ends_no_worker(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "odd-output"))
    with pytest.raises(DTypeMismatch, match="array 'y' has dtype"):
        worker.predict(X)
    assert worker.memory()


def test_a_worker_says_what_it_lacks(stage: Path, worker: Worker) -> None:
    worker.load(model(stage, "fine"))
    with pytest.raises(PredictError, match="no inputs 'nothing'"):
        worker.measure(3, key="nothing")
    with pytest.raises(InputError, match="no inputs were given"):
        worker.keep_inputs("a", [])
    worker.close()
    with pytest.raises(PredictorClosed):
        worker.predict(X)


def test_errors_of_plugins_arrive_as_the_class_they_derive_from() -> None:
    class Special(DTypeMismatch):
        pass

    error = message.error_from(message.error_to(Special("odd.", fix="None.")))
    assert type(error) is DTypeMismatch
