"""The backend: what ONNX Runtime can do here, and how a model is loaded."""

from __future__ import annotations

import os
from typing import Any

from bridge import (
    CPU,
    Availability,
    Backend,
    Capabilities,
    Device,
    ErrorRule,
    ModelRef,
    Options,
    PredictorInfo,
    ThreadSafety,
    find_runtime,
)
from bridge.cpus import default_threads
from bridge.device import driver_devices
from bridge.errors import DeviceUnavailable, OptionError
from bridge.search import Pruned, combine
from bridge_onnxruntime.failures import error_rules
from bridge_onnxruntime.options import OnnxruntimeOptions
from bridge_onnxruntime.predictor import OnnxruntimePredictor, make_predictor
from bridge_onnxruntime.providers import PROVIDERS, is_plugin, plugins
from bridge_onnxruntime.runtime import onnxruntime
from bridge_onnxruntime.session import open_session, what_runs
from bridge_onnxruntime.tensors import ONNX_CODES, read_signature

__all__ = ["OnnxruntimeBackend"]

# Distributions that ship the module onnxruntime; two at once overwrite each other.
_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-cann",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-training",
)


class OnnxruntimeBackend(Backend):
    """ONNX Runtime on CPUs, and on NVIDIA GPUs through its CUDA and TensorRT providers."""

    name = "onnxruntime"
    options_type = OnnxruntimeOptions
    device_kinds = ("cpu", "cuda")

    def probe(self) -> Availability:
        """Whether a distribution of ``onnxruntime`` is installed; it is not imported."""
        return find_runtime("onnxruntime", _DISTRIBUTIONS, "onnxruntime")

    def devices(self) -> tuple[Device, ...]:
        """The CPU, and the driver's GPUs if this build or a plugin can use them."""
        is_built = PROVIDERS["cuda"] in onnxruntime().get_available_providers()
        if not is_built and not any(name.startswith("nv-") for name in plugins()):
            return (CPU,)
        return tuple(device for device, _ in driver_devices())

    def capabilities(self, device: Device) -> Capabilities:
        """The same types everywhere; which of them an operator takes, onnxruntime decides.

        Complex numbers are not among them: onnxruntime has no such tensors.
        """
        return Capabilities(
            formats=frozenset({"onnx", "ort"}),
            dtypes=frozenset(ONNX_CODES),
            dynamic_dims=True,
            zero_rows=True,
            bind=device == CPU,
            dlpack=True,
            deterministic=device == CPU,
            thread_safety=ThreadSafety.SHARED,
        )

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options | Pruned, ...]:
        """Threads first, then how the graph is rewritten, and memory.

        Source: the options of ``onnxruntime_perf_test`` (microsoft/onnxruntime,
        ``onnxruntime/test/perftest/README.md``).
        """
        if device != CPU:
            return combine(OnnxruntimeOptions, _cuda_candidates())
        cpus = default_threads()
        half: list[dict[str, Any]] = [{"threads": cpus // 2}] if cpus > 3 else []
        parallel: dict[str, Any] = {"execution_mode": "parallel"}
        # All threads for each of several operators: on two busy CPUs 100 times slower (seen).
        crowd = "each of several operators side by side would have as many threads as CPUs."
        beside: list[dict[str, Any] | Pruned] = [Pruned(parallel, "threads-over-cpus", crowd)]
        if cpus == 1:
            alone = "with one CPU nothing runs side by side."
            beside = [Pruned(parallel, "one-cpu", alone)]
        elif cpus > 3:
            beside.insert(0, {**parallel, "inter_threads": 2, "threads": cpus // 2})
        if cpus > 1:
            beside.insert(0, {**parallel, "threads": 1})
        return combine(
            OnnxruntimeOptions,
            [
                {},
                {"threads": 1},
                *half,
                {"spinning": False},
                {"graph_optimization": "extended"},
                {"memory_pattern": False},
                {"arena": False},
                *beside,
                {"graph_optimization": "basic"},
                {"threads": cpus},
                {"inter_threads": 2},
                *({"provider": name} for name in plugins() if name == "openvino"),
                _NO_BINDING,
            ],
        )

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """Rules for the exceptions of onnxruntime; see ``failures``."""
        return error_rules(onnxruntime().capi.onnxruntime_pybind11_state)

    def missing_device(self, device: Device) -> DeviceUnavailable:
        """Says whether the build or the driver lacks it."""
        built = onnxruntime().get_available_providers()
        there = ", ".join(str(item) for item in self.devices())
        if PROVIDERS["cuda"] not in built:
            reason = f"this build has only {', '.join(built)}"
            fix = (
                "Uninstall onnxruntime, then: pip install 'inference-bridge[onnxruntime-gpu]'; or "
                "use device='cpu'."
            )
        else:
            reason = f"the NVIDIA driver reports {there}"
            fix = "Use one of these devices."
        return DeviceUnavailable(
            f"onnxruntime cannot use {device}: {reason}.", fix=fix, wanted=str(device), there=there
        )

    def _load(
        self, model: ModelRef, device: Device, options: OnnxruntimeOptions
    ) -> OnnxruntimePredictor:
        _check_provider(device, options)
        session = open_session(model, device, options)
        signature = read_signature(session, model)
        where, provider, details = what_runs(session, device, options)
        info = PredictorInfo(
            device=where,
            provider=provider,
            precision=_precision(provider),
            # A plugin has threads of its own, and does not say how many.
            threads=None
            if is_plugin(options)
            else session.get_session_options().intra_op_num_threads,
            versions={"onnxruntime": onnxruntime().__version__},
            details=details,
        )
        return make_predictor(session, signature, info)


_NO_BINDING = Pruned(
    {"io_binding": True},
    "io-binding-on-cpu",
    "a CPU session reads the caller's memory directly, so that binding saves nothing.",
)


def _cuda_candidates() -> list[dict[str, Any] | Pruned]:
    tensorrt: dict[str, Any] = {"provider": "tensorrt"}
    candidates: list[dict[str, Any] | Pruned] = [{}, {"cpu_nodes": True}]
    if PROVIDERS["tensorrt"] in onnxruntime().get_available_providers():
        return [*candidates, tensorrt]
    reason = "this build of onnxruntime has no TensorRT."
    return [*candidates, Pruned(tensorrt, "not-in-this-build", reason)]


def _check_provider(device: Device, options: OnnxruntimeOptions) -> None:
    """Raises for settings of a provider that does not fit the device, or is not built in."""
    if is_plugin(options):
        return
    if device == CPU:
        if options.provider is not None or options.cpu_nodes or options.cuda_graph:
            raise OptionError(
                "provider=cuda, provider=tensorrt, cpu_nodes and cuda_graph are settings of CUDA "
                "devices; the device is cpu.",
                fix="Leave them out, or use device='cuda'.",
                rule="cuda-settings-on-the-cpu",
            )
        return
    if options.cache and options.provider != "tensorrt":
        raise OptionError(
            "on a CUDA device cache keeps TensorRT's engines; the provider cuda makes nothing "
            "that could be kept.",
            fix="Set provider=tensorrt, or leave cache out.",
            option="cache",
            rule="cache-without-engines",
        )
    built: list[Any] = onnxruntime().get_available_providers()
    wanted = PROVIDERS[options.provider or "cuda"]
    title = "TensorRT" if options.provider == "tensorrt" else "CUDA"
    if wanted not in built and (options.provider == "tensorrt" or plugins()):
        raise DeviceUnavailable(
            f"this build of onnxruntime has no {title}, only {', '.join(built)}.",
            fix="Install onnxruntime-gpu (with TensorRT beside it for that provider), or set "
            f"provider to one of: {', '.join(plugins()) or 'cuda'}.",
            wanted=wanted,
            there=built,
        )


def _precision(provider: str) -> str:
    """Of the arithmetic, as far as the provider can be held to it.

    TensorRT's builder allows TF32 by itself, and onnxruntime has no option against it.
    """
    if provider in (PROVIDERS["cpu"], PROVIDERS["cuda"]):
        return "float32"
    if "tensorrt" in provider.lower():
        return "float32" if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0" else "tf32"
    return "unknown"
