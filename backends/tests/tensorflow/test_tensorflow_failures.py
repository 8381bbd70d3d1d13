"""What the tensorflow backend refuses, and how: operators, signatures, damaged files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import (
    InvalidModel,
    ModelNotFound,
    PredictError,
    UnsupportedModel,
    UntrustedModel,
)

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1
X = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])


def test_python_function_is_refused_and_does_not_run(
    tmp_path: Path, saved: Callable[..., Path]
) -> None:
    calls = []

    class Python(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")], autograph=False)
        def call(self, x):
            y = tf.numpy_function(lambda v: calls.append(v) or v, [x], tf.float32)
            return {"y": tf.ensure_shape(y, (None,))}

    module = Python()
    folder = saved(module, tmp_path / "model", serving_default=module.call)
    with pytest.raises(UntrustedModel, match="PyFunc") as caught:
        bridge.load(folder)
    assert caught.value.detail["operators"] == ["PyFunc"]
    assert bridge.inspect(folder).problem is not None
    with bridge.load(folder, trust=True) as predictor:
        predictor.predict({"x": X[0]})
    assert len(calls) == 1


def test_file_operator_is_refused_and_does_not_run(
    tmp_path: Path, saved: Callable[..., Path]
) -> None:
    target = tmp_path / "written"

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.string, "x")], autograph=False)
        def call(self, x):
            with tf.control_dependencies([tf.io.write_file(str(target), x)]):
                return {"y": tf.identity(x)}

    module = Writer()
    folder = saved(module, tmp_path / "model", serving_default=module.call)
    target.unlink(missing_ok=True)
    with pytest.raises(UntrustedModel, match="WriteFile"):
        bridge.load(folder)
    assert not target.exists()


def test_operator_that_nobody_has_is_named(
    affine: Path, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    def change(graph) -> None:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "Mul":
                    node.op = "FrobnicateV7"

    folder = edited(affine, tmp_path / "model", change)
    for trust in (False, True):
        with pytest.raises(UnsupportedModel, match="FrobnicateV7"):
            bridge.load(folder, trust=trust)


def test_composite_output_is_refused(
    affine: Path, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    def change(graph) -> None:
        info = graph.signature_def["serving_default"].outputs["y"]
        name = info.name
        info.coo_sparse.values_tensor_name = name

    folder = edited(affine, tmp_path / "model", change)
    with pytest.raises(UnsupportedModel, match="output 'y'.*sparse"):
        bridge.load(folder)
    assert "serving_default:y" in bridge.inspect(folder).facts.notes[0]


def test_one_tensor_under_two_input_names_is_refused(
    affine: Path, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    def change(graph) -> None:
        inputs = graph.signature_def["serving_default"].inputs
        inputs["again"].CopyFrom(inputs["x"])

    with pytest.raises(UnsupportedModel, match="serving_default_x:0"):
        bridge.load(edited(affine, tmp_path / "model", change))


def test_missing_variables_name_the_file(affine: Path, tmp_path: Path) -> None:
    for name in ("variables.index", "variables.data-00000-of-00001"):
        folder = tmp_path / name / "model"
        shutil.copytree(affine, folder)
        (folder / "variables" / name).unlink()
        with pytest.raises(ModelNotFound, match=name):
            bridge.load(folder)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_variables(affine: Path, tmp_path: Path, name: str, keep: float) -> None:
    folder = tmp_path / "model"
    shutil.copytree(affine, folder)
    path = folder / "variables" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InvalidModel):
        bridge.load(folder)


def test_other_model_s_variables(affine: Path, tmp_path: Path, saved: Callable[..., Path]) -> None:
    module = tf.Module()
    module.other = tf.Variable(1.0, name="other")
    other = saved(module, tmp_path / "other")
    folder = tmp_path / "model"
    shutil.copytree(affine, folder)
    shutil.rmtree(folder / "variables")
    shutil.copytree(other / "variables", folder / "variables")
    with pytest.raises(InvalidModel, match="not those of its graph"):
        bridge.load(folder)


def test_failing_call_leaves_the_predictor_usable(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        y = tf.reshape(x, [-1, 2])
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": y})
    with bridge.load(tmp_path / "model") as predictor:
        with pytest.raises(PredictError, match="reshape|Reshape") as caught:
            predictor.predict({"x": np.zeros(3, np.float32)})
        assert isinstance(caught.value.__cause__, tf.errors.InvalidArgumentError)
        assert predictor.predict({"x": np.zeros(4, np.float32)})["y"].shape == (2, 2)
