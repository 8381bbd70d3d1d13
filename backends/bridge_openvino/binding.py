"""Bound calls: an infer request whose tensors are the arrays that the caller sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridge import Bound
from bridge.check import Arrays
from bridge_openvino.buffers import RAW, blank_bytes, shared_tensor

if TYPE_CHECKING:
    from bridge_openvino.predictor import OpenvinoPredictor
    from bridge_openvino.request import Request

__all__ = ["RequestBound"]

_NOTHING: dict[int, Any] = {}  # every input has been set before


class RequestBound(Bound):
    """Inputs are read, and outputs written, in the arrays that the caller sees.

    The first call tells the shapes of the outputs; arrays of these shapes are set for the
    calls that follow. Outputs whose shape depends on the inputs' values cannot stay in
    place: once one shows up, OpenVINO allocates all outputs again, and they are copied.
    """

    def __init__(self, predictor: OpenvinoPredictor, inputs: Arrays, request: Request) -> None:
        super().__init__(predictor, inputs)
        self._request = request
        request.buffers.resize(inputs)
        # Inputs that the model does not read keep the arrays they were given.
        self.inputs = {**inputs, **request.buffers.arrays}
        self._named = predictor._named
        self._names = predictor._results
        types = {spec.name: spec.dtype for spec in predictor.signature.outputs if spec.dtype}
        self._raw = [RAW.get(types[name]) for name in self._names]
        self._own = [request.native.get_output_tensor(index) for index in range(len(self._names))]
        self._shapes: list[tuple[int, ...]] | None = None  # of the outputs that are set
        self._may_fix = True
        self._held: Arrays = {}

    def _run(self) -> None:
        self._request.buffers.check_integers()
        if self._shapes is not None:
            try:
                results = self._infer()
            except RuntimeError:
                # Either an output became too large for its array, or the call below fails as well.
                self._request.recover()
                self._release_outputs()
            else:
                if [view.shape for view in results.values()] == self._shapes:
                    return
                self._collect(results)
                self._release_outputs()
                return
        try:
            results = self._infer()
        except RuntimeError as error:
            results = self._request.retry(error, is_view=True)
        self._collect(results)
        if self._may_fix:
            self._fix_outputs()

    def _infer(self) -> Any:
        return self._request.infer(_NOTHING, True, True)  # noqa: FBT003 - positional in C++

    def _collect(self, results: Any) -> None:
        """Copies results into the caller's arrays, new ones where shapes changed."""
        outputs = self.outputs
        for name, view in self._named(results).items():
            held = outputs.get(name)
            if held is None:
                outputs[name] = view.copy()
            elif held.shape != view.shape:
                outputs[name] = view.copy()
                self._may_fix = False
            elif not np.may_share_memory(held, view):
                held[...] = view

    def _fix_outputs(self) -> None:
        """Sets arrays as outputs and runs once more, to see whether the results come there."""
        self._may_fix = False  # tried once, however it ends
        arrays: Arrays = {name: _inverted(self.outputs[name]) for name in self._names}
        # OpenVINO keeps bare addresses, whatever becomes of the dict and of the run below.
        self._held = arrays
        try:
            for index, (name, raw) in enumerate(zip(self._names, self._raw, strict=True)):
                self._request.native.set_output_tensor(index, shared_tensor(arrays[name], raw))
            self._infer()
            if any(held.tobytes() != self.outputs[name].tobytes() for name, held in arrays.items()):
                self._release_outputs()  # random values, or memory that was not written to
                return
            self.outputs = dict(arrays)
            self._shapes = [array.shape for array in arrays.values()]
        except RuntimeError:  # random shapes: the results of the run before are there already
            self._request.recover()
            self._release_outputs()
        except BaseException:  # Ctrl-C: the caller may well go on and call again
            self._release_outputs()
            raise

    def _release_outputs(self) -> None:
        """Lets OpenVINO allocate outputs again, for good."""
        for index, tensor in enumerate(self._own):
            self._request.native.set_output_tensor(index, tensor)
        self._shapes = None
        self._held = {}  # not before: until here, OpenVINO had their addresses


def _inverted(found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A new array that differs from this one in every bit.

    Only a write can make the two equal; zeros would be equal to a result of zeros.
    """
    values = np.frombuffer(found.tobytes(), np.uint8)
    memory = blank_bytes(values.size)
    np.invert(values, out=memory)
    return np.ndarray(found.shape, found.dtype, memory)
