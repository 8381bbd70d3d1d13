"""Memory of the onnxruntime backend: shared sessions, the cache, and running out of it."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.cache import default_cache

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bridge_onnxruntime import sharing  # noqa: E402

FLOAT = onnx.TensorProto.FLOAT
X = {"x": np.ones((2, 3), np.float32)}
WIDE = {"x": np.arange(64, dtype=np.float32).reshape(2, 32)}


def proto(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Any:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value(*one) for one in inputs], [value(*one) for one in outputs], weights
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def small(*, is_input: bool = False) -> bytes:
    """y = relu(x + 1 + w), w being (0, 1, 2); the sum of constants can be folded."""
    one = onnx.numpy_helper.from_array(np.ones(3, np.float32), "one")
    w = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    nodes = [
        onnx.helper.make_node("Add", ["one", "w"], ["sum"]),
        onnx.helper.make_node("Add", ["x", "sum"], ["before"]),
        onnx.helper.make_node("Relu", ["before"], ["y"]),
    ]
    inputs = [("x", FLOAT, ["N", 3])] + ([("w", FLOAT, [3])] if is_input else [])
    data: bytes = proto(nodes, inputs, [("y", FLOAT, ["N", 3])], [one, w]).SerializeToString()
    return data


def product(size: int) -> bytes:
    """y = x @ w; w is twice the identity, so that 4 * size² bytes of weights are packed."""
    w = onnx.numpy_helper.from_array(2 * np.eye(size, dtype=np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    shapes = [("x", FLOAT, ["N", size])], [("y", FLOAT, ["N", size])]
    data: bytes = proto([node], *shapes, [w]).SerializeToString()
    return data


def load(given: bytes | Path | None = None, **options: Any) -> Any:
    source = small() if given is None else given
    return bridge.load(source, backend="onnxruntime", options=options)


def check(predictor: bridge.Predictor) -> None:
    np.testing.assert_array_equal(predictor.predict(X)["y"], [[2, 3, 4], [2, 3, 4]])


def run(code: str, *arguments: str, timeout_s: float = 120) -> Any:
    """What a fresh process prints as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# --- Shared sessions ---------------------------------------------------------------------


def test_equal_predictors_share_one_session() -> None:
    one, other = load(share_weights=True), load(share_weights=True)
    assert one._session is other._session
    assert load(share_weights=True, threads=3)._session is not one._session
    assert load()._session is not one._session
    one.close()
    check(other)
    with pytest.raises(errors.PredictorClosed):
        one.predict(X)
    gone = weakref.ref(other._session)
    other.close()
    gc.collect()
    assert gone() is None


def test_other_content_is_another_session(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small())
    one = load(path, share_weights=True)
    assert load(small(), share_weights=True)._session is one._session  # the bytes count
    path.write_bytes(small(is_input=True))
    changed = load(path, share_weights=True)
    assert changed._session is not one._session
    assert changed.signature.input_names == ("x", "w")


def test_threads_that_load_at_once_share() -> None:
    with ThreadPoolExecutor(4) as pool:
        predictors = list(pool.map(lambda _: load(share_weights=True), range(4)))
    assert len({id(one._session) for one in predictors}) == 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, predictors * 5))


def test_a_failed_load_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        sharing.shared_session("key of a test", fail)
    session = SimpleSession()
    assert sharing.shared_session("key of a test", lambda: session) is session
    sharing._forget()  # as in a forked child
    assert sharing.shared_session("key of a test", SimpleSession) is not session


class SimpleSession:
    """Something that can be referred to weakly."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 MiB of weights in one file."""
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    path.write_bytes(product(2048))
    return path


GROWTH = """
import json, sys
import numpy as np, bridge

def private():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

path, options = sys.argv[1], json.loads(sys.argv[2])
x = {"x": np.ones((1, 2048), np.float32)}
held, grown = [], []
for _ in range(2):
    before = private()
    held.append(bridge.load(path, backend="onnxruntime", options=options))
    assert (held[-1].predict(x)["y"] == 2).all()
    grown.append((private() - before) / 2**14)
print(json.dumps(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_weights_are_in_memory_once(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each figure is private memory in multiples of the weights, for a second predictor."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    apart, shared, mapped = (
        run(GROWTH, str(large), json.dumps(options))[1]
        for options in ({}, {"share_weights": True}, {"cache": True})
    )
    assert apart > 0.8
    assert shared < 0.2
    assert mapped < 0.2


# --- The arena ---------------------------------------------------------------------------


ARENA = """
import json, sys
import numpy as np, bridge

def private():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

path, options = sys.argv[1], json.loads(sys.argv[2])
x = {"x": np.ones((256, 64), np.float32)}
held, grown = [], []
for _ in range(2):
    before = private()
    held.append(bridge.load(path, backend="onnxruntime", options=options))
    assert held[-1].predict(x)["y"] == 2
    grown.append((private() - before) / 2**14)
held[0].close()
assert held[1].predict(x)["y"] == 2
print(json.dumps(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_an_arena_for_several_predictors(tmp_path: Path) -> None:
    """256 rows have intermediate results of 16 MiB, kept by a second predictor or not."""
    nodes = [
        onnx.helper.make_node("Tile", ["x", "times"], ["many"]),
        onnx.helper.make_node("Add", ["many", "many"], ["twice"]),
        onnx.helper.make_node("ReduceMax", ["twice"], ["y"], keepdims=0),
    ]
    times = onnx.numpy_helper.from_array(np.array([1, 256]), "times")
    path = tmp_path / "model.onnx"
    made = proto(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, [])], [times])
    path.write_bytes(made.SerializeToString())
    apart, shared = (
        run(ARENA, str(path), json.dumps(options))[1] for options in ({}, {"shared_arena": True})
    )
    assert apart > 0.8
    assert shared < 0.2


def test_predictors_with_one_arena_run_side_by_side() -> None:
    predictors = [load(shared_arena=True), load(shared_arena=True), load()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, predictors * 20))


# --- The cache ---------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("entries/*/files/model.onnx"))


def test_a_rewritten_model_is_kept_and_mapped(cache: Path) -> None:
    predictor = load(product(32), cache=True)
    np.testing.assert_array_equal(predictor.predict(WIDE)["y"], 2 * WIDE["x"])
    assert predictor.info.details["graph_optimization"] == "enable_all"
    assert predictor.info.details["is_from_cache"] is True
    (file,) = kept(cache)
    written = file.stat().st_mtime_ns
    again = load(product(32), cache=True)
    assert [one.stat().st_mtime_ns for one in kept(cache)] == [written]
    if Path("/proc/self/maps").is_file():
        assert str(file.with_name("weights.bin")) in Path("/proc/self/maps").read_text()
    np.testing.assert_array_equal(again.predict(WIDE)["y"], 2 * WIDE["x"])
    load(product(32), cache=True, graph_optimization="basic")
    check(load(cache=True))  # all of its weights are too small for a file of their own
    assert len(kept(cache)) == 3
    assert {entry.kind for entry in default_cache().ls()} == {"onnxruntime-model"}


def test_the_cache_keeps_signatures_and_defaults(cache: Path) -> None:
    plain, kept_one = load(small(is_input=True)), load(small(is_input=True), cache=True)
    assert kept_one.signature == plain.signature
    check(kept_one)
    w = np.full(3, 9, np.float32)
    np.testing.assert_array_equal(kept_one.predict({**X, "w": w})["y"][0], [11, 11, 11])


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "removed"])
def test_a_damaged_entry_is_made_anew(
    cache: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    load(product(32), cache=True).close()
    (file,) = cache.glob(f"entries/*/files/{name}")
    whole, times = file.read_bytes(), file.stat()
    file.chmod(0o600)
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "tampered":
        file.write_bytes(whole[:-20] + bytes(range(20)))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had been
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING, "bridge"):
        predictor = load(product(32), cache=True)
    np.testing.assert_array_equal(predictor.predict(WIDE)["y"], 2 * WIDE["x"])
    assert len([one for one in caplog.records if "is built again" in one.getMessage()]) == 1
    assert file.read_bytes() == whole


@pytest.mark.parametrize("what", ["__version__", "cpu_flags"])
def test_another_version_or_cpu_has_its_own_entry(
    cache: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(cache=True)
    if what == "__version__":
        monkeypatch.setattr(ort, "__version__", "0.0.1")
    else:
        monkeypatch.setattr("bridge_onnxruntime.optimised.cpu_flags", lambda: frozenset({"other"}))
    check(load(cache=True))
    assert len(kept(cache)) == 2


def test_an_ort_file_is_not_kept_again(cache: Path, tmp_path: Path) -> None:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(tmp_path / "model.ort")
    ort.InferenceSession(small(), settings)
    check(load(tmp_path / "model.ort"))
    with pytest.raises(errors.OptionError, match="in onnxruntime's own format") as caught:
        load(tmp_path / "model.ort", cache=True)
    assert caught.value.detail["rule"] == "cache-of-an-ort-file"


def test_the_cached_answer_is_the_same_to_the_last_bit(cache: Path, large: Path) -> None:
    x = {"x": np.random.default_rng(1).standard_normal((5, 2048), dtype=np.float32)}
    plain = load(large, threads=1).predict(x)["y"]
    np.testing.assert_array_equal(load(large, threads=1, cache=True).predict(x)["y"], plain)


# --- Running out of memory ---------------------------------------------------------------


LIMITED = """
import json, resource, sys
import numpy as np, bridge
from bridge import errors

def limit(more):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

grow, large, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
predictor = bridge.load(grow, backend="onnxruntime", options=options)
predictor.predict({"x": np.ones((8, 64), np.float32)})
limit(24 * 2**20)
found = []
for rows in (20_000, 8):
    try:
        found.append(predictor.predict({"x": np.ones((rows, 64), np.float32)})["y"].shape[0])
    except errors.OutOfMemory as error:
        found.append(error.fix != "")
for more in (24, 8):  # too little for the weights, and even for mapping the file
    limit(more * 2**20)
    try:
        bridge.load(large, backend="onnxruntime", options=options)
    except errors.OutOfMemory as error:
        found.append("mapped" in str(error))
found.append(predictor.predict({"x": np.ones((9, 64), np.float32)})["y"].shape[0])
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
@pytest.mark.parametrize("options", [{}, {"arena": False}])
def test_out_of_memory_under_a_limit(tmp_path: Path, large: Path, options: dict[str, Any]) -> None:
    """Each row of 64 numbers becomes 16,384: 20,000 rows would take 1.3 GB."""
    node = onnx.helper.make_node("Tile", ["x", "times"], ["y"])
    times = onnx.numpy_helper.from_array(np.array([1, 256]), "times")
    shapes = [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 64 * 256])]
    path = tmp_path / "grow.onnx"
    path.write_bytes(proto([node], *shapes, [times]).SerializeToString())
    found = run(LIMITED, str(path), str(large), json.dumps({"threads": 1, **options}))
    assert found == [True, 8, False, True, 9]
