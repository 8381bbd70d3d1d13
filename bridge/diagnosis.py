"""What is installed here, what is missing, what conflicts, and what to type."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import Any

from bridge.backend import Availability
from bridge.cpus import usable_cpus
from bridge.device import driver_devices
from bridge.errors import BridgeError, PluginError
from bridge.registry import PluginFailure, registry

__all__ = ["BackendReport", "Diagnosis", "doctor"]


@dataclass(frozen=True, slots=True)
class BackendReport:
    """One backend as ``doctor`` sees it.

    Attributes:
        name: Its name.
        plugin: The distribution that registers it.
        availability: Installed or not, with reason and fix.
        devices: Devices that its runtime reports; ``None`` if it was not asked.
        problem: Why its runtime could not be asked.
    """

    name: str
    plugin: str
    availability: Availability
    devices: tuple[str, ...] | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The whole report.

    Attributes:
        version: Version of inference-bridge.
        python: Version of Python.
        platform: Operating system and machine.
        usable_cpus: CPUs that this process may use.
        devices: Devices that drivers report, with their names.
        backends: One report per backend.
        failures: Plugins that do not load, and names registered twice.
    """

    version: str
    python: str
    platform: str
    usable_cpus: int
    devices: tuple[tuple[str, str], ...]
    backends: tuple[BackendReport, ...]
    failures: tuple[PluginFailure, ...]
    duplicates: tuple[PluginError, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is broken; a runtime that is merely absent does not count."""
        return not (
            self.failures
            or self.duplicates
            or any(one.problem or one.availability.warnings for one in self.backends)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; its schema is ``doctor.schema.json`` of the command-line package."""
        return {
            "version": self.version,
            "python": self.python,
            "platform": self.platform,
            "usable_cpus": self.usable_cpus,
            "devices": [{"device": device, "name": name} for device, name in self.devices],
            "backends": [
                {
                    "name": one.name,
                    "plugin": one.plugin,
                    "installed": one.availability.installed,
                    "version": one.availability.version,
                    "distribution": one.availability.distribution,
                    "reason": one.availability.reason,
                    "fix": one.availability.fix,
                    "warnings": list(one.availability.warnings),
                    "devices": None if one.devices is None else list(one.devices),
                    "problem": one.problem,
                }
                for one in self.backends
            ],
            "failures": [
                {
                    "plugin": one.name,
                    "distribution": one.distribution,
                    "error": str(one.error),
                    "traceback": one.traceback,
                }
                for one in self.failures
            ],
            "duplicates": [str(one) for one in self.duplicates],
            "is_healthy": self.is_healthy,
        }


def doctor(*, deep: bool = False) -> Diagnosis:
    """Looks at this installation; never raises for what it finds.

    Args:
        deep: Also import every installed runtime and ask it for its devices, which
            takes seconds. Otherwise devices come from the drivers alone.
    """
    import bridge

    found = registry()
    reports = []
    for backend in found.backends:
        devices: tuple[str, ...] | None = None
        problem = None
        try:
            availability = backend.probe()
        except Exception as error:  # noqa: BLE001 - a plugin that breaks the rule for probes
            problem = f"{type(error).__name__}: {error}"
            availability = Availability(installed=False, reason=f"its probe failed: {problem}")
        if deep and availability.installed:
            try:
                devices = tuple(str(device) for device in backend.devices())
            except BridgeError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - a broken runtime is what doctor reports
                problem = f"{type(error).__name__}: {error}"
        reports.append(
            BackendReport(
                name=backend.name,
                plugin=found.backends.source(backend.name),
                availability=availability,
                devices=devices,
                problem=problem,
            )
        )
    return Diagnosis(
        version=bridge.__version__,
        python=sys.version.split()[0],
        platform=platform.platform(),
        usable_cpus=usable_cpus(),
        devices=tuple((str(device), name) for device, name in driver_devices()),
        backends=tuple(reports),
        failures=tuple(found.failures),
        duplicates=found.backends.duplicates()
        + found.formats.duplicates()
        + found.adapters.duplicates(),
    )
