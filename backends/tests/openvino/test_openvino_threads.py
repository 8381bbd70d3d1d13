"""Threads, closing, forking and state with the OpenVINO backend."""

from __future__ import annotations

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
pytest.importorskip("openvino")

from bridge_openvino.runtime import openvino  # noqa: E402

SIZE = 64


def dense(layers: int = 4) -> tuple[bytes, list[np.ndarray]]:
    """A stack of matrix products, and its matrices."""
    generator = np.random.default_rng(0)
    matrices = [
        (generator.standard_normal((SIZE, SIZE)) / 8).astype(np.float32) for _ in range(layers)
    ]
    make, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", [f"t{index}", f"w{index}"], [f"t{index + 1}"])
            for index in range(layers)
        ],
        "g",
        [make("t0", float32, ["N", SIZE])],
        [make(f"t{layers}", float32, ["N", SIZE])],
        [
            onnx.helper.make_tensor(f"w{index}", float32, matrix.shape, matrix.tobytes(), raw=True)
            for index, matrix in enumerate(matrices)
        ],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    return model.SerializeToString(), matrices


def test_eight_threads_with_inputs_of_their_own() -> None:
    data, matrices = dense()
    predictor = bridge.load(data, backend="openvino", options={"hint": "throughput"})
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        start.wait()
        for _ in range(40):
            x = generator.standard_normal((int(generator.integers(1, 50)), SIZE), np.float32)
            wanted = x.astype(np.float64)
            for matrix in matrices:
                wanted = wanted @ matrix
            result = predictor.predict({"t0": x})["t4"]
            np.testing.assert_allclose(result, wanted, atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result()
    assert 1 <= len(predictor._idle) <= 8  # type: ignore[attr-defined]


def test_bound_objects_of_several_threads_do_not_meet() -> None:
    data, matrices = dense(1)
    predictor = bridge.load(data, backend="openvino")

    def work(seed: int) -> None:
        bound = predictor.bind({"t0": (3, SIZE)})
        generator = np.random.default_rng(seed)
        for _ in range(40):
            x = generator.standard_normal((3, SIZE), np.float32)
            bound.inputs["t0"][...] = x
            bound.predict()
            np.testing.assert_allclose(bound.outputs["t1"], x @ matrices[0], atol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in range(4)]:
            done.result()


def test_close_lets_running_calls_finish() -> None:
    data, _ = dense(8)
    predictor = bridge.load(data, backend="openvino")
    x = np.ones((4000, SIZE), np.float32)
    wanted = predictor.predict({"t0": x})["t8"]
    bound = predictor.bind({"t0": (4000, SIZE)})
    bound.inputs["t0"][...] = x
    refused = threading.Event()
    wrong: list[object] = []

    def work(call: Any) -> None:
        try:
            while not refused.is_set():
                if not np.array_equal(call(), wanted):
                    wrong.append("a wrong result")
        except errors.PredictorClosed:
            refused.set()
        except BaseException as error:  # noqa: BLE001 - reported by the assertion below
            wrong.append(error)

    def run_bound() -> np.ndarray:
        bound.predict()
        return bound.outputs["t8"]

    calls = [lambda: predictor.predict({"t0": x})["t8"]] * 3 + [run_bound]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    predictor.close()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert refused.is_set()
    assert predictor._program is None  # type: ignore[attr-defined]
    predictor.close()
    with pytest.raises(errors.PredictorClosed):
        predictor.predict({"t0": x})
    with pytest.raises(errors.PredictorClosed):
        bound.predict()


FORK = """
import os
import sys
import numpy as np
import bridge
from bridge import errors

predictor = bridge.load(sys.argv[1], backend="openvino")
x = {"t0": np.ones((2, 64), np.float32)}
bound = predictor.bind({"t0": (2, 64)})
wanted = predictor.predict(x)["t4"]
child = os.fork()
if child == 0:
    code = 1
    try:
        for call in (lambda: predictor.predict(x), bound.predict):
            try:
                call()
            except errors.ForkedPredictor:
                code = 0
            else:
                os._exit(2)
        try:
            bridge.load(sys.argv[1], backend="openvino")
        except errors.BackendUnavailable as error:
            code = 0 if "spawn" in str(error) else 3
        else:
            code = 4
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(predictor.predict(x)["t4"], wanted)
"""

FORK_FIRST = """
import os
import sys
import numpy as np
import bridge
import openvino

child = os.fork()
if child == 0:
    predictor = bridge.load(sys.argv[1], backend="openvino")
    predictor.predict({"t0": np.ones((2, 64), np.float32)})
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")
@pytest.mark.parametrize("script", [FORK, FORK_FIRST])
def test_a_forked_child_is_told_instead_of_hanging(script: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(dense()[0])
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            script,
            str(tmp_path / "m.onnx"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")


def save_counter(path: Path) -> Path:
    """A model with a variable: each call adds its input to it and returns the sum."""
    ov = openvino()
    ops = ov.opset13
    x = ops.parameter([1, 2], np.float32, name="x")
    x.output(0).tensor.names = {"x"}
    info = ov.op.util.VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([1, 2]), ov.Type.f32, "v"
    ov.op.util.Variable(info)
    held = ops.read_value(ops.constant(np.zeros((1, 2), np.float32)), "v", ov.Type.f32, [1, 2])
    total = ops.add(x, held)
    total.output(0).tensor.names = {"total"}
    model = ov.Model([ops.result(total)], [ops.assign(total, "v")], [x], "counter")
    ov.save_model(model, str(path), compress_to_fp16=False)
    return path


def test_state_is_told_and_kept_between_calls(tmp_path: Path) -> None:
    path = save_counter(tmp_path / "counter.xml")
    predictor = bridge.load(path, backend="openvino")
    assert predictor.info.stateful
    one = {"x": np.ones((1, 2), np.float32)}
    name = predictor.signature.output_names[0]
    assert [predictor.predict(one)[name][0, 0] for _ in range(3)] == [1, 2, 3]
    with ThreadPoolExecutor(4) as pool:
        seen = sorted(pool.map(lambda _: predictor.predict(one)[name][0, 0], range(40)))
    assert seen == list(range(4, 44))
    bound = predictor.bind({"x": (1, 2)})
    bound.inputs["x"][...] = 1
    bound.predict()
    assert bound.outputs[name][0, 0] == 44
    assert bridge.load(path, backend="openvino").predict(one)[name][0, 0] == 1
    predictor.close()
    with pytest.raises(errors.PredictorClosed):
        bound.predict()
