"""Messages between a process and its workers: a JSON header, then raw arrays.

Layout of one message: 8 bytes little-endian length of the header, the header in UTF-8
JSON, then the bytes of each array in the order of ``header["arrays"]``. String arrays
travel inside the header. Nothing is pickled, so a worker that was taken over cannot
make its parent run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import BridgeError, PredictError, error_classes

__all__ = ["error_from", "error_to", "read", "write"]

_MAX_HEADER_BYTES = 1 << 30
_MAX_ARRAY_BYTES = 1 << 40


def write(
    stream: IO[bytes],
    fields: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Writes one message and flushes.

    Args:
        stream: A binary pipe.
        fields: JSON types; the key ``arrays`` is taken.
        arrays: Arrays of any dtype that ``DType`` knows.

    Raises:
        OSError: The other side is gone.
    """
    described = []
    payload: list[npt.NDArray[Any]] = []
    for name, array in (arrays or {}).items():
        kind = DType.of(array.dtype)
        item: dict[str, Any] = {"name": name, "dtype": kind.value, "shape": array.shape}
        if kind is DType.STRING:
            item["strings"] = [
                text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else str(text)
                for text in array.ravel().tolist()
            ]
        else:
            payload.append(np.ascontiguousarray(array))
        described.append(item)
    header = json.dumps({**fields, "arrays": described}).encode()
    stream.write(len(header).to_bytes(8, "little"))
    stream.write(header)
    for array in payload:
        stream.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Reads one message: its fields and its arrays, which the caller owns.

    Raises:
        EOFError: The other side closed the pipe, in the middle of a message or before.
        ValueError: The bytes are no message.
    """
    length = int.from_bytes(_exactly(stream, 8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes is no header of ours.")
    fields = json.loads(bytes(_exactly(stream, length)))
    arrays: dict[str, npt.NDArray[Any]] = {}
    for item in fields.pop("arrays"):
        kind = DType(item["dtype"])
        shape = tuple(int(size) for size in item["shape"])
        if kind is DType.STRING:
            strings = np.empty(math.prod(shape), object)
            strings[:] = item["strings"]
            arrays[item["name"]] = strings.reshape(shape)
            continue
        size_bytes = math.prod(shape) * kind.itemsize_bytes
        if not 0 <= size_bytes <= _MAX_ARRAY_BYTES:
            raise ValueError(f"an array of {size_bytes} bytes is out of range.")
        arrays[item["name"]] = np.frombuffer(_exactly(stream, size_bytes), kind.numpy).reshape(
            shape
        )
    return fields, arrays


def error_to(error: BridgeError) -> dict[str, Any]:
    """An error as JSON types, for ``error_from`` on the other side."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        "fix": error.fix,
        "backend": error.backend,
        "model": error.model,
        "device": error.device,
        "detail": json.loads(json.dumps(error.detail, default=str)),
    }


def error_from(data: Mapping[str, Any]) -> BridgeError:
    """The error that ``error_to`` described, of the same class."""
    kind = error_classes().get(data["class"], PredictError)
    return kind(
        data["message"],
        fix=data["fix"],
        backend=data["backend"],
        model=data["model"],
        device=data["device"],
        **data["detail"],
    )


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the pipe was closed.")
        view = view[count:]
    return data
