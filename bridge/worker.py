"""The child side of a worker: ``python -m bridge.worker SOCKET`` serves predictors in slots.

It reads requests from its standard input and answers on its standard output; what
runtimes print goes to standard error, a file that the parent reads when something went
wrong. Requests, by their field ``do``:

``prepare``  backend -> rss_bytes, with the runtime imported
``load``     slot, model, backend, device, options, signature, trust, here -> signature,
             info, load_s, rss_growth_bytes, thread_safety, zero_rows, warm_calls
``unload``   slot
``predict``  slot, outputs, with arrays -> arrays, call_s
``details``  slot -> details, asked of the runtime anew
``update``   slot, source -> details, with newer parameters taken over
``inputs``   key, names, with arrays: sets of inputs for ``measure``
``outputs``  slot, key -> calls_s; keeps the outputs of each set of inputs
``measure``  slot, key, calls, discard, callers, split_rows, ... -> elapsed_ns, cpu_ns, drift,
             warmed and the array ``ns``
``null``     calls -> array ``ns`` of calls that do nothing
``convert``  model, adapter, target, options, signature, trust, has_samples and the samples
             as arrays -> facts
``lane``     slot, with ``Lane.descriptors`` waiting in the socket: serves a lane
``memory``   reset_peak -> rss_bytes, peak_rss_bytes, isolated predictors' processes included
``close``    ends the process

An answer has either its fields or ``error``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

from bridge import logs, message
from bridge.check import Arrays
from bridge.errors import BridgeError, PredictError
from bridge.lane import serve
from bridge.loading import load, open_model
from bridge.memory import resident_bytes
from bridge.predictor import Predictor
from bridge.registry import registry
from bridge.signature import Signature
from bridge.slice import drift, null_call, timed

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # prctl(2)
_MAX_LOG_BYTES = 1 << 20
_LOG_CHECK_CALLS = 500

_Answer = tuple[dict[str, Any], Arrays]


class _Service:
    """The predictors of this process, and the inputs and outputs kept for measuring."""

    def __init__(self, lanes: socket.socket) -> None:
        self._lanes = lanes
        self._predictors: dict[int, Predictor] = {}
        self._inputs: dict[str, list[Arrays]] = {}
        self._outputs: dict[tuple[int, str], list[Arrays]] = {}
        self._turns: dict[tuple[int, str], int] = {}
        self._warm: set[tuple[int, str]] = set()
        self._measured: int | None = None

    def prepare(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        backend = registry().backends.get(request["backend"])
        backend.require()
        # Both may import the runtime; for every backend so far, one of them does.
        backend.devices()
        backend.error_rules()
        return {"rss_bytes": _rss_bytes()}, {}

    def load(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        slot = request["slot"]
        self.unload(request, arrays)
        before = _rss_bytes()
        started = perf_counter()
        predictor = _loaded(request)
        load_s = perf_counter() - started
        self._predictors[slot] = predictor
        claims = predictor._capabilities
        answer = {
            "load_s": load_s,
            "rss_growth_bytes": max(0, _rss_bytes() - before) + _isolated_bytes([predictor]),
            "signature": predictor.signature.to_dict(),
            "info": predictor.info.to_dict(),
            "thread_safety": claims.thread_safety.name,
            "zero_rows": claims.zero_rows,
            "warm_calls": claims.warm_calls,
        }
        return answer, {}

    def unload(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        slot = request["slot"]
        predictor = self._predictors.pop(slot, None)
        for entry in [one for one in self._turns if one[0] == slot]:
            self._turns.pop(entry)
        for entry in [one for one in self._outputs if one[0] == slot]:
            self._outputs.pop(entry)
        self._warm = {one for one in self._warm if one[0] != slot}
        if predictor is not None:
            predictor.close()
        return {}, {}

    def predict(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        predict = self.predictor(request["slot"]).predict
        started = perf_counter()
        results = predict(arrays, request["outputs"])
        return {"call_s": perf_counter() - started}, results

    def update(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        predictor = self.predictor(request["slot"])
        predictor.update(request["source"])
        return {"details": dict(predictor.info.details)}, {}

    def details(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        return {"details": dict(self.predictor(request["slot"]).refresh_info().details)}, {}

    def inputs(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        key = request["key"]
        self._inputs[key] = [
            {name: arrays[f"{index}:{name}"] for name in names}
            for index, names in enumerate(request["names"])
        ]
        for entry in [one for one in self._outputs if one[1] == key]:
            self._outputs.pop(entry)
        return {}, {}

    def outputs(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        slot, key = request["slot"], request["key"]
        predict = self.predictor(slot).predict
        kept, calls_s = [], []
        for inputs in self._variants(key):
            started = perf_counter()
            kept.append(predict(inputs))
            calls_s.append(perf_counter() - started)
        self._outputs[slot, key] = kept
        return {"calls_s": calls_s}, {}

    def measure(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        slot, key, calls = request["slot"], request["key"], request["calls"]
        discard = request["discard"]
        variants = self._variants(key)
        warmed = self._warmed(slot, key, variants)
        is_new, self._measured = slot != self._measured, slot
        found, last, variant = timed(
            self._call(request),
            variants,
            calls,
            first=self._turns.get((slot, key), 0),
            discard=discard,
            callers=request["callers"],
            settle=is_new,  # what ran before may still be spinning
        )
        # The next slice begins where this one ended, so that few calls see all variants.
        self._turns[slot, key] = (variant + 1) % len(variants)
        kept = self._outputs.get((slot, key))
        answer = {
            "elapsed_ns": found.elapsed_ns,
            "cpu_ns": found.cpu_ns,
            "drift": None if kept is None else drift(last, kept[variant]),
            "warmed": warmed,
        }
        return answer, {"ns": found.ns}

    def _warmed(self, slot: int, key: str, variants: Sequence[Arrays]) -> int:
        """Makes the calls that a predictor learns from, once; how many they were."""
        predictor = self.predictor(slot)
        calls = predictor._capabilities.warm_calls
        if not calls or (slot, key) in self._warm:
            return 0
        self._warm.add((slot, key))
        for turn in range(calls):
            predictor.predict(variants[turn % len(variants)])
        return calls

    def null(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        found, _, _ = timed(null_call, [{}], request["calls"], discard=10)
        return {}, {"ns": found.ns}

    def convert(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        signature = request["signature"]
        model = open_model(
            request["model"],
            signature=Signature.from_dict(signature) if isinstance(signature, dict) else signature,
            trust=request["trust"],
        )
        adapter = registry().adapters.get(request["adapter"])
        facts = adapter.convert(
            model,
            Path(request["target"]),
            options=request["options"],
            samples=arrays if request["has_samples"] else None,
        )
        return {"facts": json.loads(json.dumps(dict(facts), default=str))}, {}

    def lane(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        _, descriptors, _, _ = socket.recv_fds(self._lanes, 16, 4)
        call = self.predictor(request["slot"]).predict
        calls = 0

        def predict(inputs: Mapping[str, Any], outputs: Sequence[str] | None) -> Arrays:
            nonlocal calls
            calls += 1
            if calls % _LOG_CHECK_CALLS == 0:
                _shorten_log()
            return call(inputs, outputs)

        threading.Thread(
            target=serve, args=(predict, wrapped, descriptors), name="bridge-lane", daemon=True
        ).start()
        return {}, {}

    def memory(self, request: dict[str, Any], arrays: Arrays) -> _Answer:
        predictors = list(self._predictors.values())
        answer = {
            "rss_bytes": _rss_bytes() + _isolated_bytes(predictors),
            "peak_rss_bytes": _peak_rss_bytes() + _isolated_bytes(predictors, "VmHWM"),
        }
        if request["reset_peak"]:
            # "5" resets the peak: proc_pid_clear_refs(5). Not every container allows it.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return answer, {}

    def close(self) -> None:
        for predictor in self._predictors.values():
            predictor.close()

    def predictor(self, slot: int) -> Predictor:
        """What is loaded in a slot; ``PredictError`` if nothing is."""
        try:
            return self._predictors[slot]
        except KeyError:
            raise PredictError(
                f"the worker has no model yet in slot {slot}.", fix="Send a load request first."
            ) from None

    def _variants(self, key: str) -> list[Arrays]:
        try:
            return self._inputs[key]
        except KeyError:
            raise PredictError(
                f"the worker has no inputs '{key}' to measure with.", fix="Keep some first."
            ) from None

    def _call(self, request: dict[str, Any]) -> Callable[[Arrays], Arrays]:
        predictor = self.predictor(request["slot"])
        rows = request["split_rows"]
        if rows is None:
            return predictor.predict
        from bridge.routing import split_predict

        axes, output_axes = request["batch_axes"], request["output_batch_axes"]
        if axes is None:
            axes = predictor.signature.batch_axes()
        if output_axes is None:
            output_axes = dict.fromkeys(predictor.signature.output_names, 0)
        return lambda inputs: split_predict(predictor, inputs, None, rows, axes, output_axes)


def _loaded(request: Mapping[str, Any]) -> Predictor:
    signature = request["signature"]
    said = {
        "signature": Signature.from_dict(signature) if isinstance(signature, dict) else signature,
        "trust": request["trust"],
    }
    how = {name: request[name] for name in ("device", "options")}
    if not request["here"]:
        return load(request["model"], backend=request["backend"], **how, **said)
    model = open_model(request["model"], **said)
    name = request["backend"] or model.format.native_backend
    return registry().backends.get(name).load(model, **how)


def _shorten_log() -> None:
    """Empties what was printed so far, if it is a lot: nobody else ever does."""
    if os.fstat(2).st_size > _MAX_LOG_BYTES:
        os.ftruncate(2, 0)


def _rss_bytes() -> int:
    return resident_bytes() or 0  # workers run on Linux only, which tells


def _peak_rss_bytes() -> int:
    # Not ru_maxrss: a child starts with its parent's, and nothing resets it.
    return max(_status_bytes("self", "VmHWM"), _rss_bytes())


def _isolated_bytes(predictors: Iterable[Predictor], name: str = "VmRSS") -> int:
    """The same of the processes that predictors have for themselves."""
    told = [one.info.details for one in predictors]
    return sum(_status_bytes(one["pid"], name) for one in told if one.get("isolated"))


def _status_bytes(process: str | int, name: str) -> int:
    """A figure of a process from proc_pid_status(5); 0 where it has ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        for line in text.split("\n"):
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    """Serves requests until ``close`` or the end of the input; the exit status."""
    # A worker must not outlive its parent, not even one that is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches the whole process group; the parent decides what becomes of workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a runtime that prints must not garble the answers
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)  # nor may a compiler that it runs read the requests
    logs.outputs_are_kept()
    service = _Service(socket.socket(fileno=int(sys.argv[1])))
    handlers = {
        "prepare": service.prepare,
        "load": service.load,
        "unload": service.unload,
        "predict": service.predict,
        "details": service.details,
        "update": service.update,
        "inputs": service.inputs,
        "outputs": service.outputs,
        "measure": service.measure,
        "null": service.null,
        "convert": service.convert,
        "lane": service.lane,
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
    handle: Callable[[dict[str, Any], Arrays], _Answer],
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
        message.write(answers, {"error": message.error_to(wrapped(error))})


def wrapped(error: Exception) -> PredictError:
    """An error that only a defect can cause, told with its traceback."""
    return PredictError(
        f"the worker failed: {type(error).__name__}: {error}.",
        fix="This is a defect of the bridge or of a plugin; the traceback is in detail.",
        traceback=traceback.format_exc(),
    )


if __name__ == "__main__":
    sys.exit(main())
