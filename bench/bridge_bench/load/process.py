"""The parent side: the process that is put under load, and the watchdog over it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bridge import message
from bridge.check import Arrays
from bridge.child import ending
from bridge.errors import BridgeError, MeasureError
from bridge.options import Options
from bridge.signature import Signature
from bridge_bench.load.calls import Timed, Warmup
from bridge_bench.load.scenario import Order

__all__ = ["Process"]

_SIGNALS_MS = 200  # how long a signal may wait to be looked at
_GRACE_S = 3.0  # for the child to say itself that it is late
_LOG_TAIL_BYTES = 4000


class Process:
    """A fresh interpreter with one predictor in it; used by one thread.

    Attributes:
        signature: Of the loaded model.
        info: ``PredictorInfo.to_dict()`` of it.
        load_s: Time of ``bridge.load`` in the child.
        warnings: What loading a record warned of.
    """

    signature: Signature
    info: dict[str, Any]
    load_s: float
    warnings: tuple[str, ...]

    def __init__(self) -> None:
        self._folder = _temporary_folder()
        try:
            self._log = Path(self._folder.name, "log.txt").open("a+b")  # noqa: SIM115 - closed in close()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bridge_bench.load"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        except BaseException:
            self._folder.cleanup()
            raise
        self._runs = 0

    def load(
        self,
        model: Path,
        *,
        backend: str | None,
        device: str | None,
        options: Options | Mapping[str, Any] | Sequence[str] | None,
        signature: str | Signature | None,
        trust: bool,
        timeout_s: float,
    ) -> None:
        """Loads a model in the child; arguments and errors as ``bridge.load``.

        Raises:
            MeasureError: The child crashed or hung.
        """
        plain = options.to_dict() if isinstance(options, Options) else options
        answer, _ = self._request(
            {
                "do": "load",
                "model": str(model),
                "backend": backend,
                "device": device,
                "options": dict(plain) if isinstance(plain, Mapping) else plain,
                "signature": signature.to_dict() if isinstance(signature, Signature) else signature,
                "trust": trust,
            },
            timeout_s=timeout_s,
        )
        self.signature = Signature.from_dict(answer["signature"])
        self.info = answer["info"]
        self.load_s = answer["load_s"]
        self.warnings = tuple(answer["warnings"])

    def load_nothing(self) -> None:
        """Takes a predictor that does nothing, to measure the harness."""
        self._request({"do": "null"})
        self.keep({})

    def keep(self, sample: Arrays) -> None:
        """Adds one sample: inputs of one call."""
        self._request({"do": "sample"}, sample)

    def warm(self, least_s: float, *, timeout_s: float) -> Warmup:
        """Calls the predictor until its times settle; raises what a call raises."""
        answer, _ = self._request({"do": "warm", "least_s": least_s}, timeout_s=timeout_s)
        return Warmup(**answer)

    def run(self, order: Order, median_s: float) -> tuple[Timed, int, BridgeError | None]:
        """One run: what was timed, the number of failed calls, and the first failure.

        Raises:
            MeasureError: It did not end in time, crashed, or LoadGen failed.
        """
        self._runs += 1
        folder = Path(self._folder.name, f"run{self._runs}")
        folder.mkdir()
        request = {
            "do": "run",
            "order": order.to_dict(),
            "median_s": median_s,
            "folder": str(folder),
        }
        answer, arrays = self._request(request, timeout_s=order.timeout_s + _GRACE_S)
        if "late" in answer:
            issued, completed = answer["late"]["issued"], answer["late"]["completed"]
            lost = (
                f"{issued - completed} of {issued} calls never came back"
                if issued > completed
                else f"all {issued} calls so far came back"
            )
            raise MeasureError(
                f"the run did not end within {order.timeout_s:g} s: {lost}.",
                fix="Where it hangs is at the end of detail['log']; or give it more time.",
                issued=issued,
                completed=completed,
                timeout_s=order.timeout_s,
                log=self._log_tail(),
            )
        failure = answer["failure"]
        timed = Timed(
            **arrays,
            dropped=answer["dropped"],
            abandoned=answer["abandoned"],
            notes=tuple(answer["notes"]),
            loadgen=answer["loadgen"],
        )
        return timed, answer["failed"], None if failure is None else message.error_from(failure)

    def close(self) -> None:
        """Ends the child at once; may be called twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()
        self._folder.cleanup()

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
        self, fields: Mapping[str, Any], arrays: Arrays | None = None, *, timeout_s: float = 60.0
    ) -> tuple[dict[str, Any], Arrays]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            process.kill()

        watchdog = threading.Timer(timeout_s, end_late)
        watchdog.daemon = True
        watchdog.start()
        try:
            message.write(process.stdin, fields, arrays)
            # Not straight into a read: Ctrl-C just before one would wait for its end.
            poller = select.poll()
            poller.register(process.stdout, select.POLLIN)
            while not poller.poll(_SIGNALS_MS):
                pass
            answer, results = message.read(process.stdout)
        except (OSError, EOFError) as error:
            if is_late.is_set():
                raise MeasureError(
                    f"the load generator's process did not answer '{fields['do']}' within "
                    f"{timeout_s:g} s, and was ended.",
                    fix="Its last output is in detail['log']; or give it more time.",
                    timeout_s=timeout_s,
                    log=self._log_tail(),
                ) from None
            raise self._died(str(fields["do"])) from error
        finally:
            watchdog.cancel()
        if "error" in answer:
            raise message.error_from(answer["error"])
        return answer, results

    def _died(self, request: str) -> MeasureError:
        try:
            status = self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return MeasureError(
            f"the load generator's process ended {ending(status)} during '{request}'.",
            fix="Its last output is in detail['log']; try 'bridge run' on the model first.",
            status=status,
            log=self._log_tail(),
        )

    def _log_tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        return self._log.read().decode("utf-8", "replace")


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="bridge-load-")
    except OSError as error:
        raise MeasureError(
            f"no temporary folder can be made: {error}.",
            fix="Make the folder for temporary files (TMPDIR) writable, with space left.",
        ) from error
