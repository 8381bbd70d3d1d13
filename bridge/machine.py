"""What a measurement depends on besides the model: machine, versions, environment.

Everything is read from the kernel's files; no runtime is imported and no program run.
What a system does not tell is ``None``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bridge.cpus import quota_cpus, usable_cpus
from bridge.device import driver_devices

__all__ = [
    "changed_variables",
    "changed_versions",
    "differences",
    "fingerprint",
    "variables",
    "versions",
]

# Instruction sets that runtimes choose their kernels by; x86 names, then Arm's.
_NOTABLE = re.compile(
    r"sse4_2|avx|avx2|fma|f16c|avx512.*|avx_vnni|avx_ne_convert|amx_.*|"
    r"asimd.*|sve\d*|sve[a-z].*|sme|sme\d.*|bf16|i8mm|fphp"
)
_PREFIXES = (
    "OMP_",
    "GOMP_",
    "MKL_",
    "KMP_",
    "OPENBLAS_",
    "BLIS_",
    "DNNL_",
    "ONEDNN_",
    "ORT_",
    "ORTMODULE_",
    "TF_",
    "XLA_",
    "CUDA_",
    "CUDNN_",
    "CUBLAS_",
    "NVIDIA_",
    "TORCH",
    "PYTORCH_",
    "OV_",
    "OPENVINO_",
    "MALLOC_",
    "LD_PRELOAD",
)
# A record is passed on to others. Terraform's variables, secrets among them, start like
# those of TensorFlow.
_PRIVATE = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|^TF_(VAR|CLI)_", re.IGNORECASE)
# Where things lie and what is printed changes no speed; some runtimes set these themselves.
_NEUTRAL = re.compile(r"^TF_CPP_|LOGS?(_|$)|VERBOSE|_(DIR|HOME|PATH)$")

# What a difference means: these change speed by themselves.
_WORDS = {
    "cpu_vendor": "the CPU's vendor",
    "cpu_model": "the CPU",
    "cpu_stepping": "the CPU's stepping",
    "cpu_flags": "the CPU's instruction sets",
    "cpu_flags_digest": "the CPU's flags",
    "usable_cpus": "the number of usable CPUs",
    "cores": "the number of cores",
    "smt": "simultaneous multithreading",
    "sockets": "the number of sockets",
    "numa_nodes": "the number of NUMA nodes",
    "affinity_cpus": "the CPUs of the affinity mask",
    "quota_cpus": "the CPU quota",
    "governor": "the frequency governor",
    "turbo": "turbo",
    "gpus": "the GPUs",
    "gpu_driver": "the GPU driver",
    "architecture": "the architecture",
    "system": "the operating system",
    "libc": "the C library",
}
# These seldom do.
_NOISE_WORDS = {
    "cpu_microcode": "the CPU's microcode",
    "kernel": "the kernel",
    "distribution": "the distribution",
    "memory_bytes": "the memory in bytes",
}


def fingerprint(root: Path = Path("/")) -> dict[str, Any]:
    """The machine as far as it decides speed, JSON types only.

    Args:
        root: Where ``/proc`` and ``/sys`` are looked up; for tests.

    Returns:
        Counts, names and texts by the keys that ``differences`` knows; sizes in bytes.
    """
    info = _text(root / "proc/cpuinfo")
    first = _fields(info.partition("\n\n")[0])
    flags = sorted((first.get("flags") or first.get("Features") or "").split())
    blocks = [_fields(block) for block in info.split("\n\n") if block.strip()]
    cores = {(one.get("physical id"), one.get("core id")) for one in blocks if "core id" in one}
    sockets = {one["physical id"] for one in blocks if "physical id" in one}
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    smt = _text(root / "sys/devices/system/cpu/smt/active").strip()
    nodes = root / "sys/devices/system/node"
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"), re.MULTILINE)
    driver = re.search(
        r"Kernel Module\D*([\d.]+)", _text(root / "proc/driver/nvidia/version").partition("\n")[0]
    )
    return {
        "architecture": platform.machine(),
        "cpu_vendor": first.get("vendor_id") or first.get("CPU implementer"),
        "cpu_model": first.get("model name") or _arm_model(first),
        "cpu_stepping": first.get("stepping") or first.get("CPU revision"),
        "cpu_microcode": first.get("microcode"),
        "cpu_flags": [flag for flag in flags if _NOTABLE.fullmatch(flag)],
        "cpu_flags_digest": hashlib.sha256(" ".join(flags).encode()).hexdigest()[:16],
        "cores": len(cores) or None,
        "smt": {"1": True, "0": False}.get(smt),
        "sockets": len(sockets) or None,
        "numa_nodes": sum(1 for _ in nodes.glob("node[0-9]*")) or None,
        "affinity_cpus": _affinity(),
        "quota_cpus": quota_cpus(root),
        "usable_cpus": usable_cpus(root),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
        or None,
        "turbo": _turbo(root / "sys/devices/system/cpu"),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": platform.system(),
        "kernel": platform.release(),
        "distribution": found[1] if found else None,
        "libc": _libc(),
        "gpus": [
            name
            for device, name in driver_devices(root / "proc/driver/nvidia/gpus")
            if device.kind != "cpu"
        ],
        "gpu_driver": driver[1] if driver else None,
    }


def versions(backends: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, of the bridge, of numpy and of what ships these backends.

    Args:
        backends: Names of backends; those not installed or not known are left out.

    Returns:
        Versions by name of the distribution, or of the backend where it has none.
    """
    from bridge.loading import backends as registered

    found = {"python": platform.python_version()}
    for name in ("inference-bridge", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a bare checkout
            continue
    known = registered()
    for name in sorted(set(backends)):
        if name in known:
            availability = known[name].probe()
            if availability.installed and availability.version is not None:
                found[availability.distribution or name] = availability.version
    return found


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables that change how runtimes run, in order of their names.

    Those whose name speaks of a key, a token or a password are left out, and Terraform's;
    also those that only say where files are or what is printed.

    Args:
        environment: Where to look; ``None`` for this process's.
    """
    there = os.environ if environment is None else environment
    return {
        name: there[name]
        for name in sorted(there)
        if name.startswith(_PREFIXES) and not _PRIVATE.search(name) and not _NEUTRAL.search(name)
    }


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, noise: bool = False
) -> list[str]:
    """What distinguishes two fingerprints, one sentence each.

    Args:
        old: Fingerprint of the measurement.
        new: Fingerprint of now.
        noise: Tell what seldom matters (kernel, microcode, memory) instead of what does.

    Returns:
        Sentences; empty if nothing differs. What one side does not tell is no difference.
    """
    words = _NOISE_WORDS if noise else _WORDS
    found = []
    for key, what in words.items():
        before, now = old.get(key), new.get(key)
        if before is None or now is None or before == now:
            continue
        if key == "cpu_flags" and isinstance(before, list) and isinstance(now, list):
            lost = [str(flag) for flag in before if flag not in now]
            more = [str(flag) for flag in now if flag not in before]
            parts = [f"lost {', '.join(lost)}"] * bool(lost) + [f"gained {', '.join(more)}"] * bool(
                more
            )
            found.append(f"{what} {' and '.join(parts) or 'changed'}.")
        else:
            found.append(f"{what} changed from {_shown(before)} to {_shown(now)}.")
    return found


def changed_versions(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What distinguishes versions, one sentence each; only names that are in ``new``.

    Of Python's versions the first two numbers count.
    """
    found = []
    for name, version in new.items():
        before = old.get(name)
        if before is None:
            found.append(f"{name} {version} was not there.")
        elif before != version and (name != "python" or _minor(before) != _minor(version)):
            found.append(f"{name} changed from {before} to {version}.")
    return found


def changed_variables(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What distinguishes environment variables, one sentence each."""
    found = []
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if now is None:
            found.append(f"{name} was {before!r} and is not set.")
        elif before is None:
            found.append(f"{name} was not set and is {now!r}.")
        else:
            found.append(f"{name} changed from {before!r} to {now!r}.")
    return found


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _arm_model(first: Mapping[str, str]) -> str | None:
    """Arm's kernels give numbers instead of a name."""
    part = first.get("CPU part")
    return None if part is None else f"{first.get('CPU implementer', '?')}:{part}"


def _affinity() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity masks
        return None


def _turbo(folder: Path) -> bool | None:
    off = _text(folder / "intel_pstate/no_turbo").strip()
    if off:
        return off == "0"
    boost = _text(folder / "cpufreq/boost").strip()
    return boost == "1" if boost else None


def _libc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # another C library
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
