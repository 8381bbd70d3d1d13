"""A child process of the bridge: started, watched, ended, and what it printed.

The child is a fresh interpreter (``python -m bridge.worker``): nothing is forked,
nothing is pickled, and the current folder is not on its path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import IO

from bridge.cpus import THREADS_VARIABLE, thread_budget
from bridge.errors import PredictTimeout, WorkerDied

__all__ = ["Child", "ending"]

_GRACE_S = 2.0  # between SIGTERM and SIGKILL
_LOG_TAIL_BYTES = 4000


@dataclass(frozen=True)
class _Order:
    """One process to start."""

    arguments: Sequence[str]
    descriptors: Sequence[int]
    environment: Mapping[str, str] | None
    log: IO[bytes]
    started: Future[subprocess.Popen[bytes]]


class _Spawner:
    """A thread that starts all workers of this process, and lives as long as it does.

    The kernel ends a worker when the thread that started it ends, not when the process
    does: prctl(2), PR_SET_PDEATHSIG. So no passing thread may start one.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="bridge-workers", daemon=True).start()

    def start(self, order: _Order) -> subprocess.Popen[bytes]:
        self._orders.put(order)
        return order.started.result()

    def _serve(self) -> None:
        while True:
            order = self._orders.get()
            try:
                more = order.environment
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "bridge.worker", *order.arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=order.log,
                    pass_fds=tuple(order.descriptors),
                    env=None if more is None else {**os.environ, **more},
                )
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                order.started.set_exception(error)
            else:
                order.started.set_result(process)
                del process  # or the last one would never be collected
            del order


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _after_fork() -> None:
    global _spawner_lock  # noqa: PLW0603
    _spawner_lock = threading.Lock()  # another thread may have held it at the fork


os.register_at_fork(after_in_child=_after_fork)


class Child:
    """One running ``bridge.worker``; its methods may be called from any thread.

    Attributes:
        process: The process; its ``stdin`` and ``stdout`` are pipes.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        descriptors: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it.

        Args:
            arguments: Words of its command line.
            descriptors: Open files that it inherits under the same numbers.
            environment: Variables on top of this process's own, to which a thread budget
                that this process has set is added.

        Raises:
            OSError: The system starts no more processes.
        """
        global _spawner  # noqa: PLW0603 - one thread for the whole process
        self._owner = os.getpid()
        # Unnamed, so nothing is left behind.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        # What is printed goes to the end also after the child has shortened it.
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
        try:
            with _spawner_lock:
                # A fork leaves the thread behind.
                if _spawner is None or _spawner.process != os.getpid():
                    _spawner = _Spawner()
            budget = thread_budget()
            given = {} if budget is None else {THREADS_VARIABLE: str(budget)}
            given.update(environment or {})
            order = _Order(arguments, descriptors, given or None, self._log, Future())
            self.process = _spawner.start(order)
        except BaseException:
            self._log.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._log.closed

    @property
    def is_running(self) -> bool:
        """Whether the process is still there, and this process's own child."""
        return os.getpid() == self._owner and self.process.poll() is None

    def end(self) -> None:
        """Ends the process, by force after two seconds; it may be ended already."""
        process = self.process
        if not self.is_running:
            return
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped process does not end otherwise
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Ends the process and closes its files; in a forked process only the files."""
        self.end()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that never arrived
                    stream.close()
        self._log.close()

    def died(self) -> WorkerDied:
        """The error for a process that ended, or hung up, by itself."""
        try:
            status = self.process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self.end()
            status = self.process.returncode
        return WorkerDied(
            f"the worker process ended {ending(status)}.",
            fix="Its last output is in detail['log'].",
            status=status,
            log=self.log_tail(),
        )

    def late(self, request: str, timeout_s: float) -> PredictTimeout:
        """The error for an answer that did not come in time."""
        return PredictTimeout(
            f"the worker did not answer '{request}' within {timeout_s:g} s.",
            fix="Give it more time, or look at what the runtime does meanwhile.",
            timeout_s=timeout_s,
            log=self.log_tail(),
        )

    def log_tail(self) -> str:
        """The last 4000 bytes of what it printed; empty once closed."""
        try:
            file = self._log.fileno()
            size = os.fstat(file).st_size
            tail = os.pread(file, _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES))
        except ValueError:  # closed meanwhile
            return ""
        return tail.decode("utf-8", "replace")


def ending(status: int) -> str:
    """How a process with this return code ended, such as ``by signal SIGSEGV``."""
    if status >= 0:
        return f"with exit status {status}"
    try:
        return f"by signal {signal.Signals(-status).name}"
    except ValueError:  # one of the real-time signals, which have no name
        return f"by signal {-status}"
