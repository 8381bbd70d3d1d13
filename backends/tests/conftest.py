"""Tests marked ``gpu`` run where the driver reports a CUDA device, and are named elsewhere."""

from __future__ import annotations

import pytest

from bridge.device import driver_devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(device.kind == "cuda" for device, _ in driver_devices()):
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
