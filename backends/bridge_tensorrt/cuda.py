"""CUDA through cuda-bindings: devices, streams, graphs, memory. Every call is checked."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import BackendUnavailable

if TYPE_CHECKING:
    from cuda.bindings import runtime as cu

__all__ = [
    "CudaError",
    "DeviceMemory",
    "Graph",
    "PinnedMemory",
    "Stream",
    "check",
    "count_devices",
    "describe_device",
    "driver_is_installed",
    "driver_version",
    "read_back",
    "runtime",
]


class CudaError(RuntimeError):
    """A call of the CUDA runtime that failed; the text holds CUDA's name of the error."""


@functools.cache
def runtime() -> Any:
    """The module ``cuda.bindings.runtime``; callers name it ``cudart``.

    Raises:
        BackendUnavailable: It is not installed.
    """
    try:
        from cuda.bindings import runtime as found
    except ImportError as error:
        raise BackendUnavailable(
            f"cuda-bindings, which runs engines, cannot be imported: {error}.",
            fix="Install it with: pip install 'cuda-bindings>=12.6'",
            backend="tensorrt",
        ) from error
    return found


def check(answer: tuple[Any, ...]) -> Any:
    """The value in what a CUDA function returned: ``(error, value)`` or ``(error,)``.

    Raises:
        CudaError: The function failed.
    """
    error, *values = answer
    cudart = runtime()
    if error != cudart.cudaError_t.cudaSuccess:
        _, name = cudart.cudaGetErrorName(error)
        _, text = cudart.cudaGetErrorString(error)
        raise CudaError(f"{name.decode()}: {text.decode()}")
    return values[0] if values else None


def driver_is_installed() -> bool:
    """Whether the driver's library can be loaded; no device is touched."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def count_devices() -> int:
    """Number of devices that CUDA can use.

    Raises:
        CudaError: There is no driver, or it is too old.
        BackendUnavailable: cuda-bindings is not installed.
    """
    cudart = runtime()
    count: int = check(cudart.cudaGetDeviceCount())
    return count


def describe_device(index: int) -> tuple[str, str]:
    """Name and compute capability of a device, such as ``("NVIDIA L4", "8.9")``."""
    cudart = runtime()
    about: cu.cudaDeviceProp = check(cudart.cudaGetDeviceProperties(index))
    return about.name.decode(), f"{about.major}.{about.minor}"


def driver_version() -> int:
    """The newest CUDA that the driver serves, such as 13000 for 13.0."""
    cudart = runtime()
    version: int = check(cudart.cudaDriverGetVersion())
    return version


def read_back(to: int, source: int, size_bytes: int) -> None:
    """Copies from a device to any host memory, and waits for it."""
    cudart = runtime()
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart.cudaMemcpy(to, source, size_bytes, kind))


class Stream:
    """A queue of work on the current device.

    Attributes:
        handle: The address that TensorRT takes.
    """

    def __init__(self) -> None:
        cudart = runtime()
        self.handle = 0
        flags = cudart.cudaStreamNonBlocking  # the default stream of others must not hold it up
        self.native: cu.cudaStream_t = check(cudart.cudaStreamCreateWithFlags(flags))
        self.handle = int(self.native)
        self._event: cu.cudaEvent_t | None = None
        self._process = os.getpid()

    def upload(self, to: int, source: int, size_bytes: int) -> None:
        """Queues a copy from pinned memory to the device."""
        self._copy(to, source, size_bytes, runtime().cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, to: int, source: int, size_bytes: int) -> None:
        """Queues a copy from the device to pinned memory."""
        self._copy(to, source, size_bytes, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def move(self, to: int, source: int, size_bytes: int) -> None:
        """Queues a copy inside the device."""
        self._copy(to, source, size_bytes, runtime().cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def follow_default(self) -> None:
        """Has what is queued from now on wait for what the default stream holds so far.

        That is where torch and cupy work unless they are told otherwise.
        """
        cudart = runtime()
        if self._event is None:
            flags = cudart.cudaEventDisableTiming
            self._event = check(cudart.cudaEventCreateWithFlags(flags))
        check(cudart.cudaEventRecord(self._event, cudart.cudaStreamLegacy))
        check(cudart.cudaStreamWaitEvent(self.native, self._event, 0))

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` queues on this stream: recorded, and not run.

        Raises:
            CudaError: It does what cannot be recorded, such as waiting.
            Exception: Whatever ``work`` raises.
        """
        cudart = runtime()
        # Only this thread is held to the rules of recording; others may allocate memory.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self.native, mode))
        try:
            work()
        except BaseException:
            # Not checked: the first error counts, and what was recorded until then is nothing.
            _, broken = cudart.cudaStreamEndCapture(self.native)
            if broken is not None:
                cudart.cudaGraphDestroy(broken)
            raise
        recorded: cu.cudaGraph_t = check(cudart.cudaStreamEndCapture(self.native))
        try:
            return Graph(check(cudart.cudaGraphInstantiate(recorded, 0)))
        finally:
            check(cudart.cudaGraphDestroy(recorded))

    def launch(self, graph: Graph) -> None:
        """Queues what was recorded."""
        check(runtime().cudaGraphLaunch(graph.native, self.native))

    def wait(self) -> None:
        """Waits for all that is queued; failures of the work itself surface here."""
        cudart = runtime()
        check(cudart.cudaStreamSynchronize(self.native))

    def close(self) -> None:
        """Destroys the stream; a second call does nothing."""
        if self.handle and _is_safe(self._process):
            cudart = runtime()
            self.handle = 0
            check(cudart.cudaStreamDestroy(self.native))
            if self._event is not None:
                event, self._event = self._event, None
                check(cudart.cudaEventDestroy(event))

    def __del__(self) -> None:
        _close_quietly(self)

    def _copy(self, to: int, source: int, size_bytes: int, kind: cu.cudaMemcpyKind) -> None:
        if size_bytes:
            cudart = runtime()
            check(cudart.cudaMemcpyAsync(to, source, size_bytes, kind, self.native))


class Graph:
    """Work that was recorded, to be launched on the stream it was recorded on.

    Args:
        native: CUDA's own executable graph.
    """

    def __init__(self, native: cu.cudaGraphExec_t) -> None:
        self.native = native
        self._is_open = True
        self._process = os.getpid()

    def close(self) -> None:
        """Frees it; no launch may be running. A second call does nothing."""
        if self._is_open and _is_safe(self._process):
            cudart = runtime()
            self._is_open = False
            check(cudart.cudaGraphExecDestroy(self.native))

    def __del__(self) -> None:
        _close_quietly(self)


class DeviceMemory:
    """A block of memory on the current device that grows when it must.

    Attributes:
        address: Where it is; 0 while it is empty. Aligned to 256 bytes.
        size_bytes: Its size.
    """

    def __init__(self) -> None:
        self.address = 0
        self.size_bytes = 0
        self._process = os.getpid()

    def reserve(self, size_bytes: int) -> None:
        """Makes it that large; what it held is lost, and no work may be using it."""
        if size_bytes > self.size_bytes:
            self.close()
            cudart = runtime()
            self.address = int(check(cudart.cudaMalloc(size_bytes)))
            self.size_bytes = size_bytes

    def close(self) -> None:
        """Frees it; a second call does nothing."""
        if self.address and _is_safe(self._process):
            cudart = runtime()
            address, self.address, self.size_bytes = self.address, 0, 0
            check(cudart.cudaFree(address))

    def __del__(self) -> None:
        _close_quietly(self)


class PinnedMemory:
    """Page-locked host memory; it lives as long as any array made of it.

    Args:
        size_bytes: Its size, at least 1.

    Attributes:
        address: Where it is.
        size_bytes: Its size.
    """

    def __init__(self, size_bytes: int) -> None:
        cudart = runtime()
        self.address = 0
        self._process = os.getpid()
        self.size_bytes = size_bytes
        self.address = int(check(cudart.cudaHostAlloc(size_bytes, cudart.cudaHostAllocPortable)))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.size_bytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    def array(self, offset: int, shape: tuple[int, ...], dtype: DType) -> npt.NDArray[Any]:
        """An array over a part of it, C order; not initialised."""
        size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize_bytes
        part = np.asarray(self)[offset : offset + size_bytes]
        return part.view(dtype.numpy).reshape(shape)

    def __del__(self) -> None:
        _close_quietly(self)

    def close(self) -> None:
        """Frees it; only for the last owner. A second call does nothing."""
        if self.address and _is_safe(self._process):
            cudart = runtime()
            address, self.address = self.address, 0
            check(cudart.cudaFreeHost(address))


def _is_safe(process: int) -> bool:
    """Whether CUDA may be called: not in a forked child, not while the interpreter ends."""
    return process == os.getpid() and not sys.is_finalizing()


def _close_quietly(owner: Stream | Graph | DeviceMemory | PinnedMemory) -> None:
    try:
        owner.close()
    except (CudaError, AttributeError, TypeError):
        # A device that failed takes its memory with it, and at exit the driver may be gone
        # already; an exception cannot leave ``__del__`` anyway.
        return
