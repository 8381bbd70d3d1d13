"""The backend: what OpenVINO can do here, and how a model is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    PredictorInfo,
    Refusal,
    ThreadSafety,
    find_runtime,
)
from bridge.cpus import cpu_flags, default_threads
from bridge.errors import DeviceUnavailable, OptionError, SilentFallback
from bridge.formats.onnx import require_known_opset
from bridge.logs import logger
from bridge.search import Pruned, combine
from bridge_openvino.buffers import NARROWED
from bridge_openvino.failures import error_rules
from bridge_openvino.options import OpenvinoOptions
from bridge_openvino.predictor import OpenvinoPredictor, StatefulOpenvinoPredictor
from bridge_openvino.program import Program, find_program
from bridge_openvino.runtime import core, openvino

__all__ = ["OpenvinoBackend", "precision_candidates"]

_PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class OpenvinoBackend(Backend):
    """OpenVINO on CPUs, and on Intel's GPUs and NPUs where it lists them."""

    name = "openvino"
    options_type = OpenvinoOptions
    device_kinds = ("cpu", "gpu", "npu", "auto")

    def probe(self) -> Availability:
        """Whether ``openvino`` is installed; it is not imported."""
        return find_runtime("openvino", ("openvino", "openvino-nightly"), "openvino")

    def devices(self) -> tuple[Device, ...]:
        """The devices that OpenVINO itself lists, and ``auto``, its choice among them."""
        found = [CPU]
        for place in core().available_devices:
            kind, _, index = place.lower().partition(".")
            if kind in ("gpu", "npu"):
                found.append(Device(kind, int(index) if index.isdecimal() else 0))
        return (*found, Device("auto"))

    def capabilities(self, device: Device) -> Capabilities:
        """The same for all devices but for bound calls; only the CPU has been tried.

        Models with state are bound by ordinary calls: their state is in one request.
        Integers of 64 bits (and uint32) are taken where their values fit into int32, see
        ``NARROWED``; strings are not taken: with openvino 2026.4 a string tensor shared
        with a request ended in ``munmap_chunk(): invalid pointer`` (seen).
        """
        return Capabilities(
            formats=frozenset({"onnx", "openvino_ir", "saved_model", "tflite", "exported_program"}),
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
                    DType.FLOAT8_E4M3FN,
                    DType.FLOAT8_E5M2,
                    DType.FLOAT8_E8M0FNU,
                    DType.FLOAT16,
                    DType.BFLOAT16,
                    DType.FLOAT32,
                }
            ),
            dynamic_dims=True,
            zero_rows=True,
            bind=device == CPU,
            dlpack=True,
            deterministic=True,
            thread_safety=ThreadSafety.SHARED,
        )

    def refuse(self, model: ModelRef, device: Device) -> Refusal | None:
        """As for any backend; float64 is left to an option, see ``program``."""
        claims = self.capabilities(device)
        if model.format.name not in claims.formats:
            return super().refuse(model, device)
        if model.live is not None:
            return Refusal(
                f"{self.name} reads models from disk; this one is a live object.",
                "Save it, and pass the path.",
            )
        taken = dataclasses.replace(claims, dtypes=claims.dtypes | {DType.FLOAT64})
        return self._refuse_signature(model, taken)

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options | Pruned, ...]:
        """Threads and streams, pinned or not, then 16 bits; see ``precision_candidates``."""
        if device != CPU:
            return combine(OpenvinoOptions, [{}, {"hint": "throughput"}, {"precision": "f16"}])
        if _has_float64(model):
            reason = "the model has float64 tensors, which OpenVINO computes in float32."
            narrowed = {"narrow_float64": True}
            return combine(
                OpenvinoOptions,
                [
                    Pruned({}, "float64-narrowed", reason),
                    narrowed,
                    {**narrowed, "threads": 1},
                    {**narrowed, "pinning": True},
                ],
            )
        cpus = default_threads()
        more: list[dict[str, Any]] = []
        if cpus > 3:
            more = [{"threads": cpus // 2}, {"streams": cpus}]
        return combine(
            OpenvinoOptions,
            [
                {},
                {"threads": 1},
                {"pinning": True},
                *more,
                {"hint": "throughput"},
                {"threads": 1, "pinning": True},
                {"hint": "throughput", "pinning": True},
                *precision_candidates(cpu_flags()),
                {"streams": 1},
                {"threads": cpus},
                {"streams": 2, "threads": 1},
            ],
        )

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """OpenVINO raises ``RuntimeError`` for everything; see ``failures``."""
        return error_rules()

    def missing_device(self, device: Device) -> DeviceUnavailable:
        """Says what OpenVINO lists, which is decided by drivers outside of Python."""
        there = ", ".join(core().available_devices)
        return DeviceUnavailable(
            f"OpenVINO lists the devices {there} here, not {str(device).upper()}.",
            fix="GPU and NPU need Intel's drivers (for the GPU libOpenCL.so.1 as well); "
            "or use device='cpu'.",
            wanted=str(device),
            there=there,
        )

    def _load(self, model: ModelRef, device: Device, options: OpenvinoOptions) -> OpenvinoPredictor:
        config = _config(device, options)
        if model.format.name == "onnx":
            require_known_opset(model)  # OpenVINO reads a newer one as the newest it knows
        program = find_program(model, device, _place(device), config, options)
        is_stateful = bool(program.native.create_infer_request().query_state())
        info = _info(program, device, is_stateful=is_stateful)
        if info.precision != _PRECISIONS[options.precision]:
            raise SilentFallback(
                f"asked for precision={options.precision}, but OpenVINO computes in "
                f"{info.precision} on this device.",
                fix="Ask for that precision, or for f32.",
                wanted=options.precision,
                got=info.precision,
                rule=f"no-{options.precision}",
            )
        if options.threads is not None and info.threads not in (None, options.threads):
            logger(self.name).warning(
                "%s threads asked for, OpenVINO uses %s here", options.threads, info.threads
            )
        if is_stateful:
            return StatefulOpenvinoPredictor(program, info)
        return OpenvinoPredictor(program, info, info.details["infer_requests"])


# Instruction sets with which OpenVINO computes in 16 bits; all of one set have to be there.
# Source: ``hasHardwareSupport`` in src/plugins/intel_cpu/src/utils/precision_support.cpp of
# openvinotoolkit/openvino.
_PRECISION_FLAGS: dict[str, tuple[set[str], ...]] = {
    "bf16": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        {"avx_vnni_int8", "avx_ne_convert"},
        {"bf16"},
    ),
    "f16": ({"avx512_fp16"}, {"avx_vnni_int8", "avx_ne_convert"}, {"asimdhp"}),
}


def precision_candidates(flags: frozenset[str]) -> list[dict[str, Any] | Pruned]:
    """Both 16-bit precisions, pruned where the CPU has no instructions for one.

    Args:
        flags: ``bridge.cpus.cpu_flags()``; where nothing is known, loading will tell.
    """
    found: list[dict[str, Any] | Pruned] = []
    for precision, sets in _PRECISION_FLAGS.items():
        values = {"precision": precision}
        if not flags or any(wanted <= flags for wanted in sets):
            found.append(values)
        else:
            reason = f"this CPU has no instructions for {precision} that OpenVINO uses."
            found.append(Pruned(values, f"no-{precision}", reason))
    return found


def _has_float64(model: ModelRef) -> bool:
    return any(
        spec.dtype is DType.FLOAT64
        for signature in model.facts.signatures.values()
        for spec in (*signature.inputs, *signature.outputs)
    )


def _place(device: Device) -> str:
    """OpenVINO's name of a device: a single one has no index there."""
    if device.kind in ("cpu", "auto"):
        return device.kind.upper()
    indexed = f"{device.kind.upper()}.{device.index}"
    return indexed if indexed in core().available_devices else device.kind.upper()


_CORES = {"performance": "PCORE_ONLY", "efficient": "ECORE_ONLY"}


def _config(device: Device, options: OpenvinoOptions) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": options.precision,
        # Without it, layers may be quantised at run time whatever the precision says.
        "EXECUTION_MODE_HINT": "ACCURACY" if options.precision == "f32" else "PERFORMANCE",
        "PERFORMANCE_HINT": options.hint.upper(),
    }
    if options.streams is not None:
        config["NUM_STREAMS"] = options.streams
    if device.kind == "auto" and options.cache:
        raise OptionError(
            "cache=true is for one device; with device='auto', OpenVINO chooses one in each load.",
            fix="Name the device, or leave the cache out.",
            option="cache",
            rule="cache-of-auto",
        )
    if device.kind in ("cpu", "auto"):
        config["INFERENCE_NUM_THREADS"] = options.threads or default_threads()
        # OpenVINO's own default ties the threads of each predictor to the first cores.
        config["ENABLE_CPU_PINNING"] = options.pinning
        if options.cores != "any":
            config["SCHEDULING_CORE_TYPE"] = _CORES[options.cores]
        if options.hyper_threading is not None:
            config["ENABLE_HYPER_THREADING"] = options.hyper_threading
        return config
    given = options.to_dict()
    for name in ("threads", "pinning", "cores", "hyper_threading"):
        if name in given:
            raise OptionError(
                f"option '{name}' is a setting of the CPU; the device is {device}.",
                fix="Leave it out, or use device='cpu'.",
                option=name,
                rule="cpu-only",
            )
    return config


def _info(program: Program, device: Device, *, is_stateful: bool) -> PredictorInfo:
    native, ports = program.native, program.ports
    running = tuple(place.strip("()") for place in native.get_property("EXECUTION_DEVICES"))
    properties = _properties(native, device, running)
    precision = properties.get("INFERENCE_PRECISION_HINT")
    threads = properties.get("INFERENCE_NUM_THREADS")
    streams = properties.get("NUM_STREAMS")
    pinning = properties.get("ENABLE_CPU_PINNING")
    specs = (*ports.signature.inputs, *ports.signature.outputs)
    narrowed = {str(spec.dtype): NARROWED[spec.dtype] for spec in specs if spec.dtype in NARROWED}
    details: dict[str, Any] = {
        "execution_devices": list(running),
        "streams": None if streams is None else int(streams),
        "pinning": None if pinning is None else bool(pinning),
        "infer_requests": int(native.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")),
        "origin": program.origin,
    }
    if narrowed:
        details["narrowed"] = narrowed
    native_precision = "unknown" if precision is None else precision.get_type_name()
    return PredictorInfo(
        device=device if device.kind == "auto" else _device(running),
        provider=",".join(running),
        precision=_PRECISIONS.get(native_precision, native_precision),
        threads=None if threads is None else int(threads),
        stateful=is_stateful,
        versions={"openvino": openvino().__version__},
        details=details,
    )


def _properties(native: Any, device: Device, running: tuple[str, ...]) -> Mapping[str, Any]:
    """What the compiled model says of itself; ``AUTO`` keeps it one level deeper."""
    if device.kind == "auto":
        nested: Mapping[str, Mapping[str, Any]] = native.get_property("DEVICE_PROPERTIES")
        return nested.get(running[0], {})
    said = native.get_property("SUPPORTED_PROPERTIES")
    wanted = (
        "INFERENCE_PRECISION_HINT",
        "INFERENCE_NUM_THREADS",
        "NUM_STREAMS",
        "ENABLE_CPU_PINNING",
    )
    return {name: native.get_property(name) for name in wanted if name in said}


def _device(running: tuple[str, ...]) -> Device:
    kind, _, index = running[0].lower().partition(".")
    return Device(kind, int(index) if index.isdecimal() else 0)
