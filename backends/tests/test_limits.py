"""Options out of range, memory that runs out, providers that are missing: typed errors."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import DType, TensorSpec
from bridge.device import CPU, Device, driver_devices
from bridge.errors import DeviceUnavailable, ModelLoadFailed, OptionError, SilentFallback
from bridge.options import OptionField
from bridge.registry import registry
from bridge_bench.gains import values
from bridge_conformance.network import Network, Node
from bridge_conformance.writing import writers

BUILT_IN = [
    backend
    for backend in registry().backends
    if registry().backends.source(backend.name).startswith("inference-bridge ")
]
OPTIONS = [(backend, one) for backend in BUILT_IN for one in backend.options_type.describe()]
FORMATS = {
    "onnxruntime": "onnx",
    "openvino": "onnx",
    "reference": "onnx",
    "tensorflow": "saved_model",
    "torch": "torchscript",
}
WIDTH = 16384
WIDE = Network(
    "wide_output",
    (TensorSpec("x", DType.FLOAT32, ("N", 1)),),
    (TensorSpec("y", DType.FLOAT32, ("N", WIDTH)),),
    (Node("Mul", ("x", "row"), "y"),),
    {"row": np.arange(WIDTH, dtype=np.float32)[None]},
)


def wrong_values(one: OptionField) -> list[tuple[Any, str]]:
    """Values that an option must refuse, each with the rule that the error has to name."""
    kinds = set(one.type.split(" | "))
    of_type = f"wants {one.type}"
    wrong: list[tuple[Any, str]] = [(object(), of_type)]
    if one.minimum is not None:
        wrong.append((type(one.minimum)(one.minimum - 1), f"wants at least {one.minimum}"))
    if one.maximum is not None:
        wrong.append((type(one.maximum)(one.maximum + 1), f"wants at most {one.maximum}"))
    if one.choices is not None:
        wrong.append(("no such choice", f"wants one of {', '.join(one.choices)}"))
    if not kinds & {"str", "Path", "list"}:
        wrong.append(("twelve", of_type))
    if "bool" not in kinds:
        wrong.append((True, of_type))
    if "float" not in kinds:
        wrong.append((1.5, of_type))
    if "none" not in kinds:
        wrong.append((None, of_type))
    return wrong


@pytest.mark.parametrize(
    ("backend", "one"), OPTIONS, ids=[f"{backend.name}-{one.name}" for backend, one in OPTIONS]
)
def test_every_option_refuses_what_it_does_not_take(
    backend: bridge.Backend, one: OptionField
) -> None:
    for value, rule in wrong_values(one):
        with pytest.raises(OptionError) as caught:
            backend.options_type.make({one.name: value})
        assert f"option '{one.name}' {rule}" in caught.value.message, value
        assert caught.value.detail["option"] == one.name
        assert caught.value.fix


def test_wrong_values_are_known_for_every_kind_of_option() -> None:
    # The test above would be empty if the kinds were called something else.
    assert {kind for _, one in OPTIONS for kind in one.type.split(" | ")} <= {
        "bool", "int", "float", "str", "Path", "list", "none",
    }  # fmt: skip
    assert all(len(wrong_values(one)) >= 2 for _, one in OPTIONS)


@pytest.mark.parametrize("backend", BUILT_IN, ids=lambda backend: backend.name)
def test_what_is_illegal_together_has_a_rule_with_a_name(backend: bridge.Backend) -> None:
    single = [{one.name: value} for one in backend.options_type.describe() for value in values(one)]
    errors: list[OptionError] = []
    for given in (*single, *(a | b for a, b in itertools.combinations(single, 2))):
        try:
            backend.options_type.make(given)
        except OptionError as error:
            errors.append(error)
    for error in errors:
        rule = error.detail.get("rule", "none")
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule), f"rule {rule} of: {error}"
        assert error.fix
    if len(backend.options_type.describe()) > 3:
        assert errors, "no two of its options exclude each other?"


EXHAUST = """
import json, resource, sys
import numpy as np
import bridge
from bridge.errors import OutOfMemory

path, backend, signature = sys.argv[1:]
declared = bridge.Signature.from_dict(json.loads(signature)) if signature else None
predictor = bridge.load(path, backend=backend, signature=declared)
small = {"x": np.ones((3, 1), np.float32)}
wanted = predictor.predict(small)["y"]
predictor.predict(small)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
try:
    predictor.predict({"x": np.ones((1 << 16, 1), np.float32)})  # an output of 4 GiB
except OutOfMemory as error:
    assert (error.backend, error.device) == (backend, "cpu") and error.fix, str(error)
else:
    sys.exit("4 GiB were found in 1")
for _ in range(2):
    np.testing.assert_array_equal(predictor.predict(small)["y"], wanted)
predictor.close()
print("usable")
"""


def written(format: str, folder: Path) -> Path:
    writer = writers()[format]
    if importlib.util.find_spec(writer.library) is None:
        pytest.skip(f"{writer.library}, which writes {format}, is not installed")
    return writer.write(WIDE, folder)


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_that_does_not_fit_leaves_the_predictor_usable(name: str, tmp_path: Path) -> None:
    found = bridge.backends()[name].probe()
    if not found.installed:
        pytest.skip(f"{name}: {found.reason}")
    path = written(FORMATS[name], tmp_path)
    signature = json.dumps(WIDE.signature.to_dict()) if FORMATS[name] == "torchscript" else ""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXHAUST, str(path), name, signature],
        capture_output=True,
        text=True,
        timeout=120,
        # Else TensorFlow tries for ten seconds more; its own tests have that case.
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
    )
    assert done.stdout.strip() == "usable", f"{done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (backend.name, kind)
        for backend in BUILT_IN
        for kind in backend.device_kinds
        if kind not in ("cpu", "auto") and backend.name in FORMATS
    ],
)
def test_what_a_missing_device_would_run_does_not_run_elsewhere(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver reports a device, and the runtime has nothing that runs there."""
    if len(driver_devices()) > 1:
        pytest.skip("this machine has what the test needs to be missing")
    backend = bridge.backends()[name]
    if not backend.probe().installed:
        pytest.skip(f"{name} is not installed")
    path = written(FORMATS[name], tmp_path)
    signature = WIDE.signature if FORMATS[name] == "torchscript" else None
    monkeypatch.setattr(type(backend), "devices", lambda _: (CPU, Device(kind)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runtimes warn as well, which is not enough
        with pytest.raises((DeviceUnavailable, SilentFallback, ModelLoadFailed)) as caught:
            bridge.load(path, backend=name, device=kind, signature=signature)
    assert caught.value.device == str(Device(kind))
    if name == "onnxruntime":  # it would go on with the CPU provider
        assert type(caught.value) is SilentFallback
