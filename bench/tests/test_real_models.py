"""Models that nobody here wrote, and the ranker, on every backend that takes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bridge_zoo
from bridge import DType, Signature, TensorSpec
from bridge.check import Arrays
from bridge.errors import UnsupportedModel
from bridge_bench.comparison import Arm, compare
from bridge_bench.profile import InputProfile

NMP = Path(sys.prefix) / "models" / "basic_pitch" / "saved_models" / "icassp_2022"


def errors_of(arms: list[Arm]) -> dict[str, Any]:
    """Largest absolute difference by backend and format; nothing may have failed."""
    found = {}
    for arm in arms:
        assert arm.error is None, f"{arm.name}: {arm.error}"
        for one in arm.agreement:
            assert one.problem is None, f"{arm.name}: {one}"
        found[arm.backend, arm.format] = max(one.max_abs or 0.0 for one in arm.agreement)
    return found


def test_basic_pitch_agrees_in_all_formats() -> None:
    # One row is compared by the tests of the command line, and the reference, which takes half a
    # minute for three, by its own.
    profile = InputProfile(rows=3, seed=3)
    able = ["tensorflow", "onnxruntime", "openvino"]
    found = compare([NMP / "nmp", NMP / "nmp.onnx"], backends=able, profile=profile, rounds=0)
    arms = [arm for arm in found.arms if not isinstance(arm.error, UnsupportedModel)]
    worst = errors_of(arms)
    assert set(worst) == {
        ("tensorflow", "saved_model"),
        ("openvino", "saved_model"),
        ("onnxruntime", "onnx"),
        ("openvino", "onnx"),
    }
    assert found.arms[0].is_reference
    assert found.arms[0].backend == "tensorflow"
    assert max(worst.values()) < 5e-6  # seen: 1.6e-6
    (other,) = [arm for arm in arms if arm.backend == "onnxruntime"]
    assert {one.output: one.other for one in other.agreement} == {
        "contour": "StatefulPartitionedCall:0",
        "note": "StatefulPartitionedCall:1",
        "onset": "StatefulPartitionedCall:2",
    }


def test_the_ranker_agrees_in_all_formats(tmp_path: Path) -> None:
    ranker = bridge_zoo.build("ranker", folder=tmp_path, size="real")  # small: see test_zoo
    description = bridge_zoo.describe("ranker", "real")
    samples: Arrays = dict(bridge_zoo.inputs(description, rows=33))
    # TorchScript holds no signature; the other formats' own say the same.
    declared = Signature(
        tuple(
            TensorSpec(name, DType.of(array.dtype), ("batch", *array.shape[1:]))
            for name, array in samples.items()
        ),
        tuple(TensorSpec(name, DType.FLOAT32, ("batch",)) for name in ("click", "like", "share")),
    )
    found = compare(list(ranker.values()), samples=samples, rounds=0, signature=declared)
    worst = errors_of(found.arms)
    assert set(worst) == {
        ("onnxruntime", "onnx"),
        ("openvino", "onnx"),
        ("reference", "onnx"),
        ("tensorflow", "saved_model"),
        ("openvino", "saved_model"),
        ("torch", "exported_program"),
        ("openvino", "exported_program"),
        ("torch", "torchscript"),
    }
    assert found.all_agree
    assert max(worst.values()) < 1e-5
