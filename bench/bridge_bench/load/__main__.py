"""The child side: ``python -m bridge_bench.load`` puts one predictor under load.

It reads requests from its standard input and answers on its standard output, as
``bridge.message`` frames them. Requests, by their field ``do``:

``load``    model, backend, device, options, signature, trust -> what
            ``Process`` keeps of it
``null``    a predictor that does nothing, for measuring the harness -> nothing
``sample``  with arrays: keeps them as one sample -> kept
``warm``    least_s -> ``Warmup``
``run``     order, median_s, folder -> the fields and arrays of ``Timed``, and failures
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

from bridge import message
from bridge.check import Arrays
from bridge.errors import BridgeError, MeasureError, RecordWarning
from bridge.loading import load
from bridge.signature import Signature
from bridge_bench.load import issuer, loadgen
from bridge_bench.load.calls import Calls, Warmup
from bridge_bench.load.scenario import Issuer, Order

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


class _Service:
    """One predictor, its samples, and the runs on them."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._writing = threading.Lock()
        self._predict: Any = None
        self._warm_calls = 0
        self._samples: list[Arrays] = []

    def answer(self, fields: dict[str, Any], arrays: Arrays) -> None:
        """Handles one request and writes the answer."""
        handle = {
            "load": self._load,
            "null": self._null,
            "sample": self._sample,
            "warm": self._warm,
            "run": self._run,
        }[fields["do"]]
        results: Arrays = {}
        try:
            answer, results = handle(fields, arrays)
        except BridgeError as error:
            answer = {"error": message.error_to(error)}
        except Exception as error:  # noqa: BLE001 - it crosses to the parent, traceback and all
            wrapped = MeasureError(
                f"the load generator failed: {type(error).__name__}: {error}.",
                fix="This is a defect of the bridge or of a plugin; the traceback is in detail.",
                traceback=traceback.format_exc(),
            )
            answer = {"error": message.error_to(wrapped)}
        with self._writing:
            message.write(self._answers, answer, results)

    def _load(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        signature = fields["signature"]
        started = perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RecordWarning)
            predictor = load(
                fields["model"],
                backend=fields["backend"],
                device=fields["device"],
                options=fields["options"],
                signature=Signature.from_dict(signature)
                if isinstance(signature, dict)
                else signature,
                trust=fields["trust"],
            )
        self._predict = predictor.predict
        self._warm_calls = predictor._capabilities.warm_calls
        answer = {
            "load_s": perf_counter() - started,
            "warnings": [str(one.message) for one in caught if one.category is RecordWarning],
            "signature": predictor.signature.to_dict(),
            "info": predictor.info.to_dict(),
        }
        return answer, {}

    def _null(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        self._predict = _nothing
        return {}, {}

    def _sample(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        self._samples.append(arrays)
        return {"kept": len(self._samples)}, {}

    def _warm(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        warmup: Warmup = Calls(self._predict, self._samples).warm(
            fields["least_s"], self._warm_calls
        )
        return dataclasses.asdict(warmup), {}

    def _run(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        order = Order.from_dict(fields["order"])
        calls = Calls(self._predict, self._samples)
        with self._deadline(order.timeout_s, calls), _no_collections():
            if order.issuer is Issuer.LOADGEN:
                timed = loadgen.run(order, calls, fields["median_s"], Path(fields["folder"]))
            else:
                timed = issuer.run(order, calls)
        results = {
            name: getattr(timed, name)
            for name in ("scheduled", "issued", "done", "started", "ended")
        }
        answer = {
            "dropped": timed.dropped,
            "abandoned": timed.abandoned,
            "notes": list(timed.notes),
            "loadgen": timed.loadgen,
            "failed": calls.failed,
            "failure": None if calls.error is None else message.error_to(calls.error),
        }
        return answer, results

    @contextmanager
    def _deadline(self, timeout_s: float, calls: Calls) -> Iterator[None]:
        """Says what is missing if the run does not end, and ends the process.

        LoadGen waits for ever for a sample that is not completed.
        """

        def give_up() -> None:
            faulthandler.dump_traceback(all_threads=True)
            late = {"issued": calls.issued, "completed": calls.completed}
            self._writing.acquire()  # and never released: nothing else may be said
            message.write(self._answers, {"late": late})
            os._exit(1)

        watchdog = threading.Timer(timeout_s, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()


def _nothing(inputs: Arrays) -> None:
    """The predictor that takes no time."""


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keeps the garbage collector out of the times."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def main() -> int:
    """Serves requests until the end of the input; the exit status."""
    # It must not outlive its parent, not even one that is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches the whole process group; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a runtime or LoadGen that prints must not garble the answers
    service = _Service(answers)
    while True:
        try:
            fields, arrays = message.read(requests)
        except EOFError:
            answers.flush()
            # Not the ordinary way: what LoadGen leaves after a failed start aborts there.
            os._exit(0)
        service.answer(fields, arrays)


if __name__ == "__main__":
    sys.exit(main())
