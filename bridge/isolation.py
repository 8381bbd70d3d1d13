"""The parent side of a worker: predictors in a process of their own.

A crash or a hang of the runtime ends the worker, never the caller.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bridge import message
from bridge.capabilities import ThreadSafety
from bridge.check import Arrays
from bridge.child import Child
from bridge.device import Device
from bridge.errors import InputError, PredictorClosed, PredictTimeout, WorkerDied
from bridge.lane import Lane
from bridge.options import Options
from bridge.signature import Signature
from bridge.slice import Slice

__all__ = ["Loaded", "Slice", "Worker"]

_SIGNALS_MS = 200  # how long a signal may wait to be looked at
_JSON = (str, bool, int, float, list, tuple, type(None))


@dataclass(frozen=True)
class Loaded:
    """What a worker tells of a model that it has loaded.

    Attributes:
        signature: Its signature.
        info: ``PredictorInfo.to_dict()``.
        load_s: Time of ``bridge.load`` in the child; that of importing the runtime is
            in it unless ``prepare_runtime`` came first.
        rss_growth_bytes: Resident memory after loading less that before, at least 0.
        thread_safety: How its calls may come from threads.
        zero_rows: Whether it takes dims of size 0.
        warm_calls: Calls that it needs before its times mean anything.
    """

    signature: Signature
    info: Mapping[str, Any]
    load_s: float
    rss_growth_bytes: int
    thread_safety: ThreadSafety
    zero_rows: bool
    warm_calls: int = 0


class Worker:
    """One child process that serves models, each in a slot; used by one thread at a time.

    Every method but ``close`` raises ``WorkerDied`` if the child ends meanwhile,
    ``PredictTimeout`` if it does not answer in time (it is ended then), and
    ``PredictorClosed`` once this worker is closed.
    """

    def __init__(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Starts the child.

        Args:
            environment: Variables for the child, on top of this process's own.
        """
        ours, theirs = socket.socketpair()
        self._lanes = ours
        try:
            with theirs:
                self._child = Child(
                    [str(theirs.fileno())],
                    descriptors=[theirs.fileno()],
                    environment=environment,
                )
        except BaseException:
            ours.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the child process."""
        return self._child.process.pid

    def prepare_runtime(self, backend: str, *, timeout_s: float = 60.0) -> int:
        """Imports the runtime of a backend in the child.

        Returns:
            Resident memory of the child after that, in bytes.

        Raises:
            BackendNotFound, BackendUnavailable: Something is wrong with the backend.
        """
        answer, _ = self._request({"do": "prepare", "backend": backend}, timeout_s=timeout_s)
        return int(answer["rss_bytes"])

    def load(
        self,
        model: str | PathLike[str],
        *,
        backend: str | None = None,
        device: str | Device | None = None,
        options: Options | Mapping[str, Any] | Sequence[str] | None = None,
        signature: str | Signature | None = None,
        trust: bool = False,
        here: bool = False,
        slot: int = 0,
        timeout_s: float = 300.0,
    ) -> Loaded:
        """Loads a model, given by its path, in the child; as ``bridge.load``, errors too.

        What the slot held before is closed first.

        Args:
            model: Path of the model.
            backend: See ``bridge.load``.
            device: See ``bridge.load``.
            options: See ``bridge.load``.
            signature: See ``bridge.load``.
            trust: See ``bridge.load``.
            here: The child is the process that the predictor is to have for itself: load in
                it also what ``bridge.load`` would give another one, but no record.
            slot: Where to keep it.
            timeout_s: Deadline.
        """
        answer, _ = self._request(
            {
                "do": "load",
                "slot": slot,
                "model": str(model),
                "backend": backend,
                "device": None if device is None else str(device),
                "options": _plain(options),
                "signature": signature.to_dict() if isinstance(signature, Signature) else signature,
                "trust": trust,
                "here": here,
            },
            timeout_s=timeout_s,
        )
        return Loaded(
            signature=Signature.from_dict(answer["signature"]),
            info=answer["info"],
            load_s=float(answer["load_s"]),
            rss_growth_bytes=int(answer["rss_growth_bytes"]),
            thread_safety=ThreadSafety[answer["thread_safety"]],
            zero_rows=bool(answer["zero_rows"]),
            warm_calls=int(answer["warm_calls"]),
        )

    def convert(
        self,
        model: str | PathLike[str],
        adapter: str,
        target: str | PathLike[str],
        *,
        options: Options | Mapping[str, Any] | Sequence[str] | None = None,
        signature: str | Signature | None = None,
        trust: bool = False,
        samples: Arrays | None = None,
        timeout_s: float = 600.0,
    ) -> dict[str, Any]:
        """Converts a model, given by its path, in the child; as ``Adapter.convert``.

        Returns:
            What the adapter says about the result.
        """
        answer, _ = self._request(
            {
                "do": "convert",
                "model": str(model),
                "adapter": adapter,
                "target": str(target),
                "options": _plain(options),
                "signature": signature.to_dict() if isinstance(signature, Signature) else signature,
                "trust": trust,
                "has_samples": samples is not None,
            },
            samples,
            timeout_s=timeout_s,
        )
        return dict(answer["facts"])

    def unload(self, slot: int = 0, *, timeout_s: float = 60.0) -> None:
        """Closes the predictor of a slot and forgets its outputs; an empty slot is fine."""
        self._request({"do": "unload", "slot": slot}, timeout_s=timeout_s)

    def predict(
        self,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] | None = None,
        *,
        slot: int = 0,
        timeout_s: float = 60.0,
    ) -> tuple[Arrays, float]:
        """One call: the outputs, and the seconds it took inside the child."""
        names = outputs if outputs is None else list(outputs)
        answer, results = self._request(
            {"do": "predict", "slot": slot, "outputs": names}, inputs, timeout_s=timeout_s
        )
        return results, float(answer["call_s"])

    def details(self, *, slot: int = 0, timeout_s: float = 60.0) -> dict[str, Any]:
        """``info.details`` of a slot's predictor, asked of its runtime anew."""
        answer, _ = self._request({"do": "details", "slot": slot}, timeout_s=timeout_s)
        return dict(answer["details"])

    def update(
        self, source: str | PathLike[str], *, slot: int = 0, timeout_s: float = 300.0
    ) -> dict[str, Any]:
        """Has a slot's predictor take over newer parameters; as ``Predictor.update``.

        Returns:
            ``info.details`` after that.
        """
        request = {"do": "update", "slot": slot, "source": str(source)}
        return dict(self._request(request, timeout_s=timeout_s)[0]["details"])

    def open_lane(self, *, slot: int = 0, timeout_s: float = 60.0) -> Lane:
        """A way to call a slot's predictor through shared memory.

        Lanes work side by side, and beside the other methods; the caller closes them.

        Raises:
            OSError: This process has no file descriptors left.
        """
        child = self._child
        lane = Lane(lambda: child.is_running)
        try:
            try:
                socket.send_fds(self._lanes, [b"lane"], lane.descriptors)
            except BrokenPipeError as error:
                raise child.died() from error
            self._request({"do": "lane", "slot": slot}, timeout_s=timeout_s)
            lane.sent()
        except BaseException:
            lane.close()
            raise
        return lane

    def died(self) -> WorkerDied:
        """The error for a child whose lane was found closed; it is ended if need be."""
        return self._child.died()

    def late(self, request: str, timeout_s: float) -> PredictTimeout:
        """Ends the child, which took too long; the error that says so."""
        self._child.end()
        return self._child.late(request, timeout_s)

    def end(self) -> None:
        """Ends the child at once; every request of it fails from then on."""
        self._child.end()

    def kill(self) -> None:
        """Ends the child at once, without a word to its runtimes, and closes this worker."""
        self._lanes.close()
        self._child.close()

    def keep_inputs(
        self,
        key: str,
        variants: Sequence[Mapping[str, npt.NDArray[Any]]],
        *,
        timeout_s: float = 60.0,
    ) -> None:
        """Keeps sets of inputs in the child, for ``measure`` in any slot.

        Args:
            key: Name to call them by, such as the number of rows. Sets kept under it
                before, and the outputs kept for them, are forgotten.
            variants: At least one set of inputs by name.
            timeout_s: Deadline.

        Raises:
            InputError: There is no set, or an array that cannot be sent.
        """
        if not variants:
            raise InputError(
                f"no inputs were given for '{key}'; wanted at least one set.",
                fix="Pass a list with one dict of arrays or more.",
            )
        names = [list(one) for one in variants]
        arrays = {
            f"{index}:{name}": array
            for index, one in enumerate(variants)
            for name, array in one.items()
        }
        self._request({"do": "inputs", "key": key, "names": names}, arrays, timeout_s=timeout_s)

    def keep_outputs(
        self, *, slot: int = 0, key: str = "", timeout_s: float = 60.0
    ) -> tuple[float, ...]:
        """Runs each kept set of inputs once and keeps the outputs in the child.

        ``measure`` compares later outputs with them; see ``Slice.drift``.

        Returns:
            Seconds of each call.
        """
        answer, _ = self._request({"do": "outputs", "slot": slot, "key": key}, timeout_s=timeout_s)
        return tuple(float(one) for one in answer["calls_s"])

    def measure(
        self,
        calls: int,
        *,
        slot: int = 0,
        key: str = "",
        discard: int = 2,
        callers: int = 1,
        split_rows: int | None = None,
        batch_axes: Mapping[str, int] | None = None,
        output_batch_axes: Mapping[str, int] | None = None,
        timeout_s: float = 60.0,
    ) -> Slice:
        """Times calls of one slot over the sets of inputs kept under a key, in turn.

        Before the first of a slot and key come the calls that ``Capabilities.warm_calls``
        asks for, untimed.

        Args:
            calls: Number of calls to time.
            slot: The predictor.
            key: The inputs.
            discard: Calls before them, whose times are thrown away.
            callers: Threads in the child that share the calls, each in a closed loop.
            split_rows: Time each call cut into pieces of at most this many rows, as
                ``bridge.routing.split_predict`` does; ``None`` for whole calls.
            batch_axes: For a split, the axis that counts rows by input name; ``None``
                means what the signature says.
            output_batch_axes: The same for outputs; ``None`` means axis 0 of each.
            timeout_s: Deadline for all of it.
        """
        answer, arrays = self._request(
            {
                "do": "measure",
                "slot": slot,
                "key": key,
                "calls": calls,
                "discard": discard,
                "callers": callers,
                "split_rows": split_rows,
                "batch_axes": None if batch_axes is None else dict(batch_axes),
                "output_batch_axes": None if output_batch_axes is None else dict(output_batch_axes),
            },
            timeout_s=timeout_s,
        )
        found = answer["drift"]
        return Slice(
            ns=arrays["ns"],
            elapsed_ns=int(answer["elapsed_ns"]),
            cpu_ns=int(answer["cpu_ns"]),
            drift=None if found is None else float(found),
            warmed=int(answer["warmed"]),
        )

    def null_call_ns(self, calls: int, *, timeout_s: float = 60.0) -> npt.NDArray[np.int64]:
        """Nanoseconds of calls that do nothing, timed as ``measure`` times real ones."""
        _, arrays = self._request({"do": "null", "calls": calls}, timeout_s=timeout_s)
        return arrays["ns"]

    def memory(self, *, reset_peak: bool = False) -> dict[str, int]:
        """``rss_bytes`` and ``peak_rss_bytes`` of the child.

        Args:
            reset_peak: Let the peak start anew from now, where the system allows it.
        """
        answer, _ = self._request({"do": "memory", "reset_peak": reset_peak})
        return {key: int(value) for key, value in answer.items()}

    def pause(self) -> None:
        """Stops the child, so that its idle threads cannot disturb a measurement."""
        self._child.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused child go on."""
        self._child.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the child, politely at first; may be called twice."""
        child = self._child
        if child.is_closed:
            return
        if child.is_running:
            self.resume()
            with contextlib.suppress(PredictTimeout, WorkerDied):  # then it is gone already
                self._request({"do": "close"}, timeout_s=10.0)
        self.kill()

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
    ) -> tuple[dict[str, Any], Arrays]:
        child = self._child
        if child.is_closed:
            raise PredictorClosed("the worker is closed.", fix="Start another one.")
        process = child.process
        assert process.stdin is not None
        assert process.stdout is not None
        # The watchdog ends the child at the deadline, which ends any blocked read or
        # write below with EOF or EPIPE: simpler than non-blocking pipes, and as sure.
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            child.end()

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
                raise child.late(fields["do"], timeout_s) from None
            raise child.died() from error
        except InputError:  # nothing was sent
            raise
        except ValueError as error:  # no message of ours: something else wrote to the pipe
            child.end()
            raise WorkerDied(
                f"the worker's answer to '{fields['do']}' cannot be read: {error}",
                fix="Something in it writes to its pipe; its last output is in detail['log'].",
                log=child.log_tail(),
            ) from error
        except BaseException:
            # Half a message, or an answer that nobody fetched: the next request would
            # take it for its own.
            child.end()
            raise
        finally:
            watchdog.cancel()
        if is_late.is_set():  # it answered while it was being ended
            raise child.late(fields["do"], timeout_s)
        if "error" in answer:
            raise message.error_from(answer["error"])
        return answer, results


def _plain(options: Options | Mapping[str, Any] | Sequence[str] | None) -> Any:
    if isinstance(options, Options):
        return options.to_dict()
    if options is None or isinstance(options, str):
        return options
    if isinstance(options, Mapping):  # what JSON does not know, such as a path, goes as its text
        return {
            name: value if isinstance(value, _JSON) else str(value)
            for name, value in options.items()
        }
    return list(options)
