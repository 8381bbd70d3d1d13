"""Closing: by hand, by ``with``, by nobody, while calls run, and a thousand times."""

from __future__ import annotations

import gc
import random
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import bridge
from bridge import errors
from bridge.check import Arrays
from bridge.loading import open_model
from bridge_conformance.calls import Call, assert_same, call_of, in_threads, long_call
from bridge_conformance.claims import full, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.process import run_fresh
from bridge_conformance.subject import Subject
from bridge_conformance.usage import Held, held, settled

_Load = Callable[..., bridge.Predictor]
_Record = Callable[[str, object], None]

_MOST_GROWTH = 0.05  # of the memory held, over the second half of all cycles
_NATIVE_ALLOWANCE_BYTES = 1 << 20  # two runs of one loop differ by some pages

_left_open: list[object] = []


def _inputs(subject: Subject, seed: int = 0) -> Arrays:
    return subject.network("fixed").inputs_for(seed=seed)


def _bound(subject: Subject, predictor: bridge.Predictor) -> bridge.Bound:
    return predictor.bind({name: array.shape for name, array in _inputs(subject).items()})


def _assert_closed(subject: Subject, call: Callable[[], object]) -> errors.PredictorClosed:
    with pytest.raises(errors.PredictorClosed) as caught:
        call()
    assert caught.value.backend == subject.backend.name
    assert caught.value.model
    return caught.value


def _close_amid_calls(
    subject: Subject, predictor: bridge.Predictor, call: Call, pause_s: float
) -> list[str]:
    """What became of five threads, of which the first closes and the others call."""

    def work(number: int) -> str:
        if number == 0:
            time.sleep(pause_s)
            predictor.close()
            return "closed"
        while True:
            try:
                answer = predictor.predict(call.inputs)
            except errors.PredictorClosed:
                return "refused"
            assert_same(subject, answer, call.answer)

    return in_threads(5, work)


def _close_in_threads(predictor: bridge.Predictor) -> None:
    in_threads(8, lambda _: predictor.close())


def _use_and_forget(subject: Subject) -> weakref.ref[bridge.Predictor]:
    predictor = subject.load("fixed")
    predictor.predict(_inputs(subject))
    _bound(subject, predictor).predict()
    return weakref.ref(predictor)


def _held_after_cycles(subject: Subject, times: int) -> Held:
    inputs = _inputs(subject)
    for _ in range(times):
        predictor = subject.load("fixed")
        predictor.predict(inputs)
        predictor.close()
    del predictor
    return held()


def _growth_bytes(before: Held, after: Held) -> int:
    """Of what the process occupies or of what it has allocated, whichever grew more.

    What other tests have freed would hide the first; native code may bypass the second.
    """
    return max(
        after.resident_bytes - before.resident_bytes,
        after.allocated_bytes - before.allocated_bytes,
    )


def native_growth_bytes(subject: Subject, times: int) -> int | None:
    """How far memory grows over the second half of so many native loads and calls."""
    path = subject.path("fixed")
    inputs = _inputs(subject)

    def cycles() -> Held | None:
        for _ in range(times // 2):
            native = subject.native(open_model(path, trust=True))
            if native is None:
                return None
            native[0](inputs)
        return held()

    before, after = cycles(), cycles()
    return None if before is None or after is None else _growth_bytes(before, after)


def leave_open(subject: Subject) -> None:
    """Leaves a predictor and a bound call to the end of the interpreter."""
    predictor = subject.load("fixed")
    predictor.predict(_inputs(subject))
    bound = _bound(subject, predictor)
    bound.predict()
    _left_open.extend([predictor, bound])


class TestLifecycle:
    """Predictors end when they are told to, leave nothing behind, and disturb no other."""

    def test_predict_after_close(self, subject: Subject, load: _Load) -> None:
        """After close, predict raises PredictorClosed, which names backend and model."""
        predictor = load("fixed")
        predictor.predict(_inputs(subject))
        predictor.close()
        error = _assert_closed(subject, lambda: predictor.predict(_inputs(subject)))
        assert error.model == predictor.info.model
        _assert_closed(subject, lambda: predictor.predict({}))

    def test_bind_after_close(self, subject: Subject, load: _Load) -> None:
        """After close, bind and what was bound before raise PredictorClosed."""
        predictor = load("fixed")
        bound = _bound(subject, predictor)
        bound.predict()
        predictor.close()
        _assert_closed(subject, bound.predict)
        _assert_closed(subject, lambda: _bound(subject, predictor))

    def test_close_twice(self, subject: Subject, load: _Load) -> None:
        """A second close does nothing, whether the predictor was used or not."""
        unused = load("fixed")
        unused.close()
        unused.close()
        used = load("fixed")
        used.predict(_inputs(subject))
        used.close()
        used.close()
        _assert_closed(subject, lambda: used.predict(_inputs(subject)))

    def test_with(self, subject: Subject, load: _Load) -> None:
        """A with block closes at its end, and lets an error from inside it pass."""
        with load("fixed") as predictor:
            predictor.predict(_inputs(subject))
        _assert_closed(subject, lambda: predictor.predict(_inputs(subject)))
        failing = load("fixed")
        with pytest.raises(KeyError, match="mine"), failing:
            raise KeyError("mine")
        _assert_closed(subject, lambda: failing.predict(_inputs(subject)))

    def test_outputs_outlive_the_predictor(self, subject: Subject, load: _Load) -> None:
        """Outputs stay as they are when their predictor is closed and gone."""
        inputs = _inputs(subject)
        predictor = subject.load("fixed")
        kept = predictor.predict(inputs)
        predictor.close()
        del predictor
        gc.collect()
        other = load("fixed")
        for seed in range(1, 10):
            other.predict(_inputs(subject, seed))
        assert_outputs(kept, subject.network("fixed").oracle(inputs))

    @requires("dynamic_dims")
    def test_close_amid_long_calls(self, subject: Subject, load: _Load) -> None:
        """Calls that run when another thread closes end right; later ones are refused."""
        call = long_call(subject, load("deep"), 0.05)
        for part in (0.3, 0.8, 1.3):
            seen = _close_amid_calls(subject, load("deep"), call, part * call.took_s)
            assert seen == ["closed", *["refused"] * 4]

    def test_close_amid_short_calls(self, subject: Subject, load: _Load) -> None:
        """Many threads call while one closes: all get right answers, then PredictorClosed."""
        chance = random.Random(0)  # noqa: S311 - moments, no secrets
        for _ in range(10):
            predictor = load("fixed")
            call = call_of(predictor, _inputs(subject))
            seen = _close_amid_calls(subject, predictor, call, chance.uniform(0, 0.02))
            assert seen == ["closed", *["refused"] * 4]

    def test_close_from_many_threads(self, subject: Subject, load: _Load) -> None:
        """Threads that close one predictor at the same moment do not disturb each other."""
        for _ in range(5):
            predictor = load("fixed")
            predictor.predict(_inputs(subject))
            _close_in_threads(predictor)
            with pytest.raises(errors.PredictorClosed):
                predictor.predict(_inputs(subject))

    def test_several_of_one_model(self, subject: Subject, load: _Load) -> None:
        """Predictors of one model live side by side, and closing one leaves the others."""
        inputs = _inputs(subject)
        wanted = subject.network("fixed").oracle(inputs)
        there = {number: load("fixed") for number in range(5)}
        for number in (2, 0, 4, 1, 3):
            for predictor in there.values():
                assert_outputs(predictor.predict(inputs), wanted)
            there.pop(number).close()
        assert_outputs(load("fixed").predict(inputs), wanted)

    def test_garbage_collection(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        """A predictor that nobody closes is collected without a word, with all it holds."""
        complaints: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", complaints.append)
        _use_and_forget(subject)
        before = held()
        seen = [_use_and_forget(subject) for _ in range(5)]
        after = settled(before)
        assert [one() for one in seen] == [None] * 5, "a predictor that nobody holds is held"
        assert after.threads <= before.threads
        assert after.descriptors <= before.descriptors
        assert not complaints

    def test_end_of_the_interpreter(self, subject: Subject) -> None:
        """A program that ends with an open predictor has status 0 and prints nothing."""
        ended = run_fresh(subject, leave_open)
        assert (ended.status, ended.printed) == (0, "")

    def test_100_cycles(self, subject: Subject, record_property: _Record) -> None:
        """Loading and closing 100 times leaves no thread, no descriptor and hardly memory."""
        self._assert_flat(subject, 100, record_property)

    @full
    @pytest.mark.deadline(600)
    def test_1000_cycles(self, subject: Subject, record_property: _Record) -> None:
        """Loading and closing 1,000 times leaves no thread, no descriptor and hardly memory."""
        self._assert_flat(subject, 1000, record_property)

    def _assert_flat(self, subject: Subject, times: int, record: _Record) -> None:
        started_s = time.perf_counter()
        before = _held_after_cycles(subject, times // 2)
        _held_after_cycles(subject, times // 2)
        after = settled(before)
        record("ms_a_cycle", round(1000 * (time.perf_counter() - started_s) / times, 2))
        assert after.threads <= before.threads
        assert after.descriptors <= before.descriptors
        grown = _growth_bytes(before, after)
        record("growth_over_second_half", round(grown / before.resident_bytes, 4))
        if grown > _MOST_GROWTH * before.resident_bytes:
            native = run_fresh(subject, native_growth_bytes, times).value
            assert native is not None, f"memory grew by {grown} bytes over the second half"
            assert grown <= native + _NATIVE_ALLOWANCE_BYTES, (
                f"memory grew by {grown} bytes over the second half, in the runtime's own loop "
                f"by {native}"
            )
