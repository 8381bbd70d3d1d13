"""Weights of a live module from a safetensors file.

Source: the format's description in the safetensors README: 8 bytes with the size of the
header, the header as JSON, then the tensors' bytes in little-endian order.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from pathlib import Path
from typing import Any

from bridge.errors import InvalidModel, ModelNotFound, OptionError

__all__ = ["module_with", "read_safetensors"]

_HEADER_LIMIT_BYTES = 100_000_000
"""The largest header that the safetensors library itself takes."""

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a file by name, over its pages in memory: nothing is copied.

    The pages are private, so that a write to a tensor never reaches the file.

    Raises:
        ModelNotFound: There is no such file.
        InvalidModel: It is not a safetensors file, or holds a dtype unknown here.
    """
    import torch

    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"weights='{path}' does not exist.", fix="Check the path.", path=str(path)
        ) from error
    except (OSError, ValueError) as error:  # a folder, or empty
        raise _broken(path, str(error)) from error
    if sys.byteorder != "little":
        raise _broken(path, "its bytes are little-endian, and this machine's are not")
    size = int.from_bytes(pages[:8], "little")
    start = 8 + size
    if len(pages) < 8 or size > _HEADER_LIMIT_BYTES or start > len(pages):
        raise _broken(path, "the size of its header is not right")
    try:
        header = json.loads(pages[8:start])
        entries = {name: item for name, item in header.items() if name != "__metadata__"}
        return {name: _tensor(torch, pages, start, **item) for name, item in entries.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        first = (str(error).splitlines() or [repr(error)])[0]  # torch adds its stack
        raise _broken(path, f"its header cannot be read: {first}") from error


def _tensor(
    torch: Any, pages: mmap.mmap, start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> Any:
    if dtype not in _DTYPES:
        raise ValueError(f"the bridge reads no tensors of dtype {dtype}")
    kind = getattr(torch, _DTYPES[dtype])
    begin, end = data_offsets
    if not all(type(size) is int and size >= 0 for size in (*shape, begin, end)):
        raise ValueError("a shape or an offset is no whole number")
    count = math.prod(shape)
    if end - begin != count * kind.itemsize or start + end > len(pages):
        raise ValueError(f"a tensor of shape {shape} does not fit its {end - begin} bytes")
    if count == 0:
        return torch.empty(shape, dtype=kind)
    if (start + begin) % kind.itemsize:  # torch reads aligned memory only
        raw = torch.frombuffer(pages, dtype=torch.uint8, count=end - begin, offset=start + begin)
        return raw.clone().view(kind).reshape(shape)
    return torch.frombuffer(pages, dtype=kind, count=count, offset=start + begin).reshape(shape)


def module_with(module: Any, path: Path) -> Any:
    """A copy of a module with the weights of a file; all that the file holds is shared.

    Args:
        module: The live module, which is not changed; what its ``state_dict`` does not
            hold, such as other buffers, is shared with it.
        path: The safetensors file.

    Raises:
        OptionError: Names, shapes or dtypes are not the module's.
        ModelNotFound, InvalidModel: As for ``read_safetensors``.
    """
    import copy

    found = read_safetensors(path)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    odd = [
        f"'{name}' is {_text(tensor)} in the file, {_text(wanted[name])} in the module"
        for name, tensor in found.items()
        if name in wanted and _text(tensor) != _text(wanted[name])
    ]
    if missing or unknown or odd:
        said = [f"'{missing[0]}' is missing"] if missing else []
        said += [f"'{unknown[0]}' is not in the module"] if unknown else []
        raise OptionError(
            f"weights='{path}' do not fit {type(module).__name__}: {'; '.join(said + odd[:1])}.",
            fix="Save them with safetensors.torch.save_file(module.state_dict(), path).",
            option="weights",
            rule="weights-do-not-fit",
            missing=missing,
            unknown=unknown,
            different=odd,
        )
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made = copy.deepcopy(module, shared)
    made.load_state_dict(found, strict=True, assign=True)
    return made


def _text(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _broken(path: Path, what: str) -> InvalidModel:
    return InvalidModel(
        f"'{path}' is no safetensors file: {what}.",
        fix="It may be truncated; save or copy it again.",
        model=str(path),
    )
