"""The protobuf wire reader: what it reads, what it refuses, and that it always ends."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from bridge.errors import InvalidModel
from bridge.wire import (
    FIXED32,
    FIXED64,
    LENGTH,
    MAX_DEPTH,
    VARINT,
    Span,
    WireError,
    opened,
    signed,
)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | LENGTH) + varint(len(data)) + data


def refused(data: bytes) -> WireError:
    with pytest.raises(WireError) as caught:
        list(Span(data).fields())
    return caught.value


SAMPLE = (
    number(1, 300)
    + number(2, -5)
    + block(3, "späte".encode())
    + varint(4 << 3 | FIXED32)
    + struct.pack("<f", 1.5)
    + varint(5 << 3 | FIXED64)
    + struct.pack("<q", -2)
    + block(6, number(1, 7) + block(2, number(9, 1)))
    + block(7, varint(1) + varint(300) + varint((1 << 64) - 1))
    + number(7, 4)
    + block(1000, b"")
)


def test_all_wire_types_are_read_in_file_order() -> None:
    fields = list(Span(SAMPLE).fields())
    assert [(found, kind) for found, kind, _ in fields] == [
        (1, VARINT),
        (2, VARINT),
        (3, LENGTH),
        (4, FIXED32),
        (5, FIXED64),
        (6, LENGTH),
        (7, LENGTH),
        (7, VARINT),
        (1000, LENGTH),
    ]
    values = [value for _, _, value in fields]
    assert values[0] == 300
    assert isinstance(values[1], int)
    assert signed(values[1]) == -5
    assert isinstance(values[2], Span)
    assert values[2].text(strict=True) == "späte"
    assert values[3] == int.from_bytes(struct.pack("<f", 1.5), "little")
    assert isinstance(values[4], int)
    assert signed(values[4]) == -2
    assert isinstance(values[8], Span)
    assert len(values[8]) == 0
    assert values[8].raw() == b""


def test_nested_messages_know_their_place_in_the_whole() -> None:
    inner = next(Span(SAMPLE).spans(6))
    assert SAMPLE[inner.start : inner.end] == inner.raw() == bytes(inner.view())
    (leaf,) = inner.spans(2)
    assert SAMPLE[leaf.start : leaf.end] == number(9, 1)
    assert leaf.ints(9) == [1]
    assert Span(SAMPLE).texts(3) == ["späte"]


def test_repeated_numbers_are_read_packed_and_not() -> None:
    assert Span(SAMPLE).ints(7) == [1, 300, (1 << 64) - 1, 4]


@pytest.mark.parametrize(
    ("value", "meaning"),
    [(0, 0), (1, 1), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, -(1 << 63)), ((1 << 64) - 1, -1)],
)
def test_unsigned_varints_stand_for_signed_numbers(value: int, meaning: int) -> None:
    assert signed(value) == meaning


def test_the_longest_varint_is_read_and_a_longer_one_refused() -> None:
    assert Span(number(1, -1)).ints(1) == [(1 << 64) - 1]
    for tail in (b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\x80" * 20):
        error = refused(b"\x08" + tail)
        assert "64 bits" in error.reason
        assert error.offset == 1
        assert not error.truncated
    with pytest.raises(WireError, match="64 bits"):
        Span(b"\xff" * 11).varints()


@pytest.mark.parametrize("data", [b"\x00", b"\x07", b"\x80\x80\x80\x80\x10", b"\x80" * 9 + b"\x01"])
def test_field_numbers_out_of_range_are_refused(data: bytes) -> None:
    assert "out of range" in refused(data).reason


@pytest.mark.parametrize("kind", [3, 4, 6, 7])
def test_groups_and_unknown_wire_types_are_refused(kind: int) -> None:
    error = refused(number(1, 1) + bytes([2 << 3 | kind]) + b"\x01")
    assert f"wire type {kind}" in error.reason
    assert error.offset == 2


@pytest.mark.parametrize(
    "data",
    [b"\x08", b"\x08\x80", b"\x80", b"\x12", b"\x12\x80", b"\x12\x05abc", b"\x0d\x00", b"\x09"],
)
def test_cut_off_messages_are_truncated(data: bytes) -> None:
    assert refused(data).truncated


def test_a_length_beyond_its_parent_is_corrupt_and_not_truncated() -> None:
    data = block(1, varint(2 << 3 | LENGTH) + varint(3) + b"ab") + number(3, 1)
    (inner,) = Span(data).spans(1)
    with pytest.raises(WireError, match="field 2 should have 3 bytes") as caught:
        list(inner.fields())
    assert not caught.value.truncated
    assert caught.value.offset == 2


def test_a_huge_length_neither_overflows_nor_allocates() -> None:
    data = varint(2 << 3 | LENGTH) + varint((1 << 64) - 1) + b"x"
    tracemalloc.start()
    try:
        assert refused(data).truncated
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nesting_is_bounded() -> None:
    data = b""
    for _ in range(10_000):
        data = block(1, data)
    span = Span(data)
    for _ in range(MAX_DEPTH + 1):
        span = next(span.spans(1))
    with pytest.raises(WireError, match="nested more than"):
        next(span.spans(1))


def test_the_number_of_fields_is_bounded_for_the_whole_file() -> None:
    data = block(1, number(2, 1) * 10)
    for reads in (1, 2):
        root = Span(data, max_fields=11 * reads)
        for _ in range(reads):
            assert len(list(next(root.spans(1)).fields())) == 10
        with pytest.raises(WireError, match="too many fields"):
            list(root.fields())
    with pytest.raises(WireError, match="too many fields"):
        Span(b"\x01" * 11, max_fields=10).varints()


def test_text_is_replaced_or_refused() -> None:
    (span,) = Span(block(1, b"ab\xff")).spans(1)
    assert span.text() == "ab�"
    with pytest.raises(WireError, match="not UTF-8") as caught:
        span.text(strict=True)
    assert caught.value.offset == 4


def test_files_are_mapped_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "sample"
    path.write_bytes(SAMPLE)
    with opened(path) as root:
        assert [str(field) for field in root.fields()] == [str(f) for f in Span(SAMPLE).fields()]
        (inner,) = root.spans(3)
        assert inner.text() == "späte"
    with pytest.raises(ValueError, match="closed"):
        inner.raw()
    path.write_bytes(b"")
    with opened(path) as root:
        assert list(root.fields()) == []
    with opened(SAMPLE) as root:
        assert root.end == len(SAMPLE)


def test_tensor_data_is_skipped_and_not_read(tmp_path: Path) -> None:
    size = 1 << 36  # a sparse file of 64 GiB: reading it would take minutes and much memory
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.write(number(1, 8) + varint(2 << 3 | LENGTH) + varint(size))
        stream.seek(size, 1)
        stream.write(number(3, 9))
    with opened(path) as root:
        found = {field: value for field, _, value in root.fields()}
        assert found[3] == 9
        assert isinstance(found[2], Span)
        assert len(found[2]) == size


def test_the_error_for_users_says_truncated_or_corrupt() -> None:
    error = refused(SAMPLE[:-1] + b"\x09").invalid("m.onnx", "ONNX")
    assert isinstance(error, InvalidModel)
    assert "the ONNX file m.onnx is truncated: " in str(error)
    assert error.model == "m.onnx"
    assert "is corrupt" in str(refused(b"\x00").invalid("m.onnx", "ONNX"))


def walk(span: Span) -> int:
    """Reads every span in every way there is; what is no message is no matter."""
    count = 0
    for _, _, value in span.fields():
        count += 1
        if isinstance(value, Span):
            value.text()
            for read in (walk, Span.varints):
                try:
                    read(value)
                except WireError:
                    count += 1
    return count


def error_of(data: bytes) -> WireError | None:
    try:
        walk(Span(data, max_fields=1_000_000))
    except WireError as error:
        return error
    return None


def large_sample() -> bytes:
    body = b"".join(block(1, SAMPLE + block(8, bytes(50))) for _ in range(20))
    return number(1, 8) + block(2, b"producer") + block(7, block(1, body)) + block(8, b"\x10\x11")


def test_truncation_anywhere_raises_only_the_wire_error() -> None:
    data = large_sample()
    assert walk(Span(data)) > 0
    offsets = {1 << power for power in range(len(data).bit_length())}
    offsets |= set(random.Random(0).sample(range(1, len(data)), 50))
    found = [error_of(data[:offset]) for offset in offsets]
    assert sum(error is not None for error in found) > len(offsets) // 2


@pytest.mark.parametrize("seed", range(200))
def test_bit_flips_raise_only_the_wire_error(seed: int) -> None:
    choose = random.Random(seed)
    data = bytearray(large_sample())
    for _ in range(choose.choice([1, 1, 1, 8])):
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    error = error_of(bytes(data))
    assert error is None or 0 <= error.offset <= len(data)


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_raise_only_the_wire_error(seed: int) -> None:
    data = random.Random(seed).randbytes(2000)
    with pytest.raises(WireError):
        walk(Span(data, max_fields=1_000_000))
