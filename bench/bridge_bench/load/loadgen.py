"""MLPerf LoadGen, driven from Python in a process that runs nothing else.

What LoadGen does silently is made loud here: it returns at once if it cannot write its
logs, waits for ever for a sample that nobody completes, reads ``audit.config`` from the
current folder, and generates queries ahead, so that a wrong expectation ends the run.
There is one test for a process: after a start that failed, another one aborts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bridge.errors import MeasureError
from bridge_bench.load.calls import Calls, Timed
from bridge_bench.load.detail_log import DetailLog, parse
from bridge_bench.load.scenario import Order, Scenario
from bridge_bench.load.schedule import loadgen_arrivals

__all__ = ["is_installed", "require", "run"]

MAX_GENERATED = 1_000_000  # queries; LoadGen makes all of them before it starts, about 1 s
NO_LIMIT_NS = 1 << 50  # 13 days, for an SLA that nobody asked for
OFFLINE_SPARE = 1.1  # on top of LoadGen's own 1.1: a query too short makes the run invalid
NO_SCHEDULE = (
    "LoadGen's schedule is not the one expected: latencies are from the moment when a query "
    "was issued, not when it was due"
)
EXPECTED_SHARE = 0.5  # of the measured latency, so that the generated queries do not run out


def is_installed() -> bool:
    """Whether LoadGen can be imported."""
    from importlib.util import find_spec

    return find_spec("mlperf_loadgen") is not None


def require() -> None:
    """Nothing, where LoadGen is installed.

    Raises:
        MeasureError: It is not.
    """
    if not is_installed():
        raise MeasureError(
            "MLPerf LoadGen is not installed.",
            fix="Type: pip install 'inference-bridge[loadgen]'; or use the issuer 'own'.",
        )


def _library() -> Any:
    require()
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MeasureError(
            f"MLPerf LoadGen cannot be imported: {error}.",
            fix="Install mlcommons-loadgen again, or use the issuer 'own'.",
        ) from error
    return mlperf_loadgen


def run(order: Order, calls: Calls, median_s: float, folder: Path) -> Timed:
    """One test; returns when every sample is complete.

    Args:
        order: What to do.
        calls: The predictor and its samples.
        median_s: Median time of a call, for LoadGen's expectations.
        folder: A folder of its own for LoadGen's logs.

    Raises:
        MeasureError: LoadGen is not installed, did not start, or did not finish.
    """
    library = _library()
    settings, notes = _settings(library, order, median_s)
    logs = library.LogSettings()
    logs.enable_trace = False  # on by default, and it costs time in the run
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.log_output.copy_detail_to_stdout = False
    system = _System(library, order, calls)
    count = len(calls)
    samples = library.ConstructQSL(count, count, _ignore, _ignore)
    tested = library.ConstructFastSUT(system.issue, _nothing)
    try:
        # The file named last is absent; left out, 'audit.config' of the current folder
        # would override the settings.
        absent = str(folder / "no-audit.config")
        library.StartTestWithLogSettings(tested, samples, settings, logs, absent)
    finally:
        system.close()
        library.DestroyFastSUT(tested)
        library.DestroyQSL(samples)
    log = _read(folder)
    return system.timed(log, notes)


def _ignore(indices: list[int]) -> None:
    """Samples are in memory already when LoadGen asks to load or unload them."""


def _nothing() -> None:
    """Nothing is held back that could be flushed."""


def _read(folder: Path) -> DetailLog:
    path = folder / "mlperf_log_detail.txt"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MeasureError(
            f"LoadGen did not start: it left no log in '{folder}'.",
            fix="Make the folder for temporary files (TMPDIR) writable, with space left.",
        ) from error
    log = parse(text)
    if not log.is_complete:
        raise MeasureError(
            "LoadGen's log does not say whether the run is valid.",
            fix="Look at detail['log_end']; the disk of TMPDIR may be full.",
            log_end=text[-2000:],
        )
    return log


def _settings(library: Any, order: Order, median_s: float) -> tuple[Any, tuple[str, ...]]:
    settings = library.TestSettings()
    settings.mode = library.TestMode.PerformanceOnly
    settings.min_query_count = order.min_queries
    seeds = order.seeds
    settings.qsl_rng_seed = seeds["qsl"]
    settings.sample_index_rng_seed = seeds["sample_index"]
    settings.schedule_rng_seed = seeds["schedule"]
    duration_s = order.duration_s
    notes: tuple[str, ...] = ()
    samples = order.samples_per_query if order.scenario is Scenario.MULTI_STREAM else 1
    expected_s = max(median_s * samples * EXPECTED_SHARE, 1e-6)
    if order.scenario in (Scenario.SINGLE_STREAM, Scenario.MULTI_STREAM):
        longest_s = MAX_GENERATED * expected_s
        if duration_s > longest_s:
            duration_s = longest_s
            limit = f"LoadGen generates queries ahead, here at most {MAX_GENERATED}"
            notes = (f"the run lasts {duration_s:.3g} s, not {order.duration_s:g} s: {limit}",)
    settings.min_duration_ms = max(1, round(duration_s * 1e3))
    expected_ns = max(1, round(expected_s * 1e9))
    match order.scenario:
        case Scenario.SINGLE_STREAM:
            settings.scenario = library.TestScenario.SingleStream
            settings.single_stream_expected_latency_ns = expected_ns
            settings.single_stream_target_latency_percentile = order.sla_percentile
        case Scenario.MULTI_STREAM:
            settings.scenario = library.TestScenario.MultiStream
            settings.multi_stream_expected_latency_ns = expected_ns
            settings.multi_stream_samples_per_query = order.samples_per_query
            settings.multi_stream_target_latency_percentile = order.sla_percentile
        case Scenario.SERVER:
            assert order.qps is not None
            settings.scenario = library.TestScenario.Server
            settings.server_target_qps = order.qps
            settings.server_target_latency_percentile = order.sla_percentile
            settings.server_target_latency_ns = (
                NO_LIMIT_NS if order.sla_s is None else max(1, round(order.sla_s * 1e9))
            )
            # Under overload LoadGen would go on as long as its queries last, and their
            # latencies grow without end.
            settings.server_max_async_queries = order.max_queue + order.concurrency
            planned_s = max(duration_s, order.min_queries / order.qps)
            settings.max_duration_ms = round(2e3 * planned_s) + 1000
        case Scenario.OFFLINE:
            settings.scenario = library.TestScenario.Offline
            settings.offline_expected_qps = OFFLINE_SPARE * order.concurrency / max(median_s, 1e-7)
    return settings, notes


class _System:
    """The system under test: takes queries from LoadGen and completes every sample.

    SingleStream, and MultiStream of one thread, are answered in LoadGen's own thread; all
    else goes through a queue to threads, since LoadGen's must not wait.
    """

    def __init__(self, library: Any, order: Order, calls: Calls) -> None:
        self._order = order
        self._calls = calls
        self._response: Callable[[int, int, int], Any] = library.QuerySampleResponse
        self._complete: Callable[[list[Any]], None] = library.QuerySamplesComplete
        self._issued: list[int] = []
        # Number of the query, then when its call began and ended.
        self._served: list[tuple[int, int, int]] = []
        self._queue: queue.SimpleQueue[tuple[int, int, int] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.issue: Callable[[list[int], list[int]], None] = self._answer
        if order.scenario in (Scenario.SERVER, Scenario.OFFLINE) or (
            order.scenario is Scenario.MULTI_STREAM and order.concurrency > 1
        ):
            self.issue = self._hand_over
            self._threads = [
                threading.Thread(target=self._serve, daemon=True) for _ in range(order.concurrency)
            ]
            for thread in self._threads:
                thread.start()

    def close(self) -> None:
        """Ends the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _answer(self, ids: list[int], indices: list[int]) -> None:
        number = len(self._issued)
        self._issued.append(perf_counter_ns())
        for index in indices:
            started = perf_counter_ns()
            self._calls(index)
            self._served.append((number, started, perf_counter_ns()))
        self._complete([self._response(one, 0, 0) for one in ids])

    def _hand_over(self, ids: list[int], indices: list[int]) -> None:
        number = len(self._issued)
        self._issued.append(perf_counter_ns())
        for one, index in zip(ids, indices, strict=True):
            self._queue.put((number, one, index))

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            number, one, index = item
            started = perf_counter_ns()
            self._calls(index)
            ended = perf_counter_ns()
            self._served.append((number, started, ended))
            self._complete([self._response(one, 0, 0)])

    def timed(self, log: DetailLog, notes: tuple[str, ...]) -> Timed:
        """What was timed; in Server with the arrivals that LoadGen scheduled, if known."""
        issued = np.array(self._issued, np.int64)
        served = np.array(self._served, np.int64).reshape(-1, 3)
        done = np.zeros(len(issued), np.int64)
        np.maximum.at(done, served[:, 0], served[:, 2])
        scheduled = np.zeros(0, np.int64)
        if self._order.scenario is Scenario.SERVER and len(issued):
            found = self._arrivals(log, issued)
            if found is None:
                notes = (*notes, NO_SCHEDULE)
            else:
                scheduled = found
        return Timed(
            scheduled=scheduled,
            issued=issued,
            done=done,
            started=served[:, 1],
            ended=served[:, 2],
            notes=notes,
            loadgen=log.to_dict(),
        )

    def _arrivals(self, log: DetailLog, issued: Any) -> Any:
        generated, span = (
            log.number("generated_query_count"),
            log.number("generated_query_duration"),
        )
        if generated is None or span is None or generated < len(issued):
            return None
        assert self._order.qps is not None
        times, after = loadgen_arrivals(
            self._order.qps, int(generated), self._order.seeds["schedule"]
        )
        # A nanosecond per query, for another order of roundings.
        if abs(after - span) > generated:
            return None
        times = times[: len(issued)]
        # No query is issued before it is due, and the first is due at once: the smallest
        # delay is about zero, which tells when LoadGen's clock began.
        return times + (issued - times).min()
