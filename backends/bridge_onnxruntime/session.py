"""Making a session, and what it says about where it runs."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from bridge.cpus import usable_cpus
from bridge.device import CPU, Device
from bridge.errors import OptionError, SilentFallback
from bridge.model import ModelRef
from bridge_onnxruntime.options import OnnxruntimeOptions
from bridge_onnxruntime.runtime import load_cuda_libraries, onnxruntime

__all__ = ["PROVIDERS", "SILENT", "open_session", "what_runs"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# Severities of onnxruntime's log. At run time exceptions say what an error would.
_WARNING, _ERROR, SILENT = 2, 3, 4


def open_session(model: ModelRef, device: Device, options: OnnxruntimeOptions) -> Any:
    """An ``InferenceSession`` that never changes its provider by itself.

    Raises:
        OptionError: The environment makes onnxruntime take its options from the model.
        Exception: Whatever onnxruntime raises; see ``failures``.
    """
    if os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL") == "1":
        # onnxruntime 1.32 obeys it whatever the call says, and in place of the call's options.
        raise OptionError(
            "the environment variable ORT_LOAD_CONFIG_FROM_MODEL=1 lets a model replace the "
            "options of its session.",
            fix="Unset it, and pass options.",
        )
    ort = onnxruntime()
    if device != CPU:
        load_cuda_libraries()
    session = ort.InferenceSession(
        str(model.file) if model.data is None else model.data,
        _settings(ort, model, device, options),
        providers=_providers(device, options),
        # Otherwise a provider that fails is replaced, with a message on stdout.
        enable_fallback=0,
    )
    if model.data is not None and hasattr(session, "_model_bytes"):
        # The wrapper keeps a second copy of the model, to open it again with other providers.
        session._model_bytes = None
    return session


def what_runs(
    session: Any, device: Device, options: OnnxruntimeOptions
) -> tuple[Device, str, dict[str, Any]]:
    """Device, provider and details, from the session's own answers.

    Raises:
        SilentFallback: Another provider than the one asked for runs the model, or part of it.
    """
    running = list(session.get_providers())
    settings = session.get_session_options()
    details: dict[str, Any] = {
        "providers": running,
        # The enums' names begin with ORT_.
        "execution_mode": settings.execution_mode.name[4:].lower(),
        "graph_optimization": settings.graph_optimization_level.name[4:].lower(),
    }
    if details["execution_mode"] == "parallel":
        details["inter_threads"] = settings.inter_op_num_threads
    if device == CPU:
        return CPU, running[0], details
    wanted = PROVIDERS[options.provider or "cuda"]
    if wanted not in running:
        if running[0] == PROVIDERS["cpu"]:
            return CPU, running[0], details
        raise _fallback(f"asked for {wanted}, but onnxruntime uses {running[0]}", wanted, running)
    nodes = _nodes(session)
    details["nodes"] = nodes
    if nodes and wanted not in nodes:
        there = ", ".join(sorted(nodes))
        raise _fallback(
            f"{wanted} got no operator of the model; they are on {there}", wanted, nodes
        )
    index = session.get_provider_options().get(wanted, {}).get("device_id", device.index)
    return Device("cuda", int(index)), wanted, details


def _settings(ort: Any, model: ModelRef, device: Device, options: OnnxruntimeOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _WARNING if options.warnings else _ERROR
    settings.intra_op_num_threads = options.threads or usable_cpus()
    if options.execution_mode == "parallel":
        settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        settings.inter_op_num_threads = options.inter_threads or usable_cpus()
    settings.graph_optimization_level = {
        "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[options.graph_optimization]
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.memory_pattern
    entries = {
        # Left to itself, onnxruntime goes by the suffix.
        "session.load_model_format": model.format.name.upper(),
        "session.intra_op.allow_spinning": str(int(options.spinning)),
        "session.inter_op.allow_spinning": str(int(options.spinning)),
    }
    if device != CPU:
        entries["session.record_ep_graph_assignment_info"] = "1"
        entries["session.disable_cpu_ep_fallback"] = str(int(not options.cpu_nodes))
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return settings


def _providers(device: Device, options: OnnxruntimeOptions) -> list[Any]:
    if device == CPU:
        return [PROVIDERS["cpu"]]
    place = {"device_id": str(device.index)}
    # float32 means float32.
    chosen: list[Any] = [(PROVIDERS["cuda"], {**place, "use_tf32": "0"})]
    if options.provider == "tensorrt":
        chosen.insert(0, (PROVIDERS["tensorrt"], place))
    if options.cpu_nodes:
        chosen.append(PROVIDERS["cpu"])
    return chosen


def _nodes(session: Any) -> dict[str, int]:
    """Number of operators on each provider; empty for versions that do not tell (< 1.23)."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    counts: Counter[str] = Counter()
    for part in [] if ask is None else ask():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def _fallback(message: str, wanted: str, got: Any) -> SilentFallback:
    return SilentFallback(
        f"{message}.",
        fix="Ask for another provider, or install a build of onnxruntime that supports this one.",
        wanted=wanted,
        got=list(got),
    )
