"""Isolated predictors, tried with an external plugin whose models misbehave on demand."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import supervisor
from bridge.block import Block
from bridge.errors import (
    DTypeMismatch,
    ModelLoadFailed,
    OptionError,
    OutOfMemory,
    PredictError,
    PredictorClosed,
    PredictTimeout,
    ShapeMismatch,
    UnknownOutput,
    UnsupportedModel,
    WorkerDied,
)
from bridge.isolated import IsolatedPredictor, Isolation
from bridge.isolation import Worker
from bridge.lane import Lane, serve
from bridge.loading import open_model
from bridge.model import ModelRef
from bridge.record import Route

PLUGIN = """
import os, threading, time
import numpy as np
import bridge

class Acting(bridge.Format):
    name, title, native_backend = "acting", "Acting", "acting"
    def sniff(self, file):
        return file.head.startswith(b"ACT ")

F32, STRING, ANY = bridge.DType.FLOAT32, bridge.DType.STRING, ()
NUMBERS = bridge.Signature(
    (bridge.TensorSpec("x", F32, None),),
    (bridge.TensorSpec("y", F32, None), bridge.TensorSpec("facts", bridge.DType.INT64, (None,))),
)
TEXTS = bridge.Signature(
    (bridge.TensorSpec("x", F32, ("n",)), bridge.TensorSpec("s", STRING, ("n",))),
    (bridge.TensorSpec("y", F32, ("n",)), bridge.TensorSpec("t", STRING, ("n",))),
)
ABORT, HANG, EXIT, NAP, RAISE, ODD, PRINT = -1, -2, -3, -4, -5, -6, -7

class Player(bridge.Predictor):
    def __init__(self, act):
        super().__init__(TEXTS if act == "texts" else NUMBERS, bridge.PredictorInfo(threads=3))
        self.act = act
        self.running = self.most = 0
        self.lock = threading.Lock()
    def _predict(self, inputs, outputs):
        x = inputs["x"]
        if self.act == "texts":
            return {"y": x + 1, "t": np.array([one + "!" for one in inputs["s"]], object)}
        act = x.flat[0] if x.size else 0
        if act == ABORT:
            os.write(2, b"about to abort\\n")
            os.abort()
        if act == EXIT:
            os._exit(7)
        if act == PRINT:
            os.write(1, b"noise" * 2000)
        if act == RAISE:
            raise ZeroDivisionError("odd")
        if act == ODD:
            return {"y": np.zeros(2, "datetime64[s]"), "facts": np.zeros(1, np.int64)}
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        if act == HANG:
            os.write(2, b"hanging\\n")
            time.sleep(600)
        if act == NAP:
            time.sleep(0.4)
        with self.lock:
            self.running -= 1
        facts = [x.flags.writeable, x.flags.c_contiguous, self.most, x.ctypes.data % 64]
        y = np.multiply(x, 2, out=np.empty(x.shape, x.dtype))
        return {"y": y, "facts": np.array(facts, np.int64)}
    def _close(self):
        pass

class Backend(bridge.Backend):
    name = "acting"
    def probe(self):
        return bridge.Availability(installed=True)
    def capabilities(self, device):
        return bridge.Capabilities(
            formats=frozenset({"acting"}),
            zero_rows=True,
            dynamic_dims=True,
            thread_safety=bridge.ThreadSafety[os.environ.get("ACTING_SAFETY", "SHARED")],
        )
    def _load(self, model, device, options):
        act = model.file.read_text().split()[1]
        if act == "abort-on-load":
            os.abort()
        if act == "raise-on-load":
            raise ValueError("no such thing")
        return Player(act)

@bridge.hookimpl
def register_backends(register):
    register(Backend())

@bridge.hookimpl
def register_formats(register):
    register(Acting())
"""

ABORT, HANG, EXIT, NAP, RAISE, ODD, PRINT = (
    {"x": np.array([act, 1], np.float32)} for act in (-1, -2, -3, -4, -5, -6, -7)
)
X = {"x": np.array([1, 2, 3], np.float32)}


class Acting(bridge.Format):
    """The plugin's format as this process knows it."""

    name, title, native_backend = "acting", "Acting", "acting"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, for the path of children."""
    site = tmp_path_factory.mktemp("site")
    info = site / "acting-1.0.dist-info"
    info.mkdir()
    (site / "acting.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nacting = acting\n")
    return site


Load = Callable[..., IsolatedPredictor]


def loader(site: Path, folder: Path) -> Load:
    def load(act: str = "fine", env: dict[str, str] | None = None, **how: Any) -> IsolatedPredictor:
        path = folder / f"{act}.model"
        if not path.exists():
            path.write_text(f"ACT {act}")
        environment = {"PYTHONPATH": str(site), **(env or {})}
        return IsolatedPredictor.load(
            ModelRef(format=Acting(), path=path),
            isolation=Isolation(environment=environment, **how),
        )

    return load


@pytest.fixture
def load(site: Path, tmp_path: Path) -> Load:
    return loader(site, tmp_path)


@pytest.fixture(scope="module")
def shared(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedPredictor]:
    """One predictor for all tests that leave it as it was."""
    with loader(site, tmp_path_factory.mktemp("models"))(lanes=2) as predictor:
        yield predictor


def pid(predictor: IsolatedPredictor) -> int:
    return int(predictor.info.details["pid"])


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def entries(folder: str | Path) -> int:
    return len(list(Path(folder).iterdir()))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_end(process: int) -> None:
    wait_until(lambda: not is_running(process))


def test_it_answers_like_any_predictor(shared: IsolatedPredictor) -> None:
    assert shared.signature.input_names == ("x",)
    assert (shared.info.backend, shared.info.threads) == ("acting", 3)
    assert shared.info.details["isolated"] is True
    assert is_running(pid(shared))
    first = shared.predict(X)
    assert first["y"].tolist() == [2, 4, 6]
    assert first["y"].flags.writeable
    assert first["y"].base is None  # the caller's own
    second = shared.predict({"x": np.zeros(3, np.float32)})
    assert first["y"].tolist() == [2, 4, 6]
    assert second["y"].tolist() == [0, 0, 0]


def test_the_child_sees_read_only_aligned_views(shared: IsolatedPredictor) -> None:
    strided = np.arange(24, dtype=np.float32).reshape(4, 6).T[::-2]
    found = shared.predict({"x": strided})
    np.testing.assert_array_equal(found["y"], strided * 2)
    writeable, contiguous, _, misaligned = found["facts"]
    assert (writeable, contiguous, misaligned) == (0, 1, 0)


def test_every_shape_and_growth(shared: IsolatedPredictor) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (3, 0, 2), (1,), (2, 3), (1, 1, 1, 5)]
    shapes += [(size,) for size in range(10, 290)]  # more than either side remembers
    shapes += [(50_000,), (3_000_000,), (7,), (4_000_000,), (50_000,)]
    for shape in [*shapes, *shapes[:6]]:
        x = np.full(shape, 3.5, np.float32)
        if x.size:
            x.flat[-1] = len(shape)
        np.testing.assert_array_equal(shared.predict({"x": x})["y"], x * 2)


def test_a_subset_of_the_outputs(shared: IsolatedPredictor) -> None:
    assert list(shared.predict(X, ["facts"])) == ["facts"]
    assert list(shared.predict(X, ["y"])) == ["y"]
    assert shared.predict(X, []) == {}
    with pytest.raises(UnknownOutput):
        shared.predict(X, ["z"])


def test_checks_are_made_here(load: Load) -> None:
    with load("texts") as predictor:
        os.kill(pid(predictor), signal.SIGSTOP)  # a call would never come back
        with pytest.raises(DTypeMismatch, match="float64"):
            predictor.predict({"x": np.zeros(3), "s": np.array(["a"] * 3)})
        with pytest.raises(ShapeMismatch):
            predictor.predict({"x": np.zeros((3, 1), np.float32), "s": np.array(["a"] * 3)})
        os.kill(pid(predictor), signal.SIGCONT)
        # Strings go through the pipe, more of them than it holds at once.
        for texts in (["a", "é\0"], [], ["x" * 300_000], ["", "b"]):
            x = np.arange(len(texts), dtype=np.float32)
            found = predictor.predict({"x": x, "s": np.array(texts, object)})
            assert found["t"].tolist() == [f"{one}!" for one in texts]
            np.testing.assert_array_equal(found["y"], x + 1)


def test_errors_keep_their_class_and_name_the_model(shared: IsolatedPredictor) -> None:
    before = pid(shared)
    with pytest.raises(PredictError, match="ZeroDivisionError: odd") as caught:
        shared.predict(RAISE)
    assert caught.value.model == "fine.model"
    assert caught.value.backend == "acting"
    with pytest.raises(DTypeMismatch, match="array 'y' has dtype"):
        shared.predict(ODD)
    assert shared.predict(X)["y"].tolist() == [2, 4, 6]
    assert pid(shared) == before


def test_what_calls_print_is_bounded(shared: IsolatedPredictor) -> None:
    for _ in range(1000):  # 10 MB
        shared.predict(PRINT)
    log = Path(f"/proc/{pid(shared)}/fd/2")
    assert log.stat().st_size < 6_000_000
    assert shared._supervisor.worker._child.log_tail().endswith("noise")


def test_bound_calls_and_warmup(shared: IsolatedPredictor) -> None:
    shared.warmup(X)
    bound = shared.bind({"x": (4,)})
    for value in (1, 2):
        bound.inputs["x"][...] = value
        bound.predict()
        assert bound.outputs["y"].tolist() == [2 * value] * 4


def test_calls_run_side_by_side(shared: IsolatedPredictor) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: shared.predict(NAP)["facts"][2], range(4)))
        assert max(found) == 2  # lanes
        inputs = [{"x": np.full(5, value, np.float32)} for value in range(200)]
        for given, answer in zip(inputs, pool.map(shared.predict, inputs), strict=True):
            np.testing.assert_array_equal(answer["y"], given["x"] * 2)


def test_calls_that_cannot_run_side_by_side_wait(load: Load) -> None:
    with load(env={"ACTING_SAFETY": "NONE"}, lanes=4) as predictor, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: predictor.predict(NAP)["facts"][2], range(2)))
    assert found == [1, 1]


def test_a_crash_is_an_error_of_the_calls_in_flight_only(load: Load) -> None:
    with load(lanes=2) as predictor, ThreadPoolExecutor(1) as pool:
        predictor.predict(X)
        before = pid(predictor)
        other = pool.submit(predictor.predict, HANG)
        wait_until(lambda: "hanging" in predictor._supervisor.worker._child.log_tail())
        with pytest.raises(WorkerDied, match="by signal SIGABRT") as caught:
            predictor.predict(ABORT)
        assert "about to abort" in caught.value.detail["log"]
        assert caught.value.detail["status"] == -signal.SIGABRT
        assert caught.value.model == "fine.model"
        with pytest.raises(WorkerDied, match="by signal SIGABRT"):
            other.result()
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]
        assert pid(predictor) != before
        assert not is_running(before)
        # One that ends between calls costs no call.
        os.kill(pid(predictor), signal.SIGKILL)
        # To the end of its last thread: a dying one may still read a call.
        wait_until(lambda: not predictor._supervisor.worker._child.is_running)
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]


def test_what_is_said_of_it_outlives_a_crash(load: Load) -> None:
    with load() as predictor:
        before = pid(predictor)
        # As a record does that it serves.
        details = {**predictor.info.details, "record": {"arm": "fine"}}
        predictor.info = dataclasses.replace(predictor.info, details=details)
        with pytest.raises(WorkerDied):
            predictor.predict(EXIT)
        predictor.predict(X)
        assert predictor.info.details["record"] == {"arm": "fine"}
        assert pid(predictor) != before
        assert is_running(pid(predictor))


class FakeWorker:
    """A process that crashes in every call; nothing is started."""

    def open_lane(self, *, timeout_s: float) -> FakeWorker:
        return self

    is_idle = False

    def call(self, inputs: Any, outputs: Any, timeout_s: float) -> Any:
        raise EOFError

    def died(self) -> WorkerDied:
        return WorkerDied("the worker process ended with exit status 7.", status=7, log="the log")

    def end(self) -> None:
        pass

    kill = close = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of a supervisor, which sleeping moves."""
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(supervisor, "sleep", sleep)
    monkeypatch.setattr(supervisor, "monotonic", lambda: now[0])
    return now


def crashing(starts: list[float], clock: list[float]) -> supervisor.Supervisor:
    def start() -> Any:
        starts.append(clock[0])
        return FakeWorker(), None

    return supervisor.Supervisor(start, lambda _: 1, 60.0)


def test_after_five_crashes_it_is_not_started_again(clock: list[float]) -> None:
    starts: list[float] = []
    crashed = crashing(starts, clock)
    for _ in range(5):
        with pytest.raises(WorkerDied, match="exit status 7"):
            crashed.call({}, ())
    for passed_s in (0, 1000):  # for good
        clock[0] += passed_s
        with pytest.raises(WorkerDied, match="crashed 5 times within 60 s") as caught:
            crashed.call({}, ())
        assert caught.value.detail == {"status": 7, "log": "the log"}
    assert np.diff(starts) == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_the_delay_doubles_up_to_ten_seconds_and_starts_anew(clock: list[float]) -> None:
    starts: list[float] = []
    crashed = crashing(starts, clock)
    for _ in range(10):  # one in 25 s is often, but not 5 in 60 s
        clock[0] += 25.0
        with pytest.raises(WorkerDied, match="exit status 7"):
            crashed.call({}, ())
    waits = []
    for passed_s in (0.0, 60.0, 0.0):
        clock[0] += passed_s
        before = clock[0]
        with pytest.raises(WorkerDied, match="exit status 7"):
            crashed.call({}, ())
        waits.append(clock[0] - before)
    assert waits == pytest.approx([10.0, 0.0, 0.1])


def test_a_predictor_that_crashes_for_good(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_MOST_CRASHES", 2)
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.001)
    predictor = load()
    for _ in range(2):
        with pytest.raises(WorkerDied, match="exit status 7"):
            predictor.predict(EXIT)
    with pytest.raises(WorkerDied, match="crashed 2 times within 60 s and is not started"):
        predictor.predict(X)
    predictor.close()
    with pytest.raises(PredictorClosed):
        predictor.predict(X)


def test_a_hang_ends_at_the_deadline(load: Load) -> None:
    with load(timeout_s=0.6, lanes=2) as predictor:
        before = pid(predictor)
        with ThreadPoolExecutor(2) as pool:
            late = [pool.submit(predictor.predict, HANG) for _ in range(2)]
            errors = [one.exception() for one in late]
        assert any(isinstance(one, PredictTimeout) for one in errors)
        for one in errors:  # the other is late as well, or lost its process to the first
            assert "another call took longer than 0.6 s" in str(one) or isinstance(
                one, PredictTimeout
            )
        assert not is_running(before)
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]
        os.kill(pid(predictor), signal.SIGSTOP)
        with pytest.raises(PredictTimeout, match="'predict' within 0.6 s"):
            predictor.predict({"x": np.zeros(5, np.float32)})
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]


def test_closing_waits_for_running_calls(load: Load) -> None:
    predictor = load(lanes=1)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(predictor.predict, NAP) for _ in range(2)]  # one has no lane yet
        wait_until(lambda: len(predictor._calls) == 2)
        predictor.close()
        predictor.close()
        with pytest.raises(PredictorClosed):
            predictor.predict(X)
        for one in running:
            assert one.result()["y"].tolist() == [-8, 2]
    wait_for_end(pid(predictor))


def test_closing_ends_the_wait_for_a_fresh_process(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 1000.0)
    monkeypatch.setattr(supervisor, "_LAST_DELAY_S", 1000.0)
    predictor = load()
    with pytest.raises(WorkerDied):
        predictor.predict(EXIT)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predictor.predict, X)
        time.sleep(0.1)
        predictor.close()
        with pytest.raises(PredictorClosed):
            waiting.result()


def test_an_interrupt_leaves_it_usable(load: Load) -> None:
    with load(lanes=1) as predictor:
        before = pid(predictor)
        predictor.predict(X)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        # Background jobs of a shell are started with the signal ignored.
        before_tests = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come at any time
                timer.start()
                predictor.predict(HANG)
        finally:
            signal.signal(signal.SIGINT, before_tests)
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]
        assert pid(predictor) == before
        # A lane that an interrupt lost is replaced.
        predictor._supervisor._shift._idle.clear()
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]


def test_a_changed_model_is_not_loaded_in_its_place(load: Load, tmp_path: Path) -> None:
    with load() as predictor:
        (tmp_path / "fine.model").write_text("ACT other")
        assert predictor.predict(X)["y"].tolist() == [2, 4, 6]
        with pytest.raises(WorkerDied):
            predictor.predict(EXIT)
        with pytest.raises(ModelLoadFailed, match="has changed on disk"):
            predictor.predict(X)


def test_what_happens_while_loading(load: Load) -> None:
    with pytest.raises(ModelLoadFailed, match="no such thing") as caught:
        load("raise-on-load")
    assert caught.value.model == "raise-on-load.model"
    with pytest.raises(WorkerDied, match="SIGABRT"):
        load("abort-on-load")
    with pytest.raises(PredictTimeout, match="'load' within 0.01 s"):
        load(load_timeout_s=0.01)
    with pytest.raises(UnsupportedModel, match="live object"):
        IsolatedPredictor.load(ModelRef(format=Acting(), live=object()))


@pytest.mark.parametrize(
    "how", [{"timeout_s": 0}, {"load_timeout_s": float("nan")}, {"lanes": 0}], ids=str
)
def test_odd_settings_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Isolation(**how)


def test_nothing_is_left_behind(load: Load) -> None:
    load().close()  # what stays for good: the thread that starts processes
    gc.collect()

    def held() -> tuple[int, int, int]:
        tasks = Path("/proc/self/task").glob("*/children")
        children = {one for task in tasks for one in task.read_text().split()}
        return entries("/proc/self/fd"), threading.active_count(), len(children)

    before = held()
    for _ in range(2):
        predictor = load()
        with pytest.raises(WorkerDied):
            predictor.predict(EXIT)
        predictor.predict(X)
        predictor.close()
    assert held() == before
    predictor = load()
    forgotten = pid(predictor)
    predictor.predict(X)
    del predictor
    gc.collect()
    wait_for_end(forgotten)
    assert held() == before


def test_lanes_leave_no_descriptors_in_either_process(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "fine.model"
    path.write_text("ACT fine")
    with Worker(environment={"PYTHONPATH": str(site)}) as worker:
        worker.load(path)

        def held() -> tuple[int, int, int]:
            child = f"/proc/{worker.pid}"
            return entries("/proc/self/fd"), entries(f"{child}/fd"), entries(f"{child}/task")

        before = held()
        for _ in range(50):
            lane = worker.open_lane()
            assert lane.call(X, ("y",), 10.0)["y"].tolist() == [2, 4, 6]
            lane.close()
        wait_until(lambda: held() == before)


RUN = """
import os, signal, sys, tempfile
import numpy as np
import bridge
x = {"x": np.array([1, 2, 3], np.float32)}
what = sys.argv[1]
if what == "bytes":
    with bridge.load(b"ACT fine", isolated=True) as predictor:
        assert predictor.predict(x)["y"].tolist() == [2, 4, 6]
        assert predictor.info.model == "<8 bytes of Acting>"
        assert len(os.listdir(tempfile.gettempdir())) == 1
    assert not os.listdir(tempfile.gettempdir())
predictor = bridge.load(b"ACT fine", isolated=True)
if what == "fork":
    child = os.fork()
    if child == 0:
        try:
            predictor.predict(x)
        except bridge.errors.ForkedPredictor:
            sys.exit(5)
        sys.exit(6)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert predictor.predict(x)["y"].tolist() == [2, 4, 6]
    assert len(os.listdir(tempfile.gettempdir())) == 1
    print("fine", flush=True)
if what == "killed":
    predictor.predict(x)
    print(predictor.info.details["pid"], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", ["bytes", "fork", "killed"])
def test_in_a_program_of_its_own(what: str, site: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(site), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", RUN, what],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if what == "killed":
        assert done.returncode == -signal.SIGKILL
        wait_for_end(int(done.stdout))
        return
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("fine\n" if what == "fork" else "")
    assert not entries(tmp_path)  # at exit, the predictor that nobody closed went too


def test_every_dtype_goes_through_a_lane() -> None:
    pytest.importorskip("ml_dtypes")
    lane = Lane(lambda: True)
    descriptors = [os.dup(one) for one in lane.descriptors]

    def echo(inputs: Any, outputs: Any) -> dict[str, Any]:
        assert not any(array.flags.writeable for array in inputs.values() if array.size)
        return {name: inputs[name].copy() for name in outputs}

    child = threading.Thread(target=serve, args=(echo, lambda _: PredictError("?"), descriptors))
    child.start()
    lane.sent()
    try:
        arrays = {
            str(kind): np.arange(6).reshape(2, 3).astype(kind.numpy)
            for kind in bridge.DType
            if kind is not bridge.DType.STRING
        }
        for _ in range(2):
            found = lane.call(arrays, tuple(arrays), 10.0)
            assert list(found) == list(arrays)
            for name, array in arrays.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, (2, 3))
                assert found[name].tobytes() == array.tobytes()
        assert lane.call({}, (), 10.0) == {}
        assert lane.is_idle
    finally:
        lane.close()
        child.join(10)
    assert not child.is_alive()


def test_a_call_that_fails_costs_no_other_its_plan() -> None:
    """What the first call of a lane asks for is told again after it failed."""
    lane = Lane(lambda: True)
    descriptors = [os.dup(one) for one in lane.descriptors]

    def picky(inputs: Any, outputs: Any) -> dict[str, Any]:
        if inputs["x"].size == 1:
            raise PredictError("one is not enough.")
        if list(outputs) == ["s"]:
            return {"s": np.array(["text"], object)}
        return {"y": inputs["x"] + 1}

    def failure(error: Exception) -> PredictError:
        return PredictError(f"the worker failed: {error!r}.")

    child = threading.Thread(target=serve, args=(picky, failure, descriptors))
    child.start()
    lane.sent()
    try:
        for outputs, size in [(("y",), 1), (("s",), 2)]:
            for _ in range(2):
                x = {"x": np.zeros(size, np.float32)}
                if size == 1:
                    with pytest.raises(PredictError, match="one is not enough"):
                        lane.call(x, outputs, 10.0)
                else:
                    assert lane.call(x, outputs, 10.0)["s"].tolist() == ["text"]
                for other in (3, 4):
                    found = lane.call({"x": np.zeros(other, np.float32)}, ("y",), 10.0)
                    assert found["y"].tolist() == [1.0] * other
    finally:
        lane.close()
        child.join(10)
    assert not child.is_alive()


def test_a_block_cannot_be_made_shorter_and_says_when_it_cannot_grow() -> None:
    block = Block.create()
    try:
        block.reserve(100)
        kept = block.array(64, np.dtype(np.int32), (4,))
        kept[...] = 7
        block.reserve(10_000_000)
        assert block.array(64, np.dtype(np.int32), (4,)).tolist() == [7] * 4
        assert kept.tolist() == [7] * 4
        with pytest.raises(PermissionError):
            os.ftruncate(block.file, 10)
        with pytest.raises((TypeError, ValueError)):
            block.array(1 << 40, np.dtype(np.int32), (4,))
        with pytest.raises((TypeError, ValueError)):
            block.array(-64, np.dtype(np.int32), (4,))
        with pytest.raises(OutOfMemory):
            block.reserve(1 << 62)
        block.reserve(20_000_000)  # still of use
        assert block.array(19_999_996, np.dtype(np.int32), (1,)).tolist() == [0]
    finally:
        block.close()
        block.close()


def test_every_arm_of_a_record_gets_a_process(tmp_path: Path, records: ModuleType) -> None:
    zoo = pytest.importorskip("bridge_zoo")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = zoo.build("ranker", size="small", formats=("onnx",), folder=tmp_path / "zoo")["onnx"]
    model = open_model(path)
    arms = [
        records.arm_record(f"threads={count}", backend="onnxruntime", options={"threads": count})
        for count in (1, 2)
    ]
    routes = [Route(to_rows=4, arm="threads=1"), Route(to_rows=None, arm="threads=2")]
    made = records.make_record([model], arms, routes, next(iter(model.facts.signatures.values())))
    folder = records.write_record(made, [model], tmp_path / "record")
    ranker = zoo.describe("ranker", "small")
    with bridge.load(path) as here, bridge.load(folder, isolated=True) as served:
        for rows in (1, 5):
            inputs = zoo.inputs(ranker, rows, seed=rows)
            found, wanted = served.predict(inputs), here.predict(inputs)
            for name in wanted:
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
        children = {arm["details"]["pid"] for arm in served.info.details["arms"].values()}
        assert len(children) == 2
        assert all(map(is_running, children))
    assert not any(map(is_running, children))
