"""Options of the onnxruntime backend: rules, threads, profiles, custom operators."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.cpus import default_threads

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bridge_onnxruntime.options import OnnxruntimeOptions  # noqa: E402

X = {"x": np.ones((2, 3), np.float32)}


def model(size: int = 3) -> bytes:
    """y = x + w, w being (0, 1, 2...)."""
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", kind, ["N", size])],
        [value("y", kind, ["N", size])],
        [onnx.numpy_helper.from_array(np.arange(size, dtype=np.float32), "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    data: bytes = onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=9
    ).SerializeToString()
    return data


def load(given: bytes | Path | None = None, *, trust: bool = False, **options: Any) -> Any:
    source = model() if given is None else given
    return bridge.load(source, backend="onnxruntime", options=options, trust=trust)


def check(predictor: bridge.Predictor) -> None:
    np.testing.assert_array_equal(predictor.predict(X)["y"], [[1, 2, 3], [1, 2, 3]])


BROKEN: dict[str, dict[str, Any]] = {
    "inter-threads-without-parallel": {"inter_threads": 2},
    "spin-duration-without-spinning": {"spinning": False, "spin_duration": 100},
    "shared-arena-without-arena": {"arena": False, "shared_arena": True},
    "profile-of-a-shared-session": {"profile": "somewhere", "share_weights": True},
    "cache-without-optimization": {"cache": True, "graph_optimization": "disable"},
    "cache-with-another-provider": {"cache": True, "provider": "openvino"},
    "cuda-graph-with-cpu-nodes": {"cuda_graph": True, "cpu_nodes": True},
    "cuda-graph-without-cuda": {"cuda_graph": True, "provider": "tensorrt"},
    "provider-name": {"provider": "Open VINO"},
    "affinity-not-a-cpu": {"threads": 2, "affinity": ("5-4",)},
    "affinity-count": {"threads": 2, "affinity": ("0", "1")},
}


@pytest.mark.parametrize("rule", BROKEN)
def test_combinations_that_are_refused(rule: str) -> None:
    with pytest.raises(errors.OptionError) as caught:
        OnnxruntimeOptions(**BROKEN[rule])
    assert caught.value.detail["rule"] == rule
    assert caught.value.detail["option"] in BROKEN[rule]
    assert caught.value.fix


LATER: dict[str, tuple[dict[str, Any], type[errors.BridgeError]]] = {
    "cuda-settings-on-the-cpu": ({"cuda_graph": True}, errors.OptionError),
    "affinity-to-a-cpu-out-of-reach": ({"threads": 2, "affinity": "4000"}, errors.OptionError),
    "custom-ops-missing": ({"custom_ops": "no/such/library.so"}, errors.OptionError),
    "profile-folder": ({"profile": f"{__file__}/profiles"}, errors.OptionError),
}


@pytest.mark.parametrize("rule", LATER)
def test_options_that_cannot_be_fulfilled_here(rule: str) -> None:
    options, kind = LATER[rule]
    with pytest.raises(kind) as caught:
        load(trust=True, **{key: _tuple(value) for key, value in options.items()})
    assert caught.value.detail["rule"] == rule


def _tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) and "profiles" not in value else value


def test_every_option_says_when_it_helps() -> None:
    for field in OnnxruntimeOptions.describe():
        assert field.when.endswith("."), field.name


def test_a_thread_budget_sets_threads_and_ends_spinning() -> None:
    def entries(predictor: Any) -> tuple[int, str]:
        settings = predictor._session.get_session_options()
        entry = settings.get_session_config_entry("session.intra_op.allow_spinning")
        return predictor.info.threads, entry

    assert entries(load()) == (default_threads(), str(int(default_threads() > 1)))
    assert entries(load(threads=2))[1] == "1"
    assert entries(load(threads=1)) == (1, "0")
    try:
        bridge.set_thread_budget(1)
        assert entries(load()) == (1, "0")
        assert entries(load(threads=2)) == (2, "0")
        assert entries(load(threads=2, spinning=True)) == (2, "1")
    finally:
        bridge.set_thread_budget(None)


@pytest.mark.parametrize("budget", [None, 2])
def test_the_duration_of_spinning_reaches_the_session(budget: int | None) -> None:
    try:
        bridge.set_thread_budget(budget)
        settings = load(threads=2, spin_duration=200)._session.get_session_options()
        given = OnnxruntimeOptions(threads=2, spin_duration=200)
        asked = OnnxruntimeOptions(threads=2, spin_duration=200, spinning=True)
        assert given.effective() == asked.effective()
        assert given.effective().spins
    finally:
        bridge.set_thread_budget(None)
    for key, value in (("spin_duration_us", "200"), ("allow_spinning", "1")):
        assert settings.get_session_config_entry(f"session.intra_op.{key}") == value


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_threads_are_tied_to_the_cpus_named() -> None:
    cpu = max(os.sched_getaffinity(0))
    code = f"""
import os, bridge
own = set(os.listdir("/proc/self/task"))
options = {{"threads": 3, "affinity": ("{cpu}", "{cpu}-{cpu}"), "spinning": False}}
predictor = bridge.load({model()!r}, backend="onnxruntime", options=options)
made = set(os.listdir("/proc/self/task")) - own
print(sorted(tuple(os.sched_getaffinity(int(one))) for one in made))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    tied = json.loads(done.stdout.replace("(", "[").replace(",)", "]").replace(")", "]"))
    assert tied.count([cpu]) >= 2


def test_a_profile_is_whole_once_the_predictor_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "profiles"
    with load(profile=folder) as one, load(profile=folder) as other:
        check(one)
        check(other)
    files = list(folder.iterdir())
    assert len(files) == 2
    for file in files:
        names = {event["name"] for event in json.loads(file.read_text())}
        assert any("Add" in name or "kernel_time" in name for name in names)


COMPILER = shutil.which("cc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("library")
    source = folder / "ops.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n"
        "void *RegisterCustomOps(void *options, void *api) {\n"
        '  FILE *file = fopen(getenv("BRIDGE_TEST_OPS"), "a");\n'
        '  if (file) { fputs("registered\\n", file); fclose(file); }\n'
        "  return NULL;\n}\n"
    )
    built = folder / "ops.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", built, source], check=True, timeout=60)
    return built


def test_custom_operators_need_trust(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("BRIDGE_TEST_OPS", str(log))
    with pytest.raises(errors.UntrustedModel, match="custom_ops are native code"):
        load(custom_ops=(str(library),))
    assert not log.exists()
    check(load(custom_ops=(str(library),), trust=True))
    assert log.read_text() == "registered\n"


def test_a_library_without_operators(tmp_path: Path) -> None:
    (tmp_path / "ops.so").write_text("no library")
    with pytest.raises(errors.OptionError, match="cannot take operators") as caught:
        load(custom_ops=(str(tmp_path / "ops.so"),), trust=True)
    assert caught.value.detail["rule"] == "custom-ops-not-loaded"


def test_a_model_cannot_name_libraries(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("BRIDGE_TEST_OPS", str(log))
    proto = onnx.load_from_string(model())
    for key in ("custom_ops", "custom_op_library", "ort_config"):
        entry = proto.metadata_props.add()
        entry.key = key
        entry.value = json.dumps({"session_options": {"custom_ops": [str(library)]}})
    check(load(proto.SerializeToString(), trust=True))
    assert not log.exists()


@pytest.mark.parametrize("options", [{"spin_duration": -1}, {"threads": 0}, {"provider": "cpu"}])
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError):
        load(**options)


def test_what_means_the_same_is_measured_once() -> None:
    same = OnnxruntimeOptions().effective()
    assert OnnxruntimeOptions(threads=default_threads()).effective() == same
    if default_threads() > 1:
        assert OnnxruntimeOptions(spinning=True).effective() == same
        assert OnnxruntimeOptions(spinning=False).effective() != same
    alone = OnnxruntimeOptions(threads=1)
    for options in ({"spinning": False}, {"spinning": True}, {"spin_duration": 5}):
        given = OnnxruntimeOptions(threads=1, **options)  # type: ignore[arg-type]
        assert given.effective() == alone.effective()
