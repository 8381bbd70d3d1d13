"""Engines from ONNX models: configuration, building, serialising."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bridge import ModelRef, Signature
from bridge.errors import BackendUnavailable, OptionError, nearest
from bridge.logs import logger
from bridge_tensorrt.blob import Blob
from bridge_tensorrt.cuda import CudaError, check, describe_device, runtime
from bridge_tensorrt.messages import mark, since
from bridge_tensorrt.network import Network, parse, title_of
from bridge_tensorrt.options import EngineOptions
from bridge_tensorrt.profiles import Profile, make_profiles

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["BuildFailed", "Built", "build"]

_log = logger("tensorrt")


class BuildFailed(RuntimeError):
    """TensorRT parsed the model, but built no engine; the text is what it logged."""


@dataclass(frozen=True)
class Built:
    """A new engine.

    Attributes:
        data: The serialized engine.
        signature: Its inputs and outputs, with the names of dims that an engine forgets.
        facts: How it was built, in JSON types.
    """

    data: bytes
    signature: Signature
    facts: dict[str, Any]


def build(trt: Any, model: ModelRef, options: EngineOptions) -> Built:
    """Builds an engine.

    ``tensorrt_rtx`` needs no GPU for it; ``tensorrt`` measures kernels on the current one.

    Raises:
        InvalidModel, UnsupportedModel: See ``parse``.
        OptionError: A range does not fit the model, or an option does not fit the module.
        BuildFailed: TensorRT gave up.
    """
    replace(options, module=trt.__name__)  # refuses what that module excludes
    start, started_s = mark(), time.perf_counter()
    network = parse(trt, model)
    profiles = make_profiles(network.signature.inputs, options, network.holding_shapes)
    config = _configure(trt, network, options, profiles)
    timings = _timings(trt)
    learnt: rtx.ITimingCache | None = None
    if timings is not None:
        learnt = _attach(config, timings.read())
    made: rtx.IHostMemory | None = network.builder.build_serialized_network(
        network.definition, config
    )
    if made is None:
        reason = "; ".join(since(start)) or "it logged no reason"
        raise BuildFailed(f"{title_of(trt)} built no engine from {model.name}: {reason}")
    if timings is not None and learnt is not None:
        timings.write(bytes(learnt.serialize()))
    data = bytes(made)
    precision = "+".join(network.float_types) or "none"
    facts = {
        "module": trt.__name__,
        "version": trt.__version__,
        "size_bytes": len(data),
        "layers": network.definition.num_layers,
        "precision": precision.replace("float32", "tf32") if options.tf32 else precision,
        "profiles": [profile.to_dict() for profile in profiles],
        "options": options.to_dict(),
        "signature": network.signature.to_dict(),
        "build_s": round(time.perf_counter() - started_s, 3),
    }
    return Built(data, network.signature, facts)


def _configure(
    trt: Any, network: Network, options: EngineOptions, profiles: tuple[Profile, ...]
) -> rtx.IBuilderConfig:
    config: rtx.IBuilderConfig = network.builder.create_builder_config()
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # on unless cleared
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if trt.__name__ == "tensorrt_rtx":
        _target(trt, config, options)
    else:
        _widen(trt, config, options)
    for profile in profiles:
        native: rtx.IOptimizationProfile = network.builder.create_optimization_profile()
        for name, shapes in profile.shapes.items():
            native.set_shape(name, *(trt.Dims(shape) for shape in shapes))
        for name, values in profile.values.items():
            native.set_shape_input(name, *values)
        if config.add_optimization_profile(native) < 0:
            raise BuildFailed(f"{title_of(trt)} refuses the profile {profile.to_dict()}")
    return config


def _timings(trt: Any) -> Blob | None:
    """Where the times of kernels are kept, which a later build need not measure again.

    For ``tensorrt``: ``tensorrt_rtx`` measures nothing. The key names the GPU, where
    cuda-bindings is there to ask; TensorRT itself compares it as well.
    """
    if trt.__name__ != "tensorrt":
        return None
    gpu: list[str] = []
    try:
        cudart = runtime()
        gpu = list(describe_device(check(cudart.cudaGetDevice())))
    except (BackendUnavailable, CudaError) as error:
        _log.info("the timing cache is kept without the name of the GPU: %s", error)
    parts = {"module": trt.__name__, "version": trt.__version__, "gpu": gpu}
    return Blob("timing-cache", parts)


def _attach(config: rtx.IBuilderConfig, data: bytes) -> rtx.ITimingCache | None:
    """A timing cache that the builder reads and fills; ``None`` where it takes none."""
    made: rtx.ITimingCache | None = config.create_timing_cache(data)
    if made is not None and config.set_timing_cache(made, ignore_mismatch=False):
        return made
    if data:
        _log.warning("the timing cache is of another GPU or version, and is made anew")
        return _attach(config, b"")
    return None


def _target(trt: Any, config: rtx.IBuilderConfig, options: EngineOptions) -> None:
    """Kinds of GPU of tensorrt_rtx, which compiles for each of them without seeing one."""
    known = {
        name: value for name, value in trt.ComputeCapability.__members__.items() if name != "NONE"
    }
    for name in options.targets:
        if name.upper() not in known:
            raise OptionError(
                f"option 'targets' names '{name}', which {title_of(trt)} does not know.",
                fix=nearest(name, known),
                rule="unknown-target",
                option="targets",
                valid=sorted(known),
            )
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
        for place, name in enumerate(options.targets):
            if not config.set_compute_capability(known[name.upper()], place):
                raise OptionError(
                    f"{title_of(trt)} does not take '{name}' as target {place + 1} of "
                    f"{len(options.targets)}.",
                    fix="CURRENT must stand alone; name each kind of GPU once.",
                    rule="targets-twice",
                    option="targets",
                )


def _widen(trt: Any, config: rtx.IBuilderConfig, options: EngineOptions) -> None:
    """Other kinds of GPU for tensorrt, which builds for the one that it sees."""
    levels = trt.HardwareCompatibilityLevel.__members__
    if options.hardware.upper() not in levels:
        raise OptionError(
            f"{title_of(trt)} has no hardware={options.hardware}.",
            fix=nearest(options.hardware, [name.lower() for name in levels]),
            rule="unknown-hardware",
            option="hardware",
        )
    if options.hardware != "none":
        config.hardware_compatibility_level = levels[options.hardware.upper()]
