"""One signature of a SavedModel, called in a graph session."""

from __future__ import annotations

import mmap
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.binding import Bound
from bridge.check import Arrays, Layout
from bridge.dtypes import DType
from bridge.predictor import Predictor, PredictorInfo
from bridge.signature import Signature
from bridge_tensorflow.lease import Lease

__all__ = ["TensorflowPredictor"]

_Call = Callable[[Mapping[str, Any]], Sequence[Any]]
_MAX_SUBSETS = 64
_LARGE_BYTES = 1 << 20
_ALIGNMENT = 64  # bytes; EIGEN_MAX_ALIGN_BYTES


class TensorflowPredictor(Predictor):
    """Answers calls of one signature.

    Every output is copied once, as ``EagerTensor.numpy()`` does: TensorFlow hands out its
    own buffers, and writing to one may change a constant or a variable of the model, or
    the caller's own input. Strings come as ``str`` where every element of an output is
    UTF-8, else that output comes as ``bytes`` throughout.

    Args:
        lease: Hold on the session that has the model; ``close`` lets go of it.
        signature: Its specs have the tensors' names as ``native_name``.
        defaults: Values of the inputs that may be left out.
        info: What really runs.
    """

    layout = Layout.ANY

    def __init__(
        self,
        lease: Lease,
        signature: Signature,
        defaults: Mapping[str, npt.NDArray[Any]],
        info: PredictorInfo,
    ) -> None:
        super().__init__(signature, info)
        self._lease = lease
        self._defaults = dict(defaults)
        self._strings = {spec.name for spec in signature.outputs if spec.dtype is DType.STRING}
        self._making = threading.Lock()
        self._session_calls: dict[Sequence[str], _Call] = {}
        self._session_call(signature.output_names)  # the graph is optimised here, not later

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        call = self._session_calls.get(outputs) or self._session_call(outputs)
        # The copy also makes an array of the numpy scalar that stands for an array of no dims.
        if not self._strings:
            return dict(zip(outputs, map(np.array, call(inputs)), strict=True))
        return {
            name: _texts(result) if name in self._strings else np.array(result)
            for name, result in zip(outputs, call(inputs), strict=True)
        }

    def _close(self) -> None:
        self._session_calls.clear()
        self._lease.close()

    def _bind(self, inputs: Arrays) -> Bound:
        return _SessionBound(self, inputs)

    def _session_call(self, outputs: Sequence[str]) -> _Call:
        """A call that computes these outputs and nothing else; its results are not copied."""
        with self._making:
            call = self._session_calls.get(outputs)
            if call is None:
                call = self._new_session_call(outputs)
                if len(self._session_calls) < _MAX_SUBSETS:
                    self._session_calls[outputs] = call
            return call

    def _new_session_call(self, outputs: Sequence[str]) -> _Call:
        specs = self.signature.inputs
        fed = {spec.native_name or spec.name: spec.name for spec in specs}
        wanted = [self.signature.output(name).native_name or name for name in outputs]
        fetched = [tensor for tensor in wanted if tensor not in fed]
        take = self._taker([spec.name for spec in specs])

        native: Callable[..., list[Any]] = lambda *_: []  # noqa: E731
        if fetched:
            native = self._lease.session.call(list(fed), fetched)
        if len(fetched) == len(wanted):
            return lambda inputs: native(*take(inputs))

        def with_inputs(inputs: Mapping[str, Any]) -> list[Any]:
            # A session refuses to fetch what is fed; such an output is the input itself.
            values = take(inputs)
            known = dict(zip(fed, values, strict=True)) | dict(
                zip(fetched, native(*values), strict=True)
            )
            return [known[tensor] for tensor in wanted]

        return with_inputs

    def _taker(self, names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
        """What picks a call's arrays in the order in which they are fed."""
        pick: Callable[[Mapping[str, Any]], Any]
        if len(names) > 1:
            pick = operator.itemgetter(*names)
        else:
            pick = lambda inputs: [inputs[name] for name in names]  # noqa: E731
        defaults = self._defaults
        if defaults:
            given = pick
            pick = lambda inputs: given({**defaults, **inputs})  # noqa: E731
        if self.info.stateful:
            # A variable that is assigned its input shares the caller's memory from then on.
            shared = pick
            pick = lambda inputs: [np.array(value) for value in shared(inputs)]  # noqa: E731

        def take(inputs: Mapping[str, Any]) -> Sequence[Any]:
            values = pick(inputs)
            for value in values:
                if value.nbytes >= _LARGE_BYTES:
                    _require_memory(values)
                    break
            return values

        return take


class _SessionBound(Bound):
    """Copies TensorFlow's results straight into the bound outputs."""

    _predictor: TensorflowPredictor

    def _run(self) -> None:
        predictor = self._predictor
        names = predictor.signature.output_names
        results = predictor._session_call(names)(self.inputs)
        for name, result in zip(names, results, strict=True):
            held = self.outputs.get(name)
            if name in predictor._strings:
                self.outputs[name] = _texts(result)
            elif held is not None and held.shape == result.shape and held.dtype == result.dtype:
                np.copyto(held, result)
            else:
                self.outputs[name] = np.array(result)


def _require_memory(arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Raises ``MemoryError`` where there is no memory for the copies that TensorFlow makes.

    It copies inputs that are not aligned without looking whether it got the memory, and
    crashes where it did not. Asking for the memory and giving it back takes microseconds.
    """
    needed = 0
    for array in arrays:
        if not array.flags.c_contiguous:
            needed += 2 * array.nbytes
        elif array.ctypes.data % _ALIGNMENT:
            needed += array.nbytes
    if not needed:
        return
    try:
        mmap.mmap(-1, needed).close()
    except OSError as error:
        raise MemoryError(f"cannot allocate {needed} bytes for copies of the inputs") from error


def _texts(result: Any) -> npt.NDArray[Any]:
    """TensorFlow's byte strings as ``str`` if all of them are UTF-8; always a new array."""
    raw = np.array(result, object)
    try:
        # An output that is an input of the call holds what the caller put there.
        texts = [item if isinstance(item, str) else item.decode("utf-8") for item in raw.flat]
    except UnicodeDecodeError:
        return raw
    return np.array(texts, object).reshape(raw.shape)
