"""The child side of a worker: ``python -m bridge.worker`` serves one predictor.

It reads requests from its standard input and answers on its standard output; what
runtimes print goes to standard error. Requests, by their field ``do``:

``load``     model, backend, device, options, signature, trust -> signature, info, load_s
``predict``  outputs, with arrays -> arrays, call_s
``inputs``   with arrays: keeps them as one set of inputs for ``measure``
``measure``  calls -> array ``ns`` of the duration of each call, over the kept inputs in turn
``memory``   -> rss_bytes, peak_rss_bytes
``close``    ends the process

An answer has either its fields or ``error``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, BinaryIO

import numpy as np

from bridge import message
from bridge.check import Arrays
from bridge.errors import BridgeError, PredictError
from bridge.loading import load
from bridge.predictor import Predictor
from bridge.signature import Signature

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


class _Service:
    """The predictor of this process and the inputs kept for measuring."""

    def __init__(self) -> None:
        self._predictor: Predictor | None = None
        self._inputs: list[Arrays] = []
        self._turn = 0

    def load(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        signature = request["signature"]
        started = perf_counter()
        self._predictor = load(
            request["model"],
            backend=request["backend"],
            device=request["device"],
            options=request["options"],
            signature=Signature.from_dict(signature) if isinstance(signature, dict) else signature,
            trust=request["trust"],
        )
        answer = {
            "load_s": perf_counter() - started,
            "signature": self._predictor.signature.to_dict(),
            "info": self._predictor.info.to_dict(),
        }
        return answer, {}

    def predict(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        started = perf_counter()
        results = self._loaded().predict(arrays, request["outputs"])
        return {"call_s": perf_counter() - started}, results

    def inputs(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        self._inputs.append(arrays)
        return {"kept": len(self._inputs)}, {}

    def measure(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        predict = self._loaded().predict
        if not self._inputs:
            raise PredictError("the worker has no inputs to measure with.", fix="Keep some first.")
        durations = np.zeros(int(request["calls"]), np.int64)
        for index in range(len(durations)):
            inputs = self._inputs[self._turn % len(self._inputs)]
            self._turn += 1
            started = perf_counter_ns()
            predict(inputs)
            durations[index] = perf_counter_ns() - started
        return {}, {"ns": durations}

    def memory(self, request: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, getrusage(2)
        return {
            "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "peak_rss_bytes": peak_kib * 1024,
        }, {}

    def close(self) -> None:
        if self._predictor is not None:
            self._predictor.close()

    def _loaded(self) -> Predictor:
        if self._predictor is None:
            raise PredictError("the worker has no model yet.", fix="Send a load request first.")
        return self._predictor


def main() -> int:
    """Serves requests until ``close`` or the end of the input; the exit status."""
    # A worker must not outlive its parent, not even one that is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches the whole process group; the parent decides what becomes of workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a runtime that prints must not garble the answers
    service = _Service()
    handlers = {
        "load": service.load,
        "predict": service.predict,
        "inputs": service.inputs,
        "measure": service.measure,
        "memory": service.memory,
    }
    while True:
        try:
            fields, arrays = message.read(requests)
        except EOFError:
            return 0
        kind = fields["do"]
        if kind == "close":
            service.close()
            message.write(answers, {})
            return 0
        _answer(answers, handlers[kind], fields, arrays)


def _answer(
    answers: BinaryIO,
    handle: Callable[[dict[str, Any], Arrays], tuple[dict[str, Any], Arrays]],
    fields: dict[str, Any],
    arrays: Arrays,
) -> None:
    try:
        answer, results = handle(fields, arrays)
        # Whatever cannot be sent is found out before the first byte is written.
        message.write(answers, answer, results)
    except BrokenPipeError:  # nobody is left to be told
        raise
    except BridgeError as error:
        message.write(answers, {"error": message.error_to(error)})
    except Exception as error:  # noqa: BLE001 - it crosses to the parent, traceback and all
        wrapped = PredictError(
            f"the worker failed: {type(error).__name__}: {error}.",
            fix="This is a defect of the bridge or of a plugin; the traceback is in detail.",
            traceback=traceback.format_exc(),
        )
        message.write(answers, {"error": message.error_to(wrapped)})


if __name__ == "__main__":
    sys.exit(main())
