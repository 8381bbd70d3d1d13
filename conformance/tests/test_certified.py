"""The certificates of the built-in backends, as they stand in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_conformance.certificate import Certificate

pytestmark = pytest.mark.checkout

FOLDER = Path(__file__).parents[2] / "docs" / "certificates"
# Of ONNX's 2,024 cases, what each runtime was seen to pass by itself before there was a suite.
NATIVE = {"onnxruntime": 1648, "openvino": 1490}
BUILT = 837  # of the 1,884 node cases, by the RTX builder
OPERATORS = 400
APPLICATIONS = 12
# More of them would need another look at what is called a backend here.
MOST_KNOWN = 460  # OpenVINO has 436 with the formats of others, and 20 with ExportedPrograms


def certificate(name: str) -> Certificate:
    return Certificate.read(FOLDER / f"{name}.json")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "reference", "tensorflow", "torch"])
def test_every_cpu_backend_is_certified_in_full(name: str) -> None:
    found = certificate(f"{name}-cpu")
    assert (found.mode, found.verdict) == ("full", "certified")
    assert found.total("failed") == 0
    assert found.total("known") <= MOST_KNOWN


@pytest.mark.parametrize("name", NATIVE)
def test_no_case_of_onnx_is_lost(name: str) -> None:
    counts = certificate(f"{name}-cpu").counts["onnx"]
    assert counts["cases"] >= 2010
    assert counts["native"] >= NATIVE[name]
    assert counts["bridge"] >= NATIVE[name]
    assert counts["lost"] == 0


def test_the_builder_loses_nothing_and_is_not_called_verified() -> None:
    found = certificate("tensorrt-cuda-0")
    assert found.verdict == "not verified"
    assert found.counts["building"]["native"] >= BUILT
    assert found.counts["building"]["lost"] == 0


def test_sets_of_others_are_whole() -> None:
    passed = {area.name: area.passed for area in certificate("torch-cpu").areas}
    assert passed["operators"] >= OPERATORS
    for name in ("tensorflow-cpu", "openvino-cpu"):
        areas = {area.name: area for area in certificate(name).areas}
        assert areas["applications"].passed >= APPLICATIONS
