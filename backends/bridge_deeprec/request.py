"""DeepRec's requests and responses in protobuf's wire format, without protobuf.

The library carries a protobuf of its own, so no other one is loaded beside it. Numbers go
to bytes and back in numpy, never one by one. Reading is of untrusted bytes: it ends in
arrays or in ``PredictError``, and makes nothing that is larger than the bytes.

Source of the field numbers: ``tf_predict.proto`` of DeepRec, package ``tensorflow.eas``, and
its page ``Processor``; of what goes where, ``util.cc`` of its processor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import PredictError
from bridge.wire import FIXED32, FIXED64, VARINT, Span, WireError, signed

__all__ = ["TYPES", "decode_model_info", "decode_response", "encode_request"]

_Array = npt.NDArray[Any]

TYPES = {
    DType.FLOAT32: 1,
    DType.FLOAT64: 2,
    DType.INT32: 3,
    DType.UINT8: 4,
    DType.INT16: 5,
    DType.INT8: 6,
    DType.STRING: 7,
    DType.COMPLEX64: 8,
    DType.INT64: 9,
    DType.BOOL: 10,
    DType.BFLOAT16: 14,
    DType.UINT16: 17,
    DType.COMPLEX128: 18,
    DType.FLOAT16: 19,
}
"""``ArrayDataType`` by element type; those without a counterpart here are left out."""

_DTYPES = {number: dtype for dtype, number in TYPES.items()}

# Fields of ArrayProto.
_FLOAT, _DOUBLE, _INT, _STRING, _INT64, _BOOL = 3, 4, 5, 6, 7, 8
_FIELDS = {
    DType.FLOAT32: _FLOAT,
    DType.FLOAT64: _DOUBLE,
    DType.INT32: _INT,
    DType.UINT8: _INT,
    DType.INT16: _INT,
    DType.INT8: _INT,
    DType.STRING: _STRING,
    DType.COMPLEX64: _FLOAT,
    DType.INT64: _INT64,
    DType.BOOL: _BOOL,
    DType.BFLOAT16: _FLOAT,
    DType.UINT16: _INT,
    DType.COMPLEX128: _DOUBLE,
    DType.FLOAT16: _FLOAT,
}
_WIDE: dict[int, np.dtype[Any]] = {_FLOAT: np.dtype("<f4"), _DOUBLE: np.dtype("<f8")}
_FIXED = {_FLOAT: FIXED32, _DOUBLE: FIXED64}
_PAIRS = frozenset({DType.COMPLEX64, DType.COMPLEX128})
_MAX_RANK = 64  # of a numpy array
_MAX_ELEMENTS = 1 << 58  # of which numpy can still count the bytes
_SHIFTS = np.arange(0, 70, 7, dtype=np.uint64)

# How 56 bits become 8 bytes of 7: what moves, and by how many bits.
_LOW_56 = np.uint64((1 << 56) - 1)
_SPREAD = tuple(
    (np.uint64(mask), np.uint64(step))
    for mask, step in (
        (0x00FF_FFFF_F000_0000, 4),
        (0x0FFF_C000_0FFF_C000, 2),
        (0x3F80_3F80_3F80_3F80, 1),
    )
)
# By the size of a varint: the bits that say "more follows" in its first 8 bytes, and which of
# 10 bytes it has.
_CONTINUED = np.array(
    [sum(128 << 8 * place for place in range(min(max(size - 1, 0), 8))) for size in range(11)],
    np.uint64,
)
_POWERS = np.array([1 << 7 * place for place in range(1, 10)], np.uint64)
_FEW = 1000  # below that, one slow call of numpy costs less than nine quick ones
_HANDFUL = 24
_ALL_64 = (1 << 64) - 1
_KEPT = np.arange(10) < np.arange(11)[:, None]
_KEPT_8 = np.ascontiguousarray(_KEPT[:, :8])


def encode_request(signature: str, inputs: Mapping[str, _Array], outputs: Iterable[str]) -> bytes:
    """A ``PredictRequest``.

    Args:
        signature: Name of the signature; the library reads it from its configuration.
        inputs: Arrays by the name that the library knows; of the types in ``TYPES``.
        outputs: The outputs to compute: ``output_filter``.

    Returns:
        The bytes, as ``process`` takes them.
    """
    parts = [_text_field(1, signature)]
    packed = _packed_integers([one for one in inputs.values() if one.dtype.kind in "iu"])
    for name, array in inputs.items():
        head, tag = _head(array.dtype, array.shape)
        kind = array.dtype.kind
        if kind in "OUT":
            values = _strings(array)
        elif array.size:
            values = next(packed) if kind in "iu" else _fixed(array)
            tag += _varint(len(values))
        else:
            values, tag = b"", b""
        size = len(head) + len(tag) + len(values)
        value_head = b"\x12" + _varint(size) + head + tag
        key = _text_field(1, name)
        entry = len(key) + len(value_head) + len(values)
        parts += (b"\x12", _varint(entry), key, value_head, values)
    parts += [_text_field(3, name) for name in outputs]
    return b"".join(parts)


def decode_response(data: bytes) -> dict[str, _Array]:
    """The arrays of a ``PredictResponse`` by name, which the caller owns.

    Strings come as ``str`` where all of an array are UTF-8, else as ``bytes``.

    Raises:
        PredictError: The bytes are no such message, or do not fit together.
    """
    found = {}
    try:
        for entry in Span(data).spans(1):
            name, value = "", _Value()
            for number, _, item in entry.fields():
                if number == 1 and isinstance(item, Span):
                    name = item.text(strict=True)
                elif number == 2 and isinstance(item, Span):
                    value.read(item)
            found[name] = value.array(name)
    except WireError as error:
        raise _unreadable(str(error)) from None
    return found


def decode_model_info(data: bytes) -> str:
    """``model_path`` of a ``ServingModelInfo``: the full checkpoint that serves.

    Raises:
        PredictError: The bytes are no such message.
    """
    try:
        texts = [one.text(strict=True) for one in Span(data).spans(1)]
    except WireError as error:
        raise _unreadable(str(error)) from None
    return texts[-1] if texts else ""


class _Value:
    """An ``ArrayProto`` while it is read; it may come in several pieces."""

    def __init__(self) -> None:
        self._kind = 0
        self._shape: list[int] = []
        self._found: dict[int, list[Any]] = {}

    def read(self, message: Span) -> None:
        """Adds one occurrence of the message."""
        for number, wire, item in message.fields():
            if number == 1 and wire == VARINT:
                assert isinstance(item, int)
                self._kind = item
            elif number == 2 and isinstance(item, Span):
                self._shape += [signed(size) for size in item.ints(1)]
            elif number in (_FLOAT, _DOUBLE):
                self._add_fixed(number, wire, item)
            elif number in (_INT, _INT64, _BOOL):
                if isinstance(item, Span):
                    self._add(number, _integers(item))
                elif wire == VARINT:
                    self._add(number, np.array([item], np.uint64))
            elif number == _STRING and isinstance(item, Span):
                self._add(number, item.raw())

    def array(self, name: str) -> _Array:
        """The array, once everything was read.

        Raises:
            WireError, PredictError: The parts do not fit together.
        """
        dtype = _DTYPES.get(self._kind)
        if dtype is None:
            raise _unreadable(f"output '{name}' is of type {self._kind}, which has no arrays here")
        shape, field = tuple(self._shape), _FIELDS[dtype]
        if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
            raise _unreadable(f"output '{name}' has the shape {list(shape)[:_MAX_RANK]}")
        values = self._values(field)
        count, per_item = len(values), 2 if dtype in _PAIRS else 1
        if math.prod(shape) * per_item != count:
            raise _unreadable(
                f"output '{name}' of shape {shape} has {count} values in field {field}"
            )
        if math.prod(filter(None, shape)) > _MAX_ELEMENTS:  # numpy refuses it beside a 0, too
            raise _unreadable(f"output '{name}' has the shape {list(shape)}")
        return _as_dtype(name, dtype, values).reshape(shape)

    def _values(self, field: int) -> Any:
        found = self._found.get(field, [])
        if field == _STRING:
            return found
        if not found:
            return np.empty(0, _WIDE.get(field, np.dtype(np.uint64)))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _add(self, number: int, values: Any) -> None:
        self._found.setdefault(number, []).append(values)

    def _add_fixed(self, number: int, wire: int, item: int | Span) -> None:
        wide = _WIDE[number]
        if isinstance(item, Span):
            if len(item) % wide.itemsize:
                raise WireError("packed numbers have odd bytes", item.start)
            self._add(number, np.frombuffer(item.view(), wide))
        elif wire == _FIXED[number]:
            self._add(number, np.frombuffer(item.to_bytes(wide.itemsize, "little"), wide))


def _as_dtype(name: str, dtype: DType, values: Any) -> _Array:
    """Values of the wire in an element type; always a new array."""
    if dtype is DType.STRING:
        return _texts(values)
    if dtype in _PAIRS:
        return np.asarray(np.array(values).view(dtype.numpy))
    if dtype.is_float:
        with np.errstate(over="ignore"):
            return np.array(values, dtype.numpy)
    if dtype is DType.BOOL:
        return np.asarray(values != 0)
    wide = values.view(np.int64)
    if dtype is DType.INT64:
        return np.array(wide)
    low, high = dtype.bounds
    if values.size and (wide.min() < low or wide.max() > high):
        raise _unreadable(f"output '{name}' has values that are no {dtype}")
    return np.asarray(wide, dtype.numpy)


def _texts(values: Sequence[bytes]) -> _Array:
    texts = np.empty(len(values), object)
    try:
        texts[:] = [one.decode("utf-8") for one in values]
    except UnicodeDecodeError:
        texts[:] = values
    return texts


def _integers(span: Span) -> npt.NDArray[np.uint64]:
    """Packed varints, 64 bits each."""
    data = np.frombuffer(span.view(), np.uint8)
    ends = np.flatnonzero(data < 128)
    if not data.size:
        return np.empty(0, np.uint64)
    if not ends.size or ends[-1] != data.size - 1:
        raise WireError("a number is cut off", span.end)
    if ends.size == data.size:  # all below 128
        return data.astype(np.uint64)
    begins = np.empty_like(ends)
    begins[0], begins[1:] = 0, ends[:-1] + 1
    sizes = ends - begins + 1
    longest = int(sizes.max())
    if longest > 10 or (longest == 10 and (data[ends[sizes == 10]] > 1).any()):
        raise WireError("a varint has more than 64 bits", span.start)
    values = (data[begins] & 127).astype(np.uint64)
    for place in range(1, longest):
        # What ends before this place adds nothing: its index is kept inside, its bits masked.
        bits = data[np.minimum(begins + place, ends)] & 127
        bits[sizes <= place] = 0
        values |= bits.astype(np.uint64) << _SHIFTS[place]
    return values


def _packed_integers(arrays: Sequence[_Array]) -> Iterator[bytes]:
    """Varints of each array that has values.

    They are made of all arrays at once, since each call of numpy costs a microsecond; of a
    handful of numbers without it.
    """
    if sum([one.size for one in arrays]) <= _HANDFUL:
        for one in arrays:
            if one.size:
                yield b"".join([_varint(value & _ALL_64) for value in one.ravel().tolist()])
        return
    flat = [one.reshape(-1).astype(np.int64, copy=False) for one in arrays if one.size]
    if not flat:
        return
    values = (flat[0] if len(flat) == 1 else np.concatenate(flat)).view(np.uint64)
    data, sizes = _varints(values)
    if len(flat) == 1:
        yield data
        return
    ends = np.cumsum(sizes, dtype=np.int64)
    begin = 0
    for end in ends[np.cumsum([one.size for one in flat]) - 1].tolist():
        yield data[begin:end]
        begin = end


def _varints(values: npt.NDArray[np.uint64]) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """Numbers as varints one after the other, and how many bytes each has.

    The groups of 7 bits are spread over 8 bytes in three steps, halves, quarters and
    eighths at a time, and the 8 bits that are left make two more bytes.
    """
    longest = max(1, -(-int(values.max()).bit_length() // 7))
    if longest == 1:
        return values.astype(np.uint8).tobytes(), np.ones(values.size, np.uint8)
    if values.size < _FEW:
        sizes = (np.searchsorted(_POWERS, values, "right") + 1).astype(np.uint8)
    else:
        sizes = np.ones(values.size, np.uint8)
        for power in _POWERS[: longest - 1]:
            sizes += values >= power
    spread, high = values & _LOW_56, np.empty_like(values)
    for mask, step in _SPREAD:
        np.bitwise_and(spread, mask, out=high)
        spread ^= high
        high <<= step
        spread |= high
    spread |= _CONTINUED.take(sizes)
    low = spread.astype("<u8", copy=False)
    if longest <= 8:
        return low.view(np.uint8).reshape(-1, 8)[_KEPT_8.take(sizes, 0)].tobytes(), sizes
    table = np.empty((values.size, 5), "<u2")
    table[:, :4] = low.view("<u2").reshape(-1, 4)
    top = (values >> np.uint64(56)).astype(np.uint16)
    # The lower 7 bits, and the highest one as a tenth byte that the ninth continues into.
    table[:, 4] = (top & 127) | (top >> 7) * 0x180
    return table.view(np.uint8)[_KEPT.take(sizes, 0)].tobytes(), sizes


@functools.lru_cache(1024)
def _head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What comes before the values: type and shape, and the tag of their field."""
    kind = DType.of(dtype)
    dims = b"".join(map(_varint, shape))
    packed = b"\x0a" + _varint(len(dims)) + dims if dims else b""
    head = b"\x08" + _varint(TYPES[kind]) + b"\x12" + _varint(len(packed)) + packed
    return head, b"" if kind is DType.STRING else _tag(_FIELDS[kind], 2)


def _fixed(array: _Array) -> bytes:
    """The bytes of a packed field of floats or bools."""
    dtype = DType.of(array.dtype)
    if dtype is DType.BOOL:
        return array.tobytes()
    if dtype in _PAIRS:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return array.astype(_WIDE[_FIELDS[dtype]], copy=False).tobytes()


def _strings(array: _Array) -> bytes:
    pieces = []
    for item in array.ravel().tolist():
        raw = item.encode("utf-8", "surrogateescape") if isinstance(item, str) else bytes(item)
        pieces += [b"\x32", _varint(len(raw)), raw]
    return b"".join(pieces)


@functools.lru_cache(4096)
def _text_field(number: int, text: str) -> bytes:
    raw = text.encode("utf-8")
    return _tag(number, 2) + _varint(len(raw)) + raw


def _tag(number: int, wire: int) -> bytes:
    return bytes((number << 3 | wire,))


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _unreadable(what: str) -> PredictError:
    return PredictError(
        f"the answer of DeepRec's library cannot be read: {what}.",
        fix="The library may be of another version, or broken; try another build.",
    )
