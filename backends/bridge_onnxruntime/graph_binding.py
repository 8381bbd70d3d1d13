"""Bound calls on a CUDA device, recorded once as a CUDA graph and then replayed.

A graph reads and writes the memory that it was recorded with, so that each bound call
has device memory and a graph of its own; ordinary calls are never recorded.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge import Bound
from bridge.check import Arrays
from bridge_onnxruntime.runtime import onnxruntime
from bridge_onnxruntime.tensors import ONNX_CODES

if TYPE_CHECKING:
    from bridge_onnxruntime.predictor import OnnxruntimePredictor

__all__ = ["NOT_RECORDED", "GraphBound", "run_options"]

NOT_RECORDED = "-1"
_graphs = itertools.count(1)


def run_options(severity: int, graph: str | None = None) -> Any:
    """``RunOptions`` for calls; ``graph`` is the number of a CUDA graph."""
    options = onnxruntime().RunOptions()
    options.log_severity_level = severity
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", graph)
    return options


class GraphBound(Bound):
    """The first call runs as usual and tells the shapes of the outputs; later ones replay.

    Inputs are copied to the device before each call, and outputs to the caller's arrays
    after it.
    """

    def __init__(
        self, predictor: OnnxruntimePredictor, inputs: Arrays, session: Any, severity: int
    ) -> None:
        super().__init__(predictor, inputs)
        self._session = session
        self._graph = next(_graphs)
        self._first = run_options(severity, NOT_RECORDED)
        self._later = run_options(severity, str(self._graph))
        self._place = (predictor.info.device.kind, predictor.info.device.index)
        self._types = {spec.name: spec.dtype for spec in predictor.signature.outputs if spec.dtype}
        make = onnxruntime().OrtValue.ortvalue_from_numpy
        self._given = {name: make(array, *self._place) for name, array in inputs.items()}
        self._results: dict[str, Any] = {}
        self._binding = session.io_binding()
        for name, value in self._given.items():
            self._binding.bind_ortvalue_input(name, value)

    def release(self) -> None:
        """Lets go of the native objects; no call may follow."""
        native: Any = getattr(self._session, "_sess", None)
        if self._results and hasattr(native, "release_captured_graph"):
            native.release_captured_graph(self._graph)
        del self._binding, self._session, self._given, self._results

    def _run(self) -> None:
        for name, value in self._given.items():
            value.update_inplace(self.inputs[name])
        if self._results:
            self._session.run_with_iobinding(self._binding, self._later)
        else:
            self._run_first()
        for name, value in self._results.items():
            result, held = value.numpy(), self.outputs.get(name)
            if held is None:
                self.outputs[name] = result
            else:
                np.copyto(held, result)

    def _run_first(self) -> None:
        for name in self._types:
            self._binding.bind_output(name, *self._place)
        self._session.run_with_iobinding(self._binding, self._first)
        shapes = [value.shape() for value in self._binding.get_outputs()]
        self._binding.clear_binding_outputs()
        make = onnxruntime().OrtValue.ortvalue_from_shape_and_type
        made = {}
        for (name, dtype), shape in zip(self._types.items(), shapes, strict=True):
            made[name] = make(shape, ONNX_CODES[dtype], *self._place)
            self._binding.bind_ortvalue_output(name, made[name])
        self._results = made  # all or none: without memory for one, the next call begins anew
        self._session.run_with_iobinding(self._binding, self._later)
