"""conform: which backends are tested, what is shown, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

import bridge_conformance.certificate
from bridge_cli import exit_codes

SCHEMA = json.loads(
    (Path(bridge_conformance.certificate.__file__).parent / "certificate.schema.json").read_text()
)


def certificates(found: Any) -> dict[str, Any]:
    listed = found.document("conform")["certificates"]
    for one in listed:
        jsonschema.Draft202012Validator(SCHEMA).validate(one)
    return {one["backend"]: one for one in listed}


def test_what_is_proved_is_shown_and_kept(process: Any, tmp_path: Path) -> None:
    words = ("conform", "reference", "--quick", "-k", "TestSignature and affine")
    where = ("--out", tmp_path / "kept", "--report", tmp_path / "matrix.html")
    found = process(*words, *where, BRIDGE_PLUGINS="reference,onnxruntime,conformance")
    assert found.code == exit_codes.OK, found.err
    assert "signature" in found.out
    assert "1 passed" in found.out
    kept = json.loads((tmp_path / "kept" / "reference-cpu.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(kept)
    assert (kept["mode"], kept["verdict"]) == ("selected", "not verified")
    assert "reference" in (tmp_path / "matrix.html").read_text(encoding="utf-8")


def test_a_failure_is_a_finding(process: Any, tmp_path: Path) -> None:
    words = ("conform", "odd", "-k", "test_devices_are_of_its_kinds", "--out", tmp_path)
    found = process(*words, BROKEN_DEVICES="1")
    assert found.code == exit_codes.FINDING
    (path,) = tmp_path.glob("odd-*.json")
    one = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(one)
    assert one["verdict"] == "failed"
    assert one["failures"][0]["id"] == "TestDevices::test_devices_are_of_its_kinds"
    assert "the driver is too old" in one["failures"][0]["text"]
    assert "TestDevices::test_devices_are_of_its_kinds" in found.out
    assert "RuntimeError: the driver is too old" in found.out


def test_all_takes_what_is_installed(process: Any) -> None:
    words = ("conform", "--all", "-k", "test_are_documented", "--json", "--jobs", 2)
    found = process(*words, ACTING="exact absent slow")  # each takes seconds
    assert found.code == exit_codes.OK, found.out + found.err
    assert set(certificates(found)) == {"exact", "slow"}


def test_strict_wants_certificates(process: Any) -> None:
    # Without --strict the same is no finding: see test_all_takes_what_is_installed.
    words = ("conform", "exact", "-k", "test_are_documented", "--strict")
    assert process(*words).code == exit_codes.FINDING


def test_a_backend_that_cannot_be_tested_costs_no_other_its_report(
    process: Any, tmp_path: Path
) -> None:
    words = ("conform", "exact", "slow", "-k", "test_are_documented", "--device", "cuda")
    found = process(*words, "--report", tmp_path / "matrix.html")
    assert found.code in (exit_codes.OK, exit_codes.WORK), found.err
    assert (tmp_path / "matrix.html").is_file()


def test_nothing_could_be_tried(process: Any) -> None:
    found = process("conform", "exact", "-k", "test_scalars", "--json")
    assert found.code == exit_codes.NOTHING_RAN
    assert certificates(found)["exact"]["verdict"] == "not verified"


def test_unknown_and_absent_backends(process: Any) -> None:
    found = process("conform", "exat")
    assert found.code == exit_codes.BACKEND
    assert "'exact'" in found.err
    found = process("conform", "absent")
    assert found.code == exit_codes.BACKEND
    assert "Type: get absent" in found.err


def test_wrong_words(process: Any, tmp_path: Path) -> None:
    assert "no backend is named" in process("conform").err
    assert process("conform").code == exit_codes.USAGE
    assert process("conform", "--all", "exact").code == exit_codes.USAGE
    assert process("conform", "exact", "--timeout", "0").code == exit_codes.USAGE
    (tmp_path / "file").touch()
    found = process("conform", "exact", "--out", tmp_path / "file")
    assert found.code == exit_codes.USAGE
    assert "cannot be made" in found.err
    found = process("conform", "exact", "--report", tmp_path / "nowhere" / "matrix.html")
    assert found.code == exit_codes.USAGE
    assert "there is no folder" in found.err


def test_a_selection_that_matches_nothing(process: Any) -> None:
    found = process("conform", "exact", "-k", "no_such_test")
    assert found.code == exit_codes.NOTHING_RAN
    assert "no tests" in found.out
