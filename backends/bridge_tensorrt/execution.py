"""Execution: contexts with their streams and buffers, one call at a time in each.

All inputs of a call lie in one block of pinned memory and one of device memory, at the
same offsets, so that one copy carries them all; the same holds for the outputs::

    arrays ──> pinned ──copy──> device ──execute──> device ──copy──> pinned ──> arrays

Arrays that are on the device already skip the copies on their side.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.check import Arrays
from bridge.dlpack import DeviceArray
from bridge_tensorrt.arrays import GpuArray
from bridge_tensorrt.cuda import (
    CudaError,
    DeviceMemory,
    Graph,
    PinnedMemory,
    Stream,
    check,
    runtime,
)
from bridge_tensorrt.engine import Engine, Port
from bridge_tensorrt.kernels import Kernels
from bridge_tensorrt.messages import mark, since
from bridge_tensorrt.profiles import Shape

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["ExecutionFailed", "Lane", "Lanes"]

# Alignment of tensors that TensorRT asks for: NvInferRuntime.h, setTensorAddress.
_ALIGNMENT_BYTES = 256


class ExecutionFailed(RuntimeError):
    """TensorRT did not compute; the text is what it logged."""


class Lane:
    """An execution context, its stream and its buffers; for one call at a time.

    Args:
        engine: The engine.
        profile: Number of the optimisation profile, fixed for the life of the lane.
        device_index: The device that the engine is on.
        kernels: What makes the context.
        on_device: Results, and the arrays that ``run`` works on, are in device memory.
        recorded: ``run`` records a CUDA graph at its first call and launches it later.

    Attributes:
        profile: As given.
        inputs: Arrays to fill before ``run``, once ``prepare`` was called; in pinned
            memory, or in device memory with ``on_device``.
        outputs: Arrays that ``run`` fills, in the same memory.
    """

    def __init__(
        self,
        engine: Engine,
        profile: int,
        device_index: int,
        kernels: Kernels,
        *,
        on_device: bool = False,
        recorded: bool = False,
    ) -> None:
        cudart = runtime()
        check(cudart.cudaSetDevice(device_index))
        start = mark()
        self.profile = profile
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self._engine = engine
        self._device_index = device_index
        self._on_device = on_device
        self._recorded = recorded
        self._graph: Graph | None = None
        self._stream = Stream()
        self._staged: Arrays = {}  # what ``call`` copies to; the same as ``inputs`` on the host
        self._pinned_in = PinnedMemory(_ALIGNMENT_BYTES)
        self._pinned_out = PinnedMemory(_ALIGNMENT_BYTES)
        self._device_in = DeviceMemory()
        self._device_out = DeviceMemory()
        self._in_bytes = self._out_bytes = 0
        self._prepared: tuple[Any, ...] | None = None
        self._places: dict[str, int] = {}  # addresses of the inputs
        self._sized: list[tuple[Port, Shape, int]] = []  # outputs with their offsets
        self._unsized: dict[str, Any] = {}  # allocators of outputs whose shape is data
        self._apart: dict[str, PinnedMemory] = {}  # of outputs that lie outside the blocks
        context: rtx.IExecutionContext | None = kernels.context(recorded=recorded)
        if context is None:
            raise _failure("no execution context could be made", start)
        self._context: rtx.IExecutionContext = context
        if len(engine.profiles) > 1 and not context.set_optimization_profile_async(
            profile, self._stream.handle
        ):
            raise _failure(f"optimisation profile {profile} could not be selected", start)
        self._stream.wait()

    @property
    def unsized(self) -> tuple[str, ...]:
        """Outputs whose shape depends on data, once ``prepare`` was called."""
        return tuple(self._unsized)

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Answers one call.

        Args:
            inputs: Arrays of every input in host memory, or ``DeviceArray`` of this device.

        Returns:
            New arrays of every output; ``GpuArray`` with ``on_device``, but for those
            that TensorRT computes on the host.
        """
        self.prepare(inputs)
        there: list[tuple[int, DeviceArray]] = []
        for name, staged in self._staged.items():
            given = inputs[name]
            if type(given) is DeviceArray:
                there.append((self._places[name], given))
            else:
                np.copyto(staged, given)
        if len(there) < len(self._staged):
            self._stream.upload(self._device_in.address, self._pinned_in.address, self._in_bytes)
        for place, array in there:
            array.wait(self._stream.handle)
            self._stream.move(place, array.pointer, array.nbytes)
        self._execute()
        if self._on_device:
            return self._handed_out()
        self._download()
        return {port.name: self.outputs[port.name].copy() for port in self._engine.outputs}

    def prepare(self, inputs: Mapping[str, Any]) -> None:
        """Lays out the buffers for inputs of these shapes; cheap if they are the last ones.

        Values matter only for inputs that TensorRT reads on the host, which decide shapes.
        """
        ports = self._engine.inputs
        key = (
            tuple(inputs[port.name].shape for port in ports),
            tuple(inputs[port.name].tobytes() for port in ports if port.is_on_host),
        )
        check(runtime().cudaSetDevice(self._device_index))
        if key != self._prepared:
            self._prepared = None
            if self._graph is not None:  # it copies from and to the places of before
                self._graph.close()
                self._graph = None
            self._lay_out_inputs(inputs)
            self._lay_out_outputs()
            self._prepared = key

    def clear(self) -> None:
        """Fills ``inputs`` with zeros."""
        for staged in self._staged.values():
            staged.fill(0)
        if self._on_device:
            self._stream.upload(self._device_in.address, self._pinned_in.address, self._in_bytes)
            self._stream.wait()

    def run(self) -> None:
        """Runs the model on what ``inputs`` holds, and waits until ``outputs`` is filled."""
        check(runtime().cudaSetDevice(self._device_index))
        if self._on_device:
            self._stream.follow_default()
        if self._graph is not None:
            self._stream.launch(self._graph)
            self._stream.wait()
            return
        self._work()
        if self._on_device:
            self._stream.wait()
            for name, allocator in self._unsized.items():
                self.outputs[name] = self._taken_over(name, allocator)
        else:
            for port in self._engine.outputs:
                if port.name in self._unsized:
                    self._download_unsized(port)
            self._stream.wait()
        if self._recorded:
            # Not before the first run, in which TensorRT does what new shapes need.
            self._graph = self._stream.capture(self._work)

    def close(self) -> None:
        """Frees everything on the device; a second call does nothing.

        Arrays on the device keep their own memory until their last view is gone.
        """
        if self._stream.handle:
            check(runtime().cudaSetDevice(self._device_index))
            try:
                self._stream.wait()
            finally:
                if self._graph is not None:
                    self._graph.close()
                # The context before the memory that it points to; both hold the engine.
                del self._context, self._engine
                for allocator in self._unsized.values():
                    allocator.memory.close()
                if not self._on_device:
                    self._device_in.close()
                    self._device_out.close()
                self._stream.close()

    def _work(self) -> None:
        """Queues one call on ``inputs``, but for outputs whose shape is not known yet."""
        stream = self._stream
        if not self._on_device:
            stream.upload(self._device_in.address, self._pinned_in.address, self._in_bytes)
        self._execute()
        if not self._on_device:
            stream.download(self._pinned_out.address, self._device_out.address, self._out_bytes)

    def _execute(self) -> None:
        start = mark()
        stream = self._stream
        if not self._context.execute_async_v3(stream.handle):
            raise _failure("the engine could not be executed", start)

    def _download(self) -> None:
        stream = self._stream
        stream.download(self._pinned_out.address, self._device_out.address, self._out_bytes)
        for port in self._engine.outputs:
            if port.name in self._unsized:
                self._download_unsized(port)
        stream.wait()

    def _handed_out(self) -> dict[str, Any]:
        """Results in device memory of their own; waits until they are there."""
        block = DeviceMemory()
        block.reserve(max(self._out_bytes, 1))
        self._stream.move(block.address, self._device_out.address, self._out_bytes)
        self._stream.wait()
        found: dict[str, Any] = {
            port.name: self._device_array(port, shape, block, offset)
            for port, shape, offset in self._sized
        }
        for name, allocator in self._unsized.items():
            found[name] = self._taken_over(name, allocator)
        for name in self._apart:
            found[name] = self.outputs[name].copy()
        return {port.name: found[port.name] for port in self._engine.outputs}

    def _taken_over(self, name: str, allocator: Any) -> GpuArray:
        """What an allocator holds, for the caller to keep: it allocates anew next time."""
        port = next(port for port in self._engine.outputs if port.name == name)
        memory, allocator.memory = allocator.memory, DeviceMemory()
        return self._device_array(port, allocator.shape, memory, 0)

    def _device_array(
        self, port: Port, shape: Shape, memory: DeviceMemory, offset: int
    ) -> GpuArray:
        return GpuArray(memory.address + offset, shape, port.dtype, self._device_index, memory)

    def _grown(self, memory: DeviceMemory, size_bytes: int) -> DeviceMemory:
        """Device memory of that size at least; never memory that others have views of."""
        if size_bytes > memory.size_bytes and self._on_device:
            memory = DeviceMemory()
        memory.reserve(size_bytes)
        return memory

    def _lay_out_inputs(self, inputs: Mapping[str, Any]) -> None:
        start = mark()
        ports = self._engine.inputs
        shapes = [inputs[port.name].shape for port in ports]
        offsets, self._in_bytes = _offsets(ports, shapes)
        if self._in_bytes > self._pinned_in.size_bytes:
            self._pinned_in = PinnedMemory(self._in_bytes)
        self._device_in = self._grown(self._device_in, self._in_bytes)
        self.inputs, self._staged = {}, {}
        for port, shape, offset in zip(ports, shapes, offsets, strict=True):
            staged = self._pinned_in.array(offset, shape, port.dtype)
            self._staged[port.name] = self.inputs[port.name] = staged
            home = self._pinned_in if port.is_on_host else self._device_in
            self._places[port.name] = home.address + offset
            if port.is_on_host:
                np.copyto(staged, inputs[port.name])
            elif self._on_device:
                self.inputs[port.name] = self._device_array(port, shape, self._device_in, offset)
            is_taken = self._context.set_tensor_address(port.name, home.address + offset)
            if None in port.shape:
                is_taken = self._context.set_input_shape(port.name, shape) and is_taken
            if not is_taken:
                raise _failure(f"input '{port.name}' of shape {shape} was refused", start)
        if not self._on_device:
            self.inputs = self._staged

    def _lay_out_outputs(self) -> None:
        start = mark()
        missing = self._context.infer_shapes()
        if missing:
            raise _failure(f"shapes cannot be inferred without {', '.join(missing)}", start)
        sized: list[tuple[Port, Shape]] = []
        self.outputs = {}
        for port in self._engine.outputs:
            shape = tuple(self._context.get_tensor_shape(port.name))
            if port.is_on_host:
                self._address(port, self._stage_apart(port, shape).address, start)
            elif min(shape, default=0) < 0:
                self._allocate_later(port, start)
            else:
                sized.append((port, shape))
        offsets, self._out_bytes = _offsets(
            [port for port, _ in sized], [shape for _, shape in sized]
        )
        if self._out_bytes > self._pinned_out.size_bytes and not self._on_device:
            self._pinned_out = PinnedMemory(self._out_bytes)
        self._device_out = self._grown(self._device_out, self._out_bytes)
        self._sized = []
        for (port, shape), offset in zip(sized, offsets, strict=True):
            self._sized.append((port, shape, offset))
            if self._on_device:
                array: Any = self._device_array(port, shape, self._device_out, offset)
            else:
                array = self._pinned_out.array(offset, shape, port.dtype)
            self.outputs[port.name] = array
            self._address(port, self._device_out.address + offset, start)

    def _address(self, port: Port, address: int, start: int) -> None:
        if not self._context.set_tensor_address(port.name, address):
            raise _failure(f"the buffer of output '{port.name}' was refused", start)

    def _allocate_later(self, port: Port, start: int) -> None:
        if port.name not in self._unsized:
            allocator = _allocator_class(self._engine.trt)()
            if not self._context.set_output_allocator(port.name, allocator):
                raise _failure(f"the allocator of output '{port.name}' was refused", start)
            self._unsized[port.name] = allocator

    def _download_unsized(self, port: Port) -> None:
        """Queues the copy of an output whose shape TensorRT told while executing."""
        allocator = self._unsized[port.name]
        shape: Shape = allocator.shape
        size_bytes = _size_bytes(port, shape)
        pinned = self._stage_apart(port, shape)
        self._stream.download(pinned.address, allocator.memory.address, size_bytes)

    def _stage_apart(self, port: Port, shape: Shape) -> PinnedMemory:
        """Pinned memory of its own for an output, and the array over it in ``outputs``."""
        size_bytes = max(_size_bytes(port, shape), _ALIGNMENT_BYTES)
        pinned = self._apart.get(port.name)
        if pinned is None or pinned.size_bytes < size_bytes:
            pinned = self._apart[port.name] = PinnedMemory(size_bytes)
        self.outputs[port.name] = pinned.array(0, shape, port.dtype)
        return pinned


class Lanes:
    """The lanes of one predictor: made when first needed, at most ``limit`` in use.

    Args:
        engine: The engine.
        device_index: The device that it is on.
        limit: Calls that may run side by side; more wait.
        kernels: What makes their contexts.
        on_device: See ``Lane``.
    """

    def __init__(
        self, engine: Engine, device_index: int, limit: int, kernels: Kernels, *, on_device: bool
    ) -> None:
        self._engine = engine
        self._device_index = device_index
        self._kernels = kernels
        self._on_device = on_device
        self._slots = threading.Semaphore(limit)
        self._making = threading.Lock()
        self._idle: dict[int, list[Lane]] = {}

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Answers one call on an idle lane; see ``Lane.call``.

        Raises:
            ShapeMismatch: No profile of the engine takes these shapes.
        """
        profile = self._engine.profile_for(
            [inputs[port.name].shape for port in self._engine.inputs]
        )
        with self._slots:
            try:
                lane = self._idle[profile].pop()
            except (KeyError, IndexError):
                lane = self.make(profile)
            try:
                results = lane.call(inputs)
            except BaseException:
                # After a failure nobody knows what is still queued in it. A device that has
                # failed refuses the closing too; the first error is the one to report.
                with contextlib.suppress(CudaError):
                    lane.close()
                raise
            self._idle.setdefault(profile, []).append(lane)
            return results

    def make(self, profile: int, *, recorded: bool = False) -> Lane:
        """A new lane, for the caller to close; see ``Lane`` for ``recorded``."""
        with self._making:
            return Lane(
                self._engine,
                profile,
                self._device_index,
                self._kernels,
                on_device=self._on_device,
                recorded=recorded,
            )

    def close(self) -> None:
        """Closes the idle lanes; no call may be running."""
        _close_all(lane for lanes in self._idle.values() for lane in lanes)
        self._idle = {}


def _close_all(lanes: Iterable[Lane]) -> None:
    for lane in lanes:
        lane.close()


def _size_bytes(port: Port, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * port.dtype.itemsize_bytes


def _offsets(ports: Sequence[Port], shapes: Sequence[Shape]) -> tuple[list[int], int]:
    """Where each tensor begins in a common block, and the size of the block in bytes."""
    offsets, end = [], 0
    for port, shape in zip(ports, shapes, strict=True):
        offsets.append(end)
        # At least one unit each: TensorRT wants an address even for an empty tensor.
        units = max(-(-_size_bytes(port, shape) // _ALIGNMENT_BYTES), 1)
        end += units * _ALIGNMENT_BYTES
    return offsets, end


def _failure(what: str, start: int) -> ExecutionFailed:
    return ExecutionFailed(f"{what}: {'; '.join(since(start)) or 'TensorRT logged no reason'}")


@functools.cache
def _allocator_class(trt: Any) -> type[Any]:
    """Class of the objects that TensorRT asks for memory once it knows an output's size."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = DeviceMemory()
            self.shape: Shape = ()

        def reallocate_output(
            self, tensor_name: str, memory: int, size: int, alignment: int
        ) -> int:
            try:
                self.memory.reserve(max(size, _ALIGNMENT_BYTES))
            except CudaError:
                return 0  # TensorRT then reports that it is out of memory
            return self.memory.address

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: rtx.Dims) -> None:
            self.shape = tuple(shape)

    return Allocator
