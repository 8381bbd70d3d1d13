"""A session behind the predictor interface, and its bound calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.binding import Bound
from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.predictor import Predictor, PredictorInfo
from bridge.signature import Signature

__all__ = ["OnnxruntimePredictor"]


class OnnxruntimePredictor(Predictor):
    """Calls the C session below ``InferenceSession.run``.

    The Python wrapper checks names again and builds the list of outputs on every call;
    its retry on another provider is switched off on loading, since it would be a silent
    fallback.
    """

    def __init__(self, session: Any, signature: Signature, info: PredictorInfo) -> None:
        super().__init__(signature, info)
        self._session = session
        self._run = session._sess.run
        self._all = signature.output_names
        self._names = list(self._all)

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        names = self._names if outputs is self._all else list(outputs)
        return dict(zip(names, self._run(names, inputs, None), strict=True))

    def _close(self) -> None:
        del self._run, self._session

    def _bind(self, inputs: Arrays) -> Bound:
        specs = (*self.signature.inputs, *self.signature.outputs)
        if any(spec.dtype is DType.STRING for spec in specs) or self.info.device.kind != "cpu":
            return Bound(self, inputs)
        return _SessionBound(self, inputs)


class _SessionBound(Bound):
    """IO binding over the caller's buffers, everything bound before the call."""

    def __init__(self, predictor: OnnxruntimePredictor, inputs: Arrays) -> None:
        super().__init__(predictor, inputs)
        self._session = predictor._session
        self._output_names = predictor.signature.output_names
        self._bind_buffers()

    def _run(self) -> None:
        self._native_run(self._binding, None)

    def _bind_buffers(self) -> None:
        # The first run tells the shapes of the outputs; from then on they are bound too.
        first = self._session.run(list(self._output_names), self.inputs)
        self.outputs = dict(zip(self._output_names, map(np.array, first), strict=True))
        import onnxruntime

        binding = self._session.io_binding()
        self._held = []
        for name, array in self.inputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            self._held.append(value)
            binding.bind_ortvalue_input(name, value)
        for name, array in self.outputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            self._held.append(value)
            binding.bind_ortvalue_output(name, value)
        self._held.append(binding)
        self._binding = binding._iobinding
        self._native_run = self._session._sess.run_with_iobinding
