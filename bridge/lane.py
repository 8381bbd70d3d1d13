"""A lane: one pair of pipes and two blocks of shared memory, for one call at a time.

The parent writes inputs into one block, the child outputs into the other. Through the
pipes go headers of 16 bytes. Where the arrays of a call lie is a *plan*, sent once as
JSON and from then on only by its number; the same way back for outputs. Arrays that
cannot lie in shared memory (strings) go through the pipes as ``bridge.message``.

One header is: what it is, the number of a plan, and how many bytes follow.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import struct
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy.typing as npt

from bridge import message
from bridge.block import ALIGNMENT, Block
from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.errors import BridgeError

__all__ = ["Lane", "serve"]

_HEADER = struct.Struct("<IIQ")
_PLANNED, _MESSAGE, _ERROR = 0, 1, 2
_MAX_PLANS = 256  # of either side; then they are all made anew
_WATCH_MS = 200  # how long a signal, or a death that closed no pipe, may wait to be seen
_CHUNK_BYTES = 1 << 20

_Views = dict[str, npt.NDArray[Any]]


@dataclass(slots=True)
class _Plan:
    """A call of known shape, on the parent's side."""

    views: list[tuple[str, npt.NDArray[Any]]]
    header: bytes
    definition: bytes  # header and JSON of the first use; empty once the child knows it


class Lane:
    """The parent's side; for one thread at a time.

    Attributes:
        is_idle: No call is on its way. A lane that a call left without its answer (by an
            interrupt, say) never becomes idle again and can only be closed.
    """

    def __init__(self, is_running: Callable[[], bool]) -> None:
        """Opens pipes and memory.

        Args:
            is_running: Whether the child is still there.

        Raises:
            OSError: The process has no file descriptors left.
        """
        self.is_idle = True
        self._files: list[int] = []
        self._blocks: list[Block] = []
        self._theirs: list[int] = []
        self._plans: dict[Any, _Plan | None] = {}
        self._known: dict[int, _Views] = {}
        self._is_running = is_running
        try:
            theirs, self._requests = self._pipe()
            self._answers, their_answers = self._pipe()
            self._theirs = [theirs, their_answers]
            for file in (self._requests, self._answers):
                os.set_blocking(file, False)
            self._blocks = [Block.create(), Block.create()]
        except BaseException:
            self.close()
            raise
        self._inputs, self._outputs = self._blocks
        self._readable = select.poll()
        self._readable.register(self._answers, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(self._requests, select.POLLOUT)

    @property
    def descriptors(self) -> list[int]:
        """What ``serve`` in the child needs, in this order; call ``sent`` after sending."""
        return [*self._theirs, *(block.file for block in self._blocks)]

    def sent(self) -> None:
        """Closes the child's ends here, so that its death is seen as the end of a pipe."""
        for file in self._theirs:
            self._files.remove(file)
            os.close(file)
        self._theirs = []

    def call(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], timeout_s: float
    ) -> Arrays:
        """One call: sends the inputs, waits for the outputs and copies them.

        Raises:
            TimeoutError: The child did not answer within ``timeout_s``.
            BrokenPipeError: The child is gone, and never took the call up.
            EOFError, OSError: The child is gone.
            BridgeError: What the child answered, or what cannot be sent.
        """
        deadline = monotonic() + timeout_s
        key = (tuple(outputs), *[(name, a.shape, a.dtype) for name, a in inputs.items()])
        try:
            plan = self._plans[key]
        except KeyError:
            plan = self._planned(key, inputs, outputs)
        if plan is None:
            data = _packed(_MESSAGE, {"outputs": list(outputs)}, inputs)
        else:
            for name, view in plan.views:
                view[...] = inputs[name]
            data = plan.definition or plan.header
        self.is_idle = False
        self._write(data, deadline)
        try:
            header = self._read(_HEADER.size, deadline)
        except EOFError:
            if self._unread() == len(data):
                raise BrokenPipeError("the child never read the call.") from None
            raise
        kind, number, length = _HEADER.unpack(header)
        body = self._read(length, deadline) if length else b""
        if kind == _PLANNED:
            if body:
                if number == 0:
                    self._known.clear()  # the child has begun anew
                self._known[number] = _views(json.loads(body), self._outputs)
            if plan is not None:
                plan.definition = b""
            results = {name: view.copy() for name, view in self._known[number].items()}
            self.is_idle = True
            return results
        fields, arrays = message.read(io.BytesIO(body))
        self.is_idle = True
        if kind == _ERROR:
            # Perhaps the child could not take the plan: none counts as known any more.
            self._plans.clear()
            raise message.error_from(fields["error"])
        if plan is not None:
            plan.definition = b""
        return arrays

    def close(self) -> None:
        """Closes all descriptors; the child's side ends with its current call."""
        for file in self._files:
            with contextlib.suppress(OSError):
                os.close(file)
        self._files = []
        self._plans, self._known = {}, {}
        for block in self._blocks:
            block.close()

    def __del__(self) -> None:
        self.close()  # descriptors of a lane that an interrupt lost

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._files += ends
        return ends

    def _planned(
        self, key: Any, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> _Plan | None:
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = None
        if not any(array.dtype.hasobject for array in inputs.values()):
            items, size = _laid_out(inputs)
            if self._inputs.reserve(size):
                self._plans.clear()
            number = len(self._plans)  # 0 makes the child forget the others
            definition = json.dumps({"arrays": items, "outputs": list(outputs)}).encode()
            plan = _Plan(
                list(_views({"arrays": items}, self._inputs).items()),
                _HEADER.pack(_PLANNED, number, 0),
                _HEADER.pack(_PLANNED, number, len(definition)) + definition,
            )
        self._plans[key] = plan
        return plan

    def _write(self, data: bytes, deadline: float) -> None:
        try:
            count = os.write(self._requests, data)
        except BlockingIOError:
            count = 0
        if count == len(data):
            return
        rest = memoryview(data)[count:]
        while rest:
            self._wait(self._writable, deadline)
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._requests, rest[:_CHUNK_BYTES]) :]

    def _read(self, size: int, deadline: float) -> bytes:
        self._wait(self._readable, deadline)
        data = os.read(self._answers, size)
        if len(data) == size:
            return data
        pieces = [data]
        while data and (left := size - sum(map(len, pieces))):
            self._wait(self._readable, deadline)
            data = os.read(self._answers, min(left, _CHUNK_BYTES))
            pieces.append(data)
        if not data:
            raise EOFError("the child closed the pipe.")
        return b"".join(pieces)

    def _unread(self) -> int:
        """Bytes of requests that the child has not read."""
        count = bytearray(4)
        fcntl.ioctl(self._requests, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder)

    def _wait(self, poller: select.poll, deadline: float) -> None:
        # In short turns, not until the deadline: a signal that arrives just before a
        # poll, such as Ctrl-C, is only looked at when it returns.
        while True:
            left_ms = (deadline - monotonic()) * 1e3
            if poller.poll(max(0.0, min(_WATCH_MS, left_ms))):
                return
            if left_ms <= 0:
                raise TimeoutError
            if not self._is_running():
                raise EOFError("the child is gone.")


def serve(
    predict: Callable[[Mapping[str, Any], Sequence[str] | None], Arrays],
    failure: Callable[[Exception], BridgeError],
    descriptors: Sequence[int],
) -> None:
    """The child's side: answers calls until the parent closes the lane.

    Args:
        predict: Answers one call. Its inputs are read-only arrays in shared memory that
            the next call overwrites.
        failure: Makes an error of the bridge from any other.
        descriptors: ``Lane.descriptors`` as they arrived here; closed at the end.
    """
    requests, answers, *files = descriptors
    inputs, outputs = Block(files[0]), Block(files[1])
    plans: dict[int, tuple[_Views, list[str]]] = {}
    known: dict[Any, tuple[bytes, _Views]] = {}
    try:
        while True:
            kind, number, length = _HEADER.unpack(_exactly(requests, _HEADER.size))
            body = _exactly(requests, length) if length else b""
            try:
                if kind == _MESSAGE:
                    fields, arrays = message.read(io.BytesIO(body))
                    names = fields["outputs"]
                else:
                    if body:
                        if number == 0:
                            plans.clear()
                        plan = json.loads(body)
                        plans[number] = _read_only(_views(plan, inputs)), plan["outputs"]
                    arrays, names = plans[number]
                reply = _reply(predict(arrays, names), outputs, known)
            except BridgeError as error:
                reply = _failed(error)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                reply = _failed(failure(error))
            _write_all(answers, reply)
    except (EOFError, BrokenPipeError):  # the parent closed the lane, or is gone
        pass
    finally:
        os.close(requests)
        os.close(answers)
        inputs.close()
        outputs.close()


def _reply(results: Arrays, block: Block, known: dict[Any, tuple[bytes, _Views]]) -> bytes:
    """Puts the results where the parent finds them; the bytes that tell it so."""
    key = tuple([(name, a.shape, a.dtype) for name, a in results.items()])
    found = known.get(key)
    if found is not None:
        header, views = found
        for name, view in views.items():
            view[...] = results[name]
        return header
    if DType.STRING in [message.dtype_of(name, array) for name, array in results.items()]:
        return _packed(_MESSAGE, {}, results)
    if len(known) >= _MAX_PLANS:
        known.clear()
    items, size = _laid_out(results)
    if block.reserve(size):
        known.clear()
    number = len(known)  # 0 makes the parent forget the others
    views = _views({"arrays": items}, block)
    for name, view in views.items():
        view[...] = results[name]
    known[key] = _HEADER.pack(_PLANNED, number, 0), views
    definition = json.dumps({"arrays": items}).encode()
    return _HEADER.pack(_PLANNED, number, len(definition)) + definition


def _failed(error: BridgeError) -> bytes:
    return _packed(_ERROR, {"error": message.error_to(error)})


def _packed(
    kind: int, fields: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]] | None = None
) -> bytes:
    body = io.BytesIO()
    message.write(body, fields, arrays)
    data = body.getvalue()
    return _HEADER.pack(kind, 0, len(data)) + data


def _laid_out(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[list[list[Any]], int]:
    """Name, dtype, shape and offset of each array, and the bytes that all need."""
    items: list[list[Any]] = []
    offset = 0
    for name, array in arrays.items():
        items.append([name, message.dtype_of(name, array).value, array.shape, offset])
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return items, max(offset, ALIGNMENT)


def _views(plan: Mapping[str, Any], block: Block) -> _Views:
    return {
        name: block.array(offset, DType(kind).numpy, tuple(shape))
        for name, kind, shape, offset in plan["arrays"]
    }


def _read_only(views: _Views) -> _Views:
    for view in views.values():
        view.flags.writeable = False
    return views


def _exactly(file: int, size: int) -> bytes:
    data = os.read(file, min(size, _CHUNK_BYTES))
    if len(data) == size:
        return data
    pieces = [data]
    while data and (left := size - sum(map(len, pieces))):
        data = os.read(file, min(left, _CHUNK_BYTES))
        pieces.append(data)
    if not data:
        raise EOFError("the parent closed the pipe.")
    return b"".join(pieces)


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
