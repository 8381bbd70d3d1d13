"""A loaded model, ready to answer.

Lifecycle::

    Backend.load ──> open ── predict, bind, warmup (any thread) ──> close ──> closed
                       └── fork ──> in the child: ForkedPredictor on every call

``predict`` after ``close`` raises ``PredictorClosed``; ``close`` twice is fine. Calls
that run while another thread closes finish and return their results; the native
objects go when the last of them has returned. In a forked child the native objects
are never touched, not even destroyed: their threads and locks did not survive the fork.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from bridge.binding import Bound, buffers
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.check import Arrays, Layout, check_inputs, compile_check
from bridge.device import CPU, Device
from bridge.errors import (
    BridgeError,
    ErrorRule,
    ForkedPredictor,
    InputError,
    PredictError,
    PredictorClosed,
    UnknownOutput,
    UnsupportedModel,
    nearest,
    translate,
)
from bridge.signature import Signature

__all__ = ["Predictor", "PredictorInfo"]

_Result = TypeVar("_Result")

_DLPACK_KINDS = {"cuda": 2}
"""DLPack's numbers of the kinds of device whose memory a predictor may take as it is."""


@dataclass(frozen=True, kw_only=True)
class PredictorInfo:
    """What really runs, as the runtime itself reports it.

    A backend fills in ``device`` to ``details``; the bridge adds the rest on loading.

    Attributes:
        device: Where it runs.
        provider: The runtime's own word for what executes, such as ``CPUExecutionProvider``.
        precision: Precision of the arithmetic, such as ``float32`` or ``bfloat16``.
        threads: Threads that one call may use; ``None`` where the runtime does not say.
        stateful: A call changes the model, so that equal inputs may give other outputs.
        versions: Versions of the runtime and of what matters beside it.
        details: Anything else worth knowing, JSON types only.
        backend: Name of the backend.
        format: Name of the model's format.
        model: The model as errors name it.
        options: Options that differ from their defaults.
        resident_bytes: By how much the resident memory of this process grew while the model
            was loaded, at least 0; of an isolated predictor, that of its own process. The
            runtime is in it where this was the first to import it, and so is whatever other
            threads allocated meanwhile, such as other loads. ``None`` where the system does
            not tell.
    """

    device: Device = CPU
    provider: str = ""
    precision: str = "float32"
    threads: int | None = None
    stateful: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""
    format: str = ""
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    resident_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain["device"] = str(self.device)
        for name in ("versions", "details", "options"):
            plain[name] = dict(plain[name])
        return plain


class Predictor(ABC):
    """The one interface to a loaded model.

    A backend author writes ``_predict`` and ``_close``, and calls ``__init__`` with the
    signature and the info. Everything else is final.

    Attributes:
        layout: Which arrays ``_predict`` takes as they are; the bridge copies others.
        device_inputs: Whether ``_predict`` also takes a ``bridge.dlpack.DeviceArray``, which
            it gets for an input that lies in the memory of ``info.device``. Such inputs are
            refused otherwise: nothing is copied from a device behind the caller's back.
        signature: Names, dtypes and shapes of inputs and outputs.
        info: What really runs.
    """

    layout: ClassVar[Layout] = Layout.CONTIGUOUS
    device_inputs: ClassVar[bool] = False

    def __init__(self, signature: Signature, info: PredictorInfo) -> None:
        self.signature = signature
        self.info = info
        self._output_names = signature.output_names
        self._rules: tuple[ErrorRule, ...] = ()
        # One entry per running call. Each has a key of its own, so that leaving is right
        # wherever Ctrl-C interrupts entering; setting and popping are atomic.
        self._calls: dict[object, None] = {}
        self._refusal: Callable[[], BridgeError] | None = None
        self._closing = threading.Lock()
        self._is_released = False
        self._capabilities = Capabilities()
        self._executor: ThreadPoolExecutor | None = None
        self._settle(ThreadSafety.EXCLUSIVE, None)

    @abstractmethod
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        """Computes the outputs; written by the backend author.

        Args:
            inputs: Checked numpy arrays by name, laid out as ``layout`` says. The mapping
                may be the caller's own: neither it nor the arrays may be changed, and
                none may be kept after the call.
            outputs: Names wanted; more may be returned.

        Returns:
            Host arrays that nobody else writes to, by output name.
        """

    @abstractmethod
    def _close(self) -> None:
        """Lets go of the native objects; called once, with no call running."""

    def _bind(self, inputs: Arrays) -> Bound:
        """A bound call over these buffers; override to use the runtime's own binding."""
        return Bound(self, inputs)

    def _changed_details(self) -> Mapping[str, Any]:
        """Entries of ``info.details`` that change while it serves; override where some do."""
        return {}

    def predict(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Arrays:
        """Answers one call; may be used from any thread.

        Args:
            inputs: For each input that the signature requires, a numpy array or an object
                with ``__dlpack__`` or ``__array__`` in host memory; in the memory of its
                own device where the predictor's ``device_inputs`` says so. They are never
                modified. dtypes are never cast.
            outputs: Names of the outputs wanted; ``None`` means all.

        Returns:
            Arrays by output name, which can be written to. They belong to the caller: no later
            call writes to them. Other libraries take them without a copy, for example by
            ``torch.from_dlpack(array)``.

        Raises:
            InputError: The inputs do not fit; the subclass says how.
            PredictError: The runtime failed.
            PredictorClosed, ForkedPredictor: This predictor cannot answer any more.
        """
        calls, call = self._calls, object()
        try:
            calls[call] = None
            if self._refusal is not None:
                raise self._refusal()
            checked = self._check(inputs)
            if outputs is None:
                return self._call(checked, self._output_names)
            return self._subset(checked, outputs)
        except BridgeError as error:
            raise self._in_context(error)  # noqa: B904 - the same error, with more attributes
        except Exception as error:
            raise self._translated(error) from error
        finally:
            calls.pop(call, None)
            if self._refusal is not None:
                self._release()

    def _update(self, source: Path) -> None:
        """Takes over newer parameters; override where that can be done whole or not at all."""
        raise UnsupportedModel(
            f"the parameters of {self.info.model} cannot be renewed while it is loaded.",
            fix="Load the newer model, and close this predictor once that one serves.",
            model=self.info.model,
        )

    def update(self, source: str | os.PathLike[str]) -> None:
        """Takes over newer parameters from a file or folder, without loading again; final.

        Calls may run meanwhile. Each sees the parameters of before or those of after, whole:
        what cannot be done so is refused. If it fails, those of before stay.

        Args:
            source: What holds them; the format of the model says what that may be.

        Raises:
            UnsupportedModel: This kind of predictor cannot do that.
            ModelError: What is there does not fit, or cannot be read.
            PredictorClosed, ForkedPredictor: This predictor cannot answer any more.
        """
        self._within_call(lambda: self._update(Path(os.fsdecode(source)).absolute()))

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> Bound:
        """Buffers of fixed shape and a call that works on them; see ``Bound``.

        Args:
            shapes: Shape of every required input.

        Returns:
            An object for use by one thread at a time.

        Raises:
            InputError: The shapes do not fit the signature.
            PredictorClosed, ForkedPredictor: This predictor cannot answer any more.
        """

        def bound() -> Bound:
            arrays = buffers(self.signature, shapes)
            # Names that the signature does not have stay in, for the check to refuse them.
            given = {name: arrays.get(name) for name in shapes}
            check_inputs(self.signature, given, zero_rows=self._capabilities.zero_rows)
            made = self._guarded(self._bind)(arrays)
            _alive.add(made)
            return made

        return self._within_call(bound)

    def refresh_info(self) -> PredictorInfo:
        """Asks the runtime what has changed since, such as the version of an updated model.

        Returns:
            ``info``, renewed.

        Raises:
            PredictError: The runtime cannot tell.
            PredictorClosed, ForkedPredictor: This predictor cannot answer any more.
        """
        changed = self._within_call(self._guarded(self._changed_details))
        self.info = dataclasses.replace(self.info, details={**self.info.details, **changed})
        return self.info

    def _within_call(self, work: Callable[[], _Result]) -> _Result:
        """What work returns, as part of a call: a close meanwhile waits for it, as in predict."""
        call = object()
        try:
            self._calls[call] = None
            if self._refusal is not None:
                raise self._refusal()
            return work()
        except BridgeError as error:
            raise self._in_context(error)  # noqa: B904 - the same error, with more attributes
        except Exception as error:
            raise self._translated(error) from error
        finally:
            self._calls.pop(call, None)
            if self._refusal is not None:
                self._release()

    def warmup(
        self, inputs: Mapping[str, Any] | None = None, batches: Iterable[int] = (1,)
    ) -> None:
        """Makes first-call work (compilation, allocation) happen now.

        Args:
            inputs: Inputs to use, as they are; ``None`` makes zeros from the signature.
            batches: Numbers of rows to run, where ``inputs`` is ``None``. Each runs twice,
                because profiling executors optimise on the second call, and as often as
                ``Capabilities.warm_calls`` of the backend says.

        Raises:
            InputError: The signature does not say enough to make inputs.
        """
        if inputs is not None:
            runs: list[Mapping[str, Any]] = [inputs]
        else:
            try:
                runs = [self.signature.zeros(rows) for rows in batches]
            except ValueError as error:
                raise InputError(
                    f"warm-up inputs cannot be made: {error}",
                    fix="Pass inputs to warmup, or signature= when loading.",
                    model=self.info.model,
                ) from error
        for run in runs:
            for _ in range(max(2, self._capabilities.warm_calls)):
                self.predict(run)

    def close(self) -> None:
        """Ends this predictor; running calls finish first, a second close does nothing."""
        if self._refusal is None:
            self._refusal = self._closed
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._refusal is not None else ""
        return (
            f"<{type(self).__name__}{state} {self.info.model!r} on "
            f"{self.info.backend}/{self.info.device}: {self.signature}>"
        )

    def _attach(
        self,
        info: PredictorInfo,
        capabilities: Capabilities,
        rules: tuple[ErrorRule, ...],
        executor: ThreadPoolExecutor | None,
    ) -> None:
        """What the backend's ``load`` adds after ``_load``."""
        self.info = info
        self._capabilities = capabilities
        self._rules = rules
        self._settle(capabilities.thread_safety, executor)
        _alive.add(self)

    def _settle(self, safety: ThreadSafety, executor: ThreadPoolExecutor | None) -> None:
        """Compiles the checks and chooses how calls reach the native code."""
        device = self.info.device
        is_taken = self.device_inputs and device.kind in _DLPACK_KINDS
        self._check = compile_check(
            self.signature,
            self.layout,
            zero_rows=self._capabilities.zero_rows,
            device=(_DLPACK_KINDS[device.kind], device.index) if is_taken else None,
        )
        self._executor = executor
        self._lock = None if safety is ThreadSafety.SHARED else threading.Lock()
        self._call: Callable[[Mapping[str, Any], Sequence[str]], Arrays] = self._guarded(
            self._predict
        )

    def _guarded(self, call: Callable[..., _Result]) -> Callable[..., _Result]:
        """``call``, made safe for threads in the way this predictor needs."""
        executor, lock = self._executor, self._lock
        if executor is not None:
            return lambda *args: executor.submit(call, *args).result()
        if lock is None:
            return call

        def locked(*args: Any) -> _Result:
            with lock:
                return call(*args)

        return locked

    def _subset(self, checked: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        if isinstance(outputs, str):
            outputs = (outputs,)
        try:
            outputs = tuple(outputs)  # once: an iterator would be empty the second time
        except TypeError as error:
            raise InputError(
                f"outputs is of class {type(outputs).__name__}; wanted names of outputs.",
                fix="Pass a list of names, or None for all outputs.",
            ) from error
        if not outputs:
            return {}
        for name in outputs:
            if name not in self._output_names:
                raise UnknownOutput(
                    f"output '{name}' is not in the signature.",
                    fix=nearest(name, self._output_names),
                    output=name,
                    valid=list(self._output_names),
                )
        results = self._call(checked, outputs)
        return {name: results[name] for name in outputs}

    def _in_context(self, error: BridgeError) -> BridgeError:
        error.backend = error.backend or self.info.backend
        error.model = error.model or self.info.model
        error.device = error.device or str(self.info.device)
        return error

    def _translated(self, error: BaseException) -> BridgeError:
        frame = f"{self.info.backend or 'the backend'} failed on {self.info.model or 'the model'}"
        return self._in_context(translate(error, self._rules, PredictError, frame=frame))

    def _closed(self) -> BridgeError:
        return PredictorClosed(
            f"the predictor for {self.info.model} is closed.",
            fix="Load the model again.",
            model=self.info.model,
            backend=self.info.backend,
        )

    def _forked(self) -> BridgeError:
        return ForkedPredictor(
            f"the predictor for {self.info.model} was loaded before this process was forked.",
            fix="Load the model in the child, or start workers with spawn instead of fork.",
            model=self.info.model,
            backend=self.info.backend,
        )

    def _release(self) -> None:
        with self._closing:
            if self._calls or self._is_released:
                return
            self._is_released = True
        try:
            self._guarded(self._close)()
        finally:
            if self._executor is not None:
                self._executor.shutdown(wait=False)


_alive: weakref.WeakSet[Predictor | Bound] = weakref.WeakSet()


def _abandon_natives() -> None:
    for item in list(_alive):
        # One reference too many, on purpose: in the child nothing may ever destroy the
        # native objects, not even the interpreter's exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))
        if isinstance(item, Predictor):
            item._refusal = item._forked
            item._closing = threading.Lock()
            item._is_released = True


os.register_at_fork(after_in_child=_abandon_natives)
