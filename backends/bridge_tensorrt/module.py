"""The modules ``tensorrt`` and ``tensorrt_rtx``: which is there, which is used, its import."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from bridge import Availability, find_runtime
from bridge.errors import BackendUnavailable

__all__ = ["MODULES", "TITLES", "choose", "find", "load"]

MODULES = ("tensorrt", "tensorrt_rtx")
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
}


def find(name: str) -> Availability:
    """Whether one of the modules is installed, told from metadata."""
    # ``tensorrt`` depends on ``tensorrt-cu12``: to find both is no conflict.
    return find_runtime(name, _DISTRIBUTIONS[name], _EXTRAS[name], exclusive=False)


def choose(wanted: str | None) -> str:
    """Name of the module to use: the wanted one, else the one installed.

    Where both are, ``tensorrt`` is used: it measures kernels on the GPU at hand, and
    serves data-centre GPUs that tensorrt_rtx 1.7 has no name for (its
    ``ComputeCapability`` lists SM75 to SM89, SM120 and SM121). ``info`` names the module.

    Raises:
        BackendUnavailable: It is not installed, or none is.
    """
    if wanted is not None:
        found = find(wanted)
        if not found.installed:
            raise BackendUnavailable(
                f"{TITLES[wanted]} is not available: {found.reason}.", fix=found.fix, module=wanted
            )
        return wanted
    for name in MODULES:
        if find(name).installed:
            return name
    raise BackendUnavailable(
        "neither module 'tensorrt' nor 'tensorrt_rtx' is installed.",
        fix="Install one with: pip install 'inference-bridge[tensorrt-rtx]', or [tensorrt].",
    )


def load(name: str) -> Any:
    """The module; callers name it ``trt``.

    Raises:
        ImportError: It is not installed, or its libraries cannot be loaded.
    """
    return importlib.import_module(name)
