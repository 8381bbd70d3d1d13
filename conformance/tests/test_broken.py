"""The suite tested: it passes sound backends, and catches every broken one by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# What a defect elsewhere leaves alone.
UNHARMED = ("TestErrors::test_missing_input", "TestSignature::test_names_dtypes_shapes[scalar]")
# Where it is tested that a backend that says no means it.
AREAS_OF_REFUSALS = (
    *("TestArrays", "TestBinding", "TestDeterminism", "TestDtypes", "TestLoading"),
    *("TestNumerics", "TestPredict", "TestSignature", "TestThreads"),
)
WITHOUT_LOADING = ("TestLoading::test_missing_file", "TestDevices::test_is_reported")


@dataclass(frozen=True)
class Case:
    """A defect, the test that has to catch it, and tests that have to pass all the same."""

    backend: str
    caught_by: str
    passing: tuple[str, ...] = UNHARMED
    said: str = ""
    is_fatal: bool = False


CASES = [
    Case("mutates_its_input", "TestArrays::test_inputs_are_untouched[affine]"),
    Case("reuses_an_output_buffer", "TestArrays::test_outputs_stay[affine]"),
    Case("drops_an_output", "TestPredict::test_answers[two]"),
    Case("returns_float64", "TestPredict::test_answers[affine]", said="has dtype float64"),
    Case("swaps_two_outputs", "TestPredict::test_two_outputs_of_one_shape"),
    Case("returns_its_input", "TestArrays::test_input_may_be_reused"),
    Case("spreads_nan", "TestNumerics::test_nan_stays_in_its_row"),
    Case("swallows_errors", "TestErrors::test_failure_of_the_runtime"),
    Case("swallows_interrupts", "TestSignals::test_interrupt", said="swallowed"),
    Case("crashes_the_process", "TestPredict::test_answers[scalar]", said="SIGABRT", is_fatal=True),
    Case("is_not_thread_safe", "TestThreads::test_every_caller_gets_its_own_answer"),
    Case("leaks_in_python", "TestMemory::test_calls", said="grew again and again"),
    Case("leaks_in_native_code", "TestMemory::test_calls", said="grew again and again"),
    Case("keeps_inputs_alive", "TestMemory::test_kept_outputs_hold_only_themselves"),
    Case(
        "hangs_in_close", "TestLifecycle::test_close_twice", WITHOUT_LOADING, "hung", is_fatal=True
    ),
    Case("leaves_descriptors", "TestLifecycle::test_100_cycles"),
    Case("leaves_threads", "TestLifecycle::test_100_cycles"),
    Case("is_never_collected", "TestLifecycle::test_garbage_collection"),
    Case("prints_at_exit", "TestLifecycle::test_end_of_the_interpreter", said="left open"),
    Case("takes_signals", "TestSignals::test_handlers_of_the_program"),
    Case(
        "crashes_forked_children",
        "TestFork::test_predict_in_a_child",
        said="crashed",
        is_fatal=True,
    ),
    Case("ignores_the_device", "TestDevices::test_kind_that_is_not_there[cuda]"),
    Case("over_claims_dtypes", "TestDtypes::test_passes[complex128]"),
    Case("under_claims_dtypes", "TestDtypes::test_is_refused[int16]"),
    Case("over_claims_formats", "TestLoading::test_format[sketch]"),
    Case("under_claims_formats", "TestLoading::test_format_is_refused[sketch]"),
    Case("over_claims_dynamic_dims", "TestPredict::test_dynamic_rows"),
    Case(
        "under_claims_dynamic_dims",
        "TestPredict::test_dynamic_rows_are_refused",
        # Not one with dims that change: such a network is not asked of it.
        ("TestPredict::test_scalars", "TestSignature::test_names_dtypes_shapes[scalar]"),
    ),
    Case("over_claims_zero_rows", "TestPredict::test_zero_rows[affine]"),
    Case("over_claims_bind", "TestBinding::test_is_the_backends_own"),
    Case("under_claims_bind", "TestBinding::test_results_are_copied"),
    Case("over_claims_dlpack", "TestArrays::test_dlpack_is_not_copied"),
    Case("under_claims_dlpack", "TestArrays::test_dlpack_is_copied"),
    Case("over_claims_determinism", "TestDeterminism::test_call_after_call"),
    Case("over_claims_predicts", "TestDevices::test_is_used", WITHOUT_LOADING),
    Case(
        "under_claims_predicts",
        "TestDevices::test_is_refused",
        ("TestOptions::test_are_documented", "TestKnownFailures::test_every_id_is_a_test"),
    ),
]


def certified(
    backend: str, *tests: str, folder: Path, is_supervised: bool = True
) -> dict[str, Any]:
    """The certificate of a run of these tests, or of all.

    Args:
        backend: Which.
        *tests: Ids; all tests if there is none.
        folder: For the certificate.
        is_supervised: Whether tests may take the process down with them.
    """
    path = folder / f"{backend}.json"
    areas = {test: re.sub("([A-Z])", r"_\1", test.partition("::")[0]).lower() for test in tests}
    words = [f"bridge_conformance.suite.{area[1:]}::{test}" for test, area in areas.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(folder)),
            *("-p", "no:cacheprovider", "-p", "bridge_conformance.plugin"),
            *("--bridge-backend", backend, "--bridge-quick"),
            *("--bridge-certificate", str(path), "--bridge-timeout", "8"),
            *([] if is_supervised else ["--bridge-in-process"]),
            *("--pyargs", *(words or ["bridge_conformance"])),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "BRIDGE_CONFORMANCE_PLUGINS": "broken",
            "BRIDGE_PLUGINS": "",  # the others' formats have no part in this
            # The plugin of hypothesis takes half a second to import, which most runs do not need.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            # With threads of its own, numpy's BLAS hangs when a process forks amid a product.
            "OPENBLAS_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert path.is_file(), done.stdout
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def passed(certificate: dict[str, Any]) -> int:
    return sum(area["passed"] for area in certificate["areas"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[dict[str, Any]]]:
    """All of them, two at a time, each awaited by the test that looks at it."""
    folder = tmp_path_factory.mktemp("broken")
    pool = ThreadPoolExecutor(2)
    made = {
        "sound": pool.submit(certified, "sound", folder=folder),
        "modest": pool.submit(certified, "modest", *AREAS_OF_REFUSALS, folder=folder),
        "static": pool.submit(certified, "static", folder=folder),
    }
    for case in CASES:
        tests = (case.caught_by, *case.passing)
        made[case.backend] = pool.submit(
            certified, case.backend, *tests, folder=folder, is_supervised=case.is_fatal
        )
    pool.shutdown(wait=False)
    return made


def test_a_sound_backend_passes(runs: dict[str, Future[dict[str, Any]]]) -> None:
    found = runs["sound"].result()
    assert found["verdict"] == "certified", found["failures"]
    assert not found["failures"]
    assert not found["not_verified"]
    assert passed(found) > 300


def test_a_sound_backend_that_claims_less_passes(
    runs: dict[str, Future[dict[str, Any]]],
) -> None:
    found = runs["modest"].result()
    assert not found["failures"]
    assert not found["not_verified"]
    assert passed(found) > 150


def test_a_sound_backend_of_fixed_dims_passes(
    runs: dict[str, Future[dict[str, Any]]],
) -> None:
    found = runs["static"].result()
    assert found["verdict"] == "certified", found["failures"]
    assert not found["not_verified"]
    assert passed(found) > 80
    assert sum(area["not_claimed"] for area in found["areas"]) > 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.backend)
def test_a_broken_backend_is_caught(runs: dict[str, Future[dict[str, Any]]], case: Case) -> None:
    found = runs[case.backend].result()
    assert [one["id"] for one in found["failures"]] == [case.caught_by]
    assert case.said in found["failures"][0]["text"]
    assert passed(found) == len(case.passing)
    assert found["verdict"] == "failed"


def test_every_defect_is_tried() -> None:
    text = (Path(__file__).parent / "broken.py").read_text("utf-8")
    classes = re.findall(r"^@(?:defect|claims\(.*)\nclass (\w+)", text, re.MULTILINE)
    names = {re.sub("(?<!^)([A-Z])", r"_\1", name).lower() for name in classes}
    assert names == {case.backend for case in CASES}
