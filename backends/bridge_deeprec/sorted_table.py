"""The sorted table of strings that the ``.index`` file of a TensorFlow checkpoint is.

It is LevelDB's format as TensorFlow writes it: blocks of entries whose keys share prefixes, a
block that lists them, and a footer. Source:
https://github.com/google/leveldb/blob/main/doc/table_format.md and
``tensorflow/core/lib/io/format.cc``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from bridge.errors import BackendUnavailable

__all__ = ["TableError", "masked_crc", "read_table"]

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression, and a checksum over the block and it
_MASK_DELTA = 0xA282EAD8
_MAX_KEY_BYTES = 1 << 16
# Keys are stored as differences, so that a small file could stand for very many bytes.
_MAX_KEYS_BYTES = 1 << 28


class TableError(ValueError):
    """Why the bytes are no sound table; a part of a sentence."""


def masked_crc(crc: int) -> int:
    """A CRC32C as these files store it.

    Source: ``tensorflow/core/lib/hash/crc32c.h``.
    """
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFF_FFFF


def read_table(data: bytes) -> dict[bytes, bytes]:
    """All entries, in the order of their keys.

    Raises:
        TableError: The bytes are cut off, corrupt, compressed or not in order.
        BackendUnavailable: ``google-crc32c`` is not installed.
    """
    if importlib.util.find_spec("google_crc32c") is None:
        raise BackendUnavailable(
            "google-crc32c is not installed, and checkpoints cannot be checked without it.",
            fix="Install it with: pip install 'inference-bridge[deeprec]'.",
        )
    if len(data) < _FOOTER_BYTES:
        raise TableError(f"it has {len(data)} bytes, and the footer alone has {_FOOTER_BYTES}")
    footer = data[-_FOOTER_BYTES:]
    if footer[-8:] != _MAGIC:
        raise TableError("it does not end with the magic number of a table")
    start, size, position = _handle(footer, 0)
    _block(data, start, size)  # of no use here, and checked like all others
    start, size, _ = _handle(footer, position)
    found: dict[bytes, bytes] = {}
    left = _MAX_KEYS_BYTES
    last = None
    for _, handle in _entries(_block(data, start, size)):
        start, size, _ = _handle(handle, 0)
        for key, value in _entries(_block(data, start, size)):
            if last is not None and key <= last:
                raise TableError(f"its keys are not in order at {key[:80]!r}")
            left -= len(key)
            if left < 0:
                raise TableError(f"its keys have more than {_MAX_KEYS_BYTES} bytes")
            last = key
            found[key] = value
    return found


def _block(data: bytes, start: int, size: int) -> bytes:
    import google_crc32c

    end = start + size
    if end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise TableError(f"a block should end at byte {end} and the file has {len(data)}")
    kind = data[end]
    stored = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
    if masked_crc(google_crc32c.value(data[start : end + 1])) != stored:
        raise TableError(f"the checksum of the block at byte {start} does not fit it")
    if kind != 0:
        raise TableError(f"the block at byte {start} is compressed (kind {kind}); wanted 0")
    return data[start:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise TableError("a block has no end")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise TableError(f"a block of {len(block)} bytes has {restarts} restarts")
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        size, position = _varint(block, position)
        middle = position + fresh
        if shared > len(key) or middle + size > end:
            raise TableError("an entry reaches beyond its block")
        if shared + fresh > _MAX_KEY_BYTES:
            raise TableError(f"a key has {shared + fresh} bytes; wanted at most {_MAX_KEY_BYTES}")
        key = key[:shared] + block[position:middle]
        position = middle + size
        yield key, block[middle:position]


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    start, position = _varint(data, position)
    size, position = _varint(data, position)
    return start, size, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    for at in range(position, min(position + 10, len(data))):
        value |= (data[at] & 127) << shift
        if data[at] < 128:
            return value, at + 1
        shift += 7
    raise TableError("a number is cut off or has more than 64 bits")
