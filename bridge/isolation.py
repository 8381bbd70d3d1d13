"""The parent side of a worker: a predictor in a process of its own.

A crash or a hang of the runtime ends the worker, never the caller. The worker is a
fresh interpreter (``python -m bridge.worker``): nothing is forked, nothing is pickled,
and the current folder is not on its path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bridge import message
from bridge.errors import PredictTimeout, WorkerDied
from bridge.options import Options
from bridge.signature import Signature

__all__ = ["Worker"]

_GRACE_S = 2.0  # between SIGTERM and SIGKILL


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
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bridge.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

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
            answer, results = message.read(process.stdout)
        except (OSError, EOFError) as error:
            if is_late.is_set():
                raise self._late(fields["do"], timeout_s) from None
            raise self._died() from error
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
