"""A reader of the protobuf wire format: read-only, bounded, and lazy.

It knows no schema. A ``Span`` is a stretch of bytes at a known position; what it is (a
message, a string, packed numbers, tensor data) the format's own reader knows, and asks
for. Nothing is parsed before it is asked for, and nothing is copied but the strings that
are asked for, so that reading the graph of a model of many GB touches few of its pages.

Whatever the bytes, reading them raises ``WireError`` or ends: lengths stay inside the
parent, nesting and the number of fields are bounded, varints have ten bytes at most. The
encoding is https://protobuf.dev/programming-guides/encoding/; where protobuf parsers may
differ (groups, field number 0, tags of more than 32 bits) this one refuses, so that no
runtime can see a field here overlooked.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import InvalidModel, OutOfMemory

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH",
    "MAX_DEPTH",
    "MAX_FIELDS",
    "VARINT",
    "Span",
    "WireError",
    "opened",
    "signed",
]

VARINT = 0
FIXED64 = 1
LENGTH = 2
FIXED32 = 5

MAX_DEPTH = 100
"""Nesting of messages; what protobuf's C++ parser takes by default."""

MAX_FIELDS = 10_000_000
"""Fields read from one file, which bounds the time that a hostile file can take."""


class WireError(ValueError):
    """The bytes are no sound protobuf message.

    Args:
        reason: What is wrong, without the position; no full stop.
        offset: Position in the whole file or buffer, in bytes.
        truncated: The outermost message ends too early; else something inside is corrupt.
    """

    def __init__(self, reason: str, offset: int, *, truncated: bool = False) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset
        self.truncated = truncated

    def invalid(self, model: str, title: str) -> InvalidModel:
        """The error for users.

        Args:
            model: The model as error texts name it.
            title: What the file ought to be, such as ``ONNX``.
        """
        state = "truncated" if self.truncated else "corrupt"
        return InvalidModel(
            f"the {title} file {model} is {state}: {self}.",
            fix="Export or copy it again, and compare the size with the original's.",
            model=model,
            offset=self.offset,
        )


class Span:
    """A stretch of bytes: a message, a string, packed numbers or raw data.

    Args:
        data: The whole file or buffer.
        size: Of what ``data`` is only the beginning: reading on behind its end raises
            ``IndexError``, or finds fewer bytes.
        max_fields: Limit on the fields read from it.

    Attributes:
        start: Position of the first byte in the whole file or buffer.
        end: Position behind the last byte.
    """

    __slots__ = ("_budget", "_data", "_depth", "end", "start")

    def __init__(
        self,
        data: bytes | mmap.mmap,
        *,
        size: int | None = None,
        max_fields: int = MAX_FIELDS,
    ) -> None:
        self._data = data
        self.start = 0
        self.end = len(data) if size is None else size
        self._depth = 0
        self._budget = [max_fields]

    def __len__(self) -> int:
        return self.end - self.start

    def __repr__(self) -> str:
        return f"Span({self.start}:{self.end})"

    def __bool__(self) -> bool:
        return True

    def raw(self) -> bytes:
        """A copy of the bytes."""
        return self._data[self.start : self.end]

    def view(self) -> memoryview:
        """The bytes themselves; release it before the file is closed."""
        return memoryview(self._data)[self.start : self.end]

    def text(self, *, strict: bool = False) -> str:
        """The bytes as UTF-8.

        Args:
            strict: Refuse other bytes; else they become U+FFFD.

        Raises:
            WireError: ``strict``, and the bytes are not UTF-8.
        """
        try:
            return self.raw().decode("utf-8", "strict" if strict else "replace")
        except UnicodeDecodeError as error:
            raise WireError("a string is not UTF-8", self.start + error.start) from None

    def varints(self) -> list[int]:
        """The bytes as packed varints, unsigned 64 bits each; see ``signed``.

        Raises:
            WireError: The last one is cut off, one has more than 64 bits, or there are
                more of them than the file may have fields.
        """
        found = []
        data, position, end, budget = self._data, self.start, self.end, self._budget
        while position < end:
            budget[0] -= 1
            if budget[0] < 0:
                raise WireError("the message has too many fields", position)
            value = data[position]
            if value < 128:
                position += 1
            else:
                value, position = self._varint(position)
            found.append(value)
        return found

    def fields(self) -> Iterator[tuple[int, int, int | Span]]:
        """Number, wire type and value of each field, in file order.

        The value is an ``int`` for varints (unsigned 64 bits, see ``signed``) and for
        the two fixed sizes (little-endian bits), a ``Span`` for length-delimited fields.

        Raises:
            WireError: The bytes are no message, or nested or split beyond the limits.
        """
        if self._depth > MAX_DEPTH:
            raise WireError(f"messages are nested more than {MAX_DEPTH} deep", self.start)
        data, position, end, budget = self._data, self.start, self.end, self._budget
        while position < end:
            budget[0] -= 1
            if budget[0] < 0:
                raise WireError("the message has too many fields", position)
            tag_at = position
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = self._varint(tag_at)
            number, kind = tag >> 3, tag & 7
            if not 8 <= tag < 1 << 32:
                raise WireError(f"field number {number} is out of range", tag_at)
            if kind == LENGTH:
                if position >= end:
                    raise self._cut_off("a length", position)
                length = data[position]
                if length > 127:
                    length, position = self._varint(position)
                else:
                    position += 1
                if length > end - position:
                    raise self._beyond(number, length, position, tag_at)
                child = Span.__new__(Span)
                child._data = data
                child.start = position
                position += length
                child.end = position
                child._depth = self._depth + 1
                child._budget = budget
                yield number, kind, child
            elif kind == VARINT:
                if position >= end:
                    raise self._cut_off("a number", position)
                value = data[position]
                if value > 127:
                    value, position = self._varint(position)
                else:
                    position += 1
                yield number, kind, value
            elif kind in {FIXED32, FIXED64}:
                size = 4 if kind == FIXED32 else 8
                if size > end - position:
                    raise self._cut_off("a number", position)
                fixed = int.from_bytes(data[position : position + size], "little")
                position += size
                yield number, kind, fixed
            else:
                raise WireError(f"field {number} has wire type {kind}, a group or none", tag_at)

    def spans(self, number: int) -> Iterator[Span]:
        """The length-delimited fields of that number; reads the whole message."""
        for found, _, value in self.fields():
            if found == number and isinstance(value, Span):
                yield value

    def texts(self, number: int) -> list[str]:
        """The strings of that number, bytes that are not UTF-8 replaced."""
        return [span.text() for span in self.spans(number)]

    def ints(self, number: int) -> list[int]:
        """The varints of that number, packed or not, unsigned; see ``signed``."""
        found: list[int] = []
        for other, kind, value in self.fields():
            if other != number:
                continue
            if isinstance(value, Span):
                found.extend(value.varints())
            elif kind == VARINT:
                found.append(value)
        return found

    def _varint(self, position: int) -> tuple[int, int]:
        """The varint at a position, and the position behind it."""
        data, end, first = self._data, self.end, position
        value = shift = 0
        while position < end:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 64:
                    break
                return value, position
            shift += 7
            if shift == 70:
                break
        else:
            raise self._cut_off("a number", position)
        raise WireError("a varint has more than 64 bits", first)

    def _cut_off(self, what: str, position: int) -> WireError:
        return WireError(f"{what} is cut off", position, truncated=self._depth == 0)

    def _beyond(self, number: int, length: int, position: int, tag_at: int) -> WireError:
        return WireError(
            f"field {number} should have {length} bytes and {self.end - position} are left",
            tag_at,
            truncated=self._depth == 0,
        )


def signed(value: int) -> int:
    """The ``int64`` that an unsigned varint stands for (two's complement)."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


@contextlib.contextmanager
def opened(source: Path | bytes, *, max_fields: int = MAX_FIELDS) -> Iterator[Span]:
    """The whole of a file, mapped and not read, or of some bytes, as one span.

    A file must not be shortened by others meanwhile: the system ends a process that
    reads a mapped page that is gone.

    Args:
        source: A regular file, or the bytes themselves.
        max_fields: Limit on the fields read from it.

    Raises:
        OSError: The file cannot be opened.
        OutOfMemory: There is no room to map it.
    """
    if isinstance(source, bytes):
        yield Span(source, max_fields=max_fields)
        return
    with source.open("rb") as stream:
        if not stream.seek(0, 2):
            yield Span(b"", max_fields=max_fields)
            return
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise OutOfMemory(
                f"'{source}' cannot be mapped into the memory that this process may use.",
                fix="Raise its limit of address space (ulimit -v).",
            ) from error
        with data:
            yield Span(data, max_fields=max_fields)
