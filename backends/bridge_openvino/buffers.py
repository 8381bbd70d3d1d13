"""Input memory of one infer request.

OpenVINO works fastest on tensors that are set once; setting one costs more than copying a
few kilobytes. So each request has buffers of its own for the shapes last seen, and a call
copies into them: the caller's arrays may have any layout, are never modified (OpenVINO
may compute in place) and never outlive the call (a request keeps the bare address).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bridge import DType
from bridge.check import Arrays
from bridge.errors import InputError
from bridge_openvino.bounds import Limits, check_size
from bridge_openvino.ports import Port
from bridge_openvino.runtime import openvino

__all__ = ["NARROWED", "RAW", "InputBuffers", "blank_bytes", "shared_tensor"]

NARROWED = {
    DType.INT64: "int32",
    DType.UINT64: "int32",
    DType.UINT32: "int32",
    DType.FLOAT64: "float32",
}
"""What OpenVINO computes in instead, as seen on a CPU with 2026.4.1: 2**30 + 2**30 gives
-2**31 as int64, and 2**33 + 1 gives 1 as uint64. See its issues 24072 and 35823."""


class Raw(NamedTuple):
    """How elements that OpenVINO's numpy conversion does not know pass through it.

    Attributes:
        numpy: Type of the same size that it knows, and hands out.
        native: OpenVINO's own name of the type.
    """

    numpy: type[np.generic]
    native: str


RAW = {
    DType.BFLOAT16: Raw(np.float16, "bf16"),
    DType.FLOAT8_E4M3FN: Raw(np.uint8, "f8e4m3"),
    DType.FLOAT8_E5M2: Raw(np.uint8, "f8e5m2"),
    DType.FLOAT8_E8M0FNU: Raw(np.uint8, "f8e8m0"),
}

_ALIGNMENT_BYTES = 64  # a cache line, and what OpenVINO's own tensors are aligned to
_SMALL_BYTES = 1 << 20  # not worth giving back
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1

_lowest_of = np.minimum.reduce
_highest_of = np.maximum.reduce

# name of an input, its buffer, the buffer's shape
_Filled = tuple[str, npt.NDArray[Any], tuple[int, ...] | None]


class _Place(NamedTuple):
    """What is needed of one port to make its buffer; plain values, because it is hot."""

    name: str
    port: int
    dtype: np.dtype[Any]
    itemsize_bytes: int
    raw: Raw | None
    is_wide: bool


def blank_bytes(size_bytes: int) -> npt.NDArray[np.uint8]:
    """New zeroed memory, aligned as OpenVINO aligns its own."""
    roomy = np.zeros(size_bytes + _ALIGNMENT_BYTES, np.uint8)
    start = -roomy.ctypes.data % _ALIGNMENT_BYTES
    return roomy[start : start + size_bytes]


def shared_tensor(array: npt.NDArray[Any], raw: Raw | None) -> Any:
    """An ``openvino.Tensor`` on the memory of a contiguous array, which must outlive it.

    Args:
        array: The array.
        raw: The entry of its type in ``RAW``, if there is one.
    """
    ov = openvino()
    if raw is None:
        return ov.Tensor(array, shared_memory=True)
    return ov.Tensor(array.view(raw.numpy), list(array.shape), getattr(ov.Type, raw.native))


class InputBuffers:
    """The buffers of one request, set as its input tensors; for one thread at a time.

    Attributes:
        arrays: The buffer of each input that the model reads, C order.
        is_new: They have shapes for which no call has succeeded; whoever cares clears it.
    """

    def __init__(
        self,
        request: Any,
        ports: Mapping[str, Port],
        limits: Limits,
    ) -> None:
        self.arrays: Arrays = {}
        self._set = request.set_input_tensor
        self._limits = limits
        self._ports = ports
        self.is_new = True
        places = [
            _Place(
                name,
                port.index,
                port.dtype.numpy,
                port.dtype.itemsize_bytes,
                RAW.get(port.dtype),
                port.dtype in NARROWED and port.dtype.is_integer,
            )
            for name, port in ports.items()
        ]
        # Wide integers side by side, so that one look at each kind checks all its inputs.
        self._places = sorted(places, key=lambda place: (place.dtype.name, place.port))
        self._block = np.empty(0, np.uint8)
        self._unset: tuple[_Filled, ...] = tuple(
            (place.name, self._block, None) for place in self._places[:1]
        )
        self._filled = self._unset
        self._wide: list[npt.NDArray[Any]] = []

    def fill(self, inputs: Mapping[str, Any]) -> None:
        """Copies a call's inputs into the buffers, which take their shapes.

        Raises:
            InputError: An integer does not fit into the 32 bits that OpenVINO computes in, or
                the model was not compiled for such a size.
        """
        for name, buffer, shape in self._filled:
            array = inputs[name]
            if array.shape != shape:
                self.resize(inputs)
                self.fill(inputs)
                return
            buffer[...] = array
        if self._wide:
            self.check_integers()

    def resize(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Gives every buffer the shape of its input, and zeros as content.

        Raises:
            ShapeMismatch: The model was not compiled for such a size.
        """
        for name, limits in self._limits.items():
            check_size(name, inputs[name].shape, limits)
        self._filled = self._unset  # so that a failure half-way leaves nothing half set
        places = self._places
        shapes = [inputs[place.name].shape for place in places]
        sizes = [
            -(-math.prod(shape) * place.itemsize_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            or _ALIGNMENT_BYTES
            for place, shape in zip(places, shapes, strict=True)
        ]
        block = self._blank(sum(sizes))
        filled: list[_Filled] = []
        wide: dict[np.dtype[Any], list[int]] = {}
        start = 0
        for place, shape, size in zip(places, shapes, sizes, strict=True):
            name, port, dtype, _, raw, is_wide = place
            buffer = np.ndarray(shape, dtype, block, start)
            self._set(port, shared_tensor(buffer, raw))
            filled.append((name, buffer, shape))
            if is_wide:
                wide.setdefault(dtype, [start, start])[1] = start + size
            start += size
        self._wide = [block[low:high].view(dtype) for dtype, (low, high) in wide.items()]
        self.arrays = {name: buffer for name, buffer, _ in filled}
        self._filled = tuple(filled)
        self.is_new = True

    def shrink(self, size: int) -> bool:
        """Gives every dim that varies this size, or the least one for which it was compiled.

        Returns:
            Whether there is such a dim; nothing is done otherwise.
        """
        arrays = {}
        for name, port in self._ports.items():
            if port.shape is None:
                return False
            shape = [size if item is None else item for item in port.shape]
            for axis, _, (low, _) in self._limits.get(name, ()):
                shape[axis] = max(size, low)
            arrays[name] = np.empty(shape, port.dtype.numpy)
        if all(None not in (port.shape or ()) for port in self._ports.values()):
            return False
        self.resize(arrays)
        return True

    def _blank(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Zeroed, aligned memory: what is there already, unless too small or far too large."""
        block = self._block
        if not size_bytes <= block.size <= 4 * size_bytes + _SMALL_BYTES:
            self._block = blank_bytes(size_bytes)
            return self._block
        # The gaps too: what looks like an integer that does not fit has all inputs searched.
        block[:size_bytes] = 0
        return block

    def check_integers(self) -> None:
        """Raises ``InputError`` for an integer that 32 bits do not hold."""
        for values in self._wide:
            lowest, highest = _lowest_of(values), _highest_of(values)
            if lowest < _LOWEST or highest > _HIGHEST:
                self._refuse_integer()

    def _refuse_integer(self) -> None:
        for name, buffer in self.arrays.items():
            if buffer.dtype.kind not in "iu" or not buffer.size:
                continue
            for value in (int(buffer.min()), int(buffer.max())):
                if not _LOWEST <= value <= _HIGHEST:
                    raise InputError(
                        f"input '{name}' holds {value}; OpenVINO computes {buffer.dtype} in 32 "
                        f"bits, which hold {_LOWEST} to {_HIGHEST}.",
                        fix="Use another backend, or map the values into 32 bits beforehand.",
                        input=name,
                        value=value,
                    )
