"""Signals: they reach the program's own handlers, and never spoil an answer."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge import errors
from bridge_conformance.calls import Call, assert_same, call_of, long_call
from bridge_conformance.claims import requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.process import run_fresh
from bridge_conformance.subject import Subject
from bridge_conformance.usage import held, settled

_Load = Callable[..., bridge.Predictor]

_LATENESS_S = 1.0
_INTERRUPTS = 2000
_INTERVAL_S = 0.001
_STORM_S = 0.5
_WATCHED = ("SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE")


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _sender(number: signal.Signals, delay_s: float) -> tuple[threading.Thread, list[float]]:
    """A thread that sends a signal to the main thread, and when it has done so."""
    main = threading.main_thread().ident
    assert main is not None
    sent_s: list[float] = []

    def send() -> None:
        time.sleep(delay_s)
        signal.pthread_kill(main, number)
        sent_s.append(time.perf_counter())

    return threading.Thread(target=send), sent_s


def _call_until(is_over: Callable[[], bool], predict: Callable[[], object]) -> None:
    """Calls again and again; what interrupts that is to be caught around this function.

    Around the loop would not do: in Python 3.13.0 its jump back is outside of the ``try``.
    """
    while not is_over():
        predict()


def _seconds_to_interrupt(predict: Callable[[], object], delay_s: float) -> float | None:
    """Seconds from SIGINT to KeyboardInterrupt; ``None`` if it never came, three times.

    Python drops an exception that a signal raises in a destructor or a callback, wherever it
    runs, so that one of them may be lost.
    """
    for _ in range(3):
        took_s = _seconds_to_one_interrupt(predict, delay_s)
        if took_s is not None:
            return took_s
    return None


def _seconds_to_one_interrupt(predict: Callable[[], object], delay_s: float) -> float | None:
    """Calls until the signal is sent, so that it comes amid a call."""
    sender, sent_s = _sender(signal.SIGINT, delay_s)
    with _handling(signal.SIGINT, signal.default_int_handler):
        try:
            sender.start()
            _call_until(lambda: bool(sent_s), predict)
            time.sleep(0.2)  # one that comes between two calls may still be on its way
        except KeyboardInterrupt:
            caught_s = time.perf_counter()
            sender.join()
            return caught_s - sent_s[0]
    return None


def _load_and_close(subject: Subject) -> Call:
    with subject.load("fixed") as predictor:
        return call_of(predictor, subject.network("fixed").inputs_for())


def _interrupt(predict: Callable[[], object], delay_s: float) -> bool:
    """Calls until the timer's signal raises KeyboardInterrupt; whether it did."""
    deadline_s = time.perf_counter() + delay_s + _LATENESS_S
    try:
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        _call_until(lambda: time.perf_counter() > deadline_s, predict)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


@contextlib.contextmanager
def _storm() -> Iterator[list[int]]:
    """A timer signal every millisecond; the threads in which its handler ran."""
    seen: list[int] = []
    with _handling(signal.SIGALRM, lambda *_: seen.append(threading.get_ident())):
        before = signal.setitimer(signal.ITIMER_REAL, _INTERVAL_S, _INTERVAL_S)
        try:
            yield seen
        finally:
            signal.setitimer(signal.ITIMER_REAL, *before)


def _assert_right_in_a_storm(subject: Subject, predictor: bridge.Predictor, call: Call) -> None:
    __tracebackhide__ = True
    deadline_s = time.perf_counter() + _STORM_S
    with _storm() as seen:
        while time.perf_counter() < deadline_s:
            assert_same(subject, predictor.predict(call.inputs), call.answer)
    assert seen, f"no timer signal was handled for {_STORM_S} s"
    assert set(seen) == {threading.main_thread().ident}


def _call_until_closed(subject: Subject, predictor: bridge.Predictor, call: Call) -> None:
    __tracebackhide__ = True
    while True:
        try:
            answer = predictor.predict(call.inputs)
        except errors.PredictorClosed:
            return
        assert_same(subject, answer, call.answer)


def _dispositions() -> dict[str, int]:
    """What the system does with each signal; Python's own table may not know it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    lines = (line.split() for line in status.read_text("ascii").splitlines())
    # From 32 up are those that the C library keeps for itself; the first thread sets them.
    ours = (1 << 31) - 1
    return {
        line[0]: int(line[1], 16) & ours
        for line in lines
        if line[0] in ("SigBlk:", "SigIgn:", "SigCgt:")
    }


def watch_handlers(subject: Subject) -> dict[str, Any]:
    """Handlers before and after loading and predicting, and which still run."""
    ran: list[str] = []
    numbers = [signal.Signals[name] for name in _WATCHED]
    for number in numbers:
        signal.signal(number, lambda got, _: ran.append(signal.Signals(got).name))
    before = _dispositions()
    handlers = [signal.getsignal(number) for number in numbers]
    with subject.load("fixed") as predictor:
        predictor.predict(subject.network("fixed").inputs_for())
    after = _dispositions()
    is_kept = [signal.getsignal(number) for number in numbers] == handlers
    ran.clear()  # SIGCHLD came, if a runtime has asked another program about this machine
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    return {"before": before, "after": after, "is_kept": is_kept, "ran": ran}


class TestSignals:
    """Signals are the program's: handlers stay, run in time, and spoil no answer."""

    @requires("dynamic_dims")
    def test_interrupt(self, subject: Subject, load: _Load) -> None:
        """Ctrl-C amid predict raises KeyboardInterrupt soon after the native call returns."""
        predictor = load("deep")
        call = long_call(subject, predictor, 0.2)
        for part in (0.1, 0.4, 0.7):
            took_s = _seconds_to_interrupt(
                lambda: predictor.predict(call.inputs), part * call.took_s
            )
            assert took_s is not None, "predict swallowed the KeyboardInterrupt"
            # Native code goes on meanwhile, and slower where the machine is busy.
            assert took_s < 2 * call.took_s + _LATENESS_S
            assert_same(subject, predictor.predict(call.inputs), call.answer)
        predictor.close()
        with pytest.raises(errors.PredictorClosed):
            predictor.predict(call.inputs)

    def test_interrupts_amid_short_calls(self, subject: Subject) -> None:
        """Ctrl-C at 2,000 moments of short calls leaves a predictor that is right, and closes."""
        call = _load_and_close(subject)
        before = held()
        predictor = subject.load("fixed")
        predictor.predict(call.inputs)
        chance = random.Random(0)  # noqa: S311 - moments, no secrets
        with _handling(signal.SIGALRM, signal.default_int_handler):
            arrived = sum(
                _interrupt(
                    lambda: predictor.predict(call.inputs), chance.uniform(0.1, 3) * call.took_s
                )
                for _ in range(_INTERRUPTS)
            )
        # Python drops an exception that a signal raises in a destructor or a callback, so a
        # few may be lost; where the backend catches them, most are.
        assert arrived >= 0.98 * _INTERRUPTS, "predict swallows KeyboardInterrupts"
        assert_same(subject, predictor.predict(call.inputs), call.answer)
        predictor.close()
        with pytest.raises(errors.PredictorClosed):
            predictor.predict(call.inputs)
        # An interrupted call that still counted as running would keep the native objects.
        after = settled(before)
        assert after.threads <= before.threads
        assert after.descriptors <= before.descriptors

    def test_interrupted_bound_call(self, subject: Subject, load: _Load) -> None:
        """Ctrl-C amid a bound call raises KeyboardInterrupt, and the next call is right."""
        predictor = load("fixed")
        call = call_of(predictor, subject.network("fixed").inputs_for())
        bound = predictor.bind({name: array.shape for name, array in call.inputs.items()})
        for name, array in call.inputs.items():
            bound.inputs[name][...] = array
        for number in range(5):
            took_s = _seconds_to_interrupt(bound.predict, 0.001 + 0.0007 * number)
            assert took_s is not None, "the bound call swallowed the KeyboardInterrupt"
            assert took_s < _LATENESS_S
            bound.predict()
            assert_same(subject, dict(bound.outputs), call.answer)

    @requires("dynamic_dims")
    def test_close_in_a_handler(self, subject: Subject, load: _Load) -> None:
        """A handler may close the predictor amid its call: no deadlock, and a right answer."""
        call = long_call(subject, load("deep"), 0.1)
        for part in (0.1, 0.4, 0.7):
            predictor = load("deep")
            predictor.predict(call.inputs)
            sender, sent_s = _sender(signal.SIGUSR1, part * call.took_s)
            with _handling(signal.SIGUSR1, lambda *_, close=predictor.close: close()):
                sender.start()
                _call_until_closed(subject, predictor, call)
                assert sent_s
                sender.join()

    def test_storm_of_timer_signals(self, subject: Subject, load: _Load) -> None:
        """Amid 1,000 timer signals a second every short call is right."""
        predictor = load("fixed")
        call = call_of(predictor, subject.network("fixed").inputs_for())
        _assert_right_in_a_storm(subject, predictor, call)

    @requires("dynamic_dims")
    def test_storm_amid_long_calls(self, subject: Subject, load: _Load) -> None:
        """Amid 1,000 timer signals a second every call of many milliseconds is right."""
        predictor = load("deep")
        _assert_right_in_a_storm(subject, predictor, long_call(subject, predictor, 0.02))

    def test_loading_in_a_storm(self, subject: Subject) -> None:
        """Amid 1,000 timer signals a second models load as ever."""
        network = subject.network("fixed")
        inputs = network.inputs_for()
        with _storm() as seen:
            for _ in range(5):
                with subject.load("fixed") as predictor:
                    assert_outputs(predictor.predict(inputs), network.oracle(inputs))
            deadline_s = time.perf_counter() + _LATENESS_S
            while not seen and time.perf_counter() < deadline_s:
                time.sleep(_INTERVAL_S)
        assert set(seen) == {threading.main_thread().ident}

    def test_handlers_of_the_program(self, subject: Subject) -> None:
        """Importing a runtime, loading, predicting and closing change no handler of a signal."""
        ended = run_fresh(subject, watch_handlers)
        assert ended.status == 0, ended.printed
        assert ended.value["ran"] == list(_WATCHED)
        assert ended.value["is_kept"]
        assert ended.value["after"] == ended.value["before"]
