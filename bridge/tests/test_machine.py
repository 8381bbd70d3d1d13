"""What a machine says of itself, read from files made up for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge import machine

X86 = """\
processor : {n}
vendor_id : GenuineIntel
model name : Intel(R) Xeon(R) Platinum
stepping : 8
microcode : 0x1
physical id : {socket}
core id : {core}
flags : fpu sse4_2 avx avx2 fma smep avx512f avx512_bf16 amx_tile amx_bf16 avx_vnni

"""


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(
        tmp_path,
        "proc/cpuinfo",
        "".join(X86.format(n=n, socket=n // 4, core=n % 4 // 2) for n in range(8)),
    )
    put(tmp_path, "proc/meminfo", "MemFree: 1 kB\nMemTotal:       2048 kB\n")
    put(tmp_path, "proc/driver/nvidia/gpus/0000:00:04.0/information", "Model:  H100\nIRQ: 1\n")
    put(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA Kernel Module  550.54.1  x\n")
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    put(tmp_path, "proc/self/mountinfo", "1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n")
    put(tmp_path, "cg/cpu.max", "150000 100000\n")
    put(tmp_path, "sys/devices/system/cpu/smt/active", "1\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    put(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "1\n")
    put(tmp_path, "sys/devices/system/node/node0/x", "")
    put(tmp_path, "sys/devices/system/node/node1/x", "")
    put(tmp_path, "etc/os-release", 'NAME="x"\nPRETTY_NAME="Some Linux 12"\n')
    return tmp_path


def test_a_whole_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = machine.fingerprint(root)
    assert found == json.loads(json.dumps(found))
    wanted = {
        "cpu_vendor": "GenuineIntel",
        "cpu_model": "Intel(R) Xeon(R) Platinum",
        "cpu_stepping": "8",
        "cpu_microcode": "0x1",
        "cores": 4,
        "smt": True,
        "sockets": 2,
        "numa_nodes": 2,
        "quota_cpus": 1.5,
        "governor": "performance",
        "turbo": False,
        "memory_bytes": 2048 * 1024,
        "distribution": "Some Linux 12",
        "gpus": ["H100"],
        "gpu_driver": "550.54.1",
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["usable_cpus"] <= 2
    assert set(found["cpu_flags"]) == {
        *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx_vnni"),
        *("amx_tile", "amx_bf16"),
    }


def test_arm(tmp_path: Path) -> None:
    put(
        tmp_path,
        "proc/cpuinfo",
        "processor: 0\nFeatures: fp asimd asimddp sve2 bf16 i8mm crc32\nCPU implementer: 0x41\n"
        "CPU part: 0xd4f\nCPU revision: 1\n",
    )
    put(tmp_path, "sys/devices/system/cpu/cpufreq/boost", "1\n")
    found = machine.fingerprint(tmp_path)
    assert (found["cpu_vendor"], found["cpu_model"]) == ("0x41", "0x41:0xd4f")
    assert found["cpu_flags"] == ["asimd", "asimddp", "bf16", "i8mm", "sve2"]
    assert found["turbo"] is True


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = machine.fingerprint(tmp_path)
    for key in ("cpu_model", "cores", "smt", "memory_bytes", "governor", "turbo", "gpu_driver"):
        assert found[key] is None, key
    assert found["gpus"] == []
    assert found["usable_cpus"] >= 1
    told = machine.differences(found, machine.fingerprint(), noise=True)
    assert told == []  # what one side does not tell is no difference


def test_this_machine_does_not_differ_from_itself() -> None:
    found = machine.fingerprint()
    assert machine.differences(found, found) == []
    assert machine.differences(found, found, noise=True) == []


@pytest.mark.parametrize(
    ("key", "old", "new", "words"),
    [
        ("cpu_model", "A", "B", "the CPU changed from A to B."),
        ("smt", True, False, "simultaneous multithreading changed from on to off."),
        ("gpus", ["H100"], [], "the GPUs changed from H100 to none."),
        (
            "cpu_flags",
            ["avx2", "avx512f"],
            ["avx2", "amx_tile"],
            "the CPU's instruction sets lost avx512f and gained amx_tile.",
        ),
        ("cpu_flags", ["avx2"], [], "the CPU's instruction sets lost avx2."),
        ("usable_cpus", 2, 8, "the number of usable CPUs changed from 2 to 8."),
    ],
)
def test_what_matters(key: str, old: Any, new: Any, words: str) -> None:
    assert machine.differences({key: old}, {key: new}) == [words]
    assert machine.differences({key: old}, {key: new}, noise=True) == []
    assert machine.differences({key: None}, {key: new}) == []


def test_noise_is_told_apart() -> None:
    old, new = {"kernel": "6.1.1", "memory_bytes": 1}, {"kernel": "6.1.2", "memory_bytes": 2}
    assert machine.differences(old, new) == []
    assert machine.differences(old, new, noise=True) == [
        "the kernel changed from 6.1.1 to 6.1.2.",
        "the memory in bytes changed from 1 to 2.",
    ]


def test_every_part_of_a_fingerprint_is_told_of() -> None:
    told = {*machine._WORDS, *machine._NOISE_WORDS}
    assert told == set(machine.fingerprint())


def test_versions(tiny: Any) -> None:
    found = machine.versions(["tiny", "unknown"])
    assert found["tiny"] == "1.0"
    assert {"python", "numpy", "inference-bridge"} < set(found)
    assert "unknown" not in found


def test_changed_versions() -> None:
    old = {"python": "3.11.7", "numpy": "2.0", "gone": "1"}
    assert machine.changed_versions(old, {"python": "3.11.9", "numpy": "2.0"}) == []
    assert machine.changed_versions(old, {"python": "3.12.0", "numpy": "2.1", "more": "5"}) == [
        "python changed from 3.11.7 to 3.12.0.",
        "numpy changed from 2.0 to 2.1.",
        "more 5 was not there.",
    ]


def test_variables() -> None:
    there = {
        "OMP_NUM_THREADS": "2",
        "TF_NUM_INTEROP_THREADS": "1",
        "LD_PRELOAD": "x.so",
        "NVIDIA_API_KEY": "hidden",
        "TF_VAR_db": "hidden",
        "TORCH_TOKEN": "hidden",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/x",
        "TORCH_LOGS": "all",
        "ONEDNN_VERBOSE": "1",
        "HOME": "/",
    }
    wanted = {"LD_PRELOAD": "x.so", "OMP_NUM_THREADS": "2", "TF_NUM_INTEROP_THREADS": "1"}
    assert machine.variables(there) == wanted
    assert machine.changed_variables(wanted, {"LD_PRELOAD": "y.so", "KMP_X": "1"}) == [
        "KMP_X was not set and is '1'.",
        "LD_PRELOAD changed from 'x.so' to 'y.so'.",
        "OMP_NUM_THREADS was '2' and is not set.",
        "TF_NUM_INTEROP_THREADS was '1' and is not set.",
    ]
