"""Memory that two processes share: a file without a name, mapped by both.

Nothing of it can be left behind: the file goes when the last descriptor and mapping do.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import OutOfMemory

__all__ = ["ALIGNMENT", "Block"]

ALIGNMENT = 64
"""Where arrays may begin: a cache line, and the widest vector registers."""

_MIN_BYTES = 1 << 16


class Block:
    """One shared file as this process sees it.

    One process writes into it and makes it longer, the other only reads; both in turn,
    so that nothing here needs a lock.

    Attributes:
        file: Its descriptor, owned by this object.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self._map: mmap.mmap | None = None
        self._size = 0

    @classmethod
    def create(cls) -> Block:
        """An empty one.

        Raises:
            OSError: The process has no file descriptors left.
        """
        file = os.memfd_create("bridge-block", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # The other side can never make it shorter, which would be SIGBUS on this side.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(file)

    def reserve(self, size_bytes: int) -> bool:
        """Makes it at least this long; for the side that writes.

        Returns:
            Whether it was mapped anew. Arrays made before stay valid, and with them the
            earlier mapping (and a descriptor), so that they had better be made anew too.

        Raises:
            OutOfMemory: The system does not let it grow; it can be used as before.
        """
        if size_bytes <= self._size:
            return False
        size = self._rounded(size_bytes)
        try:
            if os.fstat(self.file).st_size < size:
                os.ftruncate(self.file, size)
        except (OSError, OverflowError) as error:
            raise _none_left(size, error) from error
        self._see(size)
        return True

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """An array in it; it stays valid whatever this object does later.

        Raises:
            ValueError, TypeError: It lies outside of the file.
            OutOfMemory: The system does not map it.
        """
        if offset < 0 or any(length < 0 for length in shape):  # numpy would not notice
            raise ValueError(f"there is no array of shape {shape} at {offset}.")
        end = offset + math.prod(shape) * dtype.itemsize
        if end > self._size:
            self._see(min(self._rounded(end), os.fstat(self.file).st_size))
        return np.ndarray(shape, dtype, self._map, offset)

    def close(self) -> None:
        """Closes the descriptor; arrays stay valid."""
        if self.file >= 0:
            os.close(self.file)
        self.file, self._map = -1, None

    def _rounded(self, size_bytes: int) -> int:
        """So that growing little by little maps only now and then."""
        return max(size_bytes, 2 * self._size, _MIN_BYTES)

    def _see(self, size: int) -> None:
        try:
            self._map = mmap.mmap(self.file, size) if size else None
        except (OSError, ValueError, OverflowError) as error:
            raise _none_left(size, error) from error
        self._size = size


def _none_left(size: int, error: Exception) -> OutOfMemory:
    return OutOfMemory(
        f"no {size} bytes of shared memory could be had: {error}.",
        fix="Use smaller batches.",
        size_bytes=size,
    )
