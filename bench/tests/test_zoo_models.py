"""The published models: layers, sizes, agreement of all formats, the log, and training."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
import bridge_zoo
from bridge_bench.samples import Samples
from bridge_zoo import layers, training, verification
from bridge_zoo.clicks import RATES, ClickLog, auc
from bridge_zoo.model import DenseFeature, IdFeature, Model

PUBLISHED = [name for name in bridge_zoo.MODELS if name != "ranker"]
# Together with the ranker they have every kind of layer.
IN_EVERY_FORMAT = ("fm", "dlrm", "dual_tower")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(training.PLANS["small"], steps=3, batch=64)
    monkeypatch.setitem(training.PLANS, "small", plan)


def value_of(*made: layers.Layer, **inputs: Any) -> np.ndarray:
    """What the last layer makes of inputs of any width, by the oracle."""
    arrays = {name: np.array(rows, np.float32) for name, rows in inputs.items()}
    dense = tuple(DenseFeature(name, rows.shape[1]) for name, rows in arrays.items())
    columns = []
    width = Model("all", "small", (), dense, made, ()).widths()[made[-1].name]
    for column in range(width):  # a model's outputs have width 1: each column is one
        pick = layers.Dense(f"pick.{column}", (made[-1].name,), 1)
        model = Model("one", "small", (), dense, (*made, pick), (("score", pick.name),))
        kernel = np.zeros((width, 1), np.float32)
        kernel[column] = 1
        weights = {f"{pick.name}.kernel": kernel, f"{pick.name}.bias": np.zeros(1, np.float32)}
        columns.append(bridge_zoo.forward(model, weights, arrays)["score"])
    return np.stack(columns, axis=1)


def test_layers_do_what_they_say() -> None:
    one, two, three = [[1.0, 2.0]], [[3.0, -1.0]], [[0.5, 4.0]]
    names = ("a", "b", "c")
    inputs = dict(zip(names, (one, two, three), strict=True))
    dots = value_of(layers.Dots("dots", names), **inputs)
    np.testing.assert_allclose(dots, [[1 * 3 - 2, 0.5 + 8, 1.5 - 4]])  # ab, ac, bc
    pair_sum = value_of(layers.PairSum("sum", names), **inputs)
    np.testing.assert_allclose(pair_sum, [[3 + 0.5 + 1.5, -2 + 8 - 4]])
    mixed = value_of(layers.Mix("mix", ("gate", *names)), gate=[[2.0, 0.0, -2.0]], **inputs)
    np.testing.assert_allclose(mixed, [[2 - 1, 4 - 8]])
    np.testing.assert_allclose(value_of(layers.Product("p", ("a", "b")), a=one, b=two), [[3, -2]])
    np.testing.assert_allclose(value_of(layers.RowSum("r", ("a",)), a=one), [[3]])
    normal = value_of(layers.Normalise("n", ("a",)), a=[[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normal, [[0.6, 0.8], [0, 0]])


@pytest.mark.parametrize(("pooling", "wanted"), [("sum", [8, 0, 7]), ("mean", [4, 0, 7])])
def test_a_bag_counts_neither_padding_nor_its_row(pooling: Any, wanted: list[float]) -> None:
    feature = IdFeature("ids", 4, "user", length=3)
    bag = layers.Bag("tables.ids", ("ids",), 1, pooling)
    model = Model("bag", "small", (feature,), (), (bag,), (("score", bag.name),))
    table = np.array([[100.0], [1.0], [3.0], [7.0]], np.float32)
    ids = np.array([[1, 3, 0], [0, 0, 0], [0, 3, 0]])
    scores = bridge_zoo.forward(model, {"tables.ids": table}, {"ids": ids})
    assert scores["score"].tolist() == wanted


def test_a_model_that_does_not_fit_together_is_refused() -> None:
    dense = (DenseFeature("a", 2), DenseFeature("b", 3))
    one_id, many_ids = IdFeature("id", 4), IdFeature("ids", 4, length=2)

    def refused(*made: layers.Layer, outputs: Any = (), ids: Any = ()) -> str:
        with pytest.raises(ValueError, match="'") as caught:
            Model("wrong", "small", ids, dense, made, outputs)
        return str(caught.value)

    assert "widths [2, 3]" in refused(layers.Product("p", ("a", "b")))
    assert "'c', which nobody made" in refused(layers.RowSum("r", ("c",)))
    assert "two values of the name 'a'" in refused(layers.RowSum("a", ("b",)))
    assert "2 weights for 1" in refused(layers.Mix("m", ("a", "b")))
    assert "no value of width 1" in refused(outputs=(("score", "a"),))
    assert "does not fit its feature" in refused(layers.Embed("t", ("ids",), 2), ids=(many_ids,))
    assert "does not fit" in refused(layers.Bag("t", ("id",), 2, "sum"), ids=(one_id,))


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_sizes_are_real(name: str) -> None:
    model = bridge_zoo.model_of(bridge_zoo.describe(name, "real"))
    shapes = bridge_zoo.weight_shapes(model)
    assert len(model.id_features) >= 40
    assert sum(4 * math.prod(shapes[table]) for table in model.tables()) >= 50e6
    assert sum(4 * math.prod(shape) for shape in shapes.values()) <= 80e6
    poolings = {layer.pooling for layer in model.layers if isinstance(layer, layers.Bag)}
    assert poolings == {"sum", "mean"}
    for feature in (*model.id_features, *model.dense_features):
        assert feature.name.startswith(f"{feature.side}_")
    assert {feature.side for feature in model.id_features} == {"user", "item"}


def test_half_of_the_features_are_the_users() -> None:
    for size in bridge_zoo.SIZES:
        model = bridge_zoo.model_of(bridge_zoo.describe("mmoe", size))
        users = [one for one in model.id_features if one.side == "user"]
        assert 2 * len(users) == len(model.id_features)


@pytest.mark.parametrize(
    ("name", "weight", "shape"),
    [
        ("deepfm", "last.0.kernel", (32 + 16 + 1, 128)),
        ("wdl", "deep.0.kernel", (34 * 64 + 8 * 128 + 13, 1024)),
        ("dlrm", "top.0.kernel", (16 + 43 * 42 // 2, 512)),
        ("dual_tower", "towers.user.0.kernel", (21 * 16 + 8, 256)),
        ("dual_tower", "vectors.item.kernel", (64, 32)),
        ("cold_dnn", "deep.0.kernel", (64 + 8 + 64 + 5, 128)),
        ("esmm", "towers.conversion.0.kernel", (160, 256)),
        ("simple_multitask", "towers.buy.1.kernel", (256, 196)),
        ("mmoe", "experts.3.3.kernel", (128, 64)),
        ("mmoe", "gates.buy.kernel", (42 * 16 + 13, 4)),
        ("ple", "gates.0.shared.kernel", (64, 5)),
        ("ple", "gates.2.buy.kernel", (64, 3)),
    ],
)
def test_widths_are_the_published_ones(name: str, weight: str, shape: tuple[int, int]) -> None:
    assert bridge_zoo.weight_shapes(bridge_zoo.describe(name, "real"))[weight] == shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_torch_and_onnx_agree_with_numpy(name: str) -> None:
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from bridge_zoo.onnx_file import onnx_model
    from bridge_zoo.torch_module import torch_module

    description = bridge_zoo.describe(name)
    weights = bridge_zoo.seeded_weights(description, seed=1)
    module = torch_module(description, weights)
    contents = onnx_model(description, weights).SerializeToString()
    session = onnxruntime.InferenceSession(contents)
    tasks = [task for task, _ in bridge_zoo.model_of(description).outputs]
    for rows in (1, 33):
        batch = bridge_zoo.inputs(description, rows, seed=rows)
        wanted = bridge_zoo.forward(description, weights, batch)
        with torch.inference_mode():
            scores = module(**{one: torch.from_numpy(value) for one, value in batch.items()})
        found = dict(zip(tasks, session.run(tasks, batch), strict=True))
        assert list(scores) == list(wanted) == tasks
        for task in tasks:
            np.testing.assert_allclose(scores[task].numpy(), wanted[task], rtol=0, atol=1e-5)
            np.testing.assert_allclose(found[task], wanted[task], rtol=0, atol=1e-5)
    spread = bridge_zoo.forward(description, weights, bridge_zoo.inputs(description, 256))
    assert all(score.std() > 0.01 for score in spread.values())


@pytest.mark.parametrize("name", IN_EVERY_FORMAT)
def test_every_format_agrees_with_numpy(name: str, tmp_path: Path) -> None:
    for module in ("onnx", "onnxruntime", "openvino", "torch", "tensorflow"):
        pytest.importorskip(module)
    description = bridge_zoo.describe(name)
    weights = bridge_zoo.seeded_weights(description)
    found = verification.differences(description, weights, tmp_path, rows=17)
    assert set(found) == {
        (item, backend) for item, names in verification.BACKENDS.items() for backend in names
    }
    assert all(one <= 1e-5 for one in found.values()), found
    # Formats that hold tables say so, of lists of ids as well.
    features = bridge_zoo.model_of(description).id_features
    wanted = {one.name: one.vocabulary for one in features}
    assert bridge.inspect(tmp_path / f"{name}.onnx").facts.vocabularies == wanted
    assert bridge.inspect(tmp_path / f"{name}_saved_model").facts.vocabularies == wanted


def test_lists_are_filled_up_with_padding_and_hold_none_before() -> None:
    batch = bridge_zoo.inputs(bridge_zoo.describe("fm"), 500)
    ids = batch["user_list_03"]
    assert ids.shape == (500, 6)
    counts = (ids != layers.PAD_ID).sum(axis=1)
    assert set(counts) == set(range(7))
    assert ((ids != layers.PAD_ID) == (np.arange(6) < counts[:, None])).all()


def test_auc_counts_ties_half() -> None:
    labels = np.array([True, False, True, False])
    assert auc(np.array([0.9, 0.1, 0.5, 0.5]), labels) == (2 + 1 + 0.5) / 4
    assert auc(np.zeros(4), labels) == 0.5


def test_the_log_has_its_rates_and_something_to_learn() -> None:
    log = ClickLog(bridge_zoo.describe("mmoe"))
    batch, labels = log.rows(20_000, 5)
    assert list(labels) == ["click", "buy"]
    for task, truth in labels.items():
        assert abs(truth.mean() - RATES[task]) < 0.02
    assert not (labels["buy"] & ~labels["click"]).any()
    assert all(0.8 < best < 0.97 for best in log.ceiling(batch, labels).values())
    again, same = log.rows(20_000, 5)
    assert all(np.array_equal(again[name], value) for name, value in batch.items())
    assert all(np.array_equal(same[task], truth) for task, truth in labels.items())
    assert not np.array_equal(log.rows(20_000, 6)[1]["click"], labels["click"])


def test_what_a_user_likes_depends_on_the_item() -> None:
    """The log is no sum of a user's and an item's part: swapping items changes the order."""
    log = ClickLog(bridge_zoo.describe("dual_tower"))
    batch, _ = log.rows(2, 0)
    pairs = {
        (user, item): {
            name: value[[user if name.startswith("user_") else item]]
            for name, value in batch.items()
        }
        for user in (0, 1)
        for item in (0, 1)
    }
    logits = {pair: float(log._logits(rows)["click"][0]) for pair, rows in pairs.items()}
    mixed = logits[0, 0] + logits[1, 1] - logits[0, 1] - logits[1, 0]
    assert abs(mixed) > 0.1


def test_trained_weights_are_good_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    description = bridge_zoo.describe("esmm")
    found = bridge_zoo.trained(description)
    assert set(found.aucs) == {"click", "buy"}
    for task, value in found.aucs.items():
        assert 0.70 <= value < found.ceilings[task]
    shapes = {name: value.shape for name, value in found.weights.items()}
    assert shapes == bridge_zoo.weight_shapes(description)
    assert list(shapes) == list(bridge_zoo.weight_shapes(description))
    # The figures are those of the weights, as the oracle sees them.
    rows, labels = bridge_zoo.held_out(description)
    scores = bridge_zoo.forward(description, found.weights, rows)
    for task, truth in labels.items():
        assert abs(auc(scores[task], truth) - found.aucs[task]) < 1e-4

    def untrained(*_: object) -> Any:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(training, "_train", untrained)
    again = bridge_zoo.trained_weights("esmm", "small")
    assert all(again[name].tobytes() == value.tobytes() for name, value in found.weights.items())
    with pytest.raises(AssertionError, match="trained again"):
        bridge_zoo.trained_weights("esmm", "small", seed=1)


@pytest.mark.usefixtures("short")
def test_training_is_the_same_for_a_seed_and_leaves_torch_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    description = bridge_zoo.describe("cold_dnn")
    one, two, other = (training._train(description, seed).weights for seed in (0, 0, 1))
    assert all(two[name].tobytes() == value.tobytes() for name, value in one.items())
    assert any(not np.array_equal(other[name], value) for name, value in one.items())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_rows_are_what_select_reads(tmp_path: Path) -> None:
    description = bridge_zoo.describe("mmoe")
    samples_path, labels_path = bridge_zoo.write_held_out(description, tmp_path)
    stated = verification.signature(description)
    samples = Samples.read(samples_path, stated)
    assert samples.rows(stated) == training.HELD_OUT_ROWS["small"]
    with np.load(labels_path, allow_pickle=False) as labels:
        assert set(labels.files) == {"click", "buy"}
        assert set(np.unique(labels["buy"])) == {0, 1}
        assert labels["buy"].shape == (training.HELD_OUT_ROWS["small"],)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_difference(
    bad: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    description = bridge_zoo.describe("mmoe")
    weights = bridge_zoo.seeded_weights(description)

    def wrong(*given: Any) -> Any:
        scores = bridge_zoo.forward(*given)
        scores["buy"][-1] = bad
        return scores

    monkeypatch.setattr(verification, "BACKENDS", {"onnx": ("onnxruntime",)})
    monkeypatch.setattr(verification, "forward", wrong)
    found = verification.differences(description, weights, tmp_path, ("onnx",), rows=9)
    assert not found["onnx", "onnxruntime"] <= verification.LARGEST_DIFFERENCE


@pytest.fixture
def one_arm(short: None, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """What ``differences`` is to find in a model of one format, to be changed by the test."""
    pytest.importorskip("torch")
    found = {("onnx", "onnxruntime"): 2e-7}
    monkeypatch.setattr(verification, "FORMATS", ("onnx",))
    monkeypatch.setattr(verification, "BACKENDS", {"onnx": ("onnxruntime",)})
    monkeypatch.setattr(verification, "HELD_OUT_ROWS", {"small": 2_500})
    monkeypatch.setattr(verification, "differences", lambda *_: found)
    return found


def test_verify_fails_where_scores_differ(
    one_arm: dict[tuple[str, str], float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "LEAST_AUC", 0.0)
    assert verification.main(["fm", "--size", "small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| fm | small | 0.084 | 14 | click 0.")
    assert lines[2].endswith("| 2.0e-07 |")
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "numpy" in lines[4]
    for difference in (1.1e-5, math.nan):
        one_arm["onnx", "onnxruntime"] = difference
        assert verification.main(["fm", "--size", "small"]) == 1


def test_verify_fails_below_the_least_auc_and_writes_json(
    one_arm: dict[tuple[str, str], float], capsys: pytest.CaptureFixture[str]
) -> None:
    one_arm["onnx", "onnxruntime"] = math.inf
    # three steps teach nothing
    assert verification.main(["fm", "--size", "small", "--json"]) == 1
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    (record,) = document["models"]
    assert record["differences"] == {"onnx": {"onnxruntime": None}}
    assert record["is_sound"] is False
    assert record["fresh_aucs"]["click"] != record["aucs"]["click"]
    assert abs(record["fresh_ceilings"]["click"] - record["ceilings"]["click"]) < 0.05
    assert "onnxruntime" in document["versions"]


def test_verify_renews_its_table_in_a_page(
    one_arm: dict[tuple[str, str], float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit):
        verification.main(["fm", "--into", str(page)])  # not there: nothing is trained for it
    page.write_text("before\n<!-- equality -->\nold\n<!-- end equality -->\nafter\n")
    verification.main(["fm", "--size", "small", "--into", str(page)])
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("before\n<!-- equality -->\n| model |")
    assert written.endswith(".\n<!-- end equality -->\nafter\n")
    with pytest.raises(SystemExit):
        verification.main(["mmmoe"])
    assert "Did you mean" in capsys.readouterr().err
