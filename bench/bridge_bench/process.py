"""A fresh process that answers a bench's requests, so that nothing else is loaded in it.

A module that measures calls ``serve`` when it is run with ``SERVE`` as its one argument;
``Process(module)`` runs it so. Requests and answers are lines of JSON. What runtimes print
goes to a file whose end is told with an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Self

from bridge.child import ending
from bridge.errors import BridgeError, PredictError, PredictTimeout, WorkerDied
from bridge.message import error_from, error_to

__all__ = ["SERVE", "Process", "serve"]

SERVE = "--serve"
# Before the interpreter of the bench starts, so that all of its threads are bound alike.
_PINNED = (
    "import os, sys; "
    "os.sched_setaffinity(0, [int(one) for one in sys.argv[1].split(',')]); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
_TAIL_BYTES = 4000


class Process:
    """A running ``python -m MODULE --serve``; for use by one thread, and as a context."""

    def __init__(self, module: str, *, cpus: Iterable[int] | None = None) -> None:
        """Starts it.

        Args:
            module: What is run.
            cpus: CPUs that it may use; ``None`` means those of this process.
        """
        self._module = module
        command = [sys.executable, "-m", module, SERVE]
        if cpus is not None:
            command = [sys.executable, "-c", _PINNED, ",".join(map(str, cpus)), *command]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._rest = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # compilers that it starts end with it
        )

    def ask(self, request: Mapping[str, Any], *, timeout_s: float = 600.0) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
            WorkerDied: The process ended.
            PredictTimeout: It did not answer in time, and has been ended.
            BridgeError: What it raised.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        if "error" in answer:
            raise error_from(answer["error"])
        found: dict[str, Any] = answer["answer"]
        return found

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, by ``close`` or in the middle of an answer."""
        return self._log.closed

    def close(self) -> None:
        """Ends it, by force and with what it has started; a second call does nothing."""
        if self._log.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request that never arrived
                if stream is not None:
                    stream.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        file, ends = self._process.stdout.fileno(), monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not select.select([file], [], [], max(0.0, ends - monotonic()))[0]:
                log = self._log_tail()
                self.close()
                raise PredictTimeout(
                    f"{self._module} did not answer within {timeout_s:.3g} s.",
                    fix="Give it more time.",
                    timeout_s=timeout_s,
                    log=log,
                )
            data = os.read(file, 1 << 16)
            if not data:
                raise self._died()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _died(self) -> WorkerDied:
        log = self._log_tail()
        self.close()
        last = log.strip().rpartition("\n")[2]
        return WorkerDied(
            f"{self._module} ended {ending(self._process.returncode)}; its last line: {last!r}.",
            fix="Its last output is in detail['log'].",
            status=self._process.returncode,
            log=log,
        )

    def _log_tail(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return tail.decode("utf-8", "replace")


def serve(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> int:
    """Answers requests from standard input until it ends; the exit status.

    Args:
        answer: Takes a request and returns its answer, both of JSON types.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a runtime that prints must not garble the answers
    for line in sys.stdin.buffer:
        told: dict[str, Any]
        try:
            told = {"answer": dict(answer(json.loads(line)))}
            text = json.dumps(told)
        except BridgeError as error:
            text = json.dumps({"error": error_to(error)})
        except Exception as error:  # noqa: BLE001 - it crosses to the parent, traceback and all
            wrapped = PredictError(
                f"{type(error).__name__}: {error}",
                fix="The traceback is in detail.",
                traceback=traceback.format_exc(),
            )
            text = json.dumps({"error": error_to(wrapped)})
        answers.write(text.encode() + b"\n")
        answers.flush()
    return 0
