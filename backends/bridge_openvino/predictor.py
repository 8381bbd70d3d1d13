"""A compiled OpenVINO model behind the predictor interface.

Each running call has an infer request of its own, taken from a stack of idle ones. It
begins with as many as OpenVINO calls optimal, one for each stream, and more are made when
it is empty: those wait inside of OpenVINO for a stream. A model with state keeps it in
the request, so such a model has one, and one call at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from bridge import CPU, Bound, Layout, Predictor, PredictorInfo
from bridge.check import Arrays
from bridge_openvino.binding import RequestBound
from bridge_openvino.buffers import RAW
from bridge_openvino.program import Program
from bridge_openvino.request import Request

__all__ = ["OpenvinoPredictor", "StatefulOpenvinoPredictor"]

_NOTHING: dict[int, Any] = {}  # every input has been set before


class OpenvinoPredictor(Predictor):
    """A model without state: calls run side by side."""

    layout = Layout.ANY

    def __init__(self, program: Program, info: PredictorInfo, requests: int) -> None:
        super().__init__(program.ports.signature, info)
        self._program: Program | None = program
        self._idle = [Request(program) for _ in range(requests)]
        self._results = program.ports.outputs
        # OpenVINO hands these out as other types of the same bits.
        self._reinterpreted = {
            spec.name: spec.dtype.numpy for spec in self.signature.outputs if spec.dtype in RAW
        }

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        idle = self._idle
        try:
            request = idle.pop()
        except IndexError:
            request = self._request()
        try:
            request.buffers.fill(inputs)
        except BaseException:  # nothing may run on what is there now: it is of another call
            idle.append(request)
            raise
        try:
            results = request.infer(_NOTHING, False, True)  # noqa: FBT003 - positional in C++
        except (RuntimeError, MemoryError) as error:
            results = request.retry(error, is_view=False)  # if it raises, the request is let go
        idle.append(request)
        return self._named(results)

    def _request(self) -> Request:
        assert self._program is not None  # no call begins after closing
        return Request(self._program)

    def _named(self, results: Any) -> Arrays:
        arrays: Arrays = dict(zip(self._results, results.values(), strict=True))
        for name, dtype in self._reinterpreted.items():
            arrays[name] = arrays[name].view(dtype)
        return arrays

    def _close(self) -> None:
        self._idle.clear()
        self._program = None

    def _bind(self, inputs: Arrays) -> Bound:
        if self.info.device != CPU:  # not tried elsewhere
            return Bound(self, inputs)
        return RequestBound(self, inputs, self._request())


class StatefulOpenvinoPredictor(OpenvinoPredictor):
    """A model with variables, which live in its only request from load to close."""

    def __init__(self, program: Program, info: PredictorInfo) -> None:
        super().__init__(program, info, 1)
        self._only = self._idle[0]
        self._turn = threading.Lock()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        with self._turn:
            self._only.buffers.fill(inputs)
            try:
                return self._named(self._only.infer(_NOTHING, False, True))  # noqa: FBT003
            except RuntimeError:
                self._only.recover()
                raise

    def _close(self) -> None:
        super()._close()
        del self._only

    def _bind(self, inputs: Arrays) -> Bound:
        return Bound(self, inputs)
