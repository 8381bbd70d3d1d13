"""Threads, closing, forking and output of the onnxruntime backend."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = 64


def layers(count: int = 4) -> bytes:
    """x @ w, ``count`` times; w is twice the identity."""
    value = onnx.helper.make_tensor_value_info
    names = ["x", *(f"h{index}" for index in range(count - 1)), "y"]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", [names[index], "w"], [names[index + 1]])
            for index in range(count)
        ],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["N", SIZE])],
        [value("y", onnx.TensorProto.FLOAT, ["N", SIZE])],
        [onnx.numpy_helper.from_array(2 * np.eye(SIZE, dtype=np.float32), "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("call", ["predict", "bind"])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_with_distinct_inputs(threads: int, call: str) -> None:
    predictor = bridge.load(layers(), backend="onnxruntime", options={"threads": threads})
    together = threading.Barrier(8)

    def work(seed: int) -> None:
        x = np.full((seed % 3 + 1, SIZE), seed, np.float32)
        bound = predictor.bind({"x": x.shape})
        bound.inputs["x"][...] = x
        together.wait(timeout=60)
        for _ in range(50):
            if call == "predict":
                y = predictor.predict({"x": x})["y"]
            else:
                bound.predict()
                y = bound.outputs["y"]
            np.testing.assert_array_equal(y, 16 * x)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result()


def test_calls_run_side_by_side() -> None:
    predictor = bridge.load(layers(), backend="onnxruntime", options={"threads": 1})
    native, inside, most = predictor._run, [], []
    meet = threading.Barrier(2)

    def run(*args: Any) -> Any:
        inside.append(None)
        meet.wait(timeout=60)  # broken, if a lock lets in one call at a time
        most.append(len(inside))
        return native(*args)

    predictor._run = run
    x = {"x": np.ones((1, SIZE), np.float32)}
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(predictor.predict, x) for _ in range(2)]:
            future.result()
    assert most == [2, 2]


def test_closing_while_other_threads_predict() -> None:
    predictor = bridge.load(layers(8), backend="onnxruntime")
    started = threading.Barrier(5)
    x = np.ones((200, SIZE), np.float32)

    def work() -> int:
        started.wait(timeout=60)
        for count in range(100_000):
            try:
                y = predictor.predict({"x": x})["y"]
            except errors.PredictorClosed:
                return count
            np.testing.assert_array_equal(y, 256 * x)
        raise AssertionError("the predictor never closed")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work) for _ in range(4)]
        started.wait(timeout=60)
        time.sleep(0.1)
        predictor.close()
        assert sum(future.result() for future in futures) > 0
    assert not hasattr(predictor, "_session")
    predictor.close()
    with pytest.raises(errors.PredictorClosed):
        predictor.predict({"x": x})


def test_a_forked_child_may_not_predict_but_may_load() -> None:
    code = f"""
import os, sys, numpy as np, bridge
data = {layers()!r}
x = {{"x": np.ones((1, {SIZE}), np.float32)}}
predictor = bridge.load(data, backend="onnxruntime", options={{"threads": 2}})
bound = predictor.bind({{"x": (1, {SIZE})}})
bound.predict()
child = os.fork()
if not child:
    for call in (lambda: predictor.predict(x), bound.predict):
        try:
            call()
        except bridge.errors.ForkedPredictor:
            continue
        os._exit(1)
    fresh = bridge.load(data, backend="onnxruntime", options={{"threads": 2}})
    os._exit(0 if (fresh.predict(x)["y"] == 16).all() else 2)
_, status = os.waitpid(child, 0)
assert (predictor.predict(x)["y"] == 16).all()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_load_and_predict_print_nothing(tmp_path: Path) -> None:
    code = f"""
import numpy as np, bridge
with bridge.load({layers()!r}, backend="onnxruntime") as predictor:
    predictor.warmup()
    predictor.predict({{"x": np.ones((1, {SIZE}), np.float32)}})
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_plugin_and_probe_do_not_import_the_runtime() -> None:
    code = """
import sys, bridge
backend = bridge.backends()["onnxruntime"]
assert backend.probe().installed and backend.probe().version
backend.capabilities(bridge.CPU), backend.options_type.describe()
assert not {"onnxruntime", "onnx", "ml_dtypes"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_default_threads_follow_the_affinity() -> None:
    code = f"""
import os, bridge
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
print(bridge.load({layers()!r}, backend="onnxruntime").info.threads)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("1\n", "")
