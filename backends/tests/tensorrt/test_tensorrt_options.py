"""Options: what each is for, and the rules that exclude combinations."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.errors import OptionError
from bridge_tensorrt.options import EngineOptions, TensorrtOptions


def test_every_option_says_when_it_helps() -> None:
    assert [one.name for one in TensorrtOptions.describe() if not one.when] == []


@pytest.mark.parametrize(
    ("options", "rule", "text"),
    [
        (
            {"module": "tensorrt_rtx", "version_compatible": True, "host_code": True},
            "version-compatible-of-tensorrt-rtx",
            "lean runtime",
        ),
        (
            {"version_compatible": True, "host_code": True, "refittable": True},
            "refitting-in-the-lean-runtime",
            "exclude each other",
        ),
        ({"batch": "1:2:3", "buckets": "1,2"}, "batch-and-buckets", "both say"),
        ({"module": "tensorrt", "targets": "SM86"}, "targets-of-tensorrt", "tensorrt_rtx"),
        (
            {"module": "tensorrt_rtx", "hardware": "ampere_plus"},
            "hardware-of-tensorrt-rtx",
            "for module tensorrt;",
        ),
        ({"targets": "SM86,sm86"}, "targets-twice", "each kind of GPU once"),
        ({"targets": "SM86,CURRENT"}, "targets-twice", "CURRENT alone"),
        (
            {"version_compatible": True},
            "version-compatible-without-host-code",
            "host_code=true",
        ),
        (
            {"module": "tensorrt", "specialization": "eager"},
            "specialization-of-tensorrt",
            "tensorrt_rtx",
        ),
        (
            {"cuda_graph": True, "specialization": "lazy"},
            "lazy-kernels-in-a-graph",
            "specialization=eager",
        ),
    ],
)
def test_what_excludes_each_other_is_refused_by_name(
    options: dict[str, Any], rule: str, text: str
) -> None:
    with pytest.raises(OptionError, match=text) as caught:
        TensorrtOptions.make(options)
    assert caught.value.detail["rule"] == rule


@pytest.mark.parametrize(
    "options",
    [
        {"contexts": 0},
        {"contexts": 65},
        {"io": "gpu"},
        {"specialization": "sometimes"},
        {"optimization_level": -1},
        {"hardware": "hopper"},
        {"workspace_bytes": 0},
        {"workspace_bytes": 2**63},
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        TensorrtOptions.make(options)
    assert caught.value.detail["option"] in options


def test_an_engine_file_may_be_version_compatible() -> None:
    assert EngineOptions(version_compatible=True).building == {"version_compatible": True}
    options = TensorrtOptions(version_compatible=True, host_code=True)
    assert options.building == {"version_compatible": True}
