"""A model loaded by TensorRT."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge import Bound, DType, Layout, Predictor, PredictorInfo, Signature
from bridge.check import Arrays
from bridge.dlpack import DeviceArray
from bridge.errors import UnsupportedModel
from bridge_tensorrt.arrays import GpuArray
from bridge_tensorrt.engine import Engine
from bridge_tensorrt.execution import Lane, Lanes
from bridge_tensorrt.kernels import Kernels
from bridge_tensorrt.options import TensorrtOptions

__all__ = ["TensorrtPredictor"]

_DEFAULT_STREAM = 1  # as DLPack names it


class TensorrtPredictor(Predictor):
    """An engine and its execution contexts.

    Inputs may be in host memory, or through DLPack in the memory of the predictor's own
    GPU. With the option ``io=device``, results and the buffers of bound calls are
    ``GpuArray``: ``torch.from_dlpack`` and ``cupy.from_dlpack`` give views of them. A
    bound call then waits for what the default stream holds; who fills buffers on another
    stream waits for that first.
    """

    layout = Layout.CONTIGUOUS
    device_inputs = True

    def __init__(
        self,
        signature: Signature,
        info: PredictorInfo,
        engine: Engine,
        kernels: Kernels,
        options: TensorrtOptions,
    ) -> None:
        super().__init__(signature, info)
        self._engine: Engine | None = engine
        self._kernels = kernels
        self._recorded = options.cuda_graph
        self._on_host = [port.name for port in engine.inputs if port.is_on_host]
        index = info.device.index
        self._lanes = Lanes(
            engine, index, options.contexts, kernels, on_device=options.io == "device"
        )
        self._bound: weakref.WeakSet[Lane] = weakref.WeakSet()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        if self._on_host:
            inputs = self._fetched(inputs)
        return self._lanes.call(inputs)

    def _bind(self, inputs: Arrays) -> Bound:
        assert self._engine is not None
        shapes = [inputs[port.name].shape for port in self._engine.inputs]
        lane = self._lanes.make(self._engine.profile_for(shapes), recorded=self._recorded)
        self._bound.add(lane)
        return _TensorrtBound(self, inputs, lane)

    def _close(self) -> None:
        for lane in list(self._bound):
            lane.close()
        self._lanes.close()
        self._kernels.save()
        self._engine = None
        del self._lanes, self._kernels  # they hold the engine, and it the device's memory

    def _fetched(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs with the values on the host that TensorRT reads there."""
        found = dict(inputs)
        for name in self._on_host:
            given = inputs[name]
            if type(given) is DeviceArray:
                given.wait(_DEFAULT_STREAM)  # where the copy waits its turn
                index = self.info.device.index
                kind = DType.of(given.dtype)
                found[name] = np.asarray(GpuArray(given.pointer, given.shape, kind, index, given))
        return found


class _TensorrtBound(Bound):
    """A bound call on a lane of its own: its arrays are the lane's memory itself."""

    def __init__(self, predictor: TensorrtPredictor, inputs: Arrays, lane: Lane) -> None:
        lane.prepare(inputs)
        if predictor._recorded and lane.unsized:
            name = lane.unsized[0]
            lane.close()
            raise UnsupportedModel(
                f"the shape of output '{name}' depends on data, so that no CUDA graph can be "
                "recorded.",
                fix="Leave the option cuda_graph out.",
                output=name,
            )
        lane.clear()
        super().__init__(predictor, lane.inputs)
        self.outputs = lane.outputs
        self._lane = lane

    def _run(self) -> None:
        self._lane.prepare(self.inputs)
        if self._lane.inputs is not self.inputs:
            # Values that decide shapes changed, and the buffers were laid out anew.
            for name, staged in self._lane.inputs.items():
                if isinstance(staged, np.ndarray):
                    staged[...] = self.inputs[name]
        self._lane.run()
        self.outputs = self._lane.outputs
