"""ONNX Runtime behind the interface: loading, and what its errors mean."""

from __future__ import annotations

from typing import Any

from bridge.backend import Availability, Backend, find_runtime
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.cpus import usable_cpus
from bridge.device import CPU, Device, driver_devices
from bridge.dtypes import DType
from bridge.errors import (
    DeviceUnavailable,
    ErrorRule,
    InvalidModel,
    ModelNotFound,
    OutOfMemory,
    UnsupportedModel,
)
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import PredictorInfo
from bridge.signature import Signature, TensorSpec, dim
from bridge_onnxruntime.options import OnnxruntimeOptions
from bridge_onnxruntime.predictor import OnnxruntimePredictor

__all__ = ["OnnxruntimeBackend"]

_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
)
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# Element types as ONNX Runtime names them, where they differ from numpy's.
_TYPES = {"float": "float32", "double": "float64"}
_FATAL = 4  # severities of onnxruntime: 0 verbose to 4 fatal; errors come as exceptions


class OnnxruntimeBackend(Backend):
    """ONNX Runtime on CPUs, and on NVIDIA GPUs through its CUDA and TensorRT providers."""

    name = "onnxruntime"
    options_type = OnnxruntimeOptions
    device_kinds = ("cpu", "cuda")

    def probe(self) -> Availability:
        """Whether a distribution of ``onnxruntime`` is installed; it is not imported."""
        return find_runtime("onnxruntime", _DISTRIBUTIONS, "onnxruntime")

    def devices(self) -> tuple[Device, ...]:
        """The CPU, and the driver's GPUs if this build has a provider for them."""
        import onnxruntime

        if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
            return (CPU,)
        return tuple(device for device, _ in driver_devices())

    def capabilities(self, device: Device) -> Capabilities:
        """float8, bfloat16 and complex types have no way through the Python API."""
        return Capabilities(
            formats=frozenset({"onnx", "ort"}),
            dtypes=frozenset(
                {
                    DType.BOOL,
                    DType.INT8,
                    DType.INT16,
                    DType.INT32,
                    DType.INT64,
                    DType.UINT8,
                    DType.UINT16,
                    DType.UINT32,
                    DType.UINT64,
                    DType.FLOAT16,
                    DType.FLOAT32,
                    DType.FLOAT64,
                    DType.STRING,
                }
            ),
            dynamic_dims=True,
            zero_rows=True,
            bind=True,
            dlpack=True,
            deterministic=device == CPU,
            thread_safety=ThreadSafety.SHARED,
        )

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options, ...]:
        """The default, then single threads, fewer rewrites, no spinning, parallel mode."""
        arms = [OnnxruntimeOptions()]
        if device == CPU:
            arms += [
                OnnxruntimeOptions(threads=1),
                OnnxruntimeOptions(graph_optimization="extended"),
                OnnxruntimeOptions(spinning=False),
                OnnxruntimeOptions(execution_mode="parallel"),
            ]
        else:
            arms.append(OnnxruntimeOptions(provider="tensorrt"))
        return tuple(arms)

    def missing_device(self, device: Device) -> DeviceUnavailable:
        """Says whether the build or the driver is what is missing."""
        import onnxruntime

        built = onnxruntime.get_available_providers()
        if _PROVIDERS["cuda"] not in built:
            reason = f"this build of ONNX Runtime has only {', '.join(built)}"
            fix = "Install it with: pip install 'inference-bridge[onnxruntime-gpu]'"
        else:
            reason = "the NVIDIA driver reports no such GPU"
            fix = "'bridge doctor' lists the devices that drivers report."
        return DeviceUnavailable(
            f"onnxruntime cannot use {device}: {reason}.", fix=fix, wanted=str(device)
        )

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """ONNX Runtime's exceptions; the texts are those of version 1.32."""
        from onnxruntime.capi import onnxruntime_pybind11_state as native

        unsupported = "operator '{operator}' is not known to this version of ONNX Runtime."
        avoid = "Use another backend, or export the model without '{operator}'."
        rules: list[ErrorRule] = []
        for kind in (native.Fail, native.InvalidGraph, native.NotImplemented):
            rules += [
                ErrorRule(
                    kind,
                    UnsupportedModel,
                    r"(?P<operator>[\w.]+)\(-?\d+\) is not a registered function/op",
                    unsupported,
                    avoid,
                ),
                ErrorRule(
                    kind,
                    UnsupportedModel,
                    r"(?:find an implementation for|No Op registered for|Fatal error:) "
                    r"(?P<operator>[\w.:]+)",
                    unsupported,
                    avoid,
                ),
                ErrorRule(
                    kind,
                    UnsupportedModel,
                    r"(?:opset|IR_?VERSION|IR version)",
                    None,
                    "Export the model for an older opset, or install a newer onnxruntime.",
                ),
            ]
        rules += [
            ErrorRule(native.NoSuchFile, ModelNotFound),
            ErrorRule(
                native.InvalidProtobuf,
                InvalidModel,
                None,
                "the bytes are no ONNX model.",
                "The file may be truncated; export or copy it again.",
            ),
            ErrorRule(native.InvalidGraph, InvalidModel, fix="Check the model with onnx.checker."),
        ]
        for kind in (native.RuntimeException, native.Fail, native.EPFail):
            rules.append(
                ErrorRule(
                    kind,
                    OutOfMemory,
                    r"(?i)(?:failed to allocate|bad_alloc|out of memory|cudaMalloc)",
                    fix="Use smaller batches, or a device with more memory.",
                )
            )
        return tuple(rules)

    def _load(
        self, model: ModelRef, device: Device, options: OnnxruntimeOptions
    ) -> OnnxruntimePredictor:
        import onnxruntime

        settings = _session_options(onnxruntime, device, options)
        wanted = "cpu" if device == CPU else options.provider or "cuda"
        providers: list[Any] = [_PROVIDERS["cpu"]]
        if device != CPU:
            on_device = {"device_id": str(device.index)}
            if wanted == "cuda":
                on_device["use_tf32"] = "0"  # float32 means float32
            providers = [(_PROVIDERS[wanted], on_device)]
        session = onnxruntime.InferenceSession(
            model.data if model.data is not None else str(model.file), settings, providers=providers
        )
        session.disable_fallback()
        running = session.get_providers()
        return OnnxruntimePredictor(
            session,
            _signature(session),
            PredictorInfo(
                device=device if running[0] == _PROVIDERS[wanted] else CPU,
                provider=running[0],
                threads=settings.intra_op_num_threads,
                versions={"onnxruntime": onnxruntime.__version__},
                details={"providers": running},
            ),
        )


def _session_options(runtime: Any, device: Device, options: OnnxruntimeOptions) -> Any:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads or usable_cpus()
    if options.execution_mode == "parallel":
        settings.execution_mode = runtime.ExecutionMode.ORT_PARALLEL
        settings.inter_op_num_threads = options.inter_threads or usable_cpus()
    settings.graph_optimization_level = {
        "disable": runtime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "layout": runtime.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
        "all": runtime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[options.graph_optimization]
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.memory_pattern
    settings.log_severity_level = _FATAL
    spin = "1" if options.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spin)
    settings.add_session_config_entry("session.inter_op.allow_spinning", spin)
    if device != CPU:
        # A node that the provider cannot run is an error, not a silent copy to the CPU.
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return settings


def _signature(session: Any) -> Signature:
    optional = [_spec(item, has_default=True) for item in session.get_overridable_initializers()]
    return Signature(
        inputs=(*(_spec(item) for item in session.get_inputs()), *optional),
        outputs=tuple(_spec(item) for item in session.get_outputs()),
    )


def _spec(argument: Any, *, has_default: bool = False) -> TensorSpec:
    kind = argument.type
    element = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    try:
        dtype = DType(_TYPES.get(element, element))
    except ValueError:
        raise UnsupportedModel(
            f"'{argument.name}' is of type {kind}, which this backend does not take.",
            fix="Use a model whose inputs and outputs are tensors.",
            tensor=argument.name,
            type=kind,
        ) from None
    if dtype is DType.BFLOAT16 or dtype.value.startswith("float8"):
        raise UnsupportedModel(
            f"'{argument.name}' is {dtype}, which ONNX Runtime's Python API does not pass on.",
            fix="Cast it to float32 inside the model.",
            tensor=argument.name,
            type=kind,
        )
    return TensorSpec(
        argument.name,
        dtype,
        tuple(dim(size) for size in argument.shape),
        native_name=argument.name,
        has_default=has_default,
    )
