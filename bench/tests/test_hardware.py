"""What was run on GPUs: the page, and the check itself where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.device import CPU
from bridge_bench import figures, hardware

CHECKOUT = Path(__file__).resolve().parents[2]


def run_of(
    gpu: str = "NVIDIA L4", version: str = "1.0", date: str = "2026-01-02", **tests: Any
) -> dict[str, Any]:
    outcome = {"passed": [], "failed": [], "skipped": [], "problem": None, **tests}
    row = {"format": "onnx", "rows": 16, "predict_us": 99.6, "bound_us": 80.0, "cpu_us": None}
    return {
        "date": date,
        "commit": "abc1234",
        "gpus": [{"name": gpu, "driver": "580.1"}],
        "python": "3.12.3",
        "platform": "Linux x86_64",
        "backends": {
            "one": {
                "version": version,
                "devices": ["cuda:0"],
                "reason": None,
                "tests": outcome,
                "figures": {"problem": None, "rows": [{**row, "difference": 1.2e-6}]},
            },
            "two": {"version": "2.0", "devices": [], "reason": "version 2.0 sees no CUDA device"},
        },
    }


TESTS = {"one": ["test_a", "test_b"], "two": ["test_c"]}


def test_a_page_without_runs_says_so() -> None:
    text = hardware.page({"runs": [], "tests": TESTS})
    assert "Nothing: no run on a GPU is on record." in text
    assert "- `one`: `test_a`, `test_b`" in text
    assert "- `two`: `test_c`" in text


def test_a_run_has_its_rows() -> None:
    run = run_of(passed=["test_a[x]", "test_a[y]"], failed=["test_b[x]"])
    text = hardware.page({"runs": [run], "tests": TESTS})
    head = "| 2026-01-02 | NVIDIA L4 | 580.1 | 3.12.3 | abc1234"
    assert f"{head} | one 1.0 | 2 passed, 1 failed (test_b[x]) |" in text
    assert f"{head} | two 2.0 | not run: version 2.0 sees no CUDA device |" in text
    assert "| NVIDIA L4 | one 1.0 | onnx | 16 | 100 | 80 | - | 1.2e-06 |" in text
    assert "- `one`: `test_b`" in text
    assert "- `two`: `test_c`" in text


def test_a_test_that_failed_once_has_not_passed() -> None:
    run = run_of(passed=["test_a[x]", "test_b"], failed=["test_a[y]"])
    assert hardware._never_passed([run], TESTS) == {"one": ["test_a"], "two": ["test_c"]}
    later = run_of(version="1.1", passed=["test_a[x]", "test_a[y]"])
    assert hardware._never_passed([run, later], TESTS) == {"two": ["test_c"]}
    part = run_of(passed=["test_a[x]", "test_b"], skipped=["test_a[y]"])
    assert hardware._never_passed([part], TESTS)["one"] == ["test_a"]


def test_a_run_replaces_one_of_the_same_gpu_and_versions() -> None:
    old, other, new = run_of(), run_of(gpu="NVIDIA H100"), run_of(date="2026-02-03")
    assert hardware.replaced([old, other], new) == [other, new]
    assert hardware.replaced([old], run_of(version="1.1"))[0] is old


def test_marked_tests_are_found(tmp_path: Path) -> None:
    for name, text in {
        "one/test_x.py": "@pytest.mark.gpu\ndef test_b(): ...\ndef test_other(): ...\n",
        "two/test_y.py": "pytestmark = [pytest.mark.gpu]\ndef test_c(): ...\ndef helper(): ...\n",
        "three/test_z.py": "def test_d(): ...\n",
        "test_common.py": "@pytest.mark.gpu\ndef test_e(): ...\n",
    }.items():
        path = tmp_path / "backends" / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert hardware.gpu_tests(tmp_path) == {
        "one": ["test_b"],
        "two": ["test_c"],
        hardware.ALL: ["test_e"],
    }


@pytest.mark.checkout
def test_the_page_is_what_the_record_gives() -> None:
    record = json.loads((CHECKOUT / hardware.RECORD).read_text(encoding="utf-8"))
    assert (CHECKOUT / hardware.PAGE).read_text(encoding="utf-8") == hardware.page(record)
    assert record["tests"] == hardware.gpu_tests(CHECKOUT)


@pytest.mark.checkout
@pytest.mark.skipif(bool(hardware._gpus()), reason="about machines without a GPU")
def test_without_a_gpu_one_sentence_says_so() -> None:
    before = (CHECKOUT / hardware.RECORD).read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "bridge_bench.hardware"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "gpu-check: this machine has no NVIDIA GPU, so nothing was run and nothing written."
    ]
    assert (CHECKOUT / hardware.RECORD).read_bytes() == before


@pytest.mark.checkout
def test_a_bare_checkout_has_its_plugins(tmp_path: Path) -> None:
    """In a Python that sees neither this environment's packages nor its .pth files."""
    site = Path(sys.modules["numpy"].__file__ or "").parents[1]
    for name in ("numpy", "pluggy", "numpy.libs"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    registered = hardware._registered(tmp_path / "registered")
    paths = [str((CHECKOUT / one).resolve()) for one in hardware.SOURCES]
    code = "import bridge; print(sorted(bridge.backends()), bridge.__version__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(registered), *paths, str(tmp_path)])},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "'reference'" in done.stdout
    assert done.stdout.split()[-1] == bridge.__version__


def test_figures_of_a_backend(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    name = next(
        (
            name
            for name, backend in bridge.backends().items()
            if backend.probe().installed
            and not backend.is_oracle
            and "onnx" in backend.capabilities(CPU).formats
            and "cpu" in backend.device_kinds
        ),
        None,
    )
    if name is None:
        pytest.skip("no backend here runs ONNX on the CPU")
    backend = bridge.backends()[name]
    small: Any = {"device": CPU, "size": "small", "rows": (2,), "blocks": 1}
    (row,) = figures.measure(backend, tmp_path, **small)
    assert (row["format"], row["rows"], row["cpu_us"]) == ("onnx", 2, None)
    assert row["predict_us"] > 0
    assert row["bound_us"] > 0
    assert row["difference"] < 1e-5


TWO_TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("x", [1, 2])
def test_a(x):
    assert x == 1

@pytest.mark.gpu
def test_b():
    pytest.skip("no such library")

def test_without_a_gpu():
    raise AssertionError
"""


def test_outcomes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "backends" / "tests" / "one"
    home.mkdir(parents=True)
    (home / "test_x.py").write_text(TWO_TESTS)
    monkeypatch.setattr(hardware, "CHECKOUT", tmp_path)
    outcome = hardware._tested("one", tmp_path, os.environ)
    assert outcome == {
        "passed": ["test_a[1]"],
        "failed": ["test_a[2]"],
        "skipped": ["test_b"],
        "problem": None,
    }
    assert hardware._tested("two", tmp_path, os.environ)["problem"] == "it has no tests here"
    (home.parent / "test_common.py").write_text(TWO_TESTS)
    assert hardware._tested(hardware.ALL, tmp_path, os.environ) == outcome


@pytest.mark.parametrize(("status", "said"), [(1, ""), (0, "no JSON\n"), (124, '{"one"')])
def test_backends_that_cannot_be_asked(
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hardware, "_gpus", lambda: [{"name": "NVIDIA L4", "driver": None}])
    done = subprocess.CompletedProcess([], status, said)
    monkeypatch.setattr(hardware, "_child", lambda *args, **options: done)
    monkeypatch.setattr(hardware, "CHECKOUT", tmp_path)
    assert hardware.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"exit status {status}, so nothing was run" in line
    assert list(tmp_path.iterdir()) == []


def test_a_late_process_is_ended() -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    done = hardware._child(["-c", code], os.environ, limit_s=2)
    assert (done.returncode, done.stdout) == (124, "begun\n")
    assert hardware._told(done) is None


def test_figures_are_told_from_other_lines() -> None:
    done = subprocess.CompletedProcess([], 0, 'warming\n{"rows": []}\nfreed 3 handles\n')
    assert hardware._told(done) == {"rows": []}


def test_gpus_are_named_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.159.04'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware._gpus() == [{"name": "NVIDIA H100 80GB HBM3", "driver": "580.159.04"}]


def test_a_gpu_that_nothing_here_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "_gpus", lambda: [{"name": "NVIDIA L4", "driver": None}])
    about = {"one": {"version": "1", "devices": [], "reason": "version 1 sees no CUDA device"}}
    done = subprocess.CompletedProcess([], 0, f"a line\n{json.dumps(about)}\nanother\n")
    monkeypatch.setattr(hardware, "_child", lambda *args, **options: done)
    monkeypatch.setattr(hardware, "CHECKOUT", tmp_path)
    assert hardware.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(NVIDIA L4)" in line
    assert "one: version 1 sees no CUDA device" in line
    assert list(tmp_path.iterdir()) == []


def test_wheels_have_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(hardware._Impossible, match="no wheels"):
        hardware._environment(tmp_path, tmp_path)
    monkeypatch.setattr(hardware, "NEEDED", ("numpy", "surely_not_installed"))
    with pytest.raises(hardware._Impossible, match="lacks surely_not_installed"):
        hardware._environment(tmp_path, None)
