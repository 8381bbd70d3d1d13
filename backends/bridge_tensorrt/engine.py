"""A deserialised engine: what it takes, what it gives, which shapes it was built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge import DType, Signature, TensorSpec
from bridge.errors import ModelLoadFailed, OutOfMemory, ShapeMismatch, UnsupportedModel
from bridge.signature import Dim
from bridge_tensorrt.messages import listener, mark, since
from bridge_tensorrt.network import dtype_of, title_of
from bridge_tensorrt.profiles import Range, Shape

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["Engine", "Port", "deserialise"]


@dataclass(frozen=True)
class Port:
    """One input or output of an engine.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Its dims, ``None`` for dynamic ones.
        is_on_host: TensorRT reads or writes it in host memory: it holds a shape.
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...]
    is_on_host: bool


@dataclass(frozen=True)
class Engine:
    """An engine in the memory of the current device.

    Attributes:
        trt: The module.
        runtime: What deserialised it; needed as long as the engine.
        native: TensorRT's own engine.
        inputs: Its inputs.
        outputs: Its outputs.
        profiles: For each profile, the range of shapes of each input.
    """

    trt: Any
    runtime: rtx.Runtime
    native: rtx.ICudaEngine
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    profiles: tuple[tuple[Range, ...], ...]

    def signature(self, stated: Signature | None) -> Signature:
        """Names, dtypes and shapes.

        Args:
            stated: The ONNX model's own signature, which names dims and orders outputs.
        """
        named = (
            {} if stated is None else {one.name: one for one in (*stated.inputs, *stated.outputs)}
        )
        outputs = [_spec(port, named.get(port.name)) for port in self.outputs]
        if stated is not None:
            places = {name: place for place, name in enumerate(stated.output_names)}
            outputs.sort(key=lambda spec: places.get(spec.name, len(places)))
        inputs = (_spec(port, named.get(port.name)) for port in self.inputs)
        return Signature(tuple(inputs), tuple(outputs))

    def profile_for(self, shapes: Sequence[Shape]) -> int:
        """Number of the first profile that takes these input shapes.

        Raises:
            ShapeMismatch: None does; the ranges are named.
        """
        for number, ranges in enumerate(self.profiles):
            if all(_is_within(shape, group) for shape, group in zip(shapes, ranges, strict=True)):
                return number
        place = next(
            place
            for place, shape in enumerate(shapes)
            if not _is_within(shape, self.profiles[0][place])
        )
        ranges_text = " or ".join(
            f"{ranges[place][0]} to {ranges[place][2]}" for ranges in self.profiles
        )
        raise ShapeMismatch(
            f"input '{self.inputs[place].name}' has shape {tuple(shapes[place])}; the engine was "
            f"built for {ranges_text}.",
            fix="Build it for a larger range (options batch and dims), or split the batch.",
            input=self.inputs[place].name,
            got=tuple(shapes[place]),
            profiles=[[list(shape) for shape in ranges[place]] for ranges in self.profiles],
        )


def deserialise(trt: Any, data: bytes, name: str, *, host_code: bool = False) -> Engine:
    """Loads a serialized engine onto the current device.

    Args:
        trt: The module.
        data: The serialized engine.
        name: The model as errors name it.
        host_code: Whether code for the CPU in it may run; it is refused otherwise.

    Raises:
        UnsupportedModel: It was built by another version or for another GPU.
        OutOfMemory: It does not fit into the memory of the device.
        ModelLoadFailed: TensorRT refuses it for another reason.
    """
    start = mark()
    runtime: rtx.Runtime = trt.Runtime(listener(trt))
    runtime.engine_host_code_allowed = host_code
    native: rtx.ICudaEngine | None = runtime.deserialize_cuda_engine(data)
    if native is None:
        raise _refusal(trt, name, since(start))
    inputs: list[Port] = []
    outputs: list[Port] = []
    for index in range(native.num_io_tensors):
        tensor = native.get_tensor_name(index)
        port = Port(
            name=tensor,
            dtype=dtype_of(native.get_tensor_dtype(tensor), tensor),
            shape=tuple(None if size < 0 else size for size in native.get_tensor_shape(tensor)),
            is_on_host=native.get_tensor_location(tensor) == trt.TensorLocation.HOST,
        )
        is_input = native.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(port)
    profiles = tuple(
        tuple(_range(native, port, number) for port in inputs)
        for number in range(max(native.num_optimization_profiles, 1))
    )
    return Engine(trt, runtime, native, tuple(inputs), tuple(outputs), profiles)


def _range(native: rtx.ICudaEngine, port: Port, profile: int) -> Range:
    fixed = tuple(size for size in port.shape if size is not None)
    if len(fixed) == len(port.shape):
        return fixed, fixed, fixed
    low, best, high = native.get_tensor_profile_shape(port.name, profile)
    return tuple(low), tuple(best), tuple(high)


def _is_within(shape: Shape, group: Range) -> bool:
    low, _, high = group
    return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def _spec(port: Port, stated: TensorSpec | None) -> TensorSpec:
    shape: tuple[Dim, ...] = port.shape
    if stated is not None and stated.shape is not None and len(stated.shape) == len(shape):
        pairs = zip(shape, stated.shape, strict=True)
        shape = tuple(
            told if size is None and isinstance(told, str) else size for size, told in pairs
        )
    return TensorSpec(port.name, port.dtype, shape, native_name=port.name)


def _refusal(
    trt: Any, name: str, errors: list[str]
) -> UnsupportedModel | OutOfMemory | ModelLoadFailed:
    said = "; ".join(errors) or "it logged no reason"
    lower = said.lower()
    if "out of memory" in lower or "outofmemory" in lower:
        return OutOfMemory(
            f"{title_of(trt)} has not enough device memory for {name}: {said}",
            fix="Free memory on the device, or build the engine for smaller batches.",
            native_error=said,
        )
    # Words of TensorRT's own texts on version and hardware, such as "not compatible with
    # this version of TensorRT, expecting library version" and "generated on an incompatible
    # device, expecting compute". Not verified: no GPU was at hand.
    if any(word in lower for word in ("version", "compatib", "expecting compute")):
        return UnsupportedModel(
            f"{title_of(trt)} refuses engine {name}, which was built by another version or for "
            f"another GPU: {said}",
            fix="Build it here again: bridge convert model.onnx --to engine -o FILE",
            native_error=said,
        )
    return ModelLoadFailed(
        f"{title_of(trt)} cannot load engine {name}: {said}",
        fix="Build it here again: bridge convert model.onnx --to engine -o FILE",
        native_error=said,
    )
