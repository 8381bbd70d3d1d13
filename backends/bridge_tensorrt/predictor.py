"""A model loaded by TensorRT."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from bridge import Bound, Layout, Predictor, PredictorInfo, Signature
from bridge.check import Arrays
from bridge_tensorrt.engine import Engine
from bridge_tensorrt.execution import Lane, Lanes

__all__ = ["TensorrtPredictor"]


class TensorrtPredictor(Predictor):
    """An engine and its execution contexts."""

    layout = Layout.CONTIGUOUS

    def __init__(
        self, signature: Signature, info: PredictorInfo, engine: Engine, contexts: int
    ) -> None:
        super().__init__(signature, info)
        self._engine: Engine | None = engine
        self._lanes = Lanes(engine, info.device.index, contexts)
        self._bound: weakref.WeakSet[Lane] = weakref.WeakSet()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return self._lanes.call(inputs)

    def _bind(self, inputs: Arrays) -> Bound:
        assert self._engine is not None
        shapes = [inputs[port.name].shape for port in self._engine.inputs]
        lane = self._lanes.make(self._engine.profile_for(shapes))
        self._bound.add(lane)
        return _TensorrtBound(self, inputs, lane)

    def _close(self) -> None:
        for lane in list(self._bound):
            lane.close()
        self._lanes.close()
        self._engine = None


class _TensorrtBound(Bound):
    """A bound call on a lane of its own: its arrays are the pinned memory itself."""

    def __init__(self, predictor: TensorrtPredictor, inputs: Arrays, lane: Lane) -> None:
        lane.prepare(inputs)
        for staged in lane.inputs.values():
            staged.fill(0)
        super().__init__(predictor, lane.inputs)
        self.outputs = lane.outputs
        self._lane = lane

    def _run(self) -> None:
        self._lane.prepare(self.inputs)
        if self._lane.inputs is not self.inputs:
            # Values that decide shapes changed, and the buffers were laid out anew.
            for name, staged in self._lane.inputs.items():
                staged[...] = self.inputs[name]
        self._lane.run()
        self.outputs = self._lane.outputs
