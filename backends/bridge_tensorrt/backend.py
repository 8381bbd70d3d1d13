"""The backend: what TensorRT can do here, and how a model is loaded."""

from __future__ import annotations

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
        from bridge_tensorrt.engine import deserialise
        from bridge_tensorrt.predictor import TensorrtPredictor

        if device.kind != "cuda":
            raise self.missing_device(device)
        cudart = cuda.runtime()
        cuda.check(cudart.cudaSetDevice(device.index))
        trt = module.load(self._module(model, options))
        gpu, capability = cuda.describe_device(device.index)
        stated = None
        details: dict[str, Any] = {"gpu": gpu, "compute_capability": capability}
        precision = "as built"
        if model.format.name == "onnx":
            folder = self._built(trt, model, options, [gpu, capability])
            data = (folder / "model.engine").read_bytes()
            precision = (folder / "precision.txt").read_text(encoding="utf-8")
            stated = model.facts.signatures.get("")
        else:
            data = model.data if model.data is not None else model.file.read_bytes()
        engine = deserialise(trt, data, model.name)
        details["profiles"] = len(engine.profiles)
        details["contexts"] = options.contexts
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
        return TensorrtPredictor(engine.signature(stated), info, engine, options.contexts)

    def _module(self, model: ModelRef, options: TensorrtOptions) -> str:
        """The module for a model: an engine is only read by the one that built it."""
        if model.format.name != "engine":
            return module.choose(options.module)
        if options.building:
            raise OptionError(
                f"{', '.join(sorted(options.building))} decide how an engine is built; "
                f"{model.name} is built already.",
                fix="Leave them out, or load the ONNX model.",
                options=sorted(options.building),
            )
        maker = next(iter(model.facts.versions))
        if options.module not in (None, maker):
            raise OptionError(
                f"engine {model.name} was built by {maker}; module={options.module} cannot read "
                "it.",
                fix="Leave module out.",
                option="module",
            )
        return module.choose(maker)

    def _built(self, trt: Any, model: ModelRef, options: TensorrtOptions, gpu: list[str]) -> Path:
        """The cache's folder with the engine of an ONNX model for this GPU."""
        from bridge.cache import default_cache
        from bridge_tensorrt.building import build

        def write(folder: Path) -> None:
            built = build(trt, model, options)
            (folder / "model.engine").write_bytes(built.data)
            (folder / "precision.txt").write_text(built.facts["precision"], encoding="utf-8")

        parts = {
            "model": model.digest,
            "module": trt.__name__,
            "version": trt.__version__,
            "options": {name: str(value) for name, value in options.building.items()},
            "gpu": gpu,
        }
        return default_cache().entry("engine", parts, write, executable=True)


def _has_cuda_bindings() -> bool:
    # Asked of the metadata: looking for a submodule would import the package around it.
    try:
        importlib.metadata.version("cuda-bindings")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
