"""What the built-in backends have to claim at least; the suite tests that it is true."""

from __future__ import annotations

import pytest

import bridge
from bridge import CPU, DType, ThreadSafety
from bridge.registry import registry

INTEGERS = frozenset(
    {
        DType.INT8,
        DType.INT16,
        DType.INT32,
        DType.INT64,
        DType.UINT8,
        DType.UINT16,
        DType.UINT32,
        DType.UINT64,
    }
)
RUNTIME = INTEGERS | {DType.FLOAT16, DType.FLOAT32, DType.BOOL}

# Backend: element types, abilities.
WANTED = {
    "onnxruntime": (
        RUNTIME | {DType.STRING},
        {"dynamic_dims", "zero_rows", "bind", "dlpack", "predicts"},
    ),
    "openvino": (RUNTIME, {"dynamic_dims", "zero_rows", "bind", "dlpack", "predicts"}),
    "tensorflow": ({DType.STRING}, {"dynamic_dims", "predicts"}),
    "torch": (set(), {"dynamic_dims", "dlpack", "predicts"}),
}


@pytest.mark.parametrize("name", WANTED)
def test_claims_on_the_cpu(name: str) -> None:
    dtypes, abilities = WANTED[name]
    claims = bridge.backends()[name].capabilities(CPU)
    assert dtypes <= claims.dtypes
    assert {ability for ability in abilities if getattr(claims, ability)} == abilities
    assert claims.thread_safety is ThreadSafety.SHARED


def test_tensorrt_builds_engines_where_it_cannot_run_them() -> None:
    claims = bridge.backends()["tensorrt"].capabilities(CPU)
    assert not claims.predicts
    builders = [one for one in registry().adapters if "onnx" in one.sources]
    assert any(one.target in claims.formats for one in builders)
