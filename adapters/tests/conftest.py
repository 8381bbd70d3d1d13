"""One small model in each format, written once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import DType, Signature, TensorSpec

ROWS = 50
STATED = Signature(
    (
        TensorSpec("ids", DType.INT64, ("batch",)),
        TensorSpec("x", DType.FLOAT32, ("batch", 3)),
    ),
    (
        TensorSpec("click", DType.FLOAT32, ("batch", 2)),
        TensorSpec("norm", DType.FLOAT32, ("batch",)),
    ),
)


def weights() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "table": random.normal(size=(ROWS, 4)).astype(np.float32),
        "kernel": random.normal(size=(7, 2)).astype(np.float32),
    }


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def torch_module() -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.from_numpy(weights()["table"]))
            self.kernel = torch.nn.Parameter(torch.from_numpy(weights()["kernel"]))

        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
            whole = torch.cat([self.table(ids), x], 1)
            return {"click": torch.tanh(whole @ self.kernel), "norm": (x * x).sum(1)}

    return Net().eval()


@pytest.fixture(scope="session")
def torchscript(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch_module())
        scripted.save(str(folder / "net.pt"))
    return folder / "net.pt"


@pytest.fixture(scope="session")
def exported(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        torch_module(),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 3)),
        dynamic_shapes={"ids": {0: batch}, "x": {0: batch}},
    )
    torch.export.save(program, folder / "net.pt2")
    return folder / "net.pt2"


@pytest.fixture(scope="session")
def saved_model(folder: Path) -> Path:
    """Two signatures; the table and the kernel are variables, used inside a function."""
    tf = pytest.importorskip("tensorflow")

    class Net(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(weights()["table"])
            self.kernel = tf.Variable(weights()["kernel"])

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[
                tf.TensorSpec([None], tf.int64, "ids"),
                tf.TensorSpec([None, 3], tf.float32, "x"),
            ]
        )
        def rank(self, ids: Any, x: Any) -> Any:
            whole = tf.concat([tf.nn.embedding_lookup(self.table, ids), x], 1)
            click = tf.tanh(whole @ self.kernel)
            return {"click": click, "norm": tf.reduce_sum(x * x, 1)}

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])  # type: ignore[untyped-decorator]
        def same(self, x: Any) -> Any:
            return {"first": x, "second": x, "loop": self.count(x)}

        def count(self, x: Any) -> Any:
            return tf.while_loop(lambda i, _: i < 3, lambda i, s: (i + 1, s * 2), (0, x))[1]

    net = Net()
    path = folder / "net_saved_model"
    tf.saved_model.save(net, str(path), signatures={"serving_default": net.rank, "same": net.same})
    return path


@pytest.fixture(scope="session")
def onnx_model(folder: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kinds = onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["row"]),
            helper.make_node("Identity", ["row"], ["again"]),
            helper.make_node("Concat", ["again", "x"], ["whole"], axis=1),
            helper.make_node("MatMul", ["whole", "kernel"], ["score"]),
            helper.make_node("Tanh", ["score"], ["click"]),
            helper.make_node("Mul", ["x", "x"], ["squares"]),
            helper.make_node("ReduceSum", ["squares", "one"], ["norm"], keepdims=0),
        ],
        "net",
        [
            helper.make_tensor_value_info("ids", kinds.INT64, ["batch"]),
            helper.make_tensor_value_info("x", kinds.FLOAT, ["batch", 3]),
        ],
        [
            helper.make_tensor_value_info("click", kinds.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("norm", kinds.FLOAT, ["batch"]),
        ],
        [
            *(numpy_helper.from_array(value, name) for name, value in weights().items()),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(folder / "net.onnx"))
    return folder / "net.onnx"


def inputs(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    return {
        "ids": random.integers(0, ROWS, rows),
        "x": random.normal(size=(rows, 3)).astype(np.float32),
    }


def expected(given: dict[str, Any]) -> dict[str, Any]:
    whole = np.concatenate([weights()["table"][given["ids"]], given["x"]], 1)
    return {
        "click": np.tanh(whole @ weights()["kernel"]),
        "norm": (given["x"] ** 2).sum(1),
    }


def _check(path: Path, **how: Any) -> Signature:
    """Runs a converted model on several sizes; its signature."""
    with bridge.load(path, **how) as predictor:
        for rows in (1, 5):
            given = inputs(rows)
            results = predictor.predict(given)
            for name, right in expected(given).items():
                np.testing.assert_allclose(results[name], right, rtol=1e-4, atol=1e-5)
        return predictor.signature


@pytest.fixture(scope="session")
def check() -> Callable[..., Signature]:
    """``check(path)`` compares a model with numpy, and returns its signature."""
    return _check


@pytest.fixture(scope="session")
def stated() -> Signature:
    return STATED


@pytest.fixture(scope="session")
def nmp() -> Path:
    """The SavedModel of basic-pitch, where it was fetched."""
    home = Path(sys.prefix, "models/basic_pitch/saved_models/icassp_2022/nmp")
    if not home.is_dir():
        pytest.skip("no real models: 'make test' fetches them")
    return home
