"""Bytes that grow from process to process, kept in the bridge's cache.

TensorRT's timing cache and the runtime cache of tensorrt_rtx are such: each process
reads what earlier ones have learnt, and leaves more. An entry of the cache never changes,
so that what has grown replaces it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from bridge.cache import JSON, Cache, default_cache
from bridge.errors import CacheError
from bridge.logs import logger

__all__ = ["Blob"]

_NAME = "blob"
_log = logger("tensorrt")


class Blob:
    """One such entry.

    Args:
        kind: The cache's word for it, such as ``"timing-cache"``.
        parts: All that the bytes depend on; see ``bridge.cache.Cache.key``.
    """

    def __init__(self, kind: str, parts: Mapping[str, JSON]) -> None:
        self.kind = kind
        self.parts = dict(parts)
        self._held_bytes = 0

    def read(self) -> bytes:
        """What the last process left; empty if there is nothing, or nothing sound.

        An entry that is damaged is not read: one warning says so.
        """
        self._held_bytes = 0
        try:
            cache = default_cache()
            file = self._file(cache)
            if file is None:
                return b""
            if cache.entry_of(file) is None:
                _log.warning("the %s in the cache is damaged, and is made anew", self.kind)
                return b""
            data = file.read_bytes()
        except OSError as error:  # CacheError is one
            _log.warning("the %s in the cache cannot be read: %s", self.kind, error)
            return b""
        self._held_bytes = len(data)
        return data

    def write(self, data: bytes) -> None:
        """Keeps these bytes for the next process, if they are more than what was read.

        A cache that cannot be written costs a warning.
        """
        if len(data) <= self._held_bytes:
            return

        def build(folder: Path) -> None:
            (folder / _NAME).write_bytes(data)

        try:
            cache = default_cache()
            if self._file(cache) is not None:
                with contextlib.suppress(CacheError):  # another process was faster
                    cache.rm([cache.key(self.kind, self.parts)])
            cache.entry(self.kind, self.parts, build, executable=True)
        except OSError as error:
            _log.warning("the %s cannot be kept: %s", self.kind, error)
            return
        self._held_bytes = len(data)

    def _file(self, cache: Cache) -> Path | None:
        key = cache.key(self.kind, self.parts)
        return next((entry.path / _NAME for entry in cache.ls() if entry.key == key), None)
