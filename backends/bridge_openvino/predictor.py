"""A compiled OpenVINO model behind the predictor interface.

Each running call has an infer request of its own, taken from a stack of idle ones and
made when the stack is empty: as many exist as calls have ever run side by side. A model
with state keeps it in the request, so such a model has one, and one call at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from bridge import CPU, Bound, Layout, Predictor, PredictorInfo
from bridge.check import Arrays
from bridge.errors import InputError
from bridge_openvino.binding import RequestBound
from bridge_openvino.buffers import RAW, InputBuffers
from bridge_openvino.ports import Ports
from bridge_openvino.runtime import openvino

__all__ = ["OpenvinoPredictor", "Request", "StatefulOpenvinoPredictor"]

_NOTHING: dict[int, Any] = {}  # every input has been set before


class Request:
    """An infer request with its input buffers."""

    __slots__ = ("buffers", "infer", "native")

    def __init__(self, compiled: Any, ports: Ports) -> None:
        self.native = request = compiled.create_infer_request()
        self.buffers = InputBuffers(request, ports.inputs)
        # The method below InferRequest.infer, which converts inputs in Python. Arguments:
        # inputs, whether results are views of the request's memory, decoding of strings.
        self.infer = super(openvino().InferRequest, request).infer  # type: ignore[misc]


class OpenvinoPredictor(Predictor):
    """A model without state: calls run side by side."""

    layout = Layout.ANY

    def __init__(self, compiled: Any, ports: Ports, info: PredictorInfo) -> None:
        super().__init__(ports.signature, info)
        self._compiled = compiled
        self._ports = ports
        self._idle = [Request(compiled, ports)]
        self._results = ports.outputs
        # OpenVINO hands these out as other types of the same bits.
        self._reinterpreted = {
            spec.name: spec.dtype.numpy for spec in ports.signature.outputs if spec.dtype in RAW
        }

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        idle = self._idle
        try:
            request = idle.pop()
        except IndexError:
            request = Request(self._compiled, self._ports)
        try:
            request.buffers.fill(inputs)
            results = request.infer(_NOTHING, False, True)  # noqa: FBT003 - positional in C++
        except InputError:
            idle.append(request)
            raise  # whatever else failed, that request is not used again
        idle.append(request)
        return self._named(results)

    def _named(self, results: Any) -> Arrays:
        arrays: Arrays = dict(zip(self._results, results.values(), strict=True))
        for name, dtype in self._reinterpreted.items():
            arrays[name] = arrays[name].view(dtype)
        return arrays

    def _close(self) -> None:
        self._idle.clear()
        self._compiled = None

    def _bind(self, inputs: Arrays) -> Bound:
        if self.info.device != CPU:  # not tried elsewhere
            return Bound(self, inputs)
        return RequestBound(self, inputs, Request(self._compiled, self._ports))


class StatefulOpenvinoPredictor(OpenvinoPredictor):
    """A model with variables, which live in its only request from load to close."""

    def __init__(self, compiled: Any, ports: Ports, info: PredictorInfo) -> None:
        super().__init__(compiled, ports, info)
        self._only = self._idle[0]
        self._turn = threading.Lock()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        with self._turn:
            self._only.buffers.fill(inputs)
            return self._named(self._only.infer(_NOTHING, False, True))  # noqa: FBT003

    def _close(self) -> None:
        super()._close()
        del self._only

    def _bind(self, inputs: Arrays) -> Bound:
        return Bound(self, inputs)
