"""The rules of the tree: who may import whom, what is public, how large a file may be."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import pytest

import bridge

PACKAGES = {
    "bridge": set(),
    "bridge_onnxruntime": {"bridge"},
    "bridge_openvino": {"bridge"},
    "bridge_torch": {"bridge"},
    "bridge_tensorflow": {"bridge"},
    "bridge_tensorrt": {"bridge"},
    "bridge_reference": {"bridge"},
    "bridge_deeprec": {"bridge"},
    "bridge_convert": {"bridge"},
    "bridge_bench": {"bridge", "bridge_zoo"},
    "bridge_zoo": {"bridge"},
    "bridge_conformance": {"bridge"},
    "bridge_cli": {"bridge", "bridge_bench", "bridge_conformance", "bridge_convert", "bridge_zoo"},
}
# What a package may import at module level besides the standard library and PACKAGES;
# everything else is imported inside functions.
AT_IMPORT = {
    "bridge": {"numpy", "pluggy"},
    "bridge_cli": {"numpy", "typer", "rich", "click"},
    "bridge_conformance": {"numpy", "pytest", "hypothesis"},
}
WRITING = {"writers", "datasets", "models.py"}
RUNTIMES = {"onnxruntime", "openvino", "torch", "tensorflow", "tensorrt", "onnx", "keras"}


def package_folder(name: str) -> Path:
    found = __import__(name)
    assert found.__file__ is not None
    return Path(found.__file__).parent


def sources(name: str) -> Iterator[Path]:
    for path in sorted(package_folder(name).rglob("*.py")):
        if "tests" not in path.parts:
            yield path


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").partition(".")[0]


def at_module_level(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from imported(node)


@pytest.mark.parametrize("package", PACKAGES)
def test_only_allowed_packages_are_imported(package: str) -> None:
    for path in sources(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = {name for name in imported(tree) if name in PACKAGES or name.startswith("bridge")}
        assert ours - {package} <= PACKAGES[package], path
        allowed = AT_IMPORT.get(package, {"numpy"}) | set(PACKAGES) | sys.stdlib_module_names
        assert set(at_module_level(tree)) <= allowed, path
        if package == "bridge":
            everywhere = set(imported(tree)) - {"ml_dtypes"}  # dtypes.py, when such a dtype appears
            assert everywhere <= allowed, path


@pytest.mark.parametrize("package", ["bridge_bench", "bridge_cli", "bridge_conformance"])
def test_no_backend_is_named_outside_backends(package: str) -> None:
    names = RUNTIMES - {"onnx"}  # that is also the name of a format
    for path in sources(package):
        if path.name == "overhead.py":
            continue  # its subject is the native call of each runtime
        if package == "bridge_conformance" and WRITING & {*path.parts, path.name}:
            continue  # names of libraries that write models and test sets, not of backends
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                raise AssertionError(f"{path}:{node.lineno} names backend {node.value!r}")


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_small_and_are_nouns(package: str) -> None:
    for path in sources(package):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
        banned = {"utils", "util", "helpers", "helper", "common", "manager", "base", "core", "misc"}
        assert path.stem not in banned, path


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    assert (package_folder(package) / "py.typed").is_file()


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.startswith("bridge_")])
def test_backends_share_their_file_names(package: str) -> None:
    if package in {
        "bridge_bench",
        "bridge_zoo",
        "bridge_cli",
        "bridge_conformance",
        "bridge_convert",
    }:
        return
    names = {path.name for path in sources(package)}
    shared = {"plugin.py", "backend.py", "predictor.py", "options.py", "native.py"}
    assert names >= {"__init__.py", *shared}, package


def test_public_names_are_all_there_and_sorted_by_home() -> None:
    assert set(bridge.__all__) == set(bridge._HOMES)
    for name in bridge.__all__:
        assert getattr(bridge, name) is not None
        assert name in dir(bridge)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bridge.nothing
    assert bridge.__version__


def fresh(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_importing_loads_no_runtime_and_no_plugin_does() -> None:
    code = (
        "import json, sys, bridge; [b.probe() for b in bridge.backends().values()];"
        "bridge.doctor(); print(json.dumps(sorted(sys.modules)))"
    )
    modules = {name.partition(".")[0] for name in json.loads(fresh(code))}
    assert "bridge" in modules
    assert not modules & (RUNTIMES | {"ml_dtypes", "typer", "rich", "pytest", "tensorrt_rtx"})


def test_importing_bridge_alone_loads_neither_plugins_nor_pluggy() -> None:
    code = "import sys, bridge; print(sorted(m for m in sys.modules if m.startswith('bridge')))"
    assert fresh(code).strip() == "['bridge']"


def test_tests_are_beside_what_they_test_and_not_in_the_distribution() -> None:
    listed = files("inference-bridge") or []
    assert not [path for path in listed if "tests" in path.parts]
