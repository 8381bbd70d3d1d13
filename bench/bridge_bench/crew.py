"""The worker processes of a selection, and the arms that live in them.

Arms of one process key share a worker, each in a slot of its own; the key is chosen so
that nothing process-wide is shared by arms that differ in it. Workers are stopped
except while one of their arms has its turn, so that idle threads disturb nobody. A
worker that dies takes only the arm whose turn it was with it: the others are loaded
again, into a fresh one, when the next of them has its turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from bridge.check import Arrays
from bridge.errors import BridgeError, PredictTimeout, WorkerDied
from bridge.isolation import Slice, Worker
from bridge.model import ModelRef
from bridge.signature import Signature
from bridge_bench.entrant import Entrant

__all__ = ["Crew"]


class Crew:
    """Loads arms into workers and gives them turns.

    Args:
        models: Models by index, as the arms name them.
        load_timeout_s: Longest time that loading an arm may take.
        call_timeout_s: Longest time that a call may take.
    """

    def __init__(
        self,
        models: Sequence[ModelRef],
        *,
        load_timeout_s: float = 60.0,
        call_timeout_s: float = 60.0,
    ) -> None:
        self._models = models
        self._call_timeout_s = call_timeout_s
        self._load_timeout_s = load_timeout_s
        self._workers: dict[str, Worker] = {}
        self._runtime_bytes: dict[str, int] = {}
        self._loaded: dict[str, dict[int, Entrant]] = {}
        self._inputs: dict[str, list[Arrays]] = {}
        self._kept: dict[Worker, set[object]] = {}
        self._before: dict[int, int] = {}

    def load(self, entrant: Entrant, *, timeout_s: float | None = None) -> Signature:
        """Loads an arm into its worker; sets what loading tells about it.

        Returns:
            The signature of its predictor.

        Raises:
            BridgeError: It could not be loaded, or its worker died, or took too long.
        """
        key = self._key(entrant)
        with self._guarded(entrant, key):
            worker = self._worker(entrant, key)
            signature = self._load_into(worker, entrant, timeout_s or self._load_timeout_s)
            self._loaded.setdefault(key, {})[entrant.slot] = entrant
            worker.pause()
        return signature

    def drop(self, entrant: Entrant) -> None:
        """Frees an arm that takes no further part; the last of a worker ends it."""
        key = self._key(entrant)
        arms = self._loaded.get(key, {})
        if arms.pop(entrant.slot, None) is None:
            return
        if arms:
            with contextlib.suppress(BridgeError), self._turn(entrant, reload=False) as worker:
                worker.unload(entrant.slot)
        else:
            self._end(key)

    def predict(
        self, entrant: Entrant, inputs: Mapping[str, object], *, timeout_s: float | None = None
    ) -> tuple[Arrays, float]:
        """One call by the record's input names: outputs by the arm's own names, and seconds."""
        with self._turn(entrant) as worker:
            return worker.predict(
                _renamed(entrant, inputs),
                slot=entrant.slot,
                timeout_s=timeout_s or self._call_timeout_s,
            )

    def weigh(self, entrant: Entrant) -> None:
        """Sets the arm's memory: what its worker has grown by since the arm was loaded.

        To be called before another arm of the worker is loaded or called.
        """
        key = self._key(entrant)
        with self._turn(entrant) as worker:
            now = worker.memory()
        before, runtime = self._before[entrant.slot], self._runtime_bytes[key]
        entrant.memory_bytes = runtime + max(0, now["rss_bytes"] - before)
        entrant.peak_memory_bytes = max(
            entrant.memory_bytes, runtime + max(0, now["peak_rss_bytes"] - before)
        )

    def keep(self, name: str, variants: Sequence[Arrays]) -> None:
        """Names a set of inputs (by the record's names) that ``measure`` uses in turn."""
        self._inputs[name] = list(variants)
        for kept in self._kept.values():
            kept.difference_update({one for one in kept if isinstance(one, tuple) and name in one})

    def measure(
        self,
        entrant: Entrant,
        name: str,
        calls: int,
        *,
        discard: int = 2,
        callers: int = 1,
        split: tuple[int, Mapping[str, int], Mapping[str, int]] | None = None,
        timeout_s: float | None = None,
    ) -> Slice:
        """Times calls of an arm on a kept set of inputs; see ``Worker.measure``."""
        with self._turn(entrant) as worker:
            key = self._send(worker, entrant, name)
            rows, inputs, outputs = split or (None, {}, {})
            theirs = {ours: name_ for name_, ours in entrant.inputs.items()}
            return worker.measure(
                calls,
                slot=entrant.slot,
                key=key,
                discard=discard,
                callers=callers,
                split_rows=rows,
                batch_axes={theirs.get(one, one): axis for one, axis in inputs.items()},
                output_batch_axes={
                    entrant.outputs.get(one, one): axis for one, axis in outputs.items()
                },
                timeout_s=timeout_s or self._call_timeout_s,
            )

    def floor_s(self, calls: int = 2000) -> float:
        """Median time of a call that does nothing, in the loop that times arms."""
        with Worker() as worker:
            return float(sorted(worker.null_call_ns(calls))[calls // 2]) / 1e9

    def close(self) -> None:
        """Ends all workers; may be called twice."""
        for key in list(self._workers):
            self._end(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _turn(self, entrant: Entrant, *, reload: bool = True) -> Iterator[Worker]:
        """The arm's worker, running while the block lasts; others are stopped."""
        key = self._key(entrant)
        with self._guarded(entrant, key):
            worker = self._workers.get(key)
            if worker is None:
                if not reload:
                    raise WorkerDied("the worker is gone.", fix="Load the arm again.")
                # A fresh one; the others are loaded into it when they have their turn.
                worker = self._worker(entrant, key)
            else:
                worker.resume()
            if reload and entrant.slot not in self._loaded.setdefault(key, {}):
                self._load_into(worker, entrant, self._load_timeout_s)
                self._loaded[key][entrant.slot] = entrant
            yield worker
            worker.pause()

    @contextlib.contextmanager
    def _guarded(self, entrant: Entrant, key: str) -> Iterator[None]:
        try:
            yield
        except (WorkerDied, PredictTimeout) as error:
            # The worker is gone; the others of this key come back when they have a turn.
            self._end(key)
            error.detail["arm"] = entrant.id
            raise
        except BridgeError as error:
            error.detail["arm"] = entrant.id
            worker = self._workers.get(key)
            if worker is not None:
                worker.pause()
            raise

    def _worker(self, entrant: Entrant, key: str) -> Worker:
        worker = self._workers.get(key)
        if worker is not None:
            worker.resume()
            return worker
        worker = Worker()
        try:
            bare = worker.memory()["rss_bytes"]
            runtime = worker.prepare_runtime(entrant.plan.backend, timeout_s=self._load_timeout_s)
            self._runtime_bytes[key] = max(0, runtime - bare)
        except BaseException:
            worker.close()
            raise
        self._workers[key] = worker
        self._kept[worker] = set()
        return worker

    def _load_into(self, worker: Worker, entrant: Entrant, timeout_s: float) -> Signature:
        model = self._models[entrant.plan.model]
        self._before[entrant.slot] = worker.memory(reset_peak=True)["rss_bytes"]
        loaded = worker.load(
            model.file,
            backend=entrant.plan.backend,
            device=str(entrant.plan.device),
            options=entrant.plan.options,
            signature=model.declared or model.signature_key,
            trust=model.trust,
            slot=entrant.slot,
            timeout_s=timeout_s,
        )
        entrant.signature, entrant.info = loaded.signature, loaded.info
        entrant.load_s = loaded.load_s
        return loaded.signature

    def _send(self, worker: Worker, entrant: Entrant, name: str) -> str:
        """Makes sure that the worker has these inputs, and this arm's answers to them."""
        key = f"{entrant.plan.model}|{name}|{sorted(entrant.inputs.items())}"
        kept = self._kept[worker]
        if (key, name) not in kept:
            variants = [_renamed(entrant, one) for one in self._inputs[name]]
            worker.keep_inputs(key, variants)
            kept.add((key, name))
        if (entrant.slot, key, name) not in kept:
            worker.keep_outputs(slot=entrant.slot, key=key)
            kept.add((entrant.slot, key, name))
        return key

    def _end(self, key: str) -> None:
        self._loaded.pop(key, None)
        worker = self._workers.pop(key, None)
        if worker is not None:
            self._kept.pop(worker, None)
            worker.close()

    @staticmethod
    def _key(entrant: Entrant) -> str:
        return entrant.plan.process_key


def _renamed(entrant: Entrant, inputs: Mapping[str, object]) -> Arrays:
    """Inputs by the arm's own names, those that it does not take left out."""
    if not entrant.inputs:
        return dict(inputs)  # type: ignore[arg-type]
    return {theirs: inputs[ours] for theirs, ours in entrant.inputs.items()}  # type: ignore[misc]
