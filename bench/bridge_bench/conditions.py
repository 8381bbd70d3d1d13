"""Under which conditions a bench ran, for the line above its table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.cpus import usable_cpus
from bridge.device import driver_devices

__all__ = ["conditions", "heading", "sentence"]


def conditions() -> dict[str, Any]:
    """Machine, system, versions, and the load that others have put on the machine so far."""
    (_, processor), *_ = driver_devices()
    return {
        "processor": processor,
        "cpus": usable_cpus(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_before": round(os.getloadavg()[0], 2),
    }


def sentence(found: Mapping[str, Any], *more: str) -> str:
    """One line of text; what else is to be said comes last."""
    parts = [
        f"{found['processor']}, {found['cpus']} CPUs, {found['architecture']}",
        found["system"],
        f"Python {found['python']}, numpy {found['numpy']}",
        f"load average before {found['load_before']:g}",
        *more,
    ]
    return "; ".join(parts)


def heading(columns: Sequence[str]) -> tuple[str, str]:
    """The two lines above the rows of a table in Markdown."""
    return f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"
