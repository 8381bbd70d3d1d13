"""Calls of the predictor under load: none is lost, and the first failure is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.errors import BridgeError, PredictError
from bridge_bench.stats import median

__all__ = ["Calls", "Timed", "Warmup"]

MIN_CALLS = 3
WINDOW_CALLS = 25
WINDOW_S = 0.1
MAX_WINDOWS = 10
MAX_WARMUP_S = 10.0
STABLE_RATIO = 1.05  # of the last three windows' medians


@dataclass(kw_only=True)
class Timed:
    """What a run has timed, in nanoseconds of one clock; a value per query or per call.

    Attributes:
        scheduled: When each query was due; empty where nothing schedules them.
        issued: When each query was sent.
        done: When its last sample was complete.
        started, ended: Around each call of the predictor.
        dropped: Queries refused because too many waited.
        abandoned: Queries that were due and never sent, because time was up.
        notes: Sentences about the run.
        loadgen: ``DetailLog.to_dict()`` where LoadGen ran.
    """

    scheduled: npt.NDArray[np.int64]
    issued: npt.NDArray[np.int64]
    done: npt.NDArray[np.int64]
    started: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
    dropped: int = 0
    abandoned: int = 0
    notes: tuple[str, ...] = ()
    loadgen: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """How it went until the times of calls settled.

    Attributes:
        first_call_s: Time of the first call.
        calls: Calls made.
        median_s: Median of the last window.
        is_stable: Whether three windows in a row were alike.
    """

    first_call_s: float
    calls: int
    median_s: float
    is_stable: bool


class Calls:
    """The predictor and its samples, called by number.

    Attributes:
        issued: Samples handed out; of all calls begun so far, roughly.
        completed: Samples that came back.
        failed: Calls that raised, or were left out because an earlier one did.
        error: What the first failed call raised.
    """

    def __init__(self, predict: Callable[[Arrays], object], samples: Sequence[Arrays]) -> None:
        self._predict = predict
        self._samples = samples
        self._lock = threading.Lock()
        self.issued = 0
        self.completed = 0
        self.failed = 0
        self.error: BridgeError | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def __call__(self, index: int) -> None:
        """One call; never raises. After a failure the rest of the run is not called."""
        self.issued += 1
        if self.error is None:
            try:
                self._predict(self._samples[index])
            except Exception as error:  # noqa: BLE001 - kept, and told by the run's status
                self._fail(error)
        else:
            self._fail(self.error)
        self.completed += 1

    def warm(self, least_s: float, least_calls: int = 0) -> Warmup:
        """Calls until it is stable, over all samples in turn; raises what a call raises.

        Args:
            least_s: Go on for so long at least.
            least_calls: Calls before those that count, which the runtime learns from.
        """
        begun = perf_counter()
        turn = 0
        medians: list[float] = []
        first_call_s = 0.0
        while turn < least_calls:
            started = perf_counter_ns()
            self._predict(self._samples[turn % len(self._samples)])
            first_call_s = first_call_s or (perf_counter_ns() - started) / 1e9
            turn += 1
        while True:
            window: list[int] = []
            window_begun = perf_counter()
            while len(window) < WINDOW_CALLS and (
                len(window) < MIN_CALLS or perf_counter() - window_begun < WINDOW_S
            ):
                started = perf_counter_ns()
                self._predict(self._samples[turn % len(self._samples)])
                window.append(perf_counter_ns() - started)
                turn += 1
            first_call_s = first_call_s or window[0] / 1e9
            medians.append(median(window) / 1e9)
            last = medians[-3:]
            is_stable = len(last) == 3 and max(last) <= STABLE_RATIO * min(last)
            spent = perf_counter() - begun
            if (is_stable and spent >= least_s) or (
                spent >= MAX_WARMUP_S or (len(medians) >= MAX_WINDOWS and spent >= least_s)
            ):
                return Warmup(
                    first_call_s=first_call_s,
                    calls=turn,
                    median_s=medians[-1],
                    is_stable=is_stable,
                )

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.failed += 1
            if self.error is not None:
                return
            self.error = (
                error
                if isinstance(error, BridgeError)
                else PredictError(
                    f"the call failed: {type(error).__name__}: {error}.",
                    fix="Call the model alone with 'bridge run' to see more.",
                )
            )
