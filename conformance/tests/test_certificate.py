"""Certificates: what they say follows from their outcomes, and bad files are refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import bridge
from bridge.capabilities import Capabilities
from bridge.dtypes import DType
from bridge_conformance import certificate as module
from bridge_conformance.certificate import (
    Area,
    Certificate,
    Failure,
    InvalidCertificate,
    KnownFailure,
    NotVerified,
    describe,
)

SCHEMA = json.loads(
    Path(module.__file__).with_name("certificate.schema.json").read_text(encoding="utf-8")
)


def make(**changes: Any) -> Certificate:
    """A certificate with 5 passed; ``changes`` replace fields."""
    facts: dict[str, Any] = {
        "suite_version": "1",
        "bridge_version": "0.1.0",
        "backend": "made_up",
        "distribution": "made-up",
        "runtime_version": "2.0",
        "device": "cpu",
        "mode": "quick",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {"cpu": "a processor"},
        "python": "3.11.7",
        "platform": "Linux-x86_64",
        "capabilities": describe(Capabilities()),
        "areas": (Area(name="predict", title="Answers.", passed=5),),
    }
    return Certificate(**{**facts, **changes})


def everything() -> Certificate:
    """A certificate with every outcome in it."""
    return make(
        areas=(
            Area(name="predict", title="Answers.", passed=5, failed=1, known=1, not_claimed=2),
            Area(name="onnx", title="Cases.", not_verified=1),
        ),
        failures=(Failure(id="TestPredict::test_a", area="predict", text="got 1"),),
        known_failures=(
            KnownFailure(
                id="TestPredict::test_b[ü]",
                area="predict",
                reason="It cannot.",
                issue="https://example.org/1",
                since="made-up 2.0",
            ),
        ),
        not_verified=(NotVerified(id="TestOnnx::test_c", area="onnx", reason="No writer."),),
        counts={
            "onnx": {
                "cases": 9,
                "native": 7,
                "bridge": 8,
                "beyond_native": 1,
                "refused": 0,
                "lost": 0,
            },
            "other": {"models": 3},
        },
        measured={
            "TestThreads::test_speed": {"speed_up": 1.8, "threads": 2, "how": "side by side"}
        },
        duration_s=1.5,
    )


def test_a_certificate_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "made_up.json"
    everything().write(path)
    assert Certificate.read(path) == everything()
    assert [item.name for item in tmp_path.iterdir()] == ["made_up.json"]
    make().write(path)
    assert Certificate.read(path) == make()


@pytest.mark.parametrize("one", [make(), everything()], ids=["plain", "everything"])
def test_the_schema_fits_what_is_written(one: Certificate) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = json.loads(json.dumps(one.to_dict()))
    jsonschema.validate(data, SCHEMA)
    assert set(data) == set(SCHEMA["properties"]) == set(SCHEMA["required"])
    for name in SCHEMA["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: data[key] for key in data if key != name}, SCHEMA)


def test_claims_become_json_in_a_stable_order() -> None:
    claims = Capabilities(formats=frozenset("ba"), dtypes=frozenset([DType.INT8, DType.BOOL]))
    found = json.loads(json.dumps(describe(claims)))
    assert found["formats"] == ["a", "b"]
    assert found["dtypes"] == ["bool", "int8"]
    assert found["thread_safety"] == "exclusive"
    # How often to call before anything is timed is nothing that a suite could prove.
    assert set(found) == set(Capabilities.__dataclass_fields__) - {"warm_calls"}


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({}, "certified: 5 passed"),
        (
            {
                "areas": (
                    Area(name="a", title="", passed=512, known=1, not_claimed=7),
                    Area(name="b", title="", known=1, not_verified=1),
                ),
                "known_failures": tuple(
                    KnownFailure(id=f"T::{area}", area=area, reason="Why.") for area in "ab"
                ),
                "not_verified": (NotVerified(id="T::c", area="b", reason="Why."),),
            },
            "certified: 512 passed, 2 known failures, 1 not verified",
        ),
        (
            {
                "areas": (Area(name="a", title="", passed=3, failed=1, known=1),),
                "failures": (Failure(id="T::a", area="a", text="no"),),
                "known_failures": (KnownFailure(id="T::b", area="a", reason="Why."),),
            },
            "failed: 1 failed, 3 passed, 1 known failure",
        ),
        (
            {
                "areas": (Area(name="a", title="", not_verified=1),),
                "not_verified": (NotVerified(id="T::a", area="a", reason="Not here."),),
            },
            "not verified (nothing of the suite could be run): 1 not verified",
        ),
        ({"areas": ()}, "not verified (nothing of the suite could be run): no tests"),
        (
            {
                "areas": (Area(name="a", title="", passed=2, not_verified=2),),
                "not_verified": tuple(
                    NotVerified(id=f"T::{name}", area="a", reason="Not here.") for name in "xy"
                ),
            },
            "not verified (most of the suite could not be run): 2 passed, 2 not verified",
        ),
        (
            {"capabilities": describe(Capabilities(predicts=False))},
            "not verified (build only, running models could not be tried): 5 passed",
        ),
        (
            {
                "capabilities": describe(Capabilities(predicts=False)),
                "areas": (Area(name="a", title="", passed=5, failed=1),),
                "failures": (Failure(id="T::a", area="a", text="no"),),
            },
            "failed: 1 failed, 5 passed",
        ),
    ],
    ids=[
        "certified",
        "with-the-rest",
        "failed",
        "nothing-ran",
        "empty",
        "half-ran",
        "build-only",
        "bad-build",
    ],
)
def test_the_headline_says_what_happened(changes: dict[str, Any], headline: str) -> None:
    found = make(**changes)
    assert found.headline == headline
    assert headline.startswith(found.verdict)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"date": "yesterday"}, "wanted ISO 8601"),
        ({"date": "2026-01-02T03:04:05"}, "not in UTC"),
        ({"date": "2026-01-02T03:04:05+02:00"}, "not in UTC"),
        ({"capabilities": {}}, "'predicts'"),
        ({"areas": (Area(name="a", title=""),) * 2}, "two areas of one name"),
        (
            {"areas": (Area(name="a", title="", passed=1, failed=1),)},
            "area 'a' counts 1 tests as failed, but 0 are listed",
        ),
        (
            {"not_verified": (NotVerified(id="T::a", area="predict", reason=""),)},
            "area 'predict' counts 0 tests as not_verified, but 1 are listed",
        ),
        (
            {"failures": (Failure(id="T::a", area="gone", text=""),)},
            "area 'gone', which is not listed",
        ),
        ({"counts": {"onnx": {"cases": 1}}}, "wanted cases, native"),
        ({"measured": {"T::a": {"ratio": math.nan}}}, "T::a measured nan as 'ratio'"),
    ],
)
def test_a_certificate_cannot_contradict_itself(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidCertificate) as caught:
        make(**changes)
    assert text in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, bridge.errors.BridgeError)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("where", "value", "text"),
    [
        (("schema",), "bridge-certificate/9", "has schema 'bridge-certificate/9'; wanted"),
        (("schema",), ..., "has schema None; wanted"),
        (("backend",), ..., "it lacks 'backend'"),
        (("verdict",), ..., "it lacks 'verdict'"),
        (("verdict",), "certified", "says 'certified', but its own outcomes say 'failed'"),
        (("colour",), "red", "it has the unknown field 'colour'"),
        (("backend",), 3, "'backend' is an integer; wanted a text"),
        (("device",), None, "'device' is null; wanted a text"),
        (("areas",), {}, "'areas' is an object; wanted a list"),
        (("areas", 0), "predict", "'areas[0]' is a text; wanted an object"),
        (("areas", 1, "passed"), True, "'areas[1].passed' is a boolean; wanted an integer"),
        (("areas", 0, "passed"), -1, "'areas[0].passed' is -1; wanted a finite number"),
        (("failures", 0, "text"), ..., "'failures[0]' lacks 'text'"),
        (("known_failures", 0, "issue"), 5, "'known_failures[0].issue' is an integer"),
        (("counts", "onnx"), [], "'counts.onnx' is a list; wanted an object"),
        (("counts", "onnx", "lost"), 0.5, "'counts.onnx.lost' is a number; wanted an integer"),
        (("measured", "TestThreads::test_speed"), 1, "wanted an object"),
        (("hardware",), [], "'hardware' is a list; wanted an object"),
        (("duration_s",), math.inf, "'duration_s' is inf"),
    ],
)
def test_bad_data_is_refused_by_name(where: tuple[Any, ...], value: object, text: str) -> None:
    data = copy.deepcopy(everything().to_dict())
    place: Any = data
    for key in where[:-1]:
        place = place[key]
    if value is ...:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    with pytest.raises(InvalidCertificate) as caught:
        Certificate.from_dict(data)
    assert text in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_bad_files_are_refused_with_their_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InvalidCertificate, match=r"broken\.json") as caught:
        Certificate.read(path)
    assert "bridge conform" in str(caught.value)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made_up.json"
    make().write(path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        everything().write(path)
    monkeypatch.undo()
    assert Certificate.read(path) == make()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_of_some_tests_verifies_nothing() -> None:
    assert make().verdict == "certified"
    selected, ended = make(mode="selected"), make(unrun=3)
    assert (selected.verdict, ended.verdict) == ("not verified", "not verified")
    assert "(selected tests only)" in selected.headline
    assert "(the run ended before 3 of its tests)" in ended.headline


def test_a_lost_case_is_a_failure_though_it_is_listed() -> None:
    counts = {"cases": 9, "native": 9, "bridge": 8, "beyond_native": 0, "refused": 0, "lost": 1}
    assert make(counts={"onnx": counts}).verdict == "failed"
