"""A backend of somebody else: installed beside our wheel into a fresh environment, certified."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.checkout, pytest.mark.fresh, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = CHECKOUT / "docs" / "examples" / "bridge-tract"
CONSTRAINTS = CHECKOUT / ".ci" / "constraints.txt"

Run = Callable[..., subprocess.CompletedProcess[str]]


def build_wheel(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a module of the fresh environment, in which both wheels are installed."""
    work = tmp_path_factory.mktemp("third-party")
    ours = build_wheel(CHECKOUT, work / "ours")
    theirs = build_wheel(EXAMPLE, work / "theirs")
    venv.create(work / "venv", with_pip=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BRIDGE_", "PYTEST_", "PYTHON"))
    }
    environment = {**kept, "BRIDGE_CACHE_DIR": str(work / "cache")}

    def run(*words: str | Path, cwd: Path = work) -> subprocess.CompletedProcess[str]:
        command = [work / "venv" / "bin" / "python", "-P", "-m", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)

    wheels = [f"{ours}[conformance,cli]", theirs]
    done = run("pip", "install", "--quiet", "-c", CONSTRAINTS, *wheels)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def certificate_of(run: Run, cwd: Path, *words: str) -> dict[str, Any]:
    """What the suite certifies when pytest is given these words."""
    file = cwd / "certificate.json"
    done = run("pytest", *words, "--bridge-quick", "--bridge-certificate", file, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def certificate(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The certificate of ``pytest --pyargs``."""
    words = ("--pyargs", "bridge_conformance", "--bridge-backend", "tract")
    return certificate_of(run, tmp_path_factory.mktemp("pyargs"), *words)


def count_by_area(certificate: dict[str, Any]) -> dict[str, int]:
    outcomes = ("passed", "failed", "known", "not_verified", "refused")
    return {area["name"]: sum(area[one] for one in outcomes) for area in certificate["areas"]}


def test_doctor_shows_it(run: Run) -> None:
    done = run("bridge_cli", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["is_healthy"], report["failures"]
    (tract,) = [one for one in report["backends"] if one["name"] == "tract"]
    (pinned,) = re.findall(r"^tract==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert tract["installed"]
    assert tract["distribution"] == "tract"
    assert tract["version"] == pinned
    assert tract["plugin"] == "bridge-tract (plugin 'tract')"


def test_it_is_certified(certificate: dict[str, Any]) -> None:
    assert certificate["verdict"] == "certified", certificate["failures"]
    assert certificate["failures"] == []
    assert (certificate["backend"], certificate["device"]) == ("tract", "cpu")
    assert certificate["mode"] == "quick"
    assert certificate["distribution"] == "bridge-tract (plugin 'tract')"
    assert sum(area["passed"] for area in certificate["areas"]) > 200
    listed = tomllib.loads((EXAMPLE / "bridge_tract" / "known_failures.toml").read_text())
    assert {one["id"] for one in certificate["known_failures"]} == {
        test for one in listed["known"] for test in one["ids"]
    }


def test_a_test_file_of_four_lines_certifies_the_same(
    run: Run, certificate: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    found = certificate_of(run, tmp_path, "tests")
    assert found["verdict"] == "certified", found["failures"]
    assert found["failures"] == []
    assert count_by_area(found) == count_by_area(certificate)
    assert found["known_failures"] == certificate["known_failures"]


def test_a_test_file_of_four_lines_holds_the_whole_suite(run: Run, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")

    def collected(*words: str) -> set[str]:
        done = run("pytest", *words, "--collect-only", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}

    whole = collected("--pyargs", "bridge_conformance", "--bridge-backend", "tract")
    assert len(whole) > 2000
    assert collected("tests") == whole


def test_the_program_certifies_it(run: Run) -> None:
    words = ("conform", "tract", "--quick", "-k", "TestPredict", "--json")
    done = run("bridge_cli", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["certificates"]
    # Of some tests only, so that nothing is certified; but nothing failed either.
    assert (found["backend"], found["mode"], found["failures"]) == ("tract", "selected", [])
    assert any(area["passed"] for area in found["areas"])
