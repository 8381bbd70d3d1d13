"""The ranking zoo: one description, the same weights and scores in every format."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
import bridge_zoo
from bridge.errors import OptionError
from bridge_zoo.__main__ import main

Scores = dict[str, np.ndarray]
Predict = Callable[[dict[str, np.ndarray]], Scores]

RANKER = bridge_zoo.describe("ranker", "small")
WEIGHTS = bridge_zoo.seeded_weights(RANKER)
NAMES = [*(f"id_{index:02d}" for index in range(40)), "dense"]

# What each format needs to be written and, for those that open it, to be read.
NEEDS = {"onnx": "onnx", "torchscript": "torch", "pt2": "torch", "saved_model": "tensorflow"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def built(folder: Path) -> Callable[[str], Path]:
    """Builds a format once; warnings are errors here, so a build that warns fails."""
    paths: dict[str, Path] = {}

    def path(item: str) -> Path:
        if item not in paths:
            pytest.importorskip(NEEDS[item])
            paths.update(bridge_zoo.build("ranker", formats=[item], folder=folder))
        return paths[item]

    return path


def open_onnxruntime(path: Path) -> Predict:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    tasks = list(RANKER.tasks)
    return lambda batch: dict(zip(tasks, session.run(tasks, batch), strict=True))


def open_openvino(path: Path) -> Predict:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(path)
    names = [output.get_any_name() for output in model.outputs]
    # Names and ports are paired before compiling: the compiled model's outputs may carry
    # names of values that its optimiser merged into them.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def predict(batch: dict[str, np.ndarray]) -> Scores:
        answer = compiled(batch)
        return {name: answer[index].copy() for index, name in enumerate(names)}

    return predict


def torch_predict(module: Any) -> Predict:
    import torch

    def predict(batch: dict[str, np.ndarray]) -> Scores:
        with torch.inference_mode():
            scores = module(**{name: torch.from_numpy(value) for name, value in batch.items()})
        return {name: value.numpy() for name, value in scores.items()}

    return predict


def load_torchscript(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():  # torch 2.13 calls TorchScript deprecated
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
        return torch.jit.load(path)


def open_torchscript(path: Path) -> Predict:
    return torch_predict(load_torchscript(path))


def open_pt2(path: Path) -> Predict:
    import torch

    return torch_predict(torch.export.load(path).module())


def open_signature(path: Path) -> Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]

    def predict(batch: dict[str, np.ndarray], _owner: Any = loaded) -> Scores:
        scores = signature(**{name: tf.constant(value) for name, value in batch.items()})
        return {name: value.numpy() for name, value in scores.items()}

    return predict


def open_graph_session(path: Path) -> Predict:
    import tensorflow as tf

    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    signature = meta.signature_def["serving_default"]
    outputs = {name: tensor.name for name, tensor in signature.outputs.items()}

    def predict(batch: dict[str, np.ndarray]) -> Scores:
        feeds = {signature.inputs[name].name: value for name, value in batch.items()}
        return dict(session.run(outputs, feeds))

    return predict


READERS = {
    "onnxruntime": ("onnx", open_onnxruntime),
    "openvino-onnx": ("onnx", open_openvino),
    "openvino-saved_model": ("saved_model", open_openvino),
    "torchscript": ("torchscript", open_torchscript),
    "pt2": ("pt2", open_pt2),
    "tensorflow-signature": ("saved_model", open_signature),
    "tensorflow-session": ("saved_model", open_graph_session),
}


@pytest.fixture(scope="module", params=list(READERS))
def predict(request: pytest.FixtureRequest, built: Callable[[str], Path]) -> Predict:
    item, opener = READERS[request.param]
    return opener(built(item))


@pytest.mark.parametrize("rows", [1, 2, 17, 128])
def test_every_format_agrees_with_numpy(predict: Predict, rows: int) -> None:
    batch = bridge_zoo.inputs(RANKER, rows, seed=rows)
    wanted = bridge_zoo.forward(RANKER, WEIGHTS, batch)
    scores = predict(batch)
    assert set(scores) == {"click", "like", "share"}
    for task, value in scores.items():
        assert (value.shape, value.dtype) == ((rows,), np.float32)
        np.testing.assert_allclose(value, wanted[task], rtol=0, atol=1e-5)


@pytest.mark.parametrize("item", ["onnx", "pt2", "saved_model"])
def test_tables_are_found_in_the_file(item: str, built: Callable[[str], Path]) -> None:
    facts = bridge.inspect(built(item)).facts
    assert facts.vocabularies == {one.name: one.vocabulary for one in RANKER.id_features}


def test_scores_depend_on_the_row_and_the_task() -> None:
    scores = bridge_zoo.forward(RANKER, WEIGHTS, bridge_zoo.inputs(RANKER, 512))
    for score in scores.values():
        assert score.std() > 0.05
        assert 0 < score.min() < score.max() < 1
    assert np.abs(scores["click"] - scores["like"]).mean() > 0.1


def test_forward_matches_a_model_worked_by_hand() -> None:
    ranker = bridge_zoo.Ranker(
        name="tiny",
        size="small",
        id_features=(bridge_zoo.IdFeature("id", 2),),
        embedding_width=1,
        dense_width=1,
        expert_count=2,
        expert_widths=(1,),
        tower_widths=(1,),
        tasks=("click",),
    )
    weights = {
        "tables.id": [[5.0], [2.0]],
        "experts.0.0.kernel": [[1.0], [1.0]],  # id 1 and dense 1: relu(2 + 1 + 1) = 4
        "experts.0.0.bias": [1.0],
        "experts.1.0.kernel": [[-1.0], [0.0]],  # relu(-2) = 0
        "experts.1.0.bias": [0.0],
        "gates.click.kernel": [[0.0, 0.0], [np.log(3.0), 0.0]],  # softmax: 3/4 and 1/4
        "gates.click.bias": [0.0, 0.0],
        "towers.click.0.kernel": [[2.0]],  # relu(2 * 3 - 4) = 2
        "towers.click.0.bias": [-4.0],
        "heads.click.kernel": [[-1.0]],  # sigmoid(-2 + 1)
        "heads.click.bias": [1.0],
    }
    assert list(weights) == list(bridge_zoo.weight_shapes(ranker))
    scores = bridge_zoo.forward(
        ranker,
        {name: np.array(value, np.float32) for name, value in weights.items()},
        {"id": np.array([1]), "dense": np.array([[1.0]], np.float32)},
    )
    np.testing.assert_allclose(scores["click"], [1 / (1 + np.e)], rtol=1e-6)


def stored_in_onnx(path: Path) -> dict[str, np.ndarray]:
    import onnx

    initializers = onnx.load(path, load_external_data=False).graph.initializer
    return {item.name: onnx.numpy_helper.to_array(item) for item in initializers}


def from_torch_names(state: dict[str, Any]) -> dict[str, np.ndarray]:
    stored = {}
    for name, value in state.items():
        if name.startswith("tables."):
            stored[name.removesuffix(".weight")] = value.detach().numpy()
        elif name.endswith(".weight"):
            stored[name.removesuffix("weight") + "kernel"] = value.detach().numpy().T
        else:
            stored[name] = value.detach().numpy()
    return stored


def stored_in_torchscript(path: Path) -> dict[str, np.ndarray]:
    return from_torch_names(load_torchscript(path).state_dict())


def stored_in_pt2(path: Path) -> dict[str, np.ndarray]:
    import torch

    return from_torch_names(torch.export.load(path).state_dict)


def stored_in_saved_model(path: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    weights = tf.saved_model.load(str(path)).weights
    return {name: variable.numpy() for name, variable in weights.items()}


STORED = {
    "onnx": stored_in_onnx,
    "torchscript": stored_in_torchscript,
    "pt2": stored_in_pt2,
    "saved_model": stored_in_saved_model,
}


@pytest.mark.parametrize("item", bridge_zoo.FORMATS)
def test_every_format_holds_the_same_bytes_of_weights(
    item: str, built: Callable[[str], Path]
) -> None:
    stored = STORED[item](built(item))
    for name, value in WEIGHTS.items():
        assert stored[name].dtype == np.float32
        assert stored[name].shape == value.shape
        assert stored[name].tobytes() == value.tobytes(), name


def test_onnx_declares_names_types_and_the_batch_dim(built: Callable[[str], Path]) -> None:
    path = built("onnx")
    import onnx

    model = onnx.load(path)

    def declared(values: Any) -> dict[str, tuple[int, list[str | int]]]:
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    int64, float32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    inputs = declared(model.graph.input)
    assert list(inputs) == NAMES
    assert inputs.pop("dense") == (float32, ["batch", 13])
    assert set(map(str, inputs.values())) == {str((int64, ["batch"]))}
    assert declared(model.graph.output) == {
        task: (float32, ["batch"]) for task in ("click", "like", "share")
    }
    assert [path.name for path in path.parent.glob("*.data")] == []


def test_torch_formats_keep_the_argument_names(built: Callable[[str], Path]) -> None:
    scripted, exported = built("torchscript"), built("pt2")
    import torch

    schema = load_torchscript(scripted).forward.schema
    assert [argument.name for argument in schema.arguments] == ["self", *NAMES]
    program = torch.export.load(exported)
    assert list(program.graph_signature.user_inputs) == NAMES
    ranges = list(program.range_constraints.values())
    assert [constraint.lower for constraint in ranges] == [1]


def test_saved_model_signature_has_the_names(built: Callable[[str], Path]) -> None:
    path = built("saved_model")
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    assert list(loaded.signatures) == ["serving_default"]
    signature = loaded.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    assert sorted(specs) == sorted(NAMES)
    assert specs["dense"].shape.as_list() == [None, 13]
    assert specs["id_07"].dtype == tf.int64
    assert specs["id_07"].shape.as_list() == [None]
    assert set(signature.structured_outputs) == {"click", "like", "share"}


def test_torch_module_leaves_the_random_state_alone() -> None:
    torch = pytest.importorskip("torch")
    from bridge_zoo.torch_module import torch_module

    before = torch.get_rng_state()
    torch_module(RANKER, WEIGHTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_real_size_is_the_ranker_of_about_60_mb() -> None:
    ranker = bridge_zoo.describe("ranker", "real")
    shapes = bridge_zoo.weight_shapes(ranker)
    table_bytes = sum(4 * np.prod(shape) for name, shape in shapes.items() if "tables" in name)
    total_bytes = sum(4 * np.prod(shape) for shape in shapes.values())
    assert table_bytes >= 50e6
    assert 58e6 <= total_bytes <= 62e6
    assert len(ranker.id_features) == 40
    assert ranker.joined_width == 40 * 16 + 13
    assert shapes["experts.3.0.kernel"] == (653, 512)
    assert shapes["experts.3.1.kernel"] == (512, 256)
    assert shapes["gates.share.kernel"] == (653, 4)


def test_weights_depend_on_seed_and_name_alone() -> None:
    again = bridge_zoo.seeded_weights(RANKER)
    other = bridge_zoo.seeded_weights(RANKER, seed=1)
    assert list(again) == list(bridge_zoo.weight_shapes(RANKER))
    for name, value in WEIGHTS.items():
        assert again[name].tobytes() == value.tobytes()
        assert not np.array_equal(other[name], value)
    assert not np.array_equal(WEIGHTS["experts.0.0.kernel"], WEIGHTS["experts.1.0.kernel"])


@pytest.mark.parametrize("size", bridge_zoo.SIZES)
def test_inputs_are_legal_skewed_and_repeatable(size: str) -> None:
    ranker = bridge_zoo.describe("ranker", size)
    batch = bridge_zoo.inputs(ranker, 2000, seed=3)
    assert list(batch) == NAMES == list(ranker.input_names)
    for feature in ranker.id_features:
        ids = batch[feature.name]
        assert (ids.dtype, ids.shape) == (np.int64, (2000,))
        assert ids.min() == 0
        assert ids.max() < feature.vocabulary
    assert set(batch["id_00"].tolist()) == set(range(16))
    # Zipf with exponent 1: the first tenth of the ids takes most of the traffic.
    assert (batch["id_39"] < ranker.id_features[39].vocabulary / 10).mean() > 0.5
    assert batch["id_39"].max() > ranker.id_features[39].vocabulary / 2
    assert (batch["dense"].dtype, batch["dense"].shape) == (np.float32, (2000, 13))
    again, other = (bridge_zoo.inputs(ranker, 2000, seed=seed) for seed in (3, 4))
    assert all(np.array_equal(again[name], value) for name, value in batch.items())
    assert not np.array_equal(other["id_39"], batch["id_39"])


def test_an_empty_batch_has_empty_inputs_and_scores() -> None:
    batch = bridge_zoo.inputs(RANKER, 0)
    assert batch["id_00"].shape == (0,)
    assert batch["dense"].shape == (0, 13)
    assert bridge_zoo.forward(RANKER, WEIGHTS, batch)["like"].shape == (0,)


def test_wrong_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no model 'rankr'.*'ranker'"):
        bridge_zoo.build("rankr", folder=tmp_path)
    with pytest.raises(OptionError, match=r"no size 'reel'.*'real'"):
        bridge_zoo.build("ranker", size="reel", folder=tmp_path)
    with pytest.raises(OptionError, match=r"no format 'onx'.*'onnx'"):
        bridge_zoo.build("ranker", formats=["onnx", "onx"], folder=tmp_path)
    with pytest.raises(OptionError, match="got -1"):
        bridge_zoo.inputs(RANKER, -1)
    assert list(tmp_path.iterdir()) == []


def test_a_build_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("tensorflow")
    (tmp_path / "ranker.onnx").write_bytes(b"old")
    (tmp_path / "ranker_saved_model").mkdir()
    (tmp_path / "ranker_saved_model" / "old").touch()
    paths = bridge_zoo.build("ranker", formats=["saved_model", "onnx"], folder=tmp_path)
    assert list(paths) == ["saved_model", "onnx"]
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())
    assert paths["onnx"].stat().st_size > 500_000
    assert (paths["saved_model"] / "saved_model.pb").is_file()
    assert not (paths["saved_model"] / "old").exists()


def test_onnx_bytes_are_the_same_each_time(tmp_path: Path, built: Callable[[str], Path]) -> None:
    first = built("onnx").read_bytes()
    again = bridge_zoo.build("ranker", formats=["onnx"], folder=tmp_path)["onnx"]
    assert again.read_bytes() == first


def test_the_command_writes_and_names_each_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    target = tmp_path / "new" / "folder"
    assert main(["ranker", "--format", "onnx", "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"onnx\t{target / 'ranker.onnx'}\n"
    assert (target / "ranker.onnx").is_file()


def test_a_format_loads_its_own_runtime_and_no_other(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code = (
        "import sys, bridge_zoo\n"
        "heavy = {'onnx', 'torch', 'tensorflow', 'onnxruntime', 'openvino'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        f"bridge_zoo.build('ranker', formats=['onnx'], folder={str(tmp_path)!r})\n"
        "assert heavy & set(sys.modules) == {'onnx'}, heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
