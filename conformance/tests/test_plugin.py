"""The pytest plugin: which tests run, what known failures do, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BACKEND = """
from __future__ import annotations

import dataclasses

import bridge
from bridge_reference.backend import ReferenceBackend


class ShadowBackend(ReferenceBackend):
    name = "shadow"

    def capabilities(self, device):
        return dataclasses.replace(super().capabilities(device), bind=True)  # which is not so


@bridge.hookimpl
def register_backends(register):
    register(ShadowBackend())
"""
BOUND = "TestBinding::test_is_the_backends_own"


@dataclass
class Outcome:
    """What a run of pytest left behind."""

    status: int
    printed: str
    certificate: dict[str, Any] | None

    @property
    def failed(self) -> list[str]:
        assert self.certificate is not None
        return [one["id"] for one in self.certificate["failures"]]


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the suite on a backend that claims one thing too much."""
    package = tmp_path / "site" / "shadow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "backend.py").write_text(BACKEND, encoding="utf-8")
    here = tmp_path / "here"
    here.mkdir()

    def start(*words: str, known: str | None = None, backend: str = "shadow") -> Outcome:
        if known is not None:
            (package / "known_failures.toml").write_text(known, encoding="utf-8")
        path = tmp_path / "certificate.json"
        path.unlink(missing_ok=True)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(["--bridge-backend", backend] if backend else []),
                *(f"--bridge-certificate={path}", "--bridge-quick", *words),
            ],
            cwd=here,
            env={
                **os.environ,
                "PYTHONPATH": str(package.parent),
                "BRIDGE_CONFORMANCE_PLUGINS": "shadow.backend",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return Outcome(done.returncode, done.stdout, found)

    return start


SUITE = ("--pyargs", "bridge_conformance")
FEW = (*SUITE, "-k", "TestBinding and affine or is_the_backends_own or TestKnownFailures")


def listed(*ids: str, more: str = "") -> str:
    return f"[[known]]\nids = {json.dumps(ids)}\nreason = 'It claims what it cannot do.'\n{more}"


def test_a_failure_fails_the_certificate(run: Run) -> None:
    found = run(*FEW)
    assert found.status == 1
    assert found.failed == [BOUND]
    assert found.certificate is not None
    assert found.certificate["verdict"] == "failed"
    assert found.certificate["mode"] == "selected"
    assert "shadow on cpu: failed" in found.printed


def test_listed_failures_are_known_run_or_not(run: Run) -> None:
    ran = listed(BOUND, more="issue = 'https://example.org/7'\n")
    skipped = listed("TestBinding::test_answers[affine]", more="mode = 'skip'")
    found = run(*FEW, known=ran + skipped)
    assert found.status == 0, found.printed
    assert found.failed == []
    assert found.certificate is not None
    known = {one["id"]: one for one in found.certificate["known_failures"]}
    assert set(known) == {BOUND, "TestBinding::test_answers[affine]"}
    assert known[BOUND]["reason"] == "It claims what it cannot do."
    assert known[BOUND]["issue"] == "https://example.org/7"


def test_a_listed_test_that_passes_or_is_none_is_a_failure(run: Run) -> None:
    wrong = (
        "TestBinding::test_answers[affine]",
        "TestBinding::test_nothing",
        "TestNothing::test_it",
    )
    found = run(*FEW, known=listed(BOUND, *wrong))
    assert found.status == 1
    assert found.failed == [
        "TestBinding::test_answers[affine]",
        "TestKnownFailures::test_every_id_is_a_test",
    ]
    assert "XPASS" in found.printed
    assert "TestBinding::test_nothing" in found.printed
    assert "TestNothing::test_it" in found.printed


def test_an_ill_formed_list_is_refused_in_one_sentence(run: Run) -> None:
    found = run(*FEW, known="[[known]]\nids = ['TestBinding::test_nothing']\n")
    assert found.status == 4
    assert "entry 1 of known_failures.toml has no reason" in found.printed
    assert found.certificate is None


def test_unknown_absent_and_unnamed_backends_are_refused(run: Run) -> None:
    found = run(*SUITE, backend="shadwo")
    assert found.status == 4
    assert "there is no backend 'shadwo'. Did you mean 'shadow'?" in found.printed
    found = run(*SUITE, backend="")
    assert found.status == 4
    assert "no backend is named" in found.printed
    found = run(*SUITE, "--bridge-device", "tpu")
    assert found.status == 4
    assert "device 'tpu' is unknown" in found.printed


@pytest.mark.parametrize(
    "change",
    [
        "del TestBinding",
        "class TestBinding: pass",
        "TestBinding.test_zero_rows = lambda self: None",
    ],
)
def test_no_part_of_the_suite_may_be_replaced(run: Run, tmp_path: Path, change: str) -> None:
    path = tmp_path / "here" / "test_conformance.py"
    path.write_text(
        "from bridge_conformance import suite_for\n"
        f"globals().update(suite_for('shadow'))\n{change}\n"
    )
    found = run("test_conformance.py", backend="")
    assert found.status == 4
    assert "TestBinding of the conformance suite was replaced or deleted" in found.printed


def test_in_this_very_process(run: Run) -> None:
    found = run(*FEW, "--bridge-in-process")
    assert found.failed == [BOUND]


def test_a_test_file_of_ones_own_holds_the_suite_beside_ones_own_tests(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "here" / "test_conformance.py"
    path.write_text(
        "from bridge_conformance import suite_for\nglobals().update(suite_for('shadow'))\n"
        "def test_of_ones_own_in_TestBinding_and_affine(): assert False, 'it is mine'\n"
    )
    found = run("test_conformance.py", *FEW[2:], backend="")
    assert found.failed == [BOUND]
    assert "it is mine" in found.printed


def test_a_process_that_does_not_end_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    lines = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    path = tmp_path / "site" / "shadow" / "backend.py"
    path.write_text(
        path.read_text().replace("import dataclasses\n", f"import dataclasses\n{lines}")
    )
    (tmp_path / "here" / "conftest.py").write_text(
        "import os, sys\n"
        "if not any('bridge-journal' in word for word in sys.argv):\n"
        "    os.environ.pop('BRIDGE_CONFORMANCE_PLUGINS', None)\n"
    )
    found = run(*SUITE, "-k", "test_are_documented", backend="reference")
    assert found.status == 0, found.printed
    assert found.certificate is not None
    assert sum(area["passed"] for area in found.certificate["areas"]) == 1


def test_settings_of_another_project_do_no_harm(run: Run, tmp_path: Path) -> None:
    (tmp_path / "here" / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-config --strict-markers\nfilterwarnings = error\n"
    )
    found = run(*FEW)
    assert found.failed == [BOUND], found.printed
