"""Where a predictor runs, and which devices the driver reports."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import DeviceUnavailable, nearest

__all__ = ["CPU", "KINDS", "Device", "driver_devices"]

KINDS = ("cpu", "cuda", "gpu", "npu", "auto")
"""Known device kinds. ``gpu``, ``npu`` and ``auto`` are OpenVINO's words for its devices."""


_SINGLE = ("cpu", "auto")


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A device as ``kind:index``; ``str()`` gives back the text that ``parse`` takes."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind in _SINGLE else f"{self.kind}:{self.index}"

    @classmethod
    def parse(cls, text: str | Device) -> Device:
        """Reads ``cpu``, ``cuda`` or ``cuda:1``.

        Raises:
            DeviceUnavailable: The text is not of that form.
        """
        if isinstance(text, Device):
            return text
        text = str(text)
        match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text.strip().lower())
        is_known = match is not None and match[1] in KINDS
        # There is one "cpu" and one "auto"; another index would silently mean the first.
        if match is None or not is_known or (match[1] in _SINGLE and int(match[2] or 0)):
            kind = text.partition(":")[0]
            raise DeviceUnavailable(
                f"device '{text}' is unknown; wanted KIND or KIND:INDEX, such as cpu or cuda:0.",
                fix=nearest(kind, KINDS),
                device=text,
            )
        return cls(match[1], int(match[2] or 0))


CPU = Device("cpu")


def driver_devices(root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[tuple[Device, str], ...]:
    """Devices with their names as the kernel driver reports them, no runtime asked.

    Reads the NVIDIA driver's folder (one sub-folder a GPU, with an ``information``
    file) and honours ``CUDA_VISIBLE_DEVICES`` given as indices. The CPU comes first.

    Source: NVIDIA driver README, chapter on /proc entries.
    """
    found: list[tuple[Device, str]] = [(CPU, _cpu_name())]
    if not root.is_dir():
        return tuple(found)
    names = []
    for folder in sorted(root.iterdir()):
        try:
            text = (folder / "information").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        match = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        names.append(match[1].strip() if match else folder.name)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and re.fullmatch(r"[\d, ]*", visible):
        wanted = [int(item) for item in visible.split(",") if item.strip()]
        names = [names[item] for item in wanted if item < len(names)]
    found += [(Device("cuda", index), name) for index, name in enumerate(names)]
    return tuple(found)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "cpu"
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else "cpu"
