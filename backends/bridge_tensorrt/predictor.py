"""A model loaded by TensorRT."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import Bound, Layout, Predictor, PredictorInfo, Signature
from bridge.capabilities import ThreadSafety
from bridge.check import Arrays, check_inputs
from bridge.errors import UnsupportedModel
from bridge_tensorrt.arrays import is_on_device, taken
from bridge_tensorrt.cuda import Stream, check, runtime
from bridge_tensorrt.engine import Engine
from bridge_tensorrt.execution import Lane, Lanes
from bridge_tensorrt.kernels import Kernels
from bridge_tensorrt.options import TensorrtOptions

__all__ = ["TensorrtPredictor"]


class TensorrtPredictor(Predictor):
    """An engine and its execution contexts.

    Inputs may be in host memory, or through DLPack in the memory of the predictor's own
    GPU. With the option ``io=device``, results and the buffers of bound calls are
    ``DeviceArray``: ``torch.from_dlpack`` and ``cupy.from_dlpack`` give views of them. A
    bound call then waits for what the default stream holds; who fills buffers on another
    stream waits for that first.
    """

    layout = Layout.CONTIGUOUS

    def __init__(
        self,
        signature: Signature,
        info: PredictorInfo,
        engine: Engine,
        kernels: Kernels,
        options: TensorrtOptions,
    ) -> None:
        self._engine: Engine | None = engine
        self._index = info.device.index
        self._kernels = kernels
        self._recorded = options.cuda_graph
        self._arrivals: Stream | None = None  # what waits for arrays of others
        self._lanes = Lanes(
            engine, self._index, options.contexts, kernels, on_device=options.io == "device"
        )
        self._bound: weakref.WeakSet[Lane] = weakref.WeakSet()
        super().__init__(signature, info)

    def _settle(self, safety: ThreadSafety, executor: ThreadPoolExecutor | None) -> None:
        super()._settle(safety, executor)
        checked = self._check

        def check_anywhere(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            if type(inputs) is dict:
                for value in inputs.values():
                    if type(value) is not np.ndarray and is_on_device(value):
                        return self._arrived(inputs)
            return checked(inputs)

        self._check = check_anywhere

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
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
        if self._arrivals is not None:
            self._arrivals.close()
        self._kernels.save()
        self._engine = None
        del self._lanes, self._kernels  # they hold the engine, and it the device's memory

    def _arrived(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Checked inputs, of which some are in the memory of a GPU and stay there."""
        check(runtime().cudaSetDevice(self._index))
        if self._arrivals is None:
            self._arrivals = Stream()
        there = {
            name: taken(name, value, self._index, self._arrivals.handle)
            for name, value in inputs.items()
            if type(value) is not np.ndarray and is_on_device(value)
        }
        # The checks ask for names, types and shapes alone; one element stands for all here.
        likenesses: dict[str, npt.NDArray[Any]] = {
            name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
            for name, array in there.items()
        }
        found: dict[str, Any] = check_inputs(
            self.signature,
            {**inputs, **likenesses},
            Layout.ANY,
            zero_rows=self._capabilities.zero_rows,
        )
        assert self._engine is not None
        on_host = {port.name for port in self._engine.inputs if port.is_on_host}
        for name, array in there.items():
            found[name] = np.asarray(array) if name in on_host else array
        self._arrivals.wait()  # until the others' work on them is done
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
