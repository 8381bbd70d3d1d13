"""Tests marked ``gpu`` run where the driver reports a CUDA device, and are named elsewhere.

``BRIDGE_TEST_GPU`` says that there is one where the driver's files do not.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.device import driver_devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Containers often have the device without the driver's folder in /proc.
    is_there = bool(os.environ.get("BRIDGE_TEST_GPU")) or Path("/dev/nvidia0").exists()
    if is_there or any(device.kind == "cuda" for device, _ in driver_devices()):
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
