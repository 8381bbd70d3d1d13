"""What a TensorFlow Lite flatbuffer says about its inputs and outputs.

Field numbers are those of ``tensorflow/lite/schema/schema.fbs`` (TensorFlow 2.21); the
encoding is https://flatbuffers.dev/internals/. Only the few tables that are needed are
read, every position is checked, and vectors are bounded by the file's own size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from bridge.dtypes import DType
from bridge.signature import Dim, Signature, TensorSpec, dim

__all__ = ["Contents", "FlatbufferError", "read_flatbuffer"]

_MOST_TABLES = 1_000_000
_MOST_TENSORS = 10_000
"""Of all signatures together; flatbuffers may share tables, so that a small file could
name any number of them."""

# TensorType; the types that are missing here have no numpy counterpart.
_TYPES = {
    0: DType.FLOAT32,
    1: DType.FLOAT16,
    2: DType.INT32,
    3: DType.UINT8,
    4: DType.INT64,
    5: DType.STRING,
    6: DType.BOOL,
    7: DType.INT16,
    8: DType.COMPLEX64,
    9: DType.INT8,
    10: DType.FLOAT64,
    11: DType.COMPLEX128,
    12: DType.UINT64,
    15: DType.UINT32,
    16: DType.UINT16,
    18: DType.BFLOAT16,
}


class FlatbufferError(ValueError):
    """The file is truncated or corrupt."""


@dataclass(slots=True)
class Contents:
    """What ``read_flatbuffer`` found.

    Attributes:
        signatures: By signature key; under ``""`` where the file names none.
        version: Version of the schema.
        description: Who wrote the file, if it says so.
        external_files: Files of weights that the model names.
        notes: Sentences about the signatures.
    """

    signatures: dict[str, Signature] = field(default_factory=dict)
    version: int = 0
    description: str = ""
    external_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_flatbuffer(data: memoryview) -> Contents:
    """Reads a file; tensor data is not touched, only whether all of it is there.

    Raises:
        FlatbufferError: A position is outside the file.
    """
    try:
        return _model(data)
    except struct.error as error:
        raise FlatbufferError(f"a part of it is outside its {len(data)} bytes") from error


@dataclass(frozen=True, slots=True)
class _Table:
    """A table: its fields are found through a table of offsets before it."""

    data: memoryview
    start: int

    def at(self, number: int) -> int | None:
        """Position of a field; ``None`` if it is not there."""
        offsets = self.start - _int32(self.data, self.start)
        if 4 + 2 * number >= _uint16(self.data, offsets):
            return None
        offset = _uint16(self.data, offsets + 4 + 2 * number)
        return self.start + offset if offset else None

    def uint(self, number: int) -> int:
        position = self.at(number)
        return 0 if position is None else _uint32(self.data, position)

    def byte(self, number: int) -> int:
        position = self.at(number)
        return 0 if position is None else _unpack("<B", self.data, position)

    def vector(self, number: int, item_bytes: int) -> tuple[int, int]:
        """Position of the first item, and the number of items."""
        position = self.at(number)
        if position is None:
            return 0, 0
        start = position + _uint32(self.data, position)
        count = _uint32(self.data, start)
        if start + 4 + count * item_bytes > len(self.data):
            raise FlatbufferError(
                f"{count * item_bytes} bytes at {start + 4} are outside its {len(self.data)} bytes"
            )
        return start + 4, count

    def ints(self, number: int) -> list[int]:
        start, count = self.vector(number, 4)
        return [_int32(self.data, start + 4 * index) for index in range(count)]

    def text(self, number: int) -> str:
        start, count = self.vector(number, 1)
        return bytes(self.data[start : start + count]).decode("utf-8", "replace")

    def tables(self, number: int) -> Iterator[_Table]:
        start, count = self.vector(number, 4)
        if count > _MOST_TABLES:
            raise FlatbufferError(f"it has {count} parts of one kind")
        for position in range(start, start + 4 * count, 4):
            yield _Table(self.data, position + _uint32(self.data, position))

    def table(self, number: int, index: int) -> _Table:
        start, count = self.vector(number, 4)
        if not 0 <= index < count:
            raise FlatbufferError(f"it names part {index} of {count}")
        position = start + 4 * index
        return _Table(self.data, position + _uint32(self.data, position))


def _model(data: memoryview) -> Contents:
    model = _Table(data, _uint32(data, 0))
    contents = Contents(version=model.uint(0), description=model.text(3))
    for buffer in model.tables(4):
        buffer.vector(0, 1)
    contents.external_files = [group.text(0) for group in model.tables(8)]
    count = 0

    def spec(graph: _Table, index: int, name: str | None) -> TensorSpec:
        nonlocal count
        count += 1
        if count > _MOST_TENSORS:
            raise FlatbufferError(f"it has more than {_MOST_TENSORS} inputs and outputs")
        return _spec(graph.table(0, index), name, contents)

    for named in model.tables(7):
        graph = model.table(2, named.uint(4))
        contents.signatures[named.text(2)] = _signature(
            *([spec(graph, one.uint(1), one.text(0)) for one in named.tables(k)] for k in (0, 1))
        )
    if not contents.signatures:
        graph = model.table(2, 0)
        contents.signatures[""] = _signature(
            *([spec(graph, index, None) for index in graph.ints(side)] for side in (1, 2))
        )
    return contents


def _signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    try:
        return Signature(tuple(inputs), tuple(outputs))
    except ValueError as error:
        raise FlatbufferError(str(error).rstrip(".")[:300]) from None


def _spec(tensor: _Table, name: str | None, contents: Contents) -> TensorSpec:
    native = tensor.text(3)
    code = tensor.byte(1)
    if code not in _TYPES:
        contents.notes.append(
            f"'{name or native}' is of element type {code} of TensorFlow Lite, for which numpy "
            "has no array: its dtype stays open."
        )
    dims = tensor.ints(7) or tensor.ints(0)
    shape: tuple[Dim, ...] | None = tuple(dim(size) for size in dims)
    if not dims and not tensor.byte(8):  # older files say the same of scalars and of any rank
        shape = None
    return TensorSpec(name or native, _TYPES.get(code), shape, native_name=native)


def _unpack(kind: str, data: memoryview, position: int) -> int:
    if position < 0:
        raise FlatbufferError("a table begins before the file")
    (value,) = struct.unpack_from(kind, data, position)
    return int(value)


def _uint16(data: memoryview, position: int) -> int:
    return _unpack("<H", data, position)


def _uint32(data: memoryview, position: int) -> int:
    return _unpack("<I", data, position)


def _int32(data: memoryview, position: int) -> int:
    return _unpack("<i", data, position)
