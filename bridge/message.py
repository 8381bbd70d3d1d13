"""Messages between a process and its workers: a JSON header, then raw arrays.

Layout of one message: 8 bytes little-endian length of the header, the header in UTF-8
JSON, then the bytes of each array in the order of ``header["arrays"]``. String arrays
travel inside the header. Nothing is pickled, so a worker that was taken over cannot
make its parent run code.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import BridgeError, DTypeMismatch, InputError, PredictError, error_classes

__all__ = ["dtype_of", "error_from", "error_to", "read", "write"]

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
        InputError: An array cannot travel as it is; nothing was written.
        OSError: The other side is gone.
    """
    described = []
    payload: list[npt.NDArray[Any]] = []
    for name, array in (arrays or {}).items():
        kind = dtype_of(name, array)
        item: dict[str, Any] = {"name": name, "dtype": kind.value, "shape": array.shape}
        if kind is DType.STRING:
            item["strings"] = [_text(name, text) for text in array.ravel().tolist()]
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


def dtype_of(name: str, array: npt.NDArray[Any]) -> DType:
    """The element type of an array that can be sent.

    Raises:
        InputError: It is no numpy array.
        DTypeMismatch: Its dtype cannot be sent, or is in foreign byte order.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"array '{name}' is of class {type(array).__name__}; wanted a numpy array.",
            fix="Convert it with numpy.asarray(value, dtype) first.",
        )
    kind: DType | None = None
    with contextlib.suppress(ValueError):  # told below
        kind = DType.of(array.dtype)
    if kind is None or not array.dtype.isnative:
        raise DTypeMismatch(
            f"array '{name}' has dtype {array.dtype.str}, which cannot go through a worker's pipe.",
            fix="Convert it on purpose with array.astype(...), to a dtype in native byte order.",
            got=str(array.dtype),
        )
    return kind


def error_to(error: BridgeError) -> dict[str, Any]:
    """An error as JSON types, for ``error_from`` on the other side.

    A class that a plugin derived becomes the class of the bridge that it derives from.
    """
    known = error_classes()
    kind = next(one for one in type(error).__mro__ if known.get(one.__name__) is one)
    return {
        "class": kind.__name__,
        "message": error.message,
        "fix": error.fix,
        "backend": error.backend,
        "model": error.model,
        "device": error.device,
        "detail": json.loads(json.dumps(error.detail, default=str)),
    }


def error_from(data: Mapping[str, Any]) -> BridgeError:
    """The error that ``error_to`` described, of the class that it names."""
    kind = error_classes().get(data["class"], PredictError)
    return kind(
        data["message"],
        fix=data["fix"],
        backend=data["backend"],
        model=data["model"],
        device=data["device"],
        **data["detail"],
    )


def _text(name: str, item: object) -> str:
    if isinstance(item, bytes):
        return item.decode("utf-8", "surrogateescape")
    if not isinstance(item, str):
        raise DTypeMismatch(
            f"array '{name}' has an element of class {type(item).__name__}; wanted strings.",
            fix="Fill object arrays with str only.",
            got=type(item).__name__,
        )
    return item


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the pipe was closed.")
        view = view[count:]
    return data
