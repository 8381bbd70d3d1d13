"""The process of an isolated predictor: started, called, and started again after it ended.

States::

    running ── a call crashes it, or takes too long ──> ended ── next call ──> running
                                                          └── 5 crashes in 60 s ──> refused
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy.typing as npt

from bridge.check import Arrays
from bridge.errors import BridgeError, PredictorClosed, PredictTimeout, WorkerDied
from bridge.isolation import Loaded, Worker
from bridge.lane import Lane

__all__ = ["Supervisor"]

_FIRST_DELAY_S = 0.1
_LAST_DELAY_S = 10.0
_MOST_CRASHES = 5
_CRASH_WINDOW_S = 60.0
_WATCH_S = 0.2  # how long a waiting call may take to see what changed


class _Shift:
    """One process, from its start to its end, and its lanes."""

    def __init__(self, worker: Worker, loaded: Loaded, lanes: int) -> None:
        self.worker = worker
        self.loaded = loaded
        self.end: WorkerDied | None = None
        # The last in is the first out, so that one caller alone keeps to one lane, whose
        # memory is in the cache. None is a lane that was not needed yet.
        self._idle: list[Lane | None] = [None] * lanes
        self._waiting = 0
        self._changed = threading.Condition()
        self._opening = threading.Lock()

    def take(self, calls: Callable[[], int], timeout_s: float) -> Lane | None:
        """A lane for one call, once there is one; ``None`` if the process has ended.

        Args:
            calls: How many calls are in flight.
            timeout_s: Longest time of opening a lane.

        Raises:
            WorkerDied: The process turns out to have ended by itself.
            PredictTimeout: The process does not answer; it was ended.
        """
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = None
            with self._changed:
                self._waiting += 1
                try:
                    while self.end is None:
                        try:
                            lane = self._idle.pop()
                            break
                        except IndexError:
                            pass
                        if not self._changed.wait(_WATCH_S) and calls() <= self._waiting:
                            # Every call waits, so nobody has a lane: an interrupt hit
                            # just between taking one and noting it.
                            self._idle.append(None)
                finally:
                    self._waiting -= 1
        if self.end is not None:
            if lane is not None:
                lane.close()
            return None
        return lane if lane is not None else self._opened(timeout_s)

    def give(self, lane: Lane) -> None:
        """Takes a lane back; one that still waits for an answer is replaced."""
        if lane.is_idle and self.end is None:
            self._idle.append(lane)
        else:
            lane.close()
            self._idle.append(None)
        if self._waiting:
            with self._changed:
                self._changed.notify()
        if self.end is not None:
            self._clear()

    def ask(self, question: Callable[[Worker], dict[str, Any]]) -> dict[str, Any] | None:
        """What the process answers; ``None`` if it has ended."""
        with self._opening:  # a worker's requests are for one thread at a time
            return None if self.end is not None else question(self.worker)

    def finish(self, end: WorkerDied) -> None:
        """Ends the process at once and wakes who waits."""
        self.end = end
        self.worker.end()
        with self._opening:  # who opens a lane sees the end first, and lets go
            self.worker.kill()
        self._clear()
        with self._changed:
            self._changed.notify_all()

    def close(self, *, politely: bool) -> None:
        """Ends the process; no call may be running."""
        self._clear()
        if politely:
            self.worker.close()
        else:
            self.worker.kill()

    def _opened(self, timeout_s: float) -> Lane | None:
        try:
            with self._opening:  # a worker's requests are for one thread at a time
                if self.end is None:
                    return self.worker.open_lane(timeout_s=timeout_s)
        except BaseException:
            self._idle.append(None)
            raise
        return None

    def _clear(self) -> None:
        while True:
            try:
                lane = self._idle.pop()
            except IndexError:
                return
            if lane is not None:
                lane.close()


class Supervisor:
    """Keeps one model loaded in a child process; every method from any thread.

    Attributes:
        calls: How many calls are in flight, those that wait for a lane included.
        is_closing: Whether the predictor was closed meanwhile; waiting calls look at it.
        on_start: Told of every process started again.
    """

    def __init__(
        self,
        start: Callable[[], tuple[Worker, Loaded]],
        lanes: Callable[[Loaded], int],
        timeout_s: float,
    ) -> None:
        """Starts the first process.

        Args:
            start: Starts a worker with the model in slot 0.
            lanes: Calls that may be in the child at once.
            timeout_s: Longest time of one call in the child.

        Raises:
            BridgeError: The model could not be loaded.
        """
        self._start = start
        self._lanes = lanes
        self._timeout_s = timeout_s
        self._owner = os.getpid()
        self._starting = threading.Lock()
        self._updating = threading.Lock()
        self._updates: list[Path] = []  # taken over since it was loaded, in order
        self._ending = threading.Lock()
        self._crashes: list[float] = []  # in the last minute
        self._streak = 0  # crashes without a minute of peace between them
        self._last: WorkerDied | None = None
        self.calls: Callable[[], int] = lambda: 1
        self.is_closing: Callable[[], bool] = lambda: False
        self.on_start: Callable[[Worker, Loaded], None] | None = None
        self._shift = self._begun()

    @property
    def loaded(self) -> Loaded:
        """What the running process told, or the last one that ran."""
        return self._shift.loaded

    @property
    def worker(self) -> Worker:
        """The running process, or the last one that ran."""
        return self._shift.worker

    def call(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        """One call in the child.

        Raises:
            WorkerDied: The child ended meanwhile, or is not started again any more.
            PredictTimeout: It took too long; the child was ended.
            PredictorClosed: The predictor was closed while this call waited for a child.
            BridgeError: What the child answered.
        """
        while True:
            shift = self._shift
            try:
                lane = shift.take(self.calls, self._timeout_s) if shift.end is None else None
            except WorkerDied:
                self._died(shift)  # before this call was in flight
                continue
            except PredictTimeout:
                raise self._late(shift) from None
            if lane is None:
                self._restart(shift)
                continue
            try:
                return lane.call(inputs, outputs, self._timeout_s)
            except BridgeError:
                raise
            except TimeoutError:
                raise self._late(shift) from None
            except BrokenPipeError:
                self._died(shift)  # nobody took the call up, so it can be made again
            except (EOFError, OSError) as error:
                raise self._died(shift) from error
            finally:
                shift.give(lane)

    def details(self) -> dict[str, Any]:
        """``info.details`` as the child tells them now; errors as for ``call``."""
        return self._asked(lambda worker: worker.details(timeout_s=self._timeout_s))

    def update(self, source: Path) -> dict[str, Any]:
        """Has the child take over newer parameters, and each that replaces it.

        Returns:
            ``info.details`` after that.

        Raises:
            BridgeError: As for ``call``, or what the child answered; then nothing has changed.
        """
        with self._updating:
            details = self._asked(lambda worker: worker.update(source))
            # One that is named again, such as a folder that grows, then holds all of it.
            if self._updates[-1:] != [source]:
                self._updates.append(source)
        return details

    def _asked(self, question: Callable[[Worker], dict[str, Any]]) -> dict[str, Any]:
        while True:
            shift = self._shift
            try:
                found = shift.ask(question)
            except WorkerDied as error:
                raise self._died(shift) from error
            except PredictTimeout:
                raise self._late(shift) from None
            if found is not None:
                return found
            self._restart(shift)

    def close(self) -> None:
        """Ends the child politely; no call may be running."""
        if os.getpid() == self._owner:
            self._shift.close(politely=True)

    def kill(self) -> None:
        """Ends the child at once; for when nobody is left to wait for it."""
        if os.getpid() == self._owner:
            self._shift.close(politely=False)

    def _restart(self, ended: _Shift) -> None:
        with self._starting:
            if self._shift is not ended:  # another call was here before
                return
            self._wait()
            self._shift = self._begun()
        if self.on_start is not None:
            self.on_start(self._shift.worker, self._shift.loaded)

    def _wait(self) -> None:
        """Waits out the delay after crashes, or refuses."""
        now = monotonic()
        self._crashes = [one for one in self._crashes if now - one < _CRASH_WINDOW_S]
        last = self._last
        if last is not None and len(self._crashes) >= _MOST_CRASHES:
            # For good: what came back only after a minute would crash again.
            self._crashes = [float("inf")] * _MOST_CRASHES
            raise WorkerDied(
                f"the worker process crashed {_MOST_CRASHES} times within "
                f"{_CRASH_WINDOW_S:g} s and is not started again; at last, {last.message}",
                fix="Close this predictor; the last output is in detail['log'].",
                **last.detail,
            )
        if not self._crashes:
            return
        delay_s = min(_LAST_DELAY_S, _FIRST_DELAY_S * 2 ** (self._streak - 1))
        until = self._crashes[-1] + delay_s
        while (left := until - monotonic()) > 0:
            if self.is_closing():
                raise PredictorClosed("the predictor was closed.", fix="Load the model again.")
            sleep(min(left, _WATCH_S))

    def _begun(self) -> _Shift:
        try:
            worker, loaded = self._start()
            try:
                for source in self._updates:
                    details = worker.update(source)
                    loaded = replace(loaded, info={**loaded.info, "details": details})
            except BaseException:
                worker.kill()
                raise
        except WorkerDied as error:
            self._count(error)
            raise
        return _Shift(worker, loaded, self._lanes(loaded))

    def _died(self, shift: _Shift) -> WorkerDied:
        with self._ending:
            if shift.end is None:
                error = shift.worker.died()
                self._count(error)
                shift.finish(error)
        return _again(shift.end)

    def _late(self, shift: _Shift) -> BridgeError:
        with self._ending:
            if shift.end is not None:  # by another call, at the same moment
                return _again(shift.end)
            late = shift.worker.late("predict", self._timeout_s)
            shift.finish(
                WorkerDied(
                    "the worker process was ended because another call took longer than "
                    f"{self._timeout_s:g} s.",
                    fix="Call again: the next call starts another one.",
                    log=late.detail["log"],
                )
            )
        return late

    def _count(self, error: WorkerDied) -> None:
        now = monotonic()
        is_soon = bool(self._crashes) and now - self._crashes[-1] < _CRASH_WINDOW_S
        self._streak = self._streak + 1 if is_soon else 1
        self._crashes.append(now)
        self._last = error


def _again(error: WorkerDied | None) -> WorkerDied:
    """The same error for another call: each raises an object of its own."""
    assert error is not None
    return WorkerDied(error.message, fix=error.fix, **error.detail)
