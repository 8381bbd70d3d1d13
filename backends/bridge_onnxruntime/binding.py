"""Bound calls: an IO binding over numpy memory, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge import Bound
from bridge.check import Arrays
from bridge_onnxruntime.tensors import ONNX_CODES, owned_array

if TYPE_CHECKING:
    from bridge_onnxruntime.predictor import OnnxruntimePredictor

__all__ = ["SessionBound"]


class SessionBound(Bound):
    """Inputs are read, and outputs written, in the arrays that the caller sees.

    The first call tells the shapes of the outputs; arrays of these shapes are bound for
    the calls that follow. Two kinds of output cannot be written in place: those whose
    shape depends on the inputs' values, and inputs that the graph hands on as they are
    (onnxruntime 1.32 then ignores the bound memory). Once one shows up, results are copied.
    """

    def __init__(
        self, predictor: OnnxruntimePredictor, inputs: Arrays, session: Any, run_options: Any
    ) -> None:
        super().__init__(predictor, inputs)
        self._options = run_options
        signature = predictor.signature
        self._types = {spec.name: spec.dtype for spec in signature.outputs if spec.dtype}
        self._binding = session.io_binding()
        for spec in signature.inputs:
            if spec.name in inputs and spec.dtype is not None:
                array, code = inputs[spec.name], ONNX_CODES[spec.dtype]
                self._binding.bind_input(spec.name, "cpu", 0, code, array.shape, array.ctypes.data)
        # The method of the C session, which the public one wraps; see ``predictor``.
        direct = getattr(getattr(session, "_sess", None), "run_with_iobinding", None)
        native = getattr(self._binding, "_iobinding", None)
        is_direct = direct is not None and native is not None
        self._native_run: Any = direct if is_direct else session.run_with_iobinding
        self._native: Any = native if is_direct else self._binding
        self._is_fixed = False  # the arrays of the outputs are bound
        self._may_fix = True

    def release(self) -> None:
        """Lets go of the native objects; no call may follow."""
        del self._native_run, self._native, self._binding

    def _run(self) -> None:
        if self._is_fixed:
            try:
                self._native_run(self._native, self._options)
            except RuntimeError:  # a run of a binding raises nothing else
                # Either the outputs need other shapes now, or the call below fails as well.
                self._is_fixed = False
            else:
                return
        self._bind_freely()
        self._native_run(self._native, self._options)
        self._collect()
        if self._may_fix:
            self._fix()

    def _bind_freely(self) -> None:
        """Lets onnxruntime allocate outputs; it would use those of the last run again."""
        self._binding.clear_binding_outputs()
        for name in self._types:
            self._binding.bind_output(name, "cpu")

    def _collect(self) -> None:
        """Copies the results of a run into the caller's arrays, new ones where shapes changed."""
        for (name, dtype), value in zip(
            self._types.items(), self._binding.get_outputs(), strict=True
        ):
            result, held = owned_array(value, dtype), self.outputs.get(name)
            if held is None:
                self.outputs[name] = result
            elif held.shape == result.shape:
                np.copyto(held, result)
            else:
                self.outputs[name] = result
                self._may_fix = False

    def _fix(self) -> None:
        """Binds the caller's arrays and runs once more, to see whether they are written to."""
        for name, dtype in self._types.items():
            array = self.outputs[name]
            self._binding.bind_output(
                name, "cpu", 0, ONNX_CODES[dtype], array.shape, array.ctypes.data
            )
        try:
            self._native_run(self._native, self._options)
        except RuntimeError:  # random shapes: the results of the run before are there already
            self._may_fix = False
        else:
            values = zip(self._types, self._binding.get_outputs(), strict=True)
            self._may_fix = all(
                value.data_ptr() == self.outputs[name].ctypes.data
                for name, value in values
                if self.outputs[name].size
            )
        self._is_fixed = self._may_fix
