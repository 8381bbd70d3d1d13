"""The shortest idiomatic use of TensorRT, as a yardstick for the bridge; calls need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridge import ModelRef
from bridge_tensorrt import building, module
from bridge_tensorrt.cuda import check, runtime
from bridge_tensorrt.messages import listener
from bridge_tensorrt.network import dtype_of
from bridge_tensorrt.options import EngineOptions

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["build", "load"]

Arrays = dict[str, npt.NDArray[Any]]


def load(
    model: ModelRef,
    *,
    threads: int | None = None,
    signature_key: str | None = None,
) -> tuple[Callable[[Arrays], Any], Callable[[Any], Arrays]]:
    """TensorRT's own call, on the current device.

    It does what NVIDIA's own samples do: a device buffer for each tensor, copies from and
    to pageable memory, one stream. Not for several threads, nor for outputs whose shape
    depends on data.

    Args:
        model: An ONNX model, built with the default options, or an engine.
        threads: Ignored: the work is done by the device.
        signature_key: Ignored: there is one signature.

    Returns:
        The call, and what turns its result into arrays by name.
    """
    cudart = runtime()
    is_onnx = model.format.name == "onnx"
    trt = module.load(module.choose(None if is_onnx else next(iter(model.facts.versions))))
    if is_onnx:
        data = building.build(trt, model, EngineOptions()).data
    else:
        data = model.data or model.file.read_bytes()
    executor: rtx.Runtime = trt.Runtime(listener(trt))
    engine: rtx.ICudaEngine = executor.deserialize_cuda_engine(data)
    context: rtx.IExecutionContext = engine.create_execution_context()
    stream = check(cudart.cudaStreamCreate())
    kinds = cudart.cudaMemcpyKind
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    given = [name for name in names if name not in taken]
    dtypes = {name: dtype_of(engine.get_tensor_dtype(name), name).numpy for name in given}
    buffers: dict[str, tuple[int, int]] = {}

    def buffer(name: str, size_bytes: int) -> int:
        address, held_bytes = buffers.get(name, (0, -1))
        if size_bytes > held_bytes:
            check(cudart.cudaFree(address))
            address = int(check(cudart.cudaMalloc(max(size_bytes, 1))))
            buffers[name] = address, size_bytes
            context.set_tensor_address(name, address)
        return address

    def call(inputs: Arrays) -> Arrays:
        for name in taken:
            array = inputs[name]
            address = buffer(name, array.nbytes)
            context.set_input_shape(name, array.shape)
            host = array.ctypes.data
            kind = kinds.cudaMemcpyHostToDevice
            check(cudart.cudaMemcpyAsync(address, host, array.nbytes, kind, stream))
        results = {}
        for name in given:
            results[name] = np.empty(tuple(context.get_tensor_shape(name)), dtypes[name])
            buffer(name, results[name].nbytes)
        context.execute_async_v3(int(stream))
        for name, array in results.items():
            address, host = buffer(name, array.nbytes), array.ctypes.data
            kind = kinds.cudaMemcpyDeviceToHost
            check(cudart.cudaMemcpyAsync(host, address, array.nbytes, kind, stream))
        check(cudart.cudaStreamSynchronize(stream))
        return results

    return call, dict


def build(model: ModelRef) -> bytes:
    """TensorRT's own parsing and building, as in NVIDIA's samples; tensorrt_rtx needs no GPU.

    Dims that vary get the ranges that are the adapter's defaults.

    Args:
        model: A model whose file has its usual suffix, or the bytes of an ONNX model.

    Returns:
        The serialized engine.

    Raises:
        RuntimeError: The model was not parsed, or no engine built of it.
    """
    trt = module.load(module.choose(None))
    builder: rtx.Builder = trt.Builder(listener(trt))
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network: rtx.INetworkDefinition = builder.create_network(1 << int(flag))
    parser: rtx.OnnxParser = trt.OnnxParser(network, listener(trt))
    if not parser.parse(model.data if model.data is not None else model.file.read_bytes()):
        error: rtx.ParserError = parser.get_error(0)
        raise RuntimeError(error.desc())
    config: rtx.IBuilderConfig = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile: rtx.IOptimizationProfile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor: rtx.ITensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape and not tensor.is_shape_tensor:
            ranges = (tuple(rows if size < 0 else size for size in shape) for rows in (1, 16, 128))
            profile.set_shape(tensor.name, *ranges)
    config.add_optimization_profile(profile)
    made: rtx.IHostMemory | None = builder.build_serialized_network(network, config)
    if made is None:
        raise RuntimeError("no engine was built")
    return bytes(made)
