"""Infer requests, and what keeps OpenVINO's answers right after and during failed calls.

Two things of OpenVINO's CPU plugin (2026.4.1, both seen) that a caller would not expect:

- With one thread, ``infer`` loses every exception that comes up while sizes are worked
  out: for arrays that do not fit each other, or when memory runs out, it returns the
  result of the call before. ``start_async`` and ``wait`` raise it. So one-thread programs
  are called that way whenever sizes may be new; it costs some 10 us more.
- A call that fails leaves some operators with the new sizes and some with the old ones,
  so that later calls, valid ones, may fail as well or give results of a wrong shape. A
  call on empty arrays makes all operators work out their sizes anew. Nobody can choose
  the stream of a call, so that several streams get several calls, and the next error of
  any is tried once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge_openvino.buffers import InputBuffers
from bridge_openvino.program import Program
from bridge_openvino.runtime import openvino

__all__ = ["Request"]

_NOTHING: dict[int, Any] = {}  # every input has been set before
_ROUNDS = 8  # calls per stream, until each can be taken to have had one


class Request:
    """An infer request with its input buffers; for one thread at a time.

    Attributes:
        native: The ``openvino.InferRequest``.
        buffers: Its input buffers.
        infer: Runs it; arguments are inputs, whether results may be views of the request's
            memory, and decoding of strings. Returns the results by port.
    """

    __slots__ = ("_program", "buffers", "infer", "native")

    def __init__(self, program: Program) -> None:
        self.native = request = program.native.create_infer_request()
        self.buffers = InputBuffers(request, program.ports.inputs, program.limits)
        self._program = program
        # The method below InferRequest.infer, which converts inputs in Python.
        plain = super(openvino().InferRequest, request).infer  # type: ignore[misc]
        is_plain = program.turn is None
        self.infer = plain if is_plain else _checked(program, request, self.buffers, plain)

    def recover(self) -> None:
        """To be called when ``infer`` has failed."""
        if self._program.turn is None:
            _empty(self._program)

    def retry(self, error: Exception, *, is_view: bool) -> Any:
        """Runs once more where the error may be one that another call has left in a stream.

        Args:
            error: What ``infer`` has raised, to be raised again if there is no other way.
            is_view: As for ``infer``.
        """
        self.recover()
        if self._program.streams < 2:
            raise error
        try:
            return self.infer(_NOTHING, is_view, True)  # noqa: FBT003 - positional in C++
        except Exception:
            self.recover()
            raise


def _checked(
    program: Program, request: Any, buffers: InputBuffers, plain: Callable[..., Any]
) -> Callable[..., Any]:
    """``infer`` for a program with one thread, see above; calls take turns in it anyway."""
    kind, turn = openvino().InferRequest, program.turn
    assert turn is not None

    def infer(inputs: Any, is_view: bool, is_decoded: bool) -> Any:
        with turn:
            try:
                if not (buffers.is_new or program.is_checked):
                    return plain(inputs, is_view, is_decoded)
                _run_elsewhere(request)
                buffers.is_new = False
                return super(kind, request).results
            except RuntimeError:
                program.is_checked |= not _empty(program)
                raise

    return infer


def _run_elsewhere(*requests: Any) -> None:
    """Runs requests in OpenVINO's own threads, all at once."""
    kind = openvino().InferRequest
    try:
        for request in requests:
            super(kind, request).start_async(_NOTHING, None)
    finally:  # also for Ctrl-C: the arrays of a running request must not go away
        failed = [error for error in map(_finished, requests) if error is not None]
    if failed:
        raise failed[0]


def _finished(request: Any) -> RuntimeError | None:
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _empty(program: Program) -> bool:
    """Calls on arrays without elements, or else of one; whether that was possible."""
    # Requests of its own: arrays of others are not to be touched.
    requests = []
    for _ in range(1 if program.streams < 2 else _ROUNDS * program.streams):
        request = program.native.create_infer_request()
        requests.append((request, InputBuffers(request, program.ports.inputs, program.limits)))
    for size in (0, 1):
        try:
            if not all(buffers.shrink(size) for _, buffers in requests):
                return True
            if program.turn is None and len(requests) == 1:
                requests[0][0].infer()  # in this thread, as the call that has failed
            else:
                _run_elsewhere(*(request for request, _ in requests))
        except RuntimeError:  # an operator that takes no empty array, or not one element
            continue
        return True
    return False
