"""Forked children: told instead of hung or crashed, and no harm to the parent."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import bridge
from bridge import errors
from bridge.check import Arrays
from bridge_conformance.calls import Call, assert_same, call_of, long_call
from bridge_conformance.claims import full, not_verified, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.process import run_fresh
from bridge_conformance.subject import Subject

_Load = Callable[..., bridge.Predictor]

_DEADLINE_S = 8.0  # a child has hardly anything to do
_LOADING_DEADLINE_S = 60.0


class Child:
    """A forked child that runs one function and leaves by ``os._exit``.

    Args:
        function: What the child runs; what it raises fails the parent's test.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        _require_fork()
        self._end, end_of_child = os.pipe()
        self._id = os.fork()
        if self._id == 0:
            # Never back into pytest: its reports and clean-up are the parent's.
            try:
                os.write(end_of_child, _outcome(function).encode()[: select.PIPE_BUF])
            finally:
                os._exit(0)
        os.close(end_of_child)

    def join(self, deadline_s: float = _DEADLINE_S) -> None:
        """Waits for the child's end, and fails if it hung, crashed or raised."""
        __tracebackhide__ = True
        is_there, _, _ = select.select([self._end], [], [], deadline_s)
        if not is_there:
            os.kill(self._id, signal.SIGKILL)
        outcome = os.read(self._end, select.PIPE_BUF).decode() if is_there else ""
        os.close(self._end)
        _, status = os.waitpid(self._id, 0)
        assert is_there, f"the forked child hung, and was ended after {deadline_s:g} s"
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"the forked child crashed with status {code}"
        assert outcome == "done", f"in the forked child: {outcome}"


def _require_fork() -> None:
    if not hasattr(os, "fork"):
        not_verified("this system has no fork.")


def _outcome(function: Callable[[], None]) -> str:
    try:
        function()
    except BaseException:  # noqa: BLE001 - passed on to the parent as text
        return traceback.format_exc()
    return "done"


def _call(subject: Subject, predictor: bridge.Predictor) -> Call:
    return call_of(predictor, subject.network("fixed").inputs_for())


def _shapes(inputs: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.items()}


def _assert_forked(subject: Subject, call: Callable[[], object]) -> None:
    with pytest.raises(errors.ForkedPredictor) as caught:
        call()
    assert caught.value.backend == subject.backend.name
    assert caught.value.model


def load_and_predict(subject: Subject) -> None:
    """Loads, and compares one answer with the oracle."""
    network = subject.network("fixed")
    inputs = network.inputs_for()
    with subject.load("fixed") as predictor:
        assert_outputs(predictor.predict(inputs), network.oracle(inputs))


def load_in_a_child(subject: Subject) -> None:
    """As servers do that fork their workers first: the parent has loaded nothing."""
    subject.path("fixed")
    Child(lambda: load_and_predict(subject)).join(_LOADING_DEADLINE_S)


@contextlib.contextmanager
def _calling(subject: Subject, predictor: bridge.Predictor, call: Call) -> Iterator[None]:
    """Two threads that call all the time; fails if one gets a wrong answer or an error."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            assert_same(subject, predictor.predict(call.inputs), call.answer)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work) for _ in range(2)]
        try:
            yield
        finally:
            is_over.set()
    for future in futures:
        future.result()


# Python 3.12 warns of what these tests do on purpose.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
class TestFork:
    """A predictor belongs to the process that loaded it, and its forked children are told."""

    def test_predict_in_a_child(self, subject: Subject, load: _Load) -> None:
        """In a forked child predict raises ForkedPredictor, every time; it does not hang."""
        predictor = load("fixed")
        call = _call(subject, predictor)

        def child() -> None:
            for _ in range(3):
                _assert_forked(subject, lambda: predictor.predict(call.inputs))

        Child(child).join()
        assert_same(subject, predictor.predict(call.inputs), call.answer)

    def test_bind_in_a_child(self, subject: Subject, load: _Load) -> None:
        """In a forked child bind and bound calls raise ForkedPredictor."""
        predictor = load("fixed")
        call = _call(subject, predictor)
        bound = predictor.bind(_shapes(call.inputs))
        for name, array in call.inputs.items():
            bound.inputs[name][...] = array
        bound.predict()

        def child() -> None:
            _assert_forked(subject, bound.predict)
            _assert_forked(subject, lambda: predictor.bind(_shapes(call.inputs)))

        Child(child).join()
        bound.predict()
        assert_same(subject, dict(bound.outputs), call.answer)

    def test_close_in_a_child(self, subject: Subject, load: _Load) -> None:
        """A child may close what it inherited, twice too, and the parent does not notice."""
        predictor = load("fixed")
        call = _call(subject, predictor)

        def child() -> None:
            predictor.close()
            predictor.close()
            with predictor:
                pass

        Child(child).join()
        assert_same(subject, predictor.predict(call.inputs), call.answer)

    def test_delete_in_a_child(self, subject: Subject) -> None:
        """A child may drop all that it inherited, outputs as well, and the parent goes on."""
        predictors = [subject.load("fixed")]
        call = _call(subject, predictors[0])
        held: list[object] = [predictors[0].bind(_shapes(call.inputs)), call.answer]
        kept = {name: array.copy() for name, array in call.answer.items()}

        def child() -> None:
            predictors.clear()
            held.clear()
            gc.collect()

        Child(child).join()
        assert_same(subject, predictors[0].predict(call.inputs), kept)
        predictors[0].close()

    def test_parent_goes_on_beside_a_child(self, subject: Subject, load: _Load) -> None:
        """While a child lives, the parent predicts, closes and loads as before."""
        predictor = load("fixed")
        call = _call(subject, predictor)
        hold, release = os.pipe()

        def child() -> None:
            os.close(release)
            os.read(hold, 1)  # until the parent has closed its end, or has ended

        there = Child(child)
        try:
            for _ in range(10):
                assert_same(subject, predictor.predict(call.inputs), call.answer)
            predictor.close()
            with pytest.raises(errors.PredictorClosed):
                predictor.predict(call.inputs)
            assert_same(subject, load("fixed").predict(call.inputs), call.answer)
        finally:
            os.close(release)
            os.close(hold)
            there.join()

    @requires("dynamic_dims")
    def test_fork_amid_calls(self, subject: Subject, load: _Load) -> None:
        """A fork amid calls of other threads neither spoils these nor hangs the child."""
        predictor = load("deep")
        call = long_call(subject, predictor, 0.05)
        with _calling(subject, predictor, call):
            for part in range(5):
                time.sleep((0.5 + part / 5) * call.took_s)
                Child(
                    lambda: _assert_forked(subject, lambda: predictor.predict(call.inputs))
                ).join()
        assert_same(subject, predictor.predict(call.inputs), call.answer)

    @full
    def test_loading_anew_in_a_fresh_process(self, subject: Subject, load: _Load) -> None:
        """A process that is started anew, and not forked, loads and predicts as ever."""
        load("fixed").predict(subject.network("fixed").inputs_for())
        ended = run_fresh(subject, load_and_predict)
        assert ended.status == 0, ended.printed

    @full
    def test_fork_before_the_first_load(self, subject: Subject) -> None:
        """A child that is forked before anything was loaded loads and predicts as ever."""
        _require_fork()
        ended = run_fresh(subject, load_in_a_child)
        assert ended.status == 0, ended.printed
