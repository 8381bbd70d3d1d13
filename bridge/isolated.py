"""``bridge.load(model, isolated=True)``: the same predictor over a process of its own.

A crash of the runtime raises ``WorkerDied`` in the calls that were in flight, and
nothing else: the next call starts a fresh process. A call that takes too long raises
``PredictTimeout`` and ends the process as well. The checks run in this process, so that
wrong inputs cost the child nothing; arrays travel through shared memory.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.capabilities import Capabilities, ThreadSafety
from bridge.check import Arrays, Layout
from bridge.cpus import usable_cpus
from bridge.device import Device
from bridge.errors import BridgeError, ModelLoadFailed, OptionError, UnsupportedModel
from bridge.isolation import Loaded, Worker
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor, PredictorInfo
from bridge.supervisor import Supervisor

__all__ = ["IsolatedPredictor", "Isolation"]


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """How a predictor is isolated.

    Attributes:
        timeout_s: Longest time of one call in the child, not counting the time until the
            child takes it up.
        load_timeout_s: Longest time of loading, at first and after a crash.
        lanes: Calls that may be in the child at once; ``None`` means as many as there are
            usable CPUs. It is always 1 for predictors whose calls cannot run side by side.
            Each keeps shared memory of the size of the largest call it has had.
        environment: Variables for the child, on top of this process's own.
    """

    timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    lanes: int | None = None
    environment: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("timeout_s", "load_timeout_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise OptionError(
                    f"{name} is {value!r}; wanted a time above 0.", fix="Give it in seconds."
                )
        if self.lanes is not None and self.lanes < 1:
            raise OptionError(f"lanes is {self.lanes!r}; wanted at least 1.", fix="Leave it out.")


class IsolatedPredictor(Predictor):
    """A predictor in a child process; made by ``bridge.load(model, isolated=True)``.

    ``info`` is the child's own; its ``details`` say ``isolated`` and the ``pid``. What a
    predictor of several arms tells of them is as it was when they were loaded, the ``pid``
    of each included. Up to ``Isolation.lanes`` calls run side by side, more wait their turn.

    After a crash the next call starts a fresh process: 0.1 s after the crash, and twice
    as long after each further one, up to 10 s. After 5 crashes within 60 s every call
    raises ``WorkerDied`` until it is closed. A process that was ended because a call took
    too long does not count as crashed.
    """

    layout = Layout.ANY  # arrays are copied into shared memory, whatever their strides

    def __init__(self, supervisor: Supervisor, model: str, private: Path | None) -> None:
        """Takes over a running child.

        Args:
            supervisor: The child.
            model: The model as errors name it.
            private: A folder to remove at the end.
        """
        loaded = supervisor.loaded
        super().__init__(loaded.signature, _info(supervisor.worker, loaded, model))
        self._supervisor = supervisor
        # Whoever forgets to close it leaves no process behind, not even at exit.
        self._finalizer = weakref.finalize(self, _abandon, supervisor, private, os.getpid())
        self._attach(
            self.info,
            Capabilities(
                zero_rows=loaded.zero_rows,
                thread_safety=ThreadSafety.SHARED,
                warm_calls=loaded.warm_calls,
            ),
            (),
            None,
        )
        me = weakref.ref(self)  # the supervisor must not keep its predictor alive

        def calls() -> int:
            predictor = me()
            return 0 if predictor is None else len(predictor._calls)

        def is_closing() -> bool:
            predictor = me()
            return predictor is None or predictor._refusal is not None

        def on_start(worker: Worker, loaded: Loaded) -> None:
            predictor = me()
            if predictor is not None:
                fresh = _info(worker, loaded, model)
                # What others have added, such as the record that it serves, stays.
                details = {**predictor.info.details, **fresh.details}
                predictor.info = dataclasses.replace(fresh, details=details)

        supervisor.calls, supervisor.is_closing = calls, is_closing
        supervisor.on_start = on_start

    @classmethod
    def load(
        cls,
        model: ModelRef,
        *,
        backend: str | None = None,
        device: str | Device | None = None,
        options: Options | Mapping[str, Any] | Sequence[str] | None = None,
        isolation: Isolation | None = None,
    ) -> IsolatedPredictor:
        """Loads a model in a child process; see ``bridge.load``.

        Raises:
            UnsupportedModel: The model is a live object.
            WorkerDied: The child crashed while it loaded.
            PredictTimeout: Loading took longer than ``Isolation.load_timeout_s``.
            BridgeError: As ``bridge.load`` raises it.
        """
        how = isolation or Isolation()
        if model.live is not None:
            raise UnsupportedModel(
                f"model {model.name} is a live object, which cannot go to another process.",
                fix="Save it and pass the path, or load it without isolated.",
                model=model.name,
            )
        private: Path | None = None
        where = model.path
        try:
            if where is None:
                assert model.data is not None
                private = Path(tempfile.mkdtemp(prefix="bridge-isolated-"))
                where = private / "model"
                where.write_bytes(model.data)
            start = _Start(model, where, backend, device, options, how)
            supervisor = Supervisor(start, lambda loaded: _lanes(how, loaded), how.timeout_s)
        except BaseException:
            if private is not None:
                shutil.rmtree(private, ignore_errors=True)
            raise
        return cls(supervisor, model.name, private)

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        try:
            return self._supervisor.call(inputs, outputs)
        except BridgeError as error:
            error.model = self.info.model  # the child knows its copy by another name
            raise

    def _update(self, source: Path) -> None:
        details = self._supervisor.update(source)
        self.info = dataclasses.replace(self.info, details={**self.info.details, **details})

    def _changed_details(self) -> Mapping[str, Any]:
        return self._supervisor.details()

    def _close(self) -> None:
        self._supervisor.close()
        self._finalizer()


class _Start:
    """Starts a child with the model, the same one each time."""

    def __init__(
        self,
        model: ModelRef,
        path: Path,
        backend: str | None,
        device: str | Device | None,
        options: Options | Mapping[str, Any] | Sequence[str] | None,
        isolation: Isolation,
    ) -> None:
        self._model = model
        self._path = path
        self._backend = backend
        self._device = device
        self._options = options
        self._isolation = isolation
        self._state: tuple[object, ...] | None = None

    def __call__(self) -> tuple[Worker, Loaded]:
        model, state = self._model, self._files()
        if self._state is not None and state != self._state:
            raise ModelLoadFailed(
                f"{model.name} has changed on disk since it was loaded, so the worker that "
                "crashed cannot be replaced by an equal one.",
                fix="Close this predictor and load the model again.",
                model=model.name,
            )
        worker = Worker(environment=self._isolation.environment)
        try:
            loaded = worker.load(
                self._path,
                backend=self._backend,
                device=self._device,
                options=self._options,
                signature=model.declared or model.signature_key,
                trust=model.trust,
                here=True,
                timeout_s=self._isolation.load_timeout_s,
            )
        except BridgeError as error:
            worker.kill()
            error.model = model.name
            raise
        except BaseException:
            worker.kill()
            raise
        self._state = state
        return worker, loaded

    def _files(self) -> tuple[object, ...]:
        """Enough of the files to notice another model in their place."""
        if self._model.path is None:
            return ()
        found = []
        for path in self._model.format.files(self._model):
            about = path.stat()
            found.append((path, about.st_size, about.st_mtime_ns, about.st_ino))
        return tuple(found)


def _lanes(isolation: Isolation, loaded: Loaded) -> int:
    if loaded.thread_safety is not ThreadSafety.SHARED:
        return 1  # more would only wait in the child, where their time is counted
    return isolation.lanes or usable_cpus()


def _info(worker: Worker, loaded: Loaded, model: str) -> PredictorInfo:
    told = dict(loaded.info)
    told["device"] = Device.parse(told["device"])
    told["model"] = model
    told["details"] = {**told["details"], "isolated": True, "pid": worker.pid}
    known = {one.name for one in dataclasses.fields(PredictorInfo)}
    return PredictorInfo(**{name: value for name, value in told.items() if name in known})


def _abandon(supervisor: Supervisor, private: Path | None, owner: int) -> None:
    if os.getpid() != owner:  # in a fork, all of it is still the parent's
        return
    supervisor.kill()
    if private is not None:
        shutil.rmtree(private, ignore_errors=True)
