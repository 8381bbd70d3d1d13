"""The C interface of DeepRec's ``libserving_processor.so``.

Four functions, of which three are called: ``batch_process`` takes the size of a pointer for
that of an array, in every version that was read, so calls are batched by whoever makes them.
What the library hands out comes from ``malloc`` or C++ ``new``, and it has no function to give
it back to; ``free`` does for both where one allocator serves the whole process.

Source: ``processor.h``, ``processor.cc`` and ``message_coding.cc`` of DeepRec's processor.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from pathlib import Path
from typing import Any

from bridge.errors import BackendUnavailable, ModelLoadFailed, PredictError

__all__ = ["NAME", "VARIABLE", "Library", "ServedModel", "find"]

NAME = "libserving_processor.so"
VARIABLE = "DEEPREC_PROCESSOR"
"""Variable that holds the path of the library."""

_SYMBOLS = ("initialize", "process", "batch_process", "get_serving_model_info")
_OK = 200
_MAX_BYTES = (1 << 31) - 1  # sizes are of type int
_TEXT_BYTES = 4000


def find() -> Path | None:
    """Where the library is, told without loading it; ``None`` if nowhere.

    Looks at ``DEEPREC_PROCESSOR``, then where the loader would: the folders of
    ``LD_LIBRARY_PATH``, then the loader's cache.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()  # a bare name would be searched for by the loader
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        path = Path(folder).absolute() / NAME
        if path.is_file():
            return path
    return _cached()


@functools.cache
def _cached() -> Path | None:
    try:
        cache = Path("/etc/ld.so.cache").read_bytes()
    except OSError:
        return None
    found = re.search(rb"/[^\0]*/" + re.escape(NAME.encode()) + rb"(?=\0)", cache)
    return None if found is None else Path(os.fsdecode(found[0]))


class Library:
    """The library, loaded into this process, where it stays.

    Args:
        path: Its file.

    Raises:
        BackendUnavailable: It cannot be loaded, or lacks one of the four functions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # With its symbols to itself: it carries a TensorFlow and a protobuf.
            native = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise BackendUnavailable(
                f"DeepRec's library '{path}' cannot be loaded: {error}.",
                fix="Put what it needs on LD_LIBRARY_PATH; outside of DeepRec's image that is "
                "libiomp5.so, libmklml_intel.so and libstdc++.so.6.",
                path=str(path),
            ) from error
        missing = [name for name in _SYMBOLS if not hasattr(native, name)]
        if missing:
            raise BackendUnavailable(
                f"'{path}' is no serving library of DeepRec: it lacks {', '.join(missing)}.",
                fix=f"Name the path of {NAME} with option library or in {VARIABLE}.",
                path=str(path),
                missing=missing,
            )
        answer: list[Any] = [ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)]
        self.initialize = native.initialize
        self.initialize.restype = ctypes.c_void_p
        self.initialize.argtypes = [
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_int),
        ]
        self.process = native.process
        self.process.restype = ctypes.c_int
        self.process.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, *answer]
        self.model_info = native.get_serving_model_info
        self.model_info.restype = ctypes.c_int
        self.model_info.argtypes = [ctypes.c_void_p, *answer]
        self.free = ctypes.CDLL(None).free
        self.free.restype = None
        self.free.argtypes = [ctypes.c_void_p]


class ServedModel:
    """One model in the library; nothing ends it but the end of the process.

    Args:
        library: The library.
        config: The text of ``model_config``.

    Raises:
        ModelLoadFailed: The library refuses it; why is in what it printed.
    """

    def __init__(self, library: Library, config: str) -> None:
        self._library = library
        state = ctypes.c_int(-1)
        handle = library.initialize(b"", config.encode(), ctypes.byref(state))
        if state.value != 0 or not handle:
            raise ModelLoadFailed(
                f"DeepRec's library does not take the model: its state is {state.value}.",
                fix="What it printed is in the log of this backend, bridge.deeprec.",
                state=state.value,
            )
        self._handle = handle

    def process(self, request: bytes) -> bytes:
        """One call; from any thread.

        Args:
            request: A serialized ``PredictRequest``; empty asks for the signature, as JSON.

        Returns:
            The response, copied.

        Raises:
            PredictError: The request is too large, the library failed, or what it hands out
                is no buffer.
        """
        if len(request) > _MAX_BYTES:
            raise PredictError(
                f"the request has {len(request)} bytes; DeepRec's library takes {_MAX_BYTES}.",
                fix="Send fewer rows.",
                size_bytes=len(request),
            )
        data, size = ctypes.c_void_p(), ctypes.c_int()
        status = self._library.process(
            self._handle, request, len(request), ctypes.byref(data), ctypes.byref(size)
        )
        return self._answer(status, data, size)

    def model_info(self) -> bytes:
        """The serialized ``ServingModelInfo``; errors as for ``process``."""
        data, size = ctypes.c_void_p(), ctypes.c_int()
        status = self._library.model_info(self._handle, ctypes.byref(data), ctypes.byref(size))
        return self._answer(status, data, size)

    def _answer(self, status: int, data: ctypes.c_void_p, size: ctypes.c_int) -> bytes:
        if size.value < 0 or (size.value and not data.value):
            raise PredictError(
                f"DeepRec's library answered with status {status} and a buffer of {size.value} "
                f"bytes at {data.value or 0:#x}.",
                fix="The library is of another version, or broken; try another build.",
                status=status,
                size_bytes=size.value,
            )
        answer = b""
        if data.value:
            answer = ctypes.string_at(data.value, size.value)
            self._library.free(data)
        if status != _OK:
            text = answer[:_TEXT_BYTES].decode("utf-8", "replace").strip()
            first = text.partition("\n")[0][:400].rstrip(".")
            raise PredictError(
                f"DeepRec's library failed with status {status}: {first or 'no text'}.",
                fix="Its whole text is in detail['native_error'].",
                status=status,
                native_error=text,
            )
        return answer
