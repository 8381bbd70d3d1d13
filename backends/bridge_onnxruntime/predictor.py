"""A session behind the predictor interface.

``InferenceSession.run`` checks names again, in Python, and lists the outputs anew on each
call; the C session below it is called directly. What else the wrapper does is not wanted
here: it tries another provider when one fails, and guards WebGPU's graph capture. Should
a later onnxruntime hide the C session, the public methods serve, more slowly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import Bound, Layout, Predictor, PredictorInfo, Signature
from bridge.check import Arrays
from bridge.device import CPU
from bridge.dlpack import DeviceArray
from bridge.dtypes import DType
from bridge.errors import InputError, UnsupportedModel
from bridge.logs import logger
from bridge_onnxruntime.binding import SessionBound
from bridge_onnxruntime.graph_binding import NOT_RECORDED, GraphBound, run_options
from bridge_onnxruntime.runtime import onnxruntime
from bridge_onnxruntime.session import SILENT
from bridge_onnxruntime.tensors import ONNX_CODES, VALUE_ONLY, owned_array

__all__ = ["DevicePredictor", "OnnxruntimePredictor", "make_predictor", "run_of"]


class OnnxruntimePredictor(Predictor):
    """For tensors of numpy's own numeric types; calls run side by side.

    onnxruntime copies strided arrays itself, but takes misaligned ones as they are, and
    then its sums differ in the last digits (seen with ReduceSum): the bridge copies both.
    """

    layout = Layout.CONTIGUOUS

    def __init__(self, session: Any, signature: Signature, info: PredictorInfo) -> None:
        super().__init__(signature, info)
        self._session = session
        self._is_recorded = bool(info.details.get("cuda_graph"))
        # Made once: without it, each call makes one. It is only ever read.
        self._run_options = run_options(SILENT, NOT_RECORDED if self._is_recorded else None)
        self._run = run_of(session)
        self._bounds: weakref.WeakSet[SessionBound | GraphBound] = weakref.WeakSet()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return dict(zip(outputs, self._run(outputs, inputs, self._run_options), strict=True))

    def _close(self) -> None:
        for bound in self._bounds:
            bound.release()
        if self._session.get_session_options().enable_profiling:
            path = Path(self._session.end_profiling())
            logger("onnxruntime").info("the profile of %s is in %s", self.info.model, path)
        del self._run, self._session

    def _bind(self, inputs: Arrays) -> Bound:
        specs = (*self.signature.inputs, *self.signature.outputs)
        # Strings have no memory that could be shared; memory of a device is not the caller's.
        bound: SessionBound | GraphBound
        if any(spec.dtype is DType.STRING for spec in specs):
            return Bound(self, inputs)
        if self.info.device == CPU:
            bound = SessionBound(self, inputs, self._session, self._run_options)
        elif self._is_recorded:
            bound = GraphBound(self, inputs, self._session, SILENT)
        else:
            return Bound(self, inputs)
        self._bounds.add(bound)
        return bound


class _TextPredictor(OnnxruntimePredictor):
    """For models with strings; onnxruntime would take ``b"a"`` for the text ``b'a'``."""

    def __init__(self, session: Any, signature: Signature, info: PredictorInfo) -> None:
        super().__init__(session, signature, info)
        self._texts = [spec.name for spec in signature.inputs if spec.dtype is DType.STRING]

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return super()._predict(self._decoded(inputs), outputs)

    def _decoded(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        decoded = {
            name: _text(name, inputs[name])
            for name in self._texts
            if name in inputs and any(isinstance(item, bytes) for item in inputs[name].flat)
        }
        return {**inputs, **decoded} if decoded else inputs


class DevicePredictor(OnnxruntimePredictor):
    """For CUDA devices: what lies there already is read there."""

    device_inputs = True

    def __init__(self, session: Any, signature: Signature, info: PredictorInfo) -> None:
        super().__init__(session, signature, info)
        self._place = (info.device.kind, info.device.index)
        self._codes = {spec.name: ONNX_CODES[spec.dtype] for spec in signature.inputs if spec.dtype}

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        if not any(isinstance(value, DeviceArray) for value in inputs.values()):
            return super()._predict(inputs, outputs)
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, DeviceArray):
                code = self._codes[name]
                binding.bind_input(name, *self._place, code, value.shape, value.pointer)
            else:
                binding.bind_cpu_input(name, value)
        for name in outputs:
            binding.bind_output(name)  # in host memory
        binding.synchronize_inputs()  # waits for the whole device, their makers included
        self._session.run_with_iobinding(binding, self._run_options)
        return dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=True))


class _ValuePredictor(OnnxruntimePredictor):
    """For models with bfloat16 or float8 tensors, which pass as ``OrtValue`` only."""

    def __init__(self, session: Any, signature: Signature, info: PredictorInfo) -> None:
        super().__init__(session, signature, info)
        self._types = {spec.name: spec.dtype for spec in signature.outputs if spec.dtype}
        self._codes = {spec.name: ONNX_CODES[spec.dtype] for spec in signature.inputs if spec.dtype}

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        make = onnxruntime().OrtValue.ortvalue_from_numpy_with_onnx_type
        values = {name: make(array, self._codes[name]) for name, array in inputs.items()}
        results = self._session.run_with_ort_values(outputs, values, self._run_options)
        return {
            name: owned_array(value, self._types[name])
            for name, value in zip(outputs, results, strict=True)
        }


def make_predictor(session: Any, signature: Signature, info: PredictorInfo) -> OnnxruntimePredictor:
    """The predictor for the types of a signature.

    Raises:
        UnsupportedModel: Strings are mixed with types that numpy does not have.
    """
    inputs = {spec.dtype for spec in signature.inputs}
    types = inputs | {spec.dtype for spec in signature.outputs}
    kind = OnnxruntimePredictor
    if types & VALUE_ONLY and DType.STRING in types:
        raise UnsupportedModel(
            "the model has strings and bfloat16 or float8 tensors; onnxruntime's Python API "
            "passes the first in arrays only, the others in OrtValues only.",
            fix="Cast one of them inside the model.",
        )
    if types & VALUE_ONLY:
        kind = _ValuePredictor
    elif DType.STRING in inputs:
        kind = _TextPredictor
    elif info.device.kind == "cuda" and DType.STRING not in types:
        kind = DevicePredictor
    return kind(session, signature, info)


def run_of(session: Any) -> Callable[..., list[npt.NDArray[Any]]]:
    """``run(output_names, inputs, run_options)`` of the C session, or else of the public one."""
    run: Callable[..., list[npt.NDArray[Any]]] = getattr(
        getattr(session, "_sess", None), "run", session.run
    )
    return run


def _text(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    texts = np.empty(array.shape, object)
    try:
        for index, item in np.ndenumerate(array):
            texts[index] = item.decode() if isinstance(item, bytes) else item
    except UnicodeDecodeError as error:
        raise InputError(
            f"input '{name}' holds bytes that are no UTF-8 text: {error}.",
            fix="Decode them to str first; ONNX strings are UTF-8.",
            input=name,
        ) from error
    return texts
