"""Sides of the headline table, each loaded in a process of its own and asked in turn.

A contender is a model file on a backend, a selection record, or the native call that
both replace. All of them get the same requests: one user and a number of items. Those
that take the user once get one row of it, all others get it repeated for each item.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import numpy as np

import bridge_zoo
from bridge.check import Arrays
from bridge.errors import MeasureError
from bridge.loading import backends, load, open_model
from bridge.slice import await_rest, timed
from bridge_bench.process import SERVE, Process, serve
from bridge_bench.stats import median
from bridge_zoo.requests import request

__all__ = ["Contender", "Field", "Turn"]

VARIANTS = 8
WARM_S = 0.3
LOAD_S = 900.0  # compiling included
_DISCARDED = 2  # calls that fetch what the contender before has evicted
_MODULE = "bridge_bench.contender"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that answers requests.

    Attributes:
        name: As tables call it.
        path: A model, or the folder of a selection record.
        backend: Of a model; empty for a record.
        options: Of the backend; of a native call, ``threads`` at most.
        is_native: The backend's own call instead of the bridge.
        takes_user_once: Inputs of the user have one row.
    """

    name: str
    path: Path
    backend: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    is_native: bool = False
    takes_user_once: bool = False

    @property
    def key(self) -> str:
        """Equal for contenders that do the same, whatever they are called."""
        return repr((str(self.path), self.backend, sorted(self.options.items()), self.is_native))


@dataclass(frozen=True)
class Turn:
    """What a turn saw.

    Attributes:
        us: Microseconds of each call.
        elapsed_s: From the beginning of the first call to the end of the last.
    """

    us: list[float]
    elapsed_s: float


class Field:
    """The processes of some contenders of one model of the zoo; a context.

    Only the one that is asked computes: before it answers, it waits until its threads
    have come to rest.

    Args:
        model: Name of the model.
        size: One of the zoo's sizes.
    """

    def __init__(self, model: str, size: str) -> None:
        self._about = {"model": model, "size": size}
        self._processes: dict[str, Process] = {}

    def info(self, contender: Contender) -> dict[str, Any]:
        """What its predictor says of itself; empty for a native call. Loads it."""
        return self._ask(contender, {"do": "info"})

    def warm(self, contender: Contender, rows: int, seconds: float = WARM_S) -> float:
        """Calls it for a while; microseconds of its typical call at the end."""
        wanted = {"do": "warm", "rows": rows, "seconds": seconds}
        return float(self._ask(contender, wanted)["us"])

    def time(self, contender: Contender, rows: int, calls: int, callers: int = 1) -> Turn:
        """Times calls, by so many threads, each of which begins one when its last has ended."""
        wanted = {"do": "time", "rows": rows, "calls": calls, "callers": callers}
        found = self._ask(contender, wanted)
        return Turn(found["us"], found["elapsed_s"])

    def answer(self, contender: Contender, rows: int, seed: int = 0) -> Arrays:
        """Scores of one request, by task."""
        found = self._ask(contender, {"do": "answer", "rows": rows, "seed": seed})
        return {name: np.array(values) for name, values in found.items()}

    def drop(self, contender: Contender) -> None:
        """Ends its process."""
        process = self._processes.pop(contender.key, None)
        if process is not None:
            process.close()

    def close(self) -> None:
        """Ends all processes."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, contender: Contender, wanted: Mapping[str, Any]) -> dict[str, Any]:
        process = self._processes.get(contender.key)
        if process is None or process.is_closed:  # it died, or took too long
            process = self._processes[contender.key] = Process(_MODULE)
            plain = {**asdict(contender), "path": str(contender.path)}
            try:
                process.ask({"do": "load", **self._about, "contender": plain}, timeout_s=LOAD_S)
            except BaseException:
                self.drop(contender)
                raise
        return process.ask(wanted)


class _Loaded:
    """In the contender's process: how it is called, and with what."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        given = wanted["contender"]
        self._description = bridge_zoo.describe(wanted["model"], wanted["size"])
        self._takes_user_once = bool(given["takes_user_once"])
        self._variants: dict[int, list[Arrays]] = {}
        self.info: dict[str, Any] = {}
        if given["is_native"]:
            package = type(backends()[given["backend"]]).__module__.rpartition(".")[0]
            native = importlib.import_module(f"{package}.native")
            model = open_model(given["path"])
            call, named = native.load(model, threads=given["options"].get("threads"))
            self._call: Callable[[Arrays], Arrays] = lambda inputs: named(call(inputs))
            return
        predictor = load(
            given["path"], backend=given["backend"] or None, options=given["options"] or None
        )
        self._call = predictor.predict
        self.info = predictor.info.to_dict()

    def inputs(self, rows: int) -> list[Arrays]:
        if rows not in self._variants:
            self._variants[rows] = [self._request(rows, seed) for seed in range(VARIANTS)]
        return self._variants[rows]

    def answer(self, rows: int, seed: int) -> dict[str, Any]:
        return {
            name: values.tolist() for name, values in self._call(self._request(rows, seed)).items()
        }

    def warm(self, rows: int, seconds: float) -> float:
        variants, ends, found = self.inputs(rows), monotonic() + seconds, [0.0]
        while monotonic() < ends or len(found) < 4:
            found.append(median(timed(self._call, variants, 3)[0].ns) / 1e3)
        return median(found[len(found) // 2 :])

    def time(self, rows: int, calls: int, callers: int) -> dict[str, Any]:
        gc.collect()
        seen, _, _ = timed(
            self._call, self.inputs(rows), calls, discard=_DISCARDED, callers=callers
        )
        return {"us": (seen.ns / 1e3).tolist(), "elapsed_s": seen.elapsed_ns / 1e9}

    def _request(self, rows: int, seed: int) -> Arrays:
        made = request(self._description, rows, seed, is_broadcast=self._takes_user_once)
        return dict(made)


def _serve() -> int:
    loaded: list[_Loaded] = []

    def answer(wanted: dict[str, Any]) -> Mapping[str, Any]:
        match wanted["do"]:
            case "load":
                loaded.append(_Loaded(wanted))
                found: dict[str, Any] = {}
            case "info":
                found = loaded[0].info
            case "warm":
                found = {"us": loaded[0].warm(wanted["rows"], wanted["seconds"])}
            case "time":
                found = loaded[0].time(wanted["rows"], wanted["calls"], wanted["callers"])
            case "answer":
                found = loaded[0].answer(wanted["rows"], wanted["seed"])
            case other:
                raise MeasureError(f"there is no request {other!r}.")
        await_rest()  # the next contender must not compete with threads that still spin
        return found

    return serve(answer)


if __name__ == "__main__":
    if sys.argv[1:] != [SERVE]:
        sys.exit("this is a part of python -m bridge_bench.headline")
    sys.exit(_serve())
