"""Models, and a GPU made of numpy: CUDA and an engine that behave as their documents say.

Work queued on a stream runs when the stream is waited for, and not before, so that a
result read too early is a wrong result. Copies outside known memory fail.
``test_the_fakes_have_the_real_names`` holds the fakes to the real interfaces.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bridge_tensorrt import cuda

ENGINE_BYTES = b"vtrt" + bytes(4) + (2).to_bytes(8, "little") + (64).to_bytes(8, "little")
ENGINE_BYTES += bytes([9, 8, 7, 6]) + bytes(36)


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceProp:
    name = b"Numpy GPU"
    major = 9
    minor = 8


OK = cudaError_t.cudaSuccess
BAD = cudaError_t.cudaErrorInvalidValue
_numbers = itertools.count(2000)


class FakeCuda:
    """``cuda.bindings.runtime``, as far as the backend uses it.

    Threads use it at once: what is walked through is copied first, which is one step.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaHostAllocPortable = 1
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaStreamLegacy = 1

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.blocks: dict[int, tuple[str, Any, int]] = {}
        self.streams: dict[int, list[tuple[set[int], Callable[[], None]]]] = {}
        self.copies = 0
        self.launches = 0
        self.followed: list[int] = []  # streams that waited for the default stream
        self.events: set[int] = set()
        self.graphs: dict[int, list[tuple[set[int], Callable[[], None]]]] = {}
        self.capturing: dict[int, list[tuple[set[int], Callable[[], None]]]] = {}
        self.limit_bytes = 1 << 30
        self.lands_on: int | None = None
        self.current = threading.local()

    def cudaGetErrorName(self, error: cudaError_t) -> tuple[Any, ...]:
        return OK, error.name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        return OK, b"words"

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return OK, self.devices

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        self.current.index = index if self.lands_on is None else self.lands_on
        return (OK if index < self.devices else BAD,)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return OK, self.current.index

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        return OK, cudaDeviceProp()

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, 13000

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("host", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._release("device", address)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._release("host", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = next(_numbers)
        self.streams[handle] = []
        return OK, handle

    cudaStreamCreate = cudaStreamCreateWithFlags

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return (OK if self.streams.pop(stream, None) is not None else BAD,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if stream in self.capturing:
            return (BAD,)
        self.drain(stream)
        return (OK,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[Any, ...]:
        self.copies += 1
        kinds = (("device", "host"), ("host", "device"), ("device", "device"))[kind - 1]
        for word, address in zip(kinds, (to, source), strict=True):
            if not self.holds(word, address, size):
                return (BAD,)
        work = lambda: ctypes.memmove(to, source, size) and None  # noqa: E731
        self.streams[stream].append(({to, source}, work))
        return (OK,)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: cudaMemcpyKind) -> tuple[Any, ...]:
        if kind != 2 or not self.holds("device", source, size):
            return (BAD,)
        ctypes.memmove(to, source, size)
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        self.events.add(500 + len(self.events))
        return OK, max(self.events)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        return (OK if event in self.events and stream == self.cudaStreamLegacy else BAD,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        self.followed.append(stream)
        return (OK if event in self.events else BAD,)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        self.events.remove(event)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.capturing[stream], self.streams[stream] = self.streams[stream], []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded, self.streams[stream] = self.streams[stream], self.capturing.pop(stream)
        return self._graph(recorded)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._graph(self.graphs[graph])

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        return (OK if self.graphs.pop(graph, None) is not None else BAD,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        self.streams[stream] += self.graphs[graph]
        return (OK,)

    def _graph(self, work: list[tuple[set[int], Callable[[], None]]]) -> tuple[Any, ...]:
        self.graphs[next(_numbers)] = work
        return OK, max(self.graphs)

    def adopt(self, array: np.ndarray[Any, Any]) -> None:
        """Takes the memory of an array for memory of the GPU that others have allocated."""
        self.blocks[array.ctypes.data] = "device", array, array.nbytes

    def drain(self, stream: int) -> None:
        queue, self.streams[stream] = self.streams[stream], []
        for _, work in queue:
            work()

    def holds(self, word: str, address: int, size: int) -> bool:
        return any(
            word == kind and start <= address and address + size <= start + held
            for start, (kind, _, held) in list(self.blocks.items())
        )

    def _allocate(self, word: str, size: int) -> tuple[Any, ...]:
        if sum(held for kind, _, held in list(self.blocks.values()) if kind == word) + size > (
            self.limit_bytes if word == "device" else 1 << 40
        ):
            return cudaError_t.cudaErrorMemoryAllocation, None
        assert hasattr(self.current, "index"), "memory without a device"
        block = (ctypes.c_byte * (size + 256))()
        ctypes.memset(block, 0xAB, size + 256)  # nobody may count on zeros
        address = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[address] = word, block, size
        return OK, address

    def _release(self, word: str, address: int) -> tuple[Any, ...]:
        if self.blocks.get(address, ("",))[0] != word:
            return (BAD,)
        _, _, size = self.blocks.pop(address)
        for queue in list(self.streams.values()):
            for used, _ in queue:
                assert not any(address <= one < address + size for one in used), "freed in use"
        return (OK,)


class Word(enum.Enum):
    """Values of enums that the backend only compares or asks for their names."""

    FLOAT = "FLOAT"
    INT64 = "INT64"
    INPUT = "INPUT"
    OUTPUT = "OUTPUT"
    HOST = "HOST"
    DEVICE = "DEVICE"


class FakeEngine:
    """``ICudaEngine``: ``y = 2 x + ids``, ``rows`` counts, ``positive`` is data-dependent.

    ``size`` is an input on the host whose value is the length of ``steps``.

    Args:
        gpu: Where it runs.
        left_out: Outputs that it does not have.
    """

    ports = (
        ("x", "FLOAT", (-1, 4), True),
        ("ids", "INT64", (-1,), True),
        ("size", "INT64", (), True),
        ("y", "FLOAT", (-1, 4), False),
        ("rows", "INT64", (), False),
        ("positive", "FLOAT", (-1,), False),
        ("steps", "FLOAT", (-1,), False),
    )

    def __init__(self, gpu: FakeCuda, left_out: tuple[str, ...] = ()) -> None:
        self.gpu = gpu
        self.ports = tuple(port for port in type(self).ports if port[0] not in left_out)
        self.ranges = [(1, 8), (2, 64)]
        self.contexts: list[FakeContext] = []
        self.weights = ["w"]  # those that can be replaced
        self.refits = 0
        self.fails: list[str] = []
        self.listener: Any = None

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.ranges)

    def _port(self, name: str) -> tuple[str, str, tuple[int, ...], bool]:
        return next(port for port in self.ports if port[0] == name)

    def get_tensor_name(self, index: int) -> str:
        return self.ports[index][0]

    def get_tensor_dtype(self, name: str) -> Word:
        return Word(self._port(name)[1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._port(name)[2]

    def get_tensor_location(self, name: str) -> Word:
        return Word.HOST if name == "size" else Word.DEVICE

    def get_tensor_mode(self, name: str) -> Word:
        return Word.INPUT if self._port(name)[3] else Word.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        rest = self._port(name)[2][1:]
        low, high = self.ranges[profile]
        return [(low, *rest), (low, *rest), (high, *rest)]

    def create_execution_context(self, config: Any) -> FakeContext:
        self.contexts.append(FakeContext(self))
        self.contexts[-1].made_of = config
        return self.contexts[-1]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()


class FakeContext:
    """``IExecutionContext``."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {"size": ()}
        self._allocators: dict[str, Any] = {}
        self.laid_out = 0
        self.made_of: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.laid_out += 1
        self._addresses[name] = address
        return address % 256 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self._engine.ranges[self._profile]
        self._shapes[name] = shape
        return low <= shape[0] <= high

    def infer_shapes(self) -> list[str]:
        return [name for name in ("x", "ids") if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        known = {"y": self._shapes.get("x", (-1, 4)), "rows": (), "positive": (-1,)}
        return known[name] if name in known else (int(self._read("size", np.int64)),)

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        if engine.fails:
            engine.listener.log(1, engine.fails.pop())
            return False
        has_positive = "positive" in self._allocators
        if has_positive and stream in engine.gpu.capturing:
            engine.listener.log(1, "not while recording")
            return False
        if has_positive:
            engine.gpu.drain(stream)  # what the data decides is computed before this returns
            x = self._read("x", np.float32)
            found = x[x > 0]
            allocator = self._allocators["positive"]
            address = allocator.reallocate_output_async("positive", 0, found.nbytes, 256, stream)
            if not address:
                engine.listener.log(1, "out of memory")
                return False
            self._addresses["positive"] = address
            allocator.notify_shape("positive", found.shape)

        def work() -> None:
            x = self._read("x", np.float32)
            ids = self._read("ids", np.int64)
            self._write("y", (2 * x + ids[:, None]).astype(np.float32))
            self._write("rows", np.array(len(x), np.int64))
            if has_positive:
                self._write("positive", found)
            if "steps" in self._addresses:
                self._write("steps", np.arange(self._read("size", np.int64), dtype=np.float32))

        engine.gpu.streams[stream].append((set(self._addresses.values()), work))
        return True

    def _read(self, name: str, dtype: Any) -> np.ndarray[Any, Any]:
        shape = self._shapes[name]
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = self._addresses[name]
        assert self._engine.gpu.holds("host" if name == "size" else "device", address, size)
        return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)

    def _write(self, name: str, values: np.ndarray[Any, Any]) -> None:
        address = self._addresses[name]
        assert self._engine.gpu.holds("device", address, values.nbytes)
        ctypes.memmove(address, values.tobytes(), values.nbytes)


class FakeRuntimeConfig:
    """``IRuntimeConfig``."""

    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self._cache = cache
        return True


class FakeRuntimeCache:
    """``IRuntimeCache``: each process adds one kernel to those that it has read."""

    def __init__(self) -> None:
        self._kernels = 0

    def serialize(self) -> bytes:
        return b"kernels" + b"k" * (self._kernels + 1)

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"kernels"):
            return False
        self._kernels = len(data) - len(b"kernels")
        return True


class Allocation(enum.Enum):
    """``ExecutionContextAllocationStrategy``."""

    STATIC = "STATIC"
    ON_PROFILE_CHANGE = "ON_PROFILE_CHANGE"


class Specialization(enum.Enum):
    """``DynamicShapesKernelSpecializationStrategy``."""

    LAZY = "LAZY"
    EAGER = "EAGER"
    NONE = "NONE"


class FakeRefitter:
    """``Refitter``."""

    def __init__(self, engine: FakeEngine, logger: Any) -> None:
        self._engine = engine

    def get_all_weights(self) -> list[str]:
        return self._engine.weights

    def get_missing_weights(self) -> list[str]:
        return []

    def refit_cuda_engine(self) -> bool:
        self._engine.refits += 1
        return True


class FakeParserRefitter:
    """``OnnxParserRefitter``."""

    def __init__(self, refitter: FakeRefitter, logger: Any) -> None:
        self._refitter = refitter

    def refit_from_file(self, model: str) -> bool:
        return Path(model).is_file()

    def refit_from_bytes(self, model: bytes) -> bool:
        return bool(model)


class FakeRuntime:
    """``Runtime``."""

    engine_host_code_allowed = True

    def __init__(self, trt: Any, listener: Any) -> None:
        self._trt = trt
        self._listener = listener

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        self._trt.runs_host_code = self.engine_host_code_allowed
        self._trt.engine.listener = self._listener
        if self._trt.refusal:
            self._listener.log(1, self._trt.refusal)
            return None
        engine: FakeEngine = self._trt.engine
        return engine


class Listener:
    """``ILogger``."""

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class Allocator:
    """``IOutputAllocator``."""


def fake_tensorrt(gpu: FakeCuda) -> Any:
    trt: Any = ModuleType("tensorrt_rtx")
    trt.__version__ = "9.8.7.6"
    trt.TensorLocation = trt.TensorIOMode = Word
    trt.ILogger = Listener
    trt.IOutputAllocator = Allocator
    trt.ExecutionContextAllocationStrategy = Allocation
    trt.DynamicShapesKernelSpecializationStrategy = Specialization
    trt.Refitter = FakeRefitter
    trt.OnnxParserRefitter = FakeParserRefitter
    trt.Runtime = lambda listener: FakeRuntime(trt, listener)
    trt.engine = FakeEngine(gpu)
    trt.refusal = ""
    return trt


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCuda]:
    """A machine with one GPU; everything on it must be given back."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "kept"))
    pytest.importorskip("cuda.bindings.runtime")
    made = FakeCuda()
    monkeypatch.setattr("cuda.bindings.runtime", made)
    monkeypatch.setattr(cuda, "driver_is_installed", lambda: True)
    cuda.runtime.cache_clear()
    yield made
    cuda.runtime.cache_clear()


@pytest.fixture
def trt(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with a runtime for that GPU."""
    made = fake_tensorrt(gpu)
    monkeypatch.setattr("bridge_tensorrt.module.load", lambda name: made)
    return made


@pytest.fixture
def engine_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(ENGINE_BYTES)
    return path


@pytest.fixture
def fakes() -> dict[str, Any]:
    return {
        "ICudaEngine": FakeEngine,
        "IExecutionContext": FakeContext,
        "IRuntimeConfig": FakeRuntimeConfig,
        "IRuntimeCache": FakeRuntimeCache,
        "Refitter": FakeRefitter,
        "OnnxParserRefitter": FakeParserRefitter,
        "ExecutionContextAllocationStrategy": Allocation,
        "DynamicShapesKernelSpecializationStrategy": Specialization,
        "Runtime": FakeRuntime,
        "cuda": FakeCuda,
    }
