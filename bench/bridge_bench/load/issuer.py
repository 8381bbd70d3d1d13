"""Our own issuer: closed loops, and open-loop arrivals that cost next to nothing.

In the open loop the threads that call the predictor wait for arrivals themselves, one at
a time (leader and followers): the leader sleeps until shortly before the next arrival is
due, then watches the clock, and calls the predictor without handing over to anyone. A
query that was due while all threads were busy has waited in a queue, and its latency
counts from when it was due. So nothing slow hides behind itself (coordinated omission).
"""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

import numpy as np

from bridge_bench.load.calls import Calls, Timed
from bridge_bench.load.scenario import Order, Scenario
from bridge_bench.load.schedule import poisson_arrivals

__all__ = ["run"]

SPIN_NS = 200_000  # more than a sleep oversleeps on an idle machine, about 60 us
LEAD_NS = 2_000_000  # from the start to the first instant of the schedule
TURNS = 4096  # numbers of samples drawn ahead, then repeated
MAX_CALLS = 2_000_000  # whose times are kept; a closed loop ends there


def run(order: Order, calls: Calls) -> Timed:
    """One run; returns when every query is answered, dropped or abandoned."""
    generator = np.random.default_rng(order.seeds["sample_index"])
    turns: list[int] = generator.integers(0, len(calls), TURNS).tolist()
    match order.scenario:
        case Scenario.SINGLE_STREAM:
            return _single_stream(order, calls, turns)
        case Scenario.MULTI_STREAM:
            return _multi_stream(order, calls, turns)
        case Scenario.SERVER:
            return _OpenLoop(order, calls, turns).run()
        case Scenario.OFFLINE:
            return _offline(order, calls, turns)


def _single_stream(order: Order, calls: Calls, turns: list[int]) -> Timed:
    started: list[int] = []
    ended: list[int] = []
    least = order.min_queries
    until = perf_counter_ns() + round(order.duration_s * 1e9)
    for index in itertools.cycle(turns):
        begun = perf_counter_ns()
        if (begun >= until and len(ended) >= least) or len(ended) >= MAX_CALLS:
            break
        calls(index)
        ended.append(perf_counter_ns())
        started.append(begun)
        if calls.error is not None:
            break
    return _closed(started, ended, started, ended)


def _multi_stream(order: Order, calls: Calls, turns: list[int]) -> Timed:
    issued: list[int] = []
    done: list[int] = []
    spans: list[tuple[int, int]] = []

    def call(index: int) -> None:
        begun = perf_counter_ns()
        calls(index)
        spans.append((begun, perf_counter_ns()))

    until = perf_counter_ns() + round(order.duration_s * 1e9)
    numbers = itertools.cycle(turns)
    with ThreadPoolExecutor(order.concurrency) as threads:
        while True:
            begun = perf_counter_ns()
            if begun >= until and len(done) >= order.min_queries:
                break
            query = list(itertools.islice(numbers, order.samples_per_query))
            if order.concurrency == 1:
                for index in query:
                    call(index)
            else:
                list(threads.map(call, query))
            done.append(perf_counter_ns())
            issued.append(begun)
            if calls.error is not None or len(spans) >= MAX_CALLS:
                break
    return _closed(issued, done, *zip(*spans, strict=True))


def _offline(order: Order, calls: Calls, turns: list[int]) -> Timed:
    begun = perf_counter_ns()
    until = begun + round(order.duration_s * 1e9)
    spans: list[tuple[int, int]] = []

    def work(first: int) -> None:
        for number in itertools.count(first, order.concurrency):
            started = perf_counter_ns()
            if (started >= until and len(spans) >= order.min_queries) or calls.error is not None:
                return
            calls(turns[number % TURNS])
            spans.append((started, perf_counter_ns()))

    _in_threads(work, order.concurrency)
    started, ended = zip(*spans, strict=True)
    return _closed([begun], [max(ended)], started, ended)


def _closed(issued: object, done: object, started: object, ended: object) -> Timed:
    return Timed(
        scheduled=np.zeros(0, np.int64),
        issued=np.array(issued, np.int64),
        done=np.array(done, np.int64),
        started=np.array(started, np.int64),
        ended=np.array(ended, np.int64),
    )


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """``work(0)`` to ``work(count - 1)``, the first in this thread; raises what they raise."""
    if count == 1:
        work(0)
        return
    with ThreadPoolExecutor(count - 1) as threads:
        others = [threads.submit(work, number) for number in range(1, count)]
        work(0)
        for other in others:
            other.result()


class _OpenLoop:
    """Arrivals, the queue of those that are due, and the threads that serve them."""

    def __init__(self, order: Order, calls: Calls, turns: list[int]) -> None:
        self._order = order
        self._calls = calls
        self._turns = turns
        assert order.qps is not None
        schedule = poisson_arrivals(
            order.qps, order.duration_s, order.min_queries, order.seeds["schedule"]
        )
        start = perf_counter_ns() + LEAD_NS
        self._due: list[int] = (schedule + start).tolist()
        self._issued = [0] * len(self._due)
        self._served: list[tuple[int, int, int]] = []
        # Those that wait then are given up: the run must end, however slow the calls are.
        self._last = self._due[-1] + max(self._due[-1] - start, 1_000_000_000)
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._next = 0
        late_ns = None if order.sla_s is None else round(order.sla_s * 1e9)
        self._late_ns = late_ns if order.max_late is not None else None
        self._late = 0
        self._dropped = 0
        self._abandoned = 0

    def run(self) -> Timed:
        _in_threads(self._serve, self._order.concurrency)
        served = np.array(sorted(self._served), np.int64).reshape(-1, 3)
        numbers = served[:, 0]
        return Timed(
            scheduled=np.array(self._due, np.int64)[numbers],
            issued=np.array(self._issued, np.int64)[numbers],
            done=served[:, 2],
            started=served[:, 1],
            ended=served[:, 2],
            dropped=self._dropped,
            abandoned=self._abandoned,
        )

    def _serve(self, thread: int) -> None:
        while True:
            with self._lock:  # the leader waits inside; the followers wait for the lock
                number = self._take()
            if number is None:
                return
            index = self._turns[number % TURNS]
            started = perf_counter_ns()
            self._calls(index)
            ended = perf_counter_ns()
            self._served.append((number, started, ended))
            if self._late_ns is not None and ended - self._due[number] > self._late_ns:
                self._count_late()

    def _count_late(self) -> None:
        with self._lock:
            self._late += 1
            if self._late == self._order.max_late:
                self._waiting.clear()
                self._next = len(self._due)

    def _take(self) -> int | None:
        """The query to serve next, waited for; ``None`` at the end."""
        self._admit()
        if self._calls.error is not None or perf_counter_ns() > self._last:
            self._abandoned += len(self._waiting) + len(self._due) - self._next
            self._waiting.clear()
            self._next = len(self._due)
        if self._waiting:
            return self._waiting.popleft()
        if self._next == len(self._due):
            return None
        number = self._next
        _wait(self._due[number])
        self._issued[number] = perf_counter_ns()
        self._next += 1
        return number

    def _admit(self) -> None:
        """Puts what came in meanwhile into the queue.

        Only ``_take`` removes from it, and calls this first: the queue is as long as it
        was at each arrival, and what was refused is what would have been refused then.
        """
        now = perf_counter_ns()
        while self._next < len(self._due) and self._due[self._next] <= now:
            if len(self._waiting) < self._order.max_queue:
                self._issued[self._next] = self._due[self._next]
                self._waiting.append(self._next)
            else:
                self._dropped += 1
            self._next += 1


def _wait(until: int) -> None:
    rest = until - perf_counter_ns()
    if rest > SPIN_NS:
        time.sleep((rest - SPIN_NS) / 1e9)
    # Other threads may need the interpreter. Polling nothing hands it over and is back in
    # a microsecond; sleep(0) takes 50, and sched_yield hands it over from Python 3.12 on.
    poll = select.poll().poll
    while perf_counter_ns() < until:
        poll(0)
