"""Test sets that others wrote: how they are stored, and what is taken into them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bridge
from bridge.errors import BackendUnavailable, BridgeError
from bridge_conformance.datasets import __main__ as commands
from bridge_conformance.datasets import cases, light
from bridge_conformance.datasets.applications import APPLICATIONS, ARCHITECTURES, _require_sound
from bridge_conformance.datasets.cases import (
    CaseSet,
    LibraryMissing,
    NotBuilt,
    Stored,
    write_arrays,
    write_index,
)
from bridge_conformance.datasets.operators import OPERATORS

SET = CaseSet("cases of this test", "operators", "model.bin", ("numpy",))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_arrays_of_every_dtype_come_back(tmp_path: Path) -> None:
    wanted = {
        str(dtype): np.arange(6).reshape(2, 3).astype(dtype.numpy)
        for dtype in bridge.DType
        if dtype is not bridge.DType.STRING
    }
    wanted |= {"scalar": np.array(ml_dtypes.bfloat16(2)), "none": np.zeros((0, 3), np.float16)}
    write_arrays(tmp_path / "inputs.npz", wanted)
    write_arrays(tmp_path / "outputs.npz", {})
    case = Stored(tmp_path.parent, "model", (), {}).case(tmp_path.name)
    assert list(case.inputs) == list(wanted)
    for name, array in wanted.items():
        got = case.inputs[name]
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.tobytes() == array.tobytes()
    assert case.outputs == {}


def test_strings_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'x' holds strings"):
        write_arrays(tmp_path / "x.npz", {"x": np.array(["a"], object)})


def test_a_set_that_is_not_built_says_what_to_do(empty_cache: Path) -> None:
    with pytest.raises(NotBuilt, match="cases of this test are not built .* make conformance-data"):
        SET.stored()


def test_a_set_whose_library_is_missing_names_it(empty_cache: Path) -> None:
    lacking = CaseSet("cases", "operators", "model.bin", ("numpy", "no_such_module"))
    with pytest.raises(LibraryMissing, match="'no_such_module'"):
        lacking.stored()
    with pytest.raises(BackendUnavailable, match="'no_such_module'"):
        lacking.build()


def test_a_set_is_built_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        started.append(command)
        write_index(Path(command[-1]), ["a", "b"], {"c": "It is random."})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(cases.subprocess, "run", run)
    built = SET.build()
    assert built.names == ("a", "b")
    assert built.left_out == {"c": "It is random."}
    assert SET.build() == SET.stored() == built
    assert len(started) == 1


def test_a_build_that_fails_leaves_nothing(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        write_index(Path(command[-1]), ["a"], {})
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(cases.subprocess, "run", run)
    with pytest.raises(BridgeError, match="status 3"):
        SET.build()
    with pytest.raises(NotBuilt):
        SET.stored()


def test_unknown_sets_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bridge_conformance.datasets", "pictures"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "there is no set 'pictures'; there are: operators, applications" in done.stderr


@pytest.mark.parametrize(
    ("set_of_cases", "module", "backend", "count"),
    [
        (OPERATORS, "test_operators", "torch", 1),
        (APPLICATIONS, "test_applications", "tensorflow", len(ARCHITECTURES)),
    ],
    ids=["operators", "applications"],
)
def test_what_is_not_built_fails(
    set_of_cases: CaseSet, module: str, backend: str, count: int, empty_cache: Path
) -> None:
    for library in (*set_of_cases.libraries, backend):
        pytest.importorskip(library)
    outcome = outcome_of(module, backend, empty_cache.parent)
    assert f"{count} failed" in outcome, outcome
    assert "are not built here: run make conformance-data." in outcome


@pytest.mark.parametrize(
    ("set_of_cases", "module", "backend", "count"),
    [
        (OPERATORS, "test_operators", "torch", 1),
        (APPLICATIONS, "test_applications", "tensorflow", len(ARCHITECTURES)),
    ],
    ids=["operators", "applications"],
)
def test_what_cannot_be_built_is_not_verified(
    set_of_cases: CaseSet,
    module: str,
    backend: str,
    count: int,
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(backend)
    (empty_cache.parent / "lacking.py").write_text(LACKING.format(set_of_cases.builder))
    monkeypatch.setenv("PYTHONPATH", str(empty_cache.parent))
    outcome = outcome_of(module, backend, empty_cache.parent, "-p", "lacking")
    assert f"{count} not verified" in outcome.replace("not verified (", ""), outcome
    assert "need module 'no_such_module', which is not installed." in outcome


LACKING = """
import dataclasses
from bridge_conformance.datasets import {0}

name = "{0}".upper()
lacking = dataclasses.replace(getattr({0}, name), libraries=("no_such_module",))
setattr({0}, name, lacking)
"""


def outcome_of(module: str, backend: str, folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options]
    command += ["--bridge-in-process", "--bridge-backend", backend, "--pyargs"]
    command.append(f"bridge_conformance.suite.{module}")
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout


def test_sets_that_cannot_be_built_are_left_out_unless_they_are_named(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = CaseSet("cases", "operators", "model.bin", ("no_such_module",))
    monkeypatch.setattr(commands, "_SETS", {"operators": lacking})
    assert commands.main([]) == 0
    assert "cases: left out, for module 'no_such_module' is not" in capsys.readouterr().out
    assert commands.main(["operators"]) == 1
    assert "'no_such_module' is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["of_its_plugin", "onnxruntime"])
def test_an_adapter_of_the_backends_own_plugin_gets_the_operators_too(
    backend: str, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    for library in OPERATORS.libraries:
        pytest.importorskip(library)
    (tmp_path / "turns_into_onnx.py").write_text(ADAPTER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("BRIDGE_CONFORMANCE_PLUGINS", "turns_into_onnx")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    command += ["--pyargs", "bridge_conformance.suite.test_operators"]
    command += ["--bridge-backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    is_own = backend == "of_its_plugin"
    assert done.returncode in (0, 5), done.stdout  # 5: no test for this backend
    assert ("test_operator[not-built-program-to-onnx]" in done.stdout) == is_own, done.stdout


ADAPTER = """
import bridge
from bridge_onnxruntime.backend import OnnxruntimeBackend


class Backend(OnnxruntimeBackend):
    name = "of_its_plugin"


class Adapter(bridge.Adapter):
    name = "program-to-onnx"
    sources = frozenset(("exported_program",))
    target = "onnx"

    def probe(self):
        return bridge.Availability(installed=True)

    def _convert(self, model, target, options):
        raise NotImplementedError


@bridge.hookimpl
def register_adapters(register):
    register(Adapter())


@bridge.hookimpl
def register_backends(register):
    register(Backend())
"""


# What is taken into the sets


def operator(name: str) -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    return next(item for item in op_db if item.full_name == name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bernoulli", "random"),
        ("uniform", "random"),  # seeds the generator itself
        ("empty_like", "memory that nobody has set"),
        ("new_empty", "no value"),
        ("zeros", "takes no tensor"),
        ("allclose", "returns no tensor"),
        ("to_sparse", "not dense"),
        ("sparse.mm.reduce", "not dense"),
        ("chalf", "complex32"),
        ("nn.functional.one_hot", "torch.export does not export"),
        ("jiterator_unary", "does not run on the CPU"),
    ],
)
def test_operators_that_are_left_out(name: str, why: str) -> None:
    from bridge_conformance.datasets.operators import _case, _LeftOut

    with pytest.raises(_LeftOut, match=why):
        _case(operator(name))


@pytest.mark.filterwarnings("ignore")
def test_an_operator_becomes_a_model_with_named_inputs() -> None:
    from bridge_conformance.datasets.operators import _case

    model, inputs, outputs = _case(operator("mm"))
    assert model[:4] == b"PK\x03\x04"
    assert list(inputs) == ["input", "argument_1"]
    ((name, got),) = outputs.items()
    assert name == "output_0"
    wanted = inputs["input"] @ inputs["argument_1"]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_networks_for_which_the_tolerance_is_wrong_are_refused() -> None:
    exact = np.arange(30.0).reshape(3, 10)
    _require_sound("fine", exact.astype(np.float32), exact)
    for rounded, wanted in (
        (exact * 1.001, exact),  # loses too much
        (np.full((3, 10), 7.0), np.full((3, 10), 7.0)),  # says the same for all rows
        (exact * np.nan, exact * np.nan),
        (exact.astype(np.float32), exact.astype(np.float32)),  # not exact
    ):
        with pytest.raises(SystemExit, match="odd: float32 loses"):
            _require_sound("odd", rounded, wanted)


def test_all_light_networks_of_onnx_are_there() -> None:
    onnx = pytest.importorskip("onnx")
    data = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    assert {path.stem.removeprefix("light_") for path in data.glob("*.onnx")} == set(light.NETWORKS)


def test_inputs_of_light_networks_are_those_of_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.backend.test.runner import Runner

    case, tolerance = light.case("squeezenet")
    (value,) = (item for item in onnx.load(case.model).graph.input if item.name in case.inputs)
    wanted = Runner.generate_dummy_data(value, seed=0, name="squeezenet", random=False)
    np.testing.assert_array_equal(case.inputs[value.name], wanted)
    assert tolerance == (1e-3, 1e-7)
    assert [array.shape for array in case.outputs.values()] == [(1, 1000, 1, 1)]
