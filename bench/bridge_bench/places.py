"""On which devices a backend may be measured here; no runtime is asked needlessly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.backend import Backend
from bridge.device import CPU, Device, driver_devices
from bridge.errors import BridgeError, DeviceUnavailable
from bridge.model import ModelRef

__all__ = ["device_kinds", "find_places"]

# Device files of GPUs and NPUs that are not the NVIDIA driver's.
_OTHER_DEVICES = (Path("/dev/dri"), Path("/dev/accel"))


def device_kinds(backend: Backend, devices: Sequence[str | Device] | None) -> frozenset[str]:
    """Kinds of device on which a backend may be measured; no runtime is asked needlessly.

    Args:
        backend: The backend.
        devices: Devices to try; ``None`` means all.
    """
    if devices is not None:
        return frozenset(Device.parse(one).kind for one in devices)
    try:
        there = backend.devices() if _may_have_others(backend, None) else (CPU,)
    except Exception:  # noqa: BLE001 - the plan says so of each of its arms
        return frozenset({CPU.kind})
    return frozenset(one.kind for one in there)


def find_places(
    backend: Backend, model: ModelRef, wanted: tuple[Device, ...] | None
) -> tuple[list[Device], list[tuple[Device, BridgeError]]]:
    """Devices to try, and those that are missing with the reason.

    Args:
        backend: The backend.
        model: What it would run.
        wanted: Devices to try; ``None`` means all that it can use here.
    """
    is_asked = wanted is not None
    try:
        there = backend.devices() if _may_have_others(backend, wanted) else (CPU,)
    except Exception as error:  # noqa: BLE001 - of a runtime that cannot even list devices
        reason = f"{backend.name} could not list its devices: {error}"
        place = backend.default_device(model)
        return [], [(place, DeviceUnavailable(reason))]
    there = tuple(item for item in there if item.kind in backend.device_kinds)
    if wanted is None:
        # "auto" is the backend's choice among the others.
        wanted = tuple(
            item for item in there if item.kind != "auto" and _runs_on(model, item.kind)
        ) or (backend.default_device(model),)
    missing: list[tuple[Device, BridgeError]] = []
    for device in wanted:
        if device not in there:
            missing.append((device, backend.missing_device(device)))
        elif is_asked and not _runs_on(model, device.kind):
            text = f"{model.format.title} models do not run on {device}."
            missing.append((device, DeviceUnavailable(text)))
    gone = {device for device, _ in missing}
    return [item for item in wanted if item not in gone], missing


def _may_have_others(backend: Backend, wanted: tuple[Device, ...] | None) -> bool:
    """Whether it is worth asking the runtime, which it may have to import for that."""
    kinds = set(backend.device_kinds) - {"cpu"}
    if wanted is not None:
        kinds &= {item.kind for item in wanted}
    if not kinds:
        return False
    if "cpu" not in backend.device_kinds or wanted is not None:
        return True
    return any(_may_have(kind) for kind in kinds)


def _may_have(kind: str) -> bool:
    """Whether the machine may have a device of this kind, as far as its files tell."""
    if kind == "cuda":
        return len(driver_devices()) > 1 or Path("/dev/nvidiactl").exists()
    return kind in ("gpu", "npu") and any(path.exists() for path in _OTHER_DEVICES)


def _runs_on(model: ModelRef, kind: str) -> bool:
    """Formats name cpu and cuda; what else a backend offers is its own affair."""
    return kind in model.format.devices or (kind != "cuda" and "cpu" in model.format.devices)
