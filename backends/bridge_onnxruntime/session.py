"""Making a session, and what it says about where it runs."""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.cpus import default_threads
from bridge.device import CPU, Device
from bridge.errors import OptionError, SilentFallback, UntrustedModel
from bridge.model import ModelRef
from bridge_onnxruntime.optimised import engine_folder, optimised_model
from bridge_onnxruntime.options import OnnxruntimeOptions
from bridge_onnxruntime.providers import PROVIDERS, is_plugin, plugin_device, provider_list
from bridge_onnxruntime.runtime import load_cuda_libraries, onnxruntime
from bridge_onnxruntime.sharing import register_arena, shared_session

__all__ = ["SILENT", "open_session", "what_runs"]

# Severities of onnxruntime's log. At run time exceptions say what an error would.
_WARNING, _ERROR, SILENT = 2, 3, 4

_profiles = itertools.count()


def open_session(model: ModelRef, device: Device, options: OnnxruntimeOptions) -> Any:
    """An ``InferenceSession`` that never changes its provider by itself.

    Raises:
        OptionError: The environment makes onnxruntime take its options from the model, or
            an option cannot be fulfilled here.
        UntrustedModel: There are libraries of custom operators, and no trust.
        BackendUnavailable, DeviceUnavailable: The provider is not there.
        Exception: Whatever onnxruntime raises; see ``failures``.
    """
    if os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL") == "1":
        # onnxruntime 1.32 obeys it whatever the call says, and in place of the call's options.
        raise OptionError(
            "the environment variable ORT_LOAD_CONFIG_FROM_MODEL=1 lets a model replace the "
            "options of its session.",
            fix="Unset it, and pass options.",
        )
    if options.custom_ops and not model.trust:
        raise UntrustedModel(
            "custom_ops are native code that runs for a model that is not trusted.",
            fix="Pass trust=True if you trust the model and the libraries.",
        )
    if not options.share_weights:
        return _opened(model, device, options)
    key = (
        model.digest,
        model.format.name,
        device,
        options.effective(),
        default_threads(),
        options.spins,
        model.trust,
    )
    return shared_session(key, lambda: _opened(model, device, options))


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
    if options.cache and device == CPU:
        details["graph_optimization"] = f"enable_{options.graph_optimization}"
        details["is_from_cache"] = True
    if details["execution_mode"] == "parallel":
        details["inter_threads"] = settings.inter_op_num_threads
    if is_plugin(options):
        wanted = str(plugin_device(str(options.provider), device).ep_name)
    elif device == CPU:
        entry = settings.get_session_config_entry("session.intra_op.allow_spinning")
        details["spinning"] = entry == "1"
        return CPU, running[0], details
    else:
        wanted = PROVIDERS[options.provider or "cuda"]
    if wanted not in running:
        if running[0] == PROVIDERS["cpu"] and device != CPU:
            return CPU, running[0], details
        raise _fallback(f"asked for {wanted}, but onnxruntime uses {running[0]}", wanted, running)
    nodes = _nodes(session)
    details["nodes"] = nodes
    if nodes and wanted not in nodes:
        there = ", ".join(sorted(nodes))
        raise _fallback(
            f"{wanted} got no operator of the model; they are on {there}", wanted, nodes
        )
    if is_plugin(options):
        return device, wanted, details
    if options.cuda_graph:
        details["cuda_graph"] = True
    index = session.get_provider_options().get(wanted, {}).get("device_id", device.index)
    return Device("cuda", int(index)), wanted, details


def _opened(model: ModelRef, device: Device, options: OnnxruntimeOptions) -> Any:
    is_rewritten = options.cache and device == CPU
    settings = _settings(model, device, options, is_rewritten=is_rewritten)
    source: str | bytes = str(model.file) if model.data is None else model.data
    providers: list[Any] | None = None
    if is_plugin(options):
        settings.add_provider_for_devices([plugin_device(str(options.provider), device)], {})
    else:
        providers = provider_list(device, options)
    if device != CPU:
        load_cuda_libraries()
    if is_rewritten:
        source = str(optimised_model(model, options, lambda: _settings(model, device, options)))
    elif options.cache:
        _use_engines(model, device, options, providers)
    if options.profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(_profile_prefix(options.profile, model))
    session = onnxruntime().InferenceSession(
        source,
        settings,
        providers=providers,
        # Otherwise a provider that fails is replaced, with a message on stdout.
        enable_fallback=0,
    )
    if isinstance(source, bytes) and hasattr(session, "_model_bytes"):
        # The wrapper keeps a second copy of the model, to open it again with other providers.
        session._model_bytes = None
    return session


def _settings(
    model: ModelRef, device: Device, options: OnnxruntimeOptions, *, is_rewritten: bool = False
) -> Any:
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = _WARNING if options.warnings else _ERROR
    settings.intra_op_num_threads = options.threads or default_threads()
    if options.execution_mode == "parallel":
        settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        settings.inter_op_num_threads = options.inter_threads or default_threads()
    settings.graph_optimization_level = {
        "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }["disable" if is_rewritten else options.graph_optimization]
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.memory_pattern
    for key, value in _entries(model, device, options).items():
        settings.add_session_config_entry(key, value)
    if options.shared_arena:
        register_arena()
    for path in options.custom_ops:
        _register_custom_ops(settings.register_custom_ops_library, Path(path))
    return settings


def _entries(model: ModelRef, device: Device, options: OnnxruntimeOptions) -> dict[str, str]:
    entries = {
        # Left to itself, onnxruntime goes by the suffix.
        "session.load_model_format": model.format.name.upper(),
        "session.intra_op.allow_spinning": str(int(options.spins)),
        "session.inter_op.allow_spinning": str(int(options.spins)),
    }
    if options.spin_duration is not None:
        entries["session.intra_op.spin_duration_us"] = str(options.spin_duration)
        entries["session.inter_op.spin_duration_us"] = str(options.spin_duration)
    if options.affinity:
        entries["session.intra_op_thread_affinities"] = _affinities(options)
    if options.shared_arena:
        entries["session.use_env_allocators"] = "1"
    if device != CPU or is_plugin(options):
        entries["session.record_ep_graph_assignment_info"] = "1"
        entries["session.disable_cpu_ep_fallback"] = str(int(not options.cpu_nodes))
    return entries


def _affinities(options: OnnxruntimeOptions) -> str:
    """The option in onnxruntime's words, where CPUs count from 1.

    It would only log that a CPU may not be used.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    for cpus in options.tied:
        missing = set() if allowed is None else set(cpus) - allowed
        if missing:
            raise OptionError(
                f"affinity names CPU {min(missing)}, which this process may not use; it may "
                f"use {', '.join(str(one) for one in sorted(allowed or ()))}.",
                fix="Name CPUs that it may use; they count from 0.",
                option="affinity",
                rule="affinity-to-a-cpu-out-of-reach",
            )
    return ";".join(f"{cpus[0] + 1}-{cpus[-1] + 1}" for cpus in options.tied)


def _use_engines(
    model: ModelRef, device: Device, options: OnnxruntimeOptions, providers: Any
) -> None:
    """Tells TensorRT, the first of the providers, where its engines are kept."""
    own = providers[0][1]

    def keep_in(folder: Path) -> None:
        own.update(
            trt_engine_cache_enable="1",
            trt_engine_cache_path=str(folder),
            trt_timing_cache_enable="1",
            trt_timing_cache_path=str(folder),
        )

    def make_session(folder: Path) -> None:
        keep_in(folder)
        source = str(model.file) if model.data is None else model.data
        settings = _settings(model, device, options)
        made = onnxruntime().InferenceSession(
            source, settings, providers=providers, enable_fallback=0
        )
        what_runs(made, device, options)  # raises where TensorRT took nothing to keep

    keep_in(engine_folder(model, device, options, make_session))


def _register_custom_ops(register: Callable[[str], None], path: Path) -> None:
    if not path.is_file():
        raise OptionError(
            f"custom_ops names '{path}', where there is no file.",
            fix="Give the path of the library.",
            option="custom_ops",
            rule="custom-ops-missing",
        )
    try:
        register(str(path.absolute()))
    except Exception as error:
        raise OptionError(
            f"onnxruntime cannot take operators from '{path}': {str(error).rstrip('.')}.",
            fix="Build it for this machine, with the function RegisterCustomOps.",
            option="custom_ops",
            rule="custom-ops-not-loaded",
        ) from error


def _profile_prefix(folder: Path, model: ModelRef) -> Path:
    """Beginning of the path of a new profile; onnxruntime adds time and suffix."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OptionError(
            f"profile names the folder '{folder}', which cannot be used: {error.strerror}.",
            fix="Name a folder of yours, or one that does not exist yet.",
            option="profile",
            rule="profile-folder",
        ) from error
    stem = model.path.stem if model.path is not None else "model"
    return folder.absolute() / f"{stem}-{os.getpid()}-{next(_profiles)}"


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
