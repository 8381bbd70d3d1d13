"""The built wheel, and the core installed alone into a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
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
    wanted = "pip install" if backend.is_public else "bridge convert"
    assert wanted in found.fix, backend.name
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


def packages() -> list[Path]:
    """Folders of the packages that a wheel is made of."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))
    return [
        CHECKOUT / one for one in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ]


@pytest.mark.checkout
def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(package.parent).as_posix()
        for package in packages()
        for path in package.rglob("*")
        if path.is_file() and not {"tests", "__pycache__"} & set(path.parts)
    }
    assert found == wanted
    assert {f"{package.name}/py.typed" for package in packages()} <= found
    assert {package.name for package in packages()} == {
        item.parent.name
        for pattern in ("bridge/__init__.py", "[a-z]*/bridge_*/__init__.py")
        for item in CHECKOUT.glob(pattern)
    }


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
