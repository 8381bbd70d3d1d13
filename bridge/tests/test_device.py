from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge import CPU, Device
from bridge.device import driver_devices
from bridge.errors import DeviceUnavailable


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", CPU),
        ("CPU", CPU),
        ("cpu:0", CPU),
        ("cuda", Device("cuda", 0)),
        ("cuda:3", Device("cuda", 3)),
        (" gpu:1 ", Device("gpu", 1)),
        (Device("npu"), Device("npu", 0)),
    ],
)
def test_texts_become_devices_and_back(text: Any, device: Device) -> None:
    assert Device.parse(text) == device
    assert Device.parse(str(device)) == device


@pytest.mark.parametrize("text", ["", "tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:1", "auto:2", 5])
def test_other_texts_are_refused(text: Any) -> None:
    with pytest.raises(DeviceUnavailable, match="wanted KIND or KIND:INDEX"):
        Device.parse(text)


def test_the_driver_names_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [device for device, _ in driver_devices(tmp_path / "nothing")] == [CPU]
    for slot, name in {"0000:01": "H100", "0000:02": "L4"}.items():
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text(f"Model: \t {name}\nIRQ: 1\n")
    assert driver_devices(tmp_path)[1:] == ((Device("cuda", 0), "H100"), (Device("cuda", 1), "L4"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert driver_devices(tmp_path)[1:] == ((Device("cuda", 0), "L4"),)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert driver_devices(tmp_path)[1:] == ()
