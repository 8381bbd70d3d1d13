"""Bound calls: buffers allocated once, filled and read in place."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridge.errors import BridgeError, InputError, ShapeMismatch
from bridge.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from bridge.predictor import Predictor

__all__ = ["Bound"]


class Bound:
    """A predictor tied to buffers of fixed shape; one object per thread.

    Fill ``inputs[name][...] = values``, call ``predict()``, read ``outputs[name]``. The
    output arrays are overwritten by the next ``predict()`` of this object. This class
    serves every backend through its ordinary call; a backend whose runtime can work on
    fixed buffers subclasses it and overrides ``_run``.

    Attributes:
        inputs: Buffer of each input, C order, as bound; do not replace the arrays.
        outputs: Result of the last call; empty before the first one unless the shapes
            are known beforehand.
    """

    def __init__(self, predictor: Predictor, inputs: dict[str, npt.NDArray[Any]]) -> None:
        self.inputs = inputs
        self.outputs: dict[str, npt.NDArray[Any]] = {}
        self._predictor = predictor
        self._calls = predictor._calls
        self._guarded_run = predictor._guarded(self._run)

    def predict(self) -> None:
        """Runs the model on the bound buffers.

        Raises:
            PredictorClosed, ForkedPredictor: The predictor cannot answer any more.
            PredictError: The runtime failed.
        """
        predictor, calls, call = self._predictor, self._calls, object()
        try:
            calls[call] = None
            if predictor._refusal is not None:
                raise predictor._refusal()
            self._guarded_run()
        except BridgeError as error:
            raise predictor._in_context(error)  # noqa: B904 - the same error, more attributes
        except Exception as error:
            raise predictor._translated(error) from error
        finally:
            calls.pop(call, None)
            if predictor._refusal is not None:
                predictor._release()

    def _run(self) -> None:
        """Runs the model once; override where the runtime works on fixed buffers."""
        predictor = self._predictor
        results = predictor._predict(self.inputs, predictor.signature.output_names)
        for name in predictor.signature.output_names:
            result, held = results[name], self.outputs.get(name)
            if held is not None and held.shape == result.shape and held.dtype == result.dtype:
                np.copyto(held, result)
            else:
                self.outputs[name] = result


def buffers(
    signature: Signature, shapes: Mapping[str, Sequence[int]]
) -> dict[str, npt.NDArray[Any]]:
    """Zeroed arrays (empty strings) of these shapes, in signature order.

    Raises:
        InputError: ``shapes`` is no mapping, a shape is no sequence of sizes, or the
            signature does not say the dtype.
    """
    if not isinstance(shapes, Mapping):
        raise InputError(
            f"shapes are of class {type(shapes).__name__}; wanted a dict from names to shapes.",
            fix=f"Pass {{{', '.join(f'{name!r}: (...)' for name in signature.input_names)}}}.",
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for spec in signature.inputs:
        if spec.name not in shapes:
            continue
        if spec.dtype is None:
            raise InputError(
                f"input '{spec.name}' has no known dtype, so no buffer can be made for it.",
                fix="Pass signature= with dtypes and shapes when loading.",
                input=spec.name,
            )
        kind = spec.dtype.numpy
        shape = _sizes(spec, shapes[spec.name])
        arrays[spec.name] = np.full(shape, "" if kind.hasobject else 0, kind)
    return arrays


def _sizes(spec: TensorSpec, given: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ShapeMismatch(
            f"the shape given for input '{spec.name}' is {given!r}; wanted sizes for "
            f"{spec.shape_text}.",
            fix="Give one whole number of at least 0 for each dim.",
            input=spec.name,
            wanted=spec.shape_text,
            got=given,
        )
    return sizes
