"""TensorBundle: the tensors of a TensorFlow checkpoint, read without TensorFlow.

A checkpoint ``model.ckpt-7`` is ``model.ckpt-7.index``, a sorted table of what there is, and
``model.ckpt-7.data-00000-of-00001`` and so on, raw tensors. Source:
``tensorflow/core/util/tensor_bundle/tensor_bundle.h``, ``tensor_bundle.proto`` and
``saved_tensor_slice_util.h``. Why not TensorFlow's own reader:
docs/decisions/0019-checkpoints-without-tensorflow.md.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridge.dtypes import DType
from bridge.errors import InvalidModel, ModelNotFound, UnsupportedModel
from bridge.formats.tensorflow.graph import DTYPES
from bridge.wire import Span, WireError, signed
from bridge_deeprec.sorted_table import TableError, masked_crc, read_table

__all__ = ["Bundle", "Tensor"]

# DeepRec is a TensorFlow 1.15, which knows no float8.
_DTYPES = {number: dtype for number, dtype in DTYPES.items() if number <= 23}
_CHUNK_BYTES = 1 << 24  # read, checked and copied while it is in the processor's cache
_MAX_INDEX_BYTES = 1 << 30
_MAX_SHARDS = 1 << 20
_MAX_RANK = 254  # TensorFlow's own limit


@dataclass(frozen=True, slots=True)
class Tensor:
    """What the index says of one tensor.

    Attributes:
        name: Its name.
        dtype: Element type; ``None`` where it has no counterpart here.
        shape: Its shape.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    _code: int
    _shard: int
    _offset: int
    _size: int
    _crc: int
    _slices: tuple[tuple[tuple[int, int], ...], ...]


class Bundle:
    """One checkpoint: its index in memory, its data in files.

    Args:
        prefix: Path of the index without ``.index``.

    Attributes:
        prefix: The same.
        tensors: Every tensor by name.

    Raises:
        ModelNotFound: The index, or a file with data, is not there.
        InvalidModel: A file is truncated or corrupt.
        UnsupportedModel: It was written on a big-endian machine.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index = prefix.with_name(prefix.name + ".index")
        raw = self._table(index)
        header = raw.pop(b"", None)
        if header is None:
            raise self._invalid("its index has no header")
        self._shards, endianness = self._header(header)
        if endianness:
            raise UnsupportedModel(
                f"the checkpoint '{prefix}' was written on a big-endian machine.",
                fix="Write it again on a little-endian one.",
                model=str(prefix),
            )
        self._sizes: dict[int, int] = {}
        self._parts: dict[bytes, Tensor] = {}
        self.tensors: Mapping[str, Tensor]
        tensors = {}
        for key, value in raw.items():
            if key.startswith(b"\0"):  # a slice of a tensor; no name begins with a zero
                self._parts[key] = self._tensor("a slice", value)
                continue
            name = key.decode("utf-8", "replace")
            tensors[name] = self._tensor(name, value)
        self.tensors = tensors

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.prefix)!r}, {len(self.tensors)} tensors)"

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """A copy of one tensor, its slices put together, its checksum checked.

        Raises:
            ModelNotFound: There is no such tensor.
            InvalidModel: The data are truncated or corrupt.
            UnsupportedModel: The element type cannot be read: strings, resources, ...
        """
        tensor = self._named(name)
        dtype = self._numpy(tensor)
        if tensor._slices:
            self._windows(tensor)  # before anything is allocated
        out = np.empty(tensor.shape, dtype)
        self._fill(tensor, out)
        return out

    def read_into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Read one tensor into an array that is there, without another copy of it.

        Args:
            name: Of the tensor.
            out: C-contiguous, of the tensor's shape and dtype.

        Raises:
            ModelNotFound: There is no such tensor.
            InvalidModel: The data are truncated or corrupt.
            UnsupportedModel: The element type cannot be read.
        """
        tensor = self._named(name)
        if out.shape != tensor.shape or out.dtype != self._numpy(tensor):
            raise self._invalid(
                f"'{name}' should be {out.dtype}{list(out.shape)} and is "
                f"{tensor.dtype}{list(tensor.shape)}",
                tensor=name,
            )
        self._fill(tensor, out)

    def _named(self, name: str) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelNotFound(
                f"the checkpoint '{self.prefix}' has no tensor '{name}'.",
                fix="Its tensors are the keys of `tensors`.",
                model=str(self.prefix),
                tensor=name,
            )
        return tensor

    def _numpy(self, tensor: Tensor) -> np.dtype[Any]:
        if tensor.dtype is None or tensor.dtype is DType.STRING:
            raise UnsupportedModel(
                f"the tensor '{tensor.name}' of the checkpoint '{self.prefix}' has TensorFlow's "
                f"type {tensor._code}; numbers and booleans can be read.",
                fix="Save it without this tensor, or as numbers.",
                model=str(self.prefix),
                tensor=tensor.name,
            )
        return tensor.dtype.numpy

    def _fill(self, tensor: Tensor, out: np.ndarray[Any, Any]) -> None:
        if not tensor._slices:
            self._copy(tensor, out)
            return
        for window, part in self._windows(tensor):
            data = np.empty(part.shape, out.dtype)
            self._copy(part, data)
            out[window] = data

    def _windows(self, tensor: Tensor) -> list[tuple[tuple[slice, ...], Tensor]]:
        """Where the slices of a tensor belong, checked before there is room for it."""
        found, covered = [], 0
        for extents in tensor._slices:
            part = self._parts.get(_slice_key(tensor.name, extents))
            window = _window(extents, tensor.shape)
            if part is None or window is None:
                raise self._invalid(
                    f"'{tensor.name}' has no data for its slice {_shown(extents)}",
                    tensor=tensor.name,
                )
            shape = tuple(one.stop - one.start for one in window)
            if part.shape != shape or part._code != tensor._code or part._slices:
                raise self._invalid(
                    f"the slice {_shown(extents)} of '{tensor.name}' is "
                    f"{part.dtype}{list(part.shape)}; wanted {tensor.dtype}{list(shape)}",
                    tensor=tensor.name,
                )
            found.append((window, part))
            covered += math.prod(shape)
        if covered != math.prod(tensor.shape):
            raise self._invalid(
                f"the slices of '{tensor.name}' hold {covered} elements of "
                f"{math.prod(tensor.shape)}",
                tensor=tensor.name,
            )
        return found

    def _copy(self, tensor: Tensor, out: np.ndarray[Any, Any]) -> None:
        import google_crc32c

        target = out.reshape(-1).view(np.uint8).data
        path = self._shard_path(tensor._shard)
        crc = done = 0
        with path.open("rb", buffering=0) as file:
            os.lseek(file.fileno(), tensor._offset, os.SEEK_SET)
            while done < tensor._size:
                chunk = file.read(min(_CHUNK_BYTES, tensor._size - done))
                if not chunk:
                    raise self._cut_off(tensor, tensor._offset + done)
                crc = google_crc32c.extend(crc, chunk)
                target[done : done + len(chunk)] = chunk
                done += len(chunk)
        if masked_crc(crc) != tensor._crc:
            raise self._invalid(
                f"the checksum of '{tensor.name}' does not fit its data in '{path.name}'",
                tensor=tensor.name,
            )

    def _tensor(self, name: str, value: bytes) -> Tensor:
        """Read and check one BundleEntryProto."""
        code = shard = offset = size = crc = 0
        shape: tuple[int, ...] = ()
        slices = []
        try:
            for number, _, found in Span(value).fields():
                if isinstance(found, Span):
                    if number == 2:
                        shape = _shape(found)
                    elif number == 7:
                        slices.append(_extents(found))
                elif number == 1:
                    code = found
                elif number == 3:
                    shard = found
                elif number == 4:
                    offset = signed(found)
                elif number == 5:
                    size = signed(found)
                elif number == 6:
                    crc = found
        except WireError as error:
            raise self._invalid(
                f"the entry of '{name}' is corrupt: {error}", tensor=name
            ) from error
        tensor = Tensor(
            name, _DTYPES.get(code), shape, code, shard, offset, size, crc, tuple(slices)
        )
        if min(shape, default=0) < 0 or len(shape) > _MAX_RANK:
            raise self._invalid(f"'{name}' has the shape {list(shape[:8])}", tensor=name)
        if offset < 0 or size < 0 or shard >= self._shards:
            raise self._invalid(
                f"'{name}' lies in file {shard} of {self._shards} at byte {offset}", tensor=name
            )
        if not slices:
            self._check_size(tensor)
        return tensor

    def _check_size(self, tensor: Tensor) -> None:
        """What the shape tells has to be in the file, or reading would ask for any memory."""
        if tensor._offset + tensor._size > self._size_of(tensor._shard):
            raise self._cut_off(tensor, self._size_of(tensor._shard))
        if tensor.dtype is None or tensor.dtype is DType.STRING:
            return
        wanted = math.prod(tensor.shape) * tensor.dtype.numpy.itemsize
        if tensor._size != wanted:
            raise self._invalid(
                f"'{tensor.name}' of shape {list(tensor.shape)} should have {wanted} bytes "
                f"and has {tensor._size}",
                tensor=tensor.name,
                wanted=wanted,
                got=tensor._size,
            )

    def _header(self, value: bytes) -> tuple[int, int]:
        shards = endianness = 0
        try:
            for number, _, found in Span(value).fields():
                if number == 1 and isinstance(found, int):
                    shards = found
                elif number == 2 and isinstance(found, int):
                    endianness = found
        except WireError as error:
            raise self._invalid(f"its header is corrupt: {error}") from error
        if not 0 < shards <= _MAX_SHARDS:
            raise self._invalid(f"its header tells of {shards} data files")
        return shards, endianness

    def _table(self, index: Path) -> dict[bytes, bytes]:
        try:
            about = index.stat()
            if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for a writer
                raise TableError(f"'{index.name}' is no file")
            size = about.st_size
            if size > _MAX_INDEX_BYTES:
                raise TableError(f"it has {size} bytes; wanted at most {_MAX_INDEX_BYTES}")
            return read_table(index.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFound(
                f"there is no checkpoint '{self.prefix}': '{index.name}' does not exist.",
                fix="Name its path without '.index', or the folder that it is in.",
                model=str(self.prefix),
            ) from error
        except TableError as error:
            raise self._invalid(f"its index is truncated or corrupt: {error}") from error

    def _shard_path(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self._shards:05d}")

    def _size_of(self, shard: int) -> int:
        if shard not in self._sizes:
            path = self._shard_path(shard)
            if not path.is_file():
                raise ModelNotFound(
                    f"the checkpoint '{self.prefix}' lacks its file '{path.name}'.",
                    fix="Copy all files that begin with its name, the index last.",
                    model=str(self.prefix),
                    file=path.name,
                )
            self._sizes[shard] = path.stat().st_size
        return self._sizes[shard]

    def _cut_off(self, tensor: Tensor, end: int) -> InvalidModel:
        return self._invalid(
            f"'{tensor.name}' should end at byte {tensor._offset + tensor._size} of "
            f"'{self._shard_path(tensor._shard).name}', which ends at byte {end}",
            tensor=tensor.name,
            wanted=tensor._offset + tensor._size,
            got=end,
        )

    def _invalid(self, what: str, **detail: Any) -> InvalidModel:
        return InvalidModel(
            f"the checkpoint '{self.prefix}' is damaged: {what}.",
            fix="Copy or save it again.",
            model=str(self.prefix),
            **detail,
        )


def _shape(span: Span) -> tuple[int, ...]:
    sizes = []
    for dim in span.spans(2):
        size = 0
        for number, _, found in dim.fields():
            if number == 1 and isinstance(found, int):
                size = signed(found)
        sizes.append(size)
    return tuple(sizes)


def _extents(span: Span) -> tuple[tuple[int, int], ...]:
    """Start and length along each axis; the length -1 is all of it."""
    found = []
    for extent in span.spans(1):
        start, length = 0, -1
        for number, _, value in extent.fields():
            if isinstance(value, int):
                if number == 1:
                    start = signed(value)
                elif number == 2:
                    length = signed(value)
        found.append((start, length))
    return tuple(found)


def _window(
    extents: tuple[tuple[int, int], ...], shape: tuple[int, ...]
) -> tuple[slice, ...] | None:
    if len(extents) != len(shape):
        return None
    window = []
    for (start, length), size in zip(extents, shape, strict=True):
        end = size if length == -1 else start + length
        if not 0 <= start <= end <= size:
            return None
        window.append(slice(start, end))
    return tuple(window)


def _shown(extents: tuple[tuple[int, int], ...]) -> str:
    return ":".join("-" if length == -1 else f"{start},{length}" for start, length in extents)


def _slice_key(name: str, extents: tuple[tuple[int, int], ...]) -> bytes:
    """The key under which the data of a slice stand.

    Source: ``EncodeTensorNameSlice`` in ``tensorflow/core/util/saved_tensor_slice_util.cc``
    and ``tensorflow/core/lib/strings/ordered_code.cc``.
    """
    text = name.encode().replace(b"\0", b"\0\xff").replace(b"\xff", b"\xff\0")
    parts = [b"\0", text, b"\0\1", _ordered(len(extents))]
    for start, length in extents:
        parts += [_ordered_signed(start), _ordered_signed(length)]
    return b"".join(parts)


def _ordered(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _ordered_signed(value: int) -> bytes:
    if value == -1:
        return b"\x7f"
    if value < 0 or value >> 55:
        return b""  # no slice begins there: nothing is found under such a key
    size = value.bit_length() // 7 + 1
    data = bytearray(value.to_bytes(size, "big"))
    data[0] ^= (0xFF00 >> size) & 0xFF
    return bytes(data)
