"""The parent side of a worker: a predictor in a process of its own.

A crash or a hang of the runtime ends the worker, never the caller. The worker is a
fresh interpreter (``python -m bridge.worker``): nothing is forked, nothing is pickled,
and the current folder is not on its path.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from bridge import message
from bridge.errors import InputError, PredictorClosed, PredictTimeout, WorkerDied
from bridge.options import Options
from bridge.signature import Signature

__all__ = ["Worker"]

_SIGNALS_MS = 200  # how long a signal may wait to be looked at
_GRACE_S = 2.0  # between SIGTERM and SIGKILL


class _Spawner:
    """A thread that starts all workers of this process, and lives as long as it does.

    The kernel ends a worker when the thread that started it ends, not when the process
    does: prctl(2), PR_SET_PDEATHSIG. So no passing thread may start one.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self._wanted: queue.SimpleQueue[tuple[IO[bytes], Future[subprocess.Popen[bytes]]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._serve, name="bridge-workers", daemon=True).start()

    def start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._wanted.put((errors, future))
        return future.result()

    def _serve(self) -> None:
        while True:
            errors, future = self._wanted.get()
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "bridge.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                )
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                future.set_exception(error)
            else:
                future.set_result(process)
                del process  # or the last one would never be collected
            del errors, future


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _started(errors: IO[bytes]) -> subprocess.Popen[bytes]:
    global _spawner  # noqa: PLW0603 - one thread for the whole process
    with _spawner_lock:
        if _spawner is None or _spawner.process != os.getpid():  # a fork leaves the thread behind
            _spawner = _Spawner()
    return _spawner.start(errors)


def _after_fork() -> None:
    global _spawner_lock  # noqa: PLW0603
    _spawner_lock = threading.Lock()  # another thread may have held it at the fork


os.register_at_fork(after_in_child=_after_fork)


class Worker:
    """One child process that serves one model; used by one thread at a time.

    Attributes:
        signature: Signature of the loaded model.
        info: ``PredictorInfo.to_dict()`` of the loaded model.
        load_s: Time that ``bridge.load`` took in the child, runtime import included.
    """

    signature: Signature
    info: dict[str, Any]
    load_s: float

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        try:
            self._process = _started(self._errors)
        except BaseException:
            self._errors.close()
            raise

    def load(
        self,
        model: Path,
        *,
        backend: str | None = None,
        device: str | None = None,
        options: Options | Mapping[str, Any] | None = None,
        signature: str | Signature | None = None,
        trust: bool = False,
        timeout_s: float = 300.0,
    ) -> None:
        """Loads a model in the child; arguments and errors as ``bridge.load``.

        Raises:
            PredictTimeout: It took longer than ``timeout_s``; the child was ended.
            WorkerDied: The child crashed.
        """
        answer, _ = self._request(
            {
                "do": "load",
                "model": str(model),
                "backend": backend,
                "device": device,
                "options": options.to_dict() if isinstance(options, Options) else options,
                "signature": signature.to_dict() if isinstance(signature, Signature) else signature,
                "trust": trust,
            },
            timeout_s=timeout_s,
        )
        self.signature = Signature.from_dict(answer["signature"])
        self.info = answer["info"]
        self.load_s = answer["load_s"]

    def predict(
        self,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """One call: the outputs, and the seconds it took inside the child."""
        request = {"do": "predict", "outputs": outputs if outputs is None else list(outputs)}
        answer, results = self._request(request, inputs, timeout_s=timeout_s)
        return results, answer["call_s"]

    def keep_inputs(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds one set of inputs that ``measure`` uses in turn."""
        self._request({"do": "inputs"}, inputs)

    def measure(self, calls: int, *, timeout_s: float = 60.0) -> npt.NDArray[np.int64]:
        """Nanoseconds of each of ``calls`` calls over the kept inputs."""
        _, arrays = self._request({"do": "measure", "calls": calls}, timeout_s=timeout_s)
        return arrays["ns"]

    def memory(self) -> dict[str, int]:
        """``rss_bytes`` and ``peak_rss_bytes`` of the child so far."""
        answer, _ = self._request({"do": "memory"})
        return {key: int(value) for key, value in answer.items()}

    def pause(self) -> None:
        """Stops the child, so that its idle threads cannot disturb a measurement."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused child go on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the child, politely at first; may be called twice."""
        if self._errors.closed:
            return
        if self._process.poll() is None:
            self.resume()
            with contextlib.suppress(PredictTimeout, WorkerDied):  # then it is gone already
                self._request({"do": "close"}, timeout_s=10.0)
            self._end()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that never arrived
                    stream.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self,
        fields: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]] | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        if self._errors.closed:
            raise PredictorClosed("the worker is closed.", fix="Start another one.")
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        # The watchdog ends the child at the deadline, which ends any blocked read or
        # write below with EOF or EPIPE: simpler than non-blocking pipes, and as sure.
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            self._end()

        watchdog = threading.Timer(timeout_s, end_late)
        watchdog.daemon = True
        watchdog.start()
        try:
            message.write(process.stdin, fields, arrays)
            # Not straight into a read: a signal that arrives just before one, such as
            # Ctrl-C, is only looked at when the read returns, which may be never.
            poller = select.poll()
            poller.register(process.stdout, select.POLLIN)
            while not poller.poll(_SIGNALS_MS):
                pass
            answer, results = message.read(process.stdout)
        except (OSError, EOFError) as error:
            if is_late.is_set():
                raise self._late(fields["do"], timeout_s) from None
            raise self._died() from error
        except InputError:  # nothing was sent
            raise
        except BaseException:
            # Half a message, or an answer that nobody fetched: the next request would
            # take it for its own.
            self._end()
            raise
        finally:
            watchdog.cancel()
        if is_late.is_set():  # it answered while it was being ended
            raise self._late(fields["do"], timeout_s)
        if "error" in answer:
            raise message.error_from(answer["error"])
        return answer, results

    def _late(self, request: str, timeout_s: float) -> PredictTimeout:
        return PredictTimeout(
            f"the worker did not answer '{request}' within {timeout_s:g} s.",
            fix="Give it more time, or look at what the runtime does meanwhile.",
            timeout_s=timeout_s,
            log=self._log_tail(),
        )

    def _died(self) -> WorkerDied:
        try:
            status = self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._end()
            status = self._process.returncode
        if status < 0:
            how = f"by signal {signal.Signals(-status).name}"
        else:
            how = f"with exit status {status}"
        return WorkerDied(
            f"the worker process ended {how}.",
            fix="Its last output is in detail['log'].",
            status=status,
            log=self._log_tail(),
        )

    def _end(self) -> None:
        process = self._process
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # a stopped process does not end otherwise
            try:
                process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log_tail(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4000))
        return self._errors.read().decode("utf-8", "replace")
