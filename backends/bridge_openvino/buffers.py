"""Input memory of one infer request.

OpenVINO works fastest on tensors that are set once; setting one costs more than copying a
few kilobytes. So each request has buffers of its own for the shapes last seen, and a call
copies into them: the caller's arrays may have any layout, are never modified (OpenVINO
may compute in place) and never outlive the call (a request keeps the bare address).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import DType
from bridge.check import Arrays
from bridge.errors import InputError
from bridge_openvino.ports import Port
from bridge_openvino.runtime import openvino

__all__ = ["NARROWED", "InputBuffers"]

NARROWED = {
    DType.INT64: "int32",
    DType.UINT64: "int32",
    DType.UINT32: "int32",
    DType.FLOAT64: "float32",
}
"""What OpenVINO computes in instead, as seen on CPUs with 2026.4: adding 1 to the uint64
2**33 gives 2, to the int64 2**31 - 1 gives -2**31. See its issues 24072 and 35823."""

_ALIGNMENT_BYTES = 64  # a cache line, and what OpenVINO's own tensors are aligned to
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1

_lowest_of = np.minimum.reduce
_highest_of = np.maximum.reduce

# buffer name, the buffer, its shape
_Filled = tuple[str, npt.NDArray[Any], tuple[int, ...] | None]


class InputBuffers:
    """The buffers of one request, set as its input tensors; for one thread at a time.

    Attributes:
        arrays: The buffer of each input that the model reads, C order.
    """

    def __init__(self, request: Any, ports: Mapping[str, Port]) -> None:
        self.arrays: Arrays = {}
        self._request = request
        # Wide integers side by side, so that one look at each kind checks all its inputs.
        self._ports = sorted(ports.items(), key=lambda item: (item[1].dtype.value, item[1].index))
        self._unset: tuple[_Filled, ...] = tuple(
            (name, np.empty(0, np.uint8), None) for name, _ in self._ports[:1]
        )
        self._filled = self._unset
        self._wide: list[npt.NDArray[Any]] = []

    def fill(self, inputs: Mapping[str, Any]) -> None:
        """Copies a call's inputs into the buffers, which take their shapes.

        Raises:
            InputError: An integer does not fit into the 32 bits that OpenVINO computes in.
        """
        for name, buffer, shape in self._filled:
            array = inputs[name]
            if array.shape != shape:
                self.resize({name: inputs[name].shape for name, _ in self._ports})
                self.fill(inputs)
                return
            buffer[...] = array
        if self._wide:
            self.check_integers()

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Makes zeroed buffers of these shapes and sets them as the request's tensors."""
        self._filled = self._unset  # so that a failure half-way leaves nothing half set
        sizes = [
            max(_aligned(_count(shapes[name]) * port.dtype.itemsize_bytes), _ALIGNMENT_BYTES)
            for name, port in self._ports
        ]
        block = np.zeros(sum(sizes) + _ALIGNMENT_BYTES, np.uint8)
        start = -block.ctypes.data % _ALIGNMENT_BYTES
        filled: list[_Filled] = []
        ov = openvino()
        ranges: dict[DType, tuple[int, int]] = {}
        for (name, port), size in zip(self._ports, sizes, strict=True):
            shape = shapes[name]
            used = block[start : start + _count(shape) * port.dtype.itemsize_bytes]
            buffer = used.view(port.dtype.numpy).reshape(shape)
            self._request.set_input_tensor(port.index, _tensor(ov, buffer, port.dtype))
            filled.append((name, buffer, shape))
            if port.dtype in NARROWED and port.dtype.is_integer:
                ranges[port.dtype] = (ranges.get(port.dtype, (start, 0))[0], start + size)
            start += size
        self._wide = [block[low:high].view(kind.numpy) for kind, (low, high) in ranges.items()]
        self.arrays = {name: buffer for name, buffer, _ in filled}
        self._filled = tuple(filled)

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


def _tensor(ov: Any, buffer: npt.NDArray[Any], dtype: DType) -> Any:
    if dtype is DType.BFLOAT16:  # unknown to OpenVINO's numpy conversion
        return ov.Tensor(buffer.view(np.float16), list(buffer.shape), ov.Type.bf16)
    return ov.Tensor(buffer, shared_memory=True)


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) if shape else 1


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
