"""Many callers at once: every one gets its own answer, whatever the backend's native code."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import ThreadSafety, errors
from bridge.check import Arrays
from bridge_conformance.calls import Call, assert_same, call_of, eager_switching, in_threads
from bridge_conformance.claims import full, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.process import run_fresh
from bridge_conformance.subject import Subject
from bridge_conformance.usage import held, settled

_Load = Callable[..., bridge.Predictor]
_Record = Callable[[str, object], None]

_CALLERS = 64
_ROUNDS = 10
_SLICE_S = 0.25
_SLICES = 4


def _assert_own_answers(
    subject: Subject, predictor: bridge.Predictor, every_inputs: list[Arrays], rounds: int
) -> None:
    """Each of as many threads calls with inputs of its own, again and again."""
    __tracebackhide__ = True
    calls = [call_of(predictor, inputs) for inputs in every_inputs]

    def work(number: int) -> None:
        for _ in range(rounds):
            assert_same(subject, predictor.predict(calls[number].inputs), calls[number].answer)

    with eager_switching():
        in_threads(len(calls), work)


def _misfit(inputs: Arrays, number: int) -> Arrays:
    """Inputs that do not fit, in one of three ways."""
    if number % 3 == 0:
        return {}
    if number % 3 == 1:
        return {name: array.astype(np.complex128) for name, array in inputs.items()}
    return {name: array[np.newaxis] for name, array in inputs.items()}


def _rate(predictor: bridge.Predictor, call: Call, callers: int) -> float:
    """Calls a second of so many callers together."""
    done: list[int] = []
    deadline_s = time.perf_counter() + _SLICE_S

    def work(_: int) -> None:
        count = 0
        while time.perf_counter() < deadline_s:
            predictor.predict(call.inputs)
            count += 1
        done.append(count)

    started_s = time.perf_counter()
    in_threads(callers, work)
    return sum(done) / (time.perf_counter() - started_s)


def speed_up(subject: Subject) -> float:
    """How many times as many calls two threads get done as one, each call on one thread."""
    names = {field.name for field in dataclasses.fields(subject.backend.options_type)}
    options: dict[str, Any] = {"threads": 1} if "threads" in names else {}
    with subject.load("deep", options=options) as predictor:
        call = call_of(predictor, subject.network("deep").inputs_for(64))
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(_SLICES):
            for callers, seen in rates.items():
                seen.append(_rate(predictor, call, callers))
    return max(rates[2]) / max(rates[1])


class TestThreads:
    """A predictor may be called from any number of threads at once."""

    def test_every_caller_gets_its_own_answer(self, subject: Subject, load: _Load) -> None:
        """64 threads with inputs of their own each get the answer to these, every time."""
        network = subject.network("fixed")
        inputs = [network.inputs_for(seed=seed) for seed in range(_CALLERS)]
        _assert_own_answers(subject, load("fixed"), inputs, _ROUNDS)

    def test_several_inputs_and_outputs(self, subject: Subject, load: _Load) -> None:
        """Threads never get another's value in any of several outputs, nor two mixed up."""
        name = "mixed" if subject.claims.dynamic_dims and subject.can_write("mixed") else "fixed"
        network = subject.network(name)
        inputs = [network.inputs_for(seed=seed) for seed in range(_CALLERS)]
        _assert_own_answers(subject, load(name), inputs, _ROUNDS)

    @requires("dynamic_dims")
    def test_row_counts_of_their_own(self, subject: Subject, load: _Load) -> None:
        """64 threads with different numbers of rows each get as many rows as they gave."""
        network = subject.network("deep")
        inputs = [network.inputs_for(1 + seed % 13, seed) for seed in range(_CALLERS)]
        _assert_own_answers(subject, load("deep"), inputs, 3)

    def test_errors_stay_with_their_callers(self, subject: Subject, load: _Load) -> None:
        """Inputs that do not fit raise an InputError in their own thread and in no other."""
        predictor = load("fixed")
        network = subject.network("fixed")
        calls = [call_of(predictor, network.inputs_for(seed=seed)) for seed in range(16)]

        def work(number: int) -> None:
            call = calls[number]
            for _ in range(_ROUNDS):
                if number % 2:
                    with pytest.raises(errors.InputError):
                        predictor.predict(_misfit(call.inputs, number))
                else:
                    assert_same(subject, predictor.predict(call.inputs), call.answer)

        with eager_switching():
            in_threads(len(calls), work)

    def test_bound_calls_side_by_side(self, subject: Subject, load: _Load) -> None:
        """Threads with a bound call each never see the buffers of another."""
        predictor = load("fixed")
        network = subject.network("fixed")
        calls = [call_of(predictor, network.inputs_for(seed=seed)) for seed in range(16)]

        def work(number: int) -> None:
            call = calls[number]
            bound = predictor.bind({name: array.shape for name, array in call.inputs.items()})
            for _ in range(_ROUNDS):
                for name, array in call.inputs.items():
                    bound.inputs[name][...] = array
                bound.predict()
                assert_same(subject, dict(bound.outputs), call.answer)

        with eager_switching():
            in_threads(len(calls), work)

    def test_two_predictors_at_once(self, subject: Subject, load: _Load) -> None:
        """Predictors of one model that work at the same time do not meet."""
        predictors = [load("fixed"), load("fixed")]
        network = subject.network("fixed")
        calls = [call_of(predictors[0], network.inputs_for(seed=seed)) for seed in range(16)]

        def work(number: int) -> None:
            for _ in range(_ROUNDS):
                answer = predictors[number % 2].predict(calls[number].inputs)
                assert_same(subject, answer, calls[number].answer)

        with eager_switching():
            in_threads(len(calls), work)

    def test_loaded_here_used_there(self, subject: Subject) -> None:
        """One thread may load and end, another predict, and a third close."""
        inputs = subject.network("fixed").inputs_for()
        (predictor,) = in_threads(1, lambda _: subject.load("fixed"))
        (answer,) = in_threads(1, lambda _: predictor.predict(inputs))
        assert_outputs(answer, subject.network("fixed").oracle(inputs))
        assert_outputs(predictor.predict(inputs), subject.network("fixed").oracle(inputs))
        in_threads(1, lambda _: predictor.close())
        with pytest.raises(errors.PredictorClosed):
            predictor.predict(inputs)

    def test_loading_side_by_side(self, subject: Subject) -> None:
        """Threads may load, use and close predictors of their own all at once."""
        network = subject.network("fixed")

        def work(number: int) -> None:
            inputs = network.inputs_for(seed=number)
            for _ in range(2):
                with subject.load("fixed") as predictor:
                    assert_outputs(predictor.predict(inputs), network.oracle(inputs))

        in_threads(8, work)

    def test_threads_that_end_leave_nothing(self, subject: Subject, load: _Load) -> None:
        """Threads that have called and ended leave no thread and no descriptor behind."""
        predictor = load("fixed")
        call = call_of(predictor, subject.network("fixed").inputs_for())
        in_threads(8, lambda _: predictor.predict(call.inputs))
        before = held()
        for _ in range(10):
            in_threads(8, lambda _: predictor.predict(call.inputs))
        after = settled(before)
        assert after.threads <= before.threads
        assert after.descriptors <= before.descriptors

    @full
    @requires("thread_safety", ThreadSafety.SHARED)
    @requires("dynamic_dims")
    def test_speed_up_of_two_threads(self, subject: Subject, record_property: _Record) -> None:
        """How much faster two threads are than one is measured; no figure is asked for."""
        ended = run_fresh(subject, speed_up)
        assert ended.status == 0, ended.printed
        record_property("speed_up_of_2_threads", round(ended.value, 2))
