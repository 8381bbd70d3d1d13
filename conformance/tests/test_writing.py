"""Writing models: once, in a process of its own, and with a clear word where it fails."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.loading import open_model
from bridge_conformance import writing
from bridge_conformance.networks import NETWORKS
from bridge_conformance.writing import NotWritable, Writer, writers, written

# A format of its own: the name of the network in a file that begins with TOY.
TOY = """
import os, time
import bridge
from bridge_conformance.writing import NotExpressible, Writer

class Toy(bridge.Format):
    name = "toy"
    title = "Toy"
    native_backend = "none"

def write(network, folder):
    {body}
    path = folder / "model.toy"
    path.write_text("TOY " + network.name)
    return path

@bridge.hookimpl
def register_formats(register):
    register(Toy())

@bridge.hookimpl
def register_conformance_models(register):
    register(Writer("{format}", "{library}", write))
"""

# Tells in a process of its own what becomes of the format toy.
TELL = """
from bridge.errors import BridgeError
from bridge_conformance import writing
writing._DEADLINE_S = 3
try:
    writing.load_test_plugins()
    writing.load_test_plugins()
    found = writing.written("toy")
    print(len(found.models), found.refusals, found.models["affine"].read_text())
except (BridgeError, writing.NotWritable, writing.WriterFailed) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))


def tell(
    tmp_path: Path, body: str = "pass", format: str = "toy", library: str = "numpy", names: str = ""
) -> str:
    (tmp_path / "toy_plugin.py").write_text(TOY.format(body=body, format=format, library=library))
    ran = subprocess.run(
        [sys.executable, "-c", TELL],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "BRIDGE_CONFORMANCE_PLUGINS": names or "toy_plugin",
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0
    return ran.stdout


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
def test_the_onnx_models_say_what_numpy_says() -> None:
    found = written("onnx")
    assert {*found.models, *found.refusals} == set(NETWORKS)
    assert not set(found.models) & set(found.refusals)
    assert all("complex" in name for name in found.refusals)
    for name, path in found.models.items():
        network = NETWORKS[name]
        inputs = network.inputs_for(3)
        with bridge.load(path, backend="reference") as predictor:
            assert predictor.signature == network.signature
            results = predictor.predict(inputs)
        for key, expected in network.oracle(inputs).items():
            assert results[key].dtype == expected.dtype
            if expected.dtype.kind in "biuO":
                np.testing.assert_array_equal(results[key], expected)
                continue
            wide = np.complex128 if expected.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(
                results[key].astype(wide), expected.astype(wide), rtol=0.02, atol=0.02
            )


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
def test_models_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = written("onnx")
    assert written("onnx") is first
    writing._written.cache_clear()  # as in another process
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert written("onnx") == first


@pytest.mark.parametrize(
    ("format", "library"),
    [
        ("onnx", "onnx"),
        ("ort", "onnxruntime"),
        ("openvino_ir", "openvino"),
        ("torchscript", "torch"),
        ("exported_program", "torch"),
        ("saved_model", "tensorflow"),
        ("keras", "keras"),
        ("tflite", "tensorflow"),
    ],
)
def test_every_writer_writes_without_a_warning(format: str, library: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = ["-W", "error", "-m", "bridge_conformance.writing", "-v", format, str(tmp_path / "m")]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split("\t") for line in ran.stderr.splitlines() if line.count("\t") == 2]
    assert [line[0] for line in lines] == list(NETWORKS)
    for name in ("affine", "two", "deep"):
        (place,) = (line[2] for line in lines if line[0] == name)
        model = open_model(tmp_path / "m" / place)
        assert model.format.name == format


def test_built_in_writers_are_registered() -> None:
    found = writers()
    assert {
        "aot_inductor",
        "exported_program",
        "keras",
        "onnx",
        "openvino_ir",
        "ort",
        "saved_model",
        "tflite",
        "torchscript",
    } <= set(found)
    assert all(isinstance(writer, Writer) and writer.format == key for key, writer in found.items())


def test_formats_that_nobody_writes() -> None:
    with pytest.raises(NotWritable, match="no plugin writes models of format 'engine'"):
        written("engine")
    with pytest.raises(SystemExit):
        writing.main(["engine", "/nowhere"])


def test_a_writer_of_another_plugin(tmp_path: Path) -> None:
    assert tell(tmp_path).strip() == f"{len(NETWORKS)} {{}} TOY affine"


@pytest.mark.parametrize("before", ["", "(folder / 'half').write_text('TOY'); "])
def test_a_network_that_a_format_cannot_say(before: str, tmp_path: Path) -> None:
    refusal = "raise NotExpressible('Toys have one output.')"
    told = tell(tmp_path, f"if network.name == 'two': {before}{refusal}")
    assert told.startswith(f"{len(NETWORKS) - 1} {{'two': 'Toys have one output.'}}")


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("raise RuntimeError('no toys today')", ["status 1", "RuntimeError: no toys today"]),
        ("print('last words', flush=True); os.abort()", ["status -6", "last words"]),
        ("time.sleep(600)", ["took longer than 3 s"]),
        ("return folder / 'other.toy'", ["says that it wrote 'affine'"]),
        ("return folder.parent", ["says that it wrote 'affine'"]),
    ],
    ids=["raises", "crashes", "hangs", "missing", "outside"],
)
def test_writers_that_fail(body: str, parts: list[str], tmp_path: Path) -> None:
    told = tell(tmp_path, body)
    assert told.startswith("WriterFailed the process that writes toy models ")
    for part in parts:
        assert part in told


def test_a_missing_library(tmp_path: Path) -> None:
    told = tell(tmp_path, library="no_such_library.part")
    wanted = "NotWritable module 'no_such_library', which writes toy models, is not installed"
    assert told.startswith(wanted)


def test_two_writers_of_one_format(tmp_path: Path) -> None:
    told = tell(tmp_path, format="onnx")
    assert told.startswith("DuplicateName two writers of format 'onnx' are registered: by plugin ")
    assert "'conformance'" in told
    assert "'toy_plugin'" in told


def test_a_format_that_is_not_registered(tmp_path: Path) -> None:
    assert "there is no format 'toi'" in tell(tmp_path, format="toi")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (None, "PluginLoadFailed module 'broken_plugin' of BRIDGE_CONFORMANCE_PLUGINS cannot"),
        ("1 / 0", "PluginLoadFailed module 'broken_plugin' of BRIDGE_CONFORMANCE_PLUGINS cannot"),
        ("@bridge.hookimpl\ndef register_formats(register):\n    1 / 0", "PluginLoadFailed plugin"),
        ("@bridge.hookimpl\ndef register_conformance_models(register):\n    1 / 0", "PluginError"),
        (
            "@bridge.hookimpl\ndef register_conformance_models(register):\n    register(1)",
            "PluginError plugin 'broken_plugin' registers 1 as conformance models; wanted a Writer",
        ),
    ],
)
def test_broken_plugins(code: str | None, text: str, tmp_path: Path) -> None:
    if code is not None:
        (tmp_path / "broken_plugin.py").write_text(textwrap.dedent(f"import bridge\n{code}\n"))
    assert tell(tmp_path, names="broken_plugin").startswith(text)
