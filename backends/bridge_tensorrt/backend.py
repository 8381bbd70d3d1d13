"""The backend: what TensorRT can do here, and how a model is loaded."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

from bridge import (
    CPU,
    Availability,
    Backend,
    Capabilities,
    Device,
    DType,
    ErrorRule,
    ModelRef,
    Options,
    Predictor,
    PredictorInfo,
    ThreadSafety,
)
from bridge.device import driver_devices
from bridge.errors import (
    BackendUnavailable,
    DeviceUnavailable,
    OptionError,
)
from bridge.search import Pruned, combine
from bridge_tensorrt import cuda, module
from bridge_tensorrt.options import TensorrtOptions

# What only a load needs is imported by it: every process that uses any backend imports
# this module.

__all__ = ["TensorrtBackend"]

_DTYPES = frozenset(
    {
        DType.BOOL,
        DType.INT8,
        DType.INT32,
        DType.INT64,
        DType.UINT8,
        DType.FLOAT16,
        DType.BFLOAT16,
        DType.FLOAT32,
        DType.FLOAT8_E4M3FN,
    }
)


class TensorrtBackend(Backend):
    """ONNX models and serialized engines on NVIDIA GPUs."""

    name = "tensorrt"
    options_type = TensorrtOptions
    device_kinds = ("cuda",)

    def probe(self) -> Availability:
        found = [module.find(name) for name in module.MODULES]
        chosen = next((one for one in found if one.installed), None)
        if chosen is None:
            broken = next((one for one in found if "but its module" in (one.reason or "")), None)
            return broken or Availability(
                installed=False,
                reason="neither module 'tensorrt' nor 'tensorrt_rtx' is installed",
                fix="Install one with: pip install 'inference-bridge[tensorrt-rtx]', or [tensorrt]",
            )
        warnings = chosen.warnings
        if not _has_cuda_bindings():
            missing = (
                "cuda-bindings is not installed, so engines can be built but not run: "
                "pip install 'cuda-bindings>=12.6'"
            )
            warnings += (missing,)
        return Availability(
            installed=True,
            version=chosen.version,
            distribution=chosen.distribution,
            warnings=warnings,
        )

    def devices(self) -> tuple[Device, ...]:
        try:
            count = cuda.count_devices()
        except (cuda.CudaError, BackendUnavailable):
            return ()
        return tuple(Device("cuda", index) for index in range(count))

    def capabilities(self, device: Device) -> Capabilities:
        is_there = device in {one for one, _ in driver_devices()} - {CPU}
        # Containers often have the device without the driver's folder in /proc.
        is_there = is_there or Path(f"/dev/nvidia{device.index}").exists()
        return Capabilities(
            formats=frozenset({"onnx", "engine"}),
            dtypes=_DTYPES,
            dynamic_dims=True,
            bind=True,
            predicts=device.kind == "cuda" and is_there and _has_cuda_bindings(),
            thread_safety=ThreadSafety.SHARED,
        )

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options | Pruned, ...]:
        """What the builder may do with an ONNX model; an engine is built already."""
        tf32: dict[str, Any] = {"tf32": True}
        if model.format.name == "engine":
            reason = "the engine is built already, which decided its precision."
            return combine(TensorrtOptions, [{}, Pruned(tf32, "built-already", reason)])
        return combine(TensorrtOptions, [{}, tf32, {"optimization_level": 5}])

    def error_rules(self) -> tuple[ErrorRule, ...]:
        from bridge_tensorrt.failures import error_rules

        return error_rules()

    def missing_device(self, device: Device) -> DeviceUnavailable:
        """Says what is missing: the driver, a GPU, or a GPU of that number."""
        fix = (
            "Use a machine with an NVIDIA GPU and its driver; an engine can be built here: "
            "bridge convert MODEL --to engine -o FILE"
        )
        if device.kind != "cuda":
            reason = f"TensorRT runs on CUDA devices only, not on {device}"
            fix = "Ask for device='cuda:0', or use another backend."
        elif not cuda.driver_is_installed():
            reason = "no CUDA driver (libcuda.so.1) on this machine, so it has no CUDA device"
        else:
            try:
                count = cuda.count_devices()
            except cuda.CudaError as error:
                reason = f"a CUDA driver is installed, but no GPU can be used: {error}"
            else:
                there = f"only cuda:0 to cuda:{count - 1}" if count else "and no GPU at all"
                reason = f"there is no {device}, {there}"
                fix = "CUDA_VISIBLE_DEVICES decides which GPUs a process sees." if count else fix
        return DeviceUnavailable(f"{reason}.", fix=fix, wanted=str(device))

    def _load(self, model: ModelRef, device: Device, options: TensorrtOptions) -> Predictor:
        from bridge_tensorrt.blob import Blob
        from bridge_tensorrt.engine import deserialise
        from bridge_tensorrt.kernels import Kernels
        from bridge_tensorrt.plans import load_plan
        from bridge_tensorrt.predictor import TensorrtPredictor

        if device.kind != "cuda":
            raise self.missing_device(device)
        cudart = cuda.runtime()
        cuda.check(cudart.cudaSetDevice(device.index))
        trt = module.load(self._module(model, options))
        gpu = cuda.describe_device(device.index)
        details: dict[str, Any] = dict(zip(("gpu", "compute_capability"), gpu, strict=True))
        if model.format.name == "onnx":
            plan = load_plan(trt, model, options, gpu, host_code=options.host_code)
            engine, identity, precision = plan.engine, plan.key, plan.precision
            details["refitted"] = plan.refitted
            stated = model.facts.signatures.get("")
        else:
            data = model.data if model.data is not None else model.file.read_bytes()
            engine = deserialise(trt, data, model.name, host_code=options.host_code)
            identity, precision, stated = model.digest or "", "as built", None
        details["profiles"] = len(engine.profiles)
        details["contexts"] = options.contexts
        kept = None
        if options.runtime_cache and trt.__name__ == "tensorrt_rtx":
            parts = {"engine": identity, "version": trt.__version__, "gpu": list(gpu)}
            kept = Blob("runtime-cache", {**parts, "driver": cuda.driver_version()})
        info = PredictorInfo(
            device=Device("cuda", cuda.check(cudart.cudaGetDevice())),
            provider=module.TITLES[trt.__name__],
            precision=precision,
            versions={
                trt.__name__: trt.__version__,
                "cuda-bindings": importlib.metadata.version("cuda-bindings"),
            },
            details=details,
        )
        kernels = Kernels(engine, options.specialization, kept)
        return TensorrtPredictor(engine.signature(stated), info, engine, kernels, options)

    def _module(self, model: ModelRef, options: TensorrtOptions) -> str:
        """The module for a model: an engine is only read by the one that built it."""
        if model.format.name != "engine":
            name = module.choose(options.module)
            self._check_module(name, options)
            return name
        if options.building:
            raise OptionError(
                f"{', '.join(sorted(options.building))} decide how an engine is built; "
                f"{model.name} is built already.",
                fix="Leave them out, or load the ONNX model.",
                rule="building-of-an-engine",
                options=sorted(options.building),
            )
        maker = next(iter(model.facts.versions))
        if options.module not in (None, maker):
            raise OptionError(
                f"engine {model.name} was built by {maker}; module={options.module} cannot read "
                "it.",
                fix="Leave module out.",
                rule="module-of-an-engine",
                option="module",
            )
        self._check_module(maker, options)
        return module.choose(maker)

    def _check_module(self, name: str, options: TensorrtOptions) -> None:
        """What ``check`` of the options refuses where they name the module."""
        dataclasses.replace(options, module=name)


def _has_cuda_bindings() -> bool:
    # Asked of the metadata: looking for a submodule would import the package around it.
    try:
        importlib.metadata.version("cuda-bindings")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
