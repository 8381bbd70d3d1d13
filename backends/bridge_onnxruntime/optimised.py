"""What onnxruntime makes of a model while it loads, kept in the bridge's cache.

A session rewrites its graph, then packs its weights into memory of its own. Written to
disk with the weights as they were packed, in a file beside it, a rewritten model is mapped
instead: nothing is rewritten or packed again, and all processes read the weights from the
same pages. (Files in onnxruntime's own format can be mapped too, but not packed.)
TensorRT's engines, whose making takes minutes, are kept as well.

An entry of another model, runtime, CPU or GPU has another key; one that is damaged is
made anew, with one warning.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bridge.cache import JSON, default_cache
from bridge.cpus import cpu_flags
from bridge.device import Device, driver_devices
from bridge.errors import OptionError
from bridge.model import ModelRef
from bridge_onnxruntime.options import OnnxruntimeOptions
from bridge_onnxruntime.runtime import onnxruntime

__all__ = ["engine_folder", "optimised_model"]

_FILE, _WEIGHTS = "model.onnx", "weights.bin"
# Smaller weights stay in the model, where shapes are read from some of them.
_EXTERNAL_BYTES = 1024


def optimised_model(
    model: ModelRef, options: OnnxruntimeOptions, make_settings: Callable[[], Any]
) -> Path:
    """The file of a rewritten model, from the cache or made now.

    Args:
        model: An ONNX model.
        options: How much is rewritten, and the libraries of custom operators.
        make_settings: Makes ``SessionOptions`` for the session that rewrites.

    Raises:
        OptionError: The model is in onnxruntime's own format, so that it was rewritten
            when it was made.
        Exception: Whatever onnxruntime raises; see ``failures``.
    """
    if model.format.name != "onnx":
        raise OptionError(
            f"cache keeps rewritten ONNX models; {model.name} is in onnxruntime's own format, "
            "for which that was done when it was made.",
            fix="Leave cache out.",
            option="cache",
            rule="cache-of-an-ort-file",
        )

    def build(folder: Path) -> None:
        settings = make_settings()
        settings.optimized_model_filepath = str(folder / _FILE)
        for key, value in (
            ("optimized_model_external_initializers_file_name", _WEIGHTS),
            ("optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_BYTES)),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            settings.add_session_config_entry(f"session.{key}", value)
        source = str(model.file) if model.data is None else model.data
        onnxruntime().InferenceSession(
            source, settings, providers=["CPUExecutionProvider"], enable_fallback=0
        )

    parts = {
        **_common_parts(model, options),
        "graph_optimization": options.graph_optimization,
        "cpu": sorted(cpu_flags()),  # the layout of weights depends on it
    }
    folder = default_cache().entry("onnxruntime-model", parts, build, executable=True)
    return folder / _FILE


def engine_folder(
    model: ModelRef,
    device: Device,
    options: OnnxruntimeOptions,
    make_session: Callable[[Path], Any],
) -> Path:
    """The folder with TensorRT's engines of a model, from the cache or made now.

    Args:
        model: An ONNX model whose inputs have fixed dims.
        device: The GPU.
        options: The libraries of custom operators.
        make_session: Makes a session that keeps its engines in a folder, and lets go of it.

    Raises:
        OptionError: A dim is not fixed: engines are then made call by call.
        Exception: Whatever onnxruntime raises; see ``failures``.
    """
    signature = model.facts.signatures.get("")
    for spec in () if signature is None else signature.inputs:
        if not all(isinstance(size, int) for size in spec.shape or ("unknown",)):
            raise OptionError(
                f"cache keeps TensorRT's engines of models whose dims are all fixed; input "
                f"'{spec.name}' has shape {spec.shape_text}.",
                fix="Export the model with fixed sizes, or leave cache out.",
                option="cache",
                rule="cache-of-engines-with-dynamic-dims",
            )
    versions: dict[str, JSON] = {
        item.metadata["Name"]: item.version
        for item in importlib.metadata.distributions()
        if (item.metadata["Name"] or "").startswith("tensorrt")
    }
    parts = {
        **_common_parts(model, options),
        "tensorrt": versions,
        "gpu": dict(driver_devices()).get(device, str(device)),
    }
    return default_cache().entry("onnxruntime-engines", parts, make_session, executable=True)


def _common_parts(model: ModelRef, options: OnnxruntimeOptions) -> Mapping[str, JSON]:
    ort = onnxruntime()
    return {
        "model": model.digest,
        "custom_ops": [_digest(Path(path)) for path in options.custom_ops],
        "onnxruntime": ort.__version__,
        "build": ort.get_build_info(),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
