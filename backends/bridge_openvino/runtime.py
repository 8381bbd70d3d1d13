"""The runtime itself: its import, its one core, and what must not happen around them."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import BackendUnavailable

__all__ = ["compiled", "core", "imported", "openvino", "require_own_process"]

_importing = threading.Lock()
_compiling_process: int | None = None


@functools.cache
def openvino() -> Any:
    """The module ``openvino``, imported without its telemetry.

    ``import openvino`` sends an event to Google Analytics and writes an identifier below
    ``~/intel`` where the distribution ``openvino-telemetry``, which it depends on, can be
    imported (openvino 2026.4, ``openvino/tools/ovc/__init__.py``). Where it cannot,
    openvino falls back to a stub of its own; this makes it do so, for the import alone.
    A program that has imported openvino before has made that choice itself.

    Raises:
        ImportError: It is not installed, or its libraries cannot be loaded.
    """
    with _importing:
        if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
            try:
                import openvino
            finally:
                del sys.modules["openvino_telemetry"]
        else:
            import openvino
    return openvino


@functools.cache
def core() -> Any:
    """The process's one ``Core``, which OpenVINO recommends: plugins are loaded once."""
    return openvino().Core()


def require_own_process() -> None:
    """Takes hold of OpenVINO for this process.

    Raises:
        BackendUnavailable: This process was forked from one that had compiled a model. The
            threads of oneTBB did not survive that, and compiling would wait for them
            for ever (seen with openvino 2026.4).
    """
    global _compiling_process  # noqa: PLW0603 - the thread pool is the process's as well
    if _compiling_process not in (None, os.getpid()):
        raise BackendUnavailable(
            "OpenVINO was in use before this process was forked, and cannot be used in the child.",
            fix="Start workers with spawn instead of fork, or load the first model after forking.",
            backend="openvino",
        )
    _compiling_process = os.getpid()


def compiled(network: Any, place: str, config: Mapping[str, Any]) -> Any:
    """A ``CompiledModel``.

    Args:
        network: An ``openvino.Model``.
        place: OpenVINO's name of the device.
        config: Properties by name.

    Raises:
        BackendUnavailable: As for ``require_own_process``.
        RuntimeError: OpenVINO refuses the model.
    """
    require_own_process()
    return core().compile_model(network, place, dict(config))


def imported(blob: npt.NDArray[np.uint8], place: str, config: Mapping[str, Any]) -> Any:
    """A ``CompiledModel`` from what OpenVINO has exported; it does not check the bytes.

    Args:
        blob: What ``CompiledModel.export_model`` gave; the weights stay in this memory, which
            must outlive the result.
        place: OpenVINO's name of the device.
        config: Properties by name, those with which the model was compiled.

    Raises:
        BackendUnavailable: As for ``require_own_process``.
        RuntimeError: OpenVINO refuses the blob.
    """
    require_own_process()
    tensor = openvino().Tensor(blob, shared_memory=True)
    return core().import_model(tensor, place, dict(config))
