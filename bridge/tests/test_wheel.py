"""The built wheel, and the core installed alone into a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

CORE_ALONE = """
import sys
import numpy
import bridge
from bridge import errors

names = sorted(bridge.backends())
assert {"onnxruntime", "openvino", "reference", "tensorflow", "tensorrt", "torch"} <= set(names)
for backend in bridge.backends().values():
    found = backend.probe()
    assert not found.installed, backend.name
    assert "pip install" in found.fix, backend.name
    try:
        backend.require()
    except errors.BackendUnavailable as error:
        assert backend.name in str(error)
        assert isinstance(error, ImportError)
    else:
        raise AssertionError(backend.name)

report = bridge.doctor(deep=True)
assert report.is_healthy, report
try:
    bridge.load("nothing.onnx")
except errors.ModelNotFound:
    pass
else:
    raise AssertionError("a missing model was loaded")

# ir_version 8, an empty graph called "g", opset 17: enough to be recognised as ONNX.
model = b"\\x08\\x08\\x3a\\x03\\x12\\x01g\\x42\\x02\\x10\\x11"
assert bridge.inspect(model).format == "onnx"
try:
    bridge.load(model)
except errors.BackendUnavailable as error:
    assert "inference-bridge[onnxruntime]" in str(error)
else:
    raise AssertionError("a model was loaded without a runtime")
try:
    bridge.load(model, backend="onnxrutime")
except errors.BackendNotFound as error:
    assert "Did you mean 'onnxruntime'?" in str(error)
else:
    raise AssertionError("an unknown backend was found")
print("core alone is fine")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(CHECKOUT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.checkout
def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "bridge",
        "bridge_bench",
        "bridge_conformance",
        "bridge_convert",
        "bridge_cli",
        "bridge_onnxruntime",
        "bridge_openvino",
        "bridge_reference",
        "bridge_tensorflow",
        "bridge_tensorrt",
        "bridge_torch",
        "bridge_zoo",
    }
    assert not [name for name in names if "/tests/" in name or name.endswith((".pyc", ".onnx"))]
    for top in tops:
        if not top.endswith(".dist-info"):
            assert f"{top}/py.typed" in names


@pytest.mark.checkout
@pytest.mark.fresh
def test_the_core_alone_works_and_says_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=240)
    done = subprocess.run(
        [python, "-P", "-c", CORE_ALONE], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "core alone is fine", done.stderr
    script = tmp_path / "venv" / "bin" / "bridge"
    told = subprocess.run([script, "doctor"], capture_output=True, text=True)
    assert told.returncode == 1
    assert "pip install 'inference-bridge[cli]'" in told.stderr
