"""DeepRec's models without DeepRec: graphs with its operators, written as messages, and checkpoints
with its names, written by stock TensorFlow; what is converted from them against numpy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import (
    ConversionError,
    InvalidModel,
    ModelNotFound,
    PredictorClosed,
    UnsupportedModel,
    UntrustedModel,
)
from bridge.loading import open_model
from bridge.routes import find_routes
from bridge_bench.plan import plan

pytest.importorskip("tensorflow")
pytest.importorskip("pandas")

HUGE = (1 << 62) + 1  # does not fit in 32 bits, nor in a float64
DIM = 4


@dataclass
class Example:
    """A DeepRec model on disk, and what it computes."""

    folder: Path
    tables: dict[str, dict[int, Any]]
    kernel: Any
    bias: Any

    def rows(self, table: str, ids: Any) -> Any:
        held = self.tables[table]
        absent = np.full(DIM, 0.5, np.float32) if table == "item" else np.zeros(DIM, np.float32)
        return np.array([held.get(int(one), absent) for one in ids.ravel()], np.float32).reshape(
            *ids.shape, DIM
        )

    def score(self, user: Any, items: Any, price: Any) -> Any:
        pooled = self.rows("item", items).mean(axis=1)
        joined = np.concatenate([self.rows("user", user), pooled, price], axis=1)
        return 1 / (1 + np.exp(-(joined @ self.kernel + self.bias)))


def inputs(count: int = 5) -> dict[str, Any]:
    random = np.random.default_rng(3)
    user = random.choice([1, 7, HUGE, 999], count).astype(np.int64)
    items = random.choice([3, 4, 5, 12, 500], (count, 3)).astype(np.int32)
    return {"user": user, "items": items, "price": random.random((count, 1), np.float32)}


def save(prefix: Path, tensors: dict[str, Any]) -> None:
    import tensorflow as tf

    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )


def embedding(name: str, rows: dict[int, Any], dtype: Any) -> dict[str, Any]:
    keys = np.array(list(rows), dtype)
    values = np.array(list(rows.values()), np.float32).reshape(len(rows), DIM)
    none = np.zeros(0, np.int64)
    return {
        f"{name}-keys": keys,
        f"{name}-values": values,
        f"{name}-versions": none,
        f"{name}-freqs": none,
    }


def graph_def() -> tuple[Any, list[Any], Any]:
    """A two-table ranker with stand-ins for what is DeepRec's: definition, inputs, output."""
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        user = v1.placeholder(tf.int64, [None], "user")
        items = v1.placeholder(tf.int32, [None, 3], "items")
        price = v1.placeholder(tf.float32, [None, 1], "price")
        unique, inverse = tf.unique(tf.reshape(items, [-1], "flat"), name="unique")
        # In two parts, put together again: the pattern of a partitioned variable.
        part = tf.cast(tf.math.floormod(unique, 2), tf.int32, name="part")
        tf.dynamic_partition(unique, part, 2, name="by_id")
        places = tf.dynamic_partition(tf.range(tf.size(unique)), part, 2, name="by_place")
        parts = [v1.placeholder(tf.float32, [None, DIM], f"item_rows_{at}") for at in range(2)]
        stitched = tf.dynamic_stitch(places, parts, name="stitched")
        segments = tf.repeat(tf.range(tf.shape(items)[0]), 3)
        pooled = tf.raw_ops.SparseSegmentMean(data=stitched, indices=inverse, segment_ids=segments)
        user_rows = v1.placeholder(tf.float32, [None, DIM], "user_rows")
        joined = tf.concat([user_rows, pooled, price], 1)
        kernel = tf.concat(
            [
                v1.get_variable(f"dense/kernel/part_{at}", [size, 2], use_resource=True)
                for at, size in enumerate((5, 4))
            ],
            0,
        )
        bias = v1.get_variable("dense/bias", [2], use_resource=False)
        score = tf.nn.sigmoid(joined @ kernel + bias, name="score")
        infos = [v1.saved_model.build_tensor_info(one) for one in (user, items, price, score)]
    made = graph.as_graph_def()
    for name, variable, ids, key in (
        ("user_rows", "user", "user", tf.int64),
        ("item_rows_0", "item/part_0", "by_id", tf.int32),
        ("item_rows_1", "item/part_1", "by_id:1", tf.int32),
    ):
        lookup(made, name, variable, ids, key)
    return made, infos[:3], infos[3]


def lookup(made: Any, name: str, variable: str, ids: str, key: Any) -> None:
    """Puts a lookup of DeepRec's in the place of a placeholder."""
    import tensorflow as tf

    node = next(one for one in made.node if one.name == name)
    node.Clear()
    node.name, node.op = name, "KvResourceGather"
    handle = variable if variable != "user" else "user_handle"
    node.input.extend([handle, ids, f"{name}/default"])
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["Tkeys"].type = key.as_datatype_enum
    default = made.node.add(name=f"{name}/default", op="Const")
    default.attr["dtype"].type = tf.float32.as_datatype_enum
    default.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
    made_handle = made.node.add(name=handle, op="KvVarHandleOp")
    made_handle.attr["shared_name"].s = variable.encode()
    made_handle.attr["dtype"].type = tf.float32.as_datatype_enum
    made_handle.attr["Tkeys"].type = key.as_datatype_enum
    made_handle.attr["shape"].shape.dim.add(size=DIM)
    if variable.startswith("item"):
        value = made.node.add(name=f"{name}/initial", op="Const")
        value.attr["dtype"].type = tf.float32.as_datatype_enum
        value.attr["value"].tensor.CopyFrom(
            tf.make_tensor_proto(np.full((2, DIM), 0.5, np.float32))
        )
        made.node.add(
            name=f"{name}/initializer",
            op="InitializeKvVariableOp",
            input=[handle, handle, f"{name}/initial", f"{name}/default"],
        )


def save_model(folder: Path, definition: Any, given: list[Any], output: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = message.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.meta_info_def.tensorflow_version = "1.15.5"
    meta.graph_def.CopyFrom(definition)
    signature = meta.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    for info in given:
        signature.inputs[info.name.partition(":")[0]].CopyFrom(info)
    signature.outputs["score"].CopyFrom(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("deeprec") / "ranker"
    random = np.random.default_rng(0)
    kernel = random.standard_normal((9, 2)).astype(np.float32)
    bias = random.standard_normal(2).astype(np.float32)
    tables: dict[str, dict[int, Any]] = {
        "user": {one: random.standard_normal(DIM).astype(np.float32) for one in (7, HUGE, 1)},
        "item": {one: random.standard_normal(DIM).astype(np.float32) for one in (4, 12, 3, 5)},
    }
    save_model(folder, *graph_def())
    parts = [{k: v for k, v in tables["item"].items() if k % 2 == at} for at in range(2)]
    tensors = {
        **embedding("user", tables["user"], np.int64),
        **embedding("item/part_0", parts[0], np.int32),
        **embedding("item/part_1", parts[1], np.int32),
        **embedding("user/Adagrad", tables["user"], np.int64),
        "dense/kernel": kernel,
        "dense/bias": bias,
        "global_step": np.int64(100),
    }
    save(folder / "variables" / "variables", tensors)
    return Example(folder, tables, kernel, bias)


@pytest.fixture(scope="module")
def converted(example: Example) -> dict[str, Path]:
    """The model with tables in each format, made in this process."""
    from bridge_deeprec.adapter import DeeprecToSavedModel, TablesToOnnx

    home = example.folder.parent
    saved, onnx = home / "saved", home / "onnx"
    facts = DeeprecToSavedModel().convert(open_model(example.folder), saved)
    assert facts["tables"] == {"item": 4, "user": 3}
    assert facts["random_default_rows"] == ["user"]
    assert facts["compared"]["calls"] == 8
    assert 0 <= facts["compared"]["max_abs"] < 1e-6
    TablesToOnnx().convert(open_model(saved), onnx)
    return {"saved_model": saved, "onnx": onnx}


def test_inspection_says_which_mode_and_why(example: Example) -> None:
    found = bridge.inspect(example.folder)
    assert (found.format, found.problem) == ("deeprec", None)
    told = " ".join(found.facts.notes)
    assert "Operators of DeepRec: InitializeKvVariableOp, KvResourceGather, KvVarHandleOp" in told
    assert "Mode: checkpoint" in told
    assert "2 lookups in item, user" in told
    takers = {one.backend for one in found.candidates if one.is_capable}
    assert takers == {"deeprec"}
    routes = find_routes(open_model(example.folder))
    assert {route.target for route in routes} == {"saved_model_with_tables", "onnx_with_tables"}


def test_a_stock_graph_is_a_plain_saved_model(converted: dict[str, Path], tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((converted["saved_model"] / "model/saved_model.pb").read_bytes())
    message.meta_graphs[0].meta_info_def.tensorflow_version = "1.15.5"
    folder = tmp_path / "plain"
    shutil.copytree(converted["saved_model"] / "model", folder)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    found = bridge.inspect(folder)
    assert (found.format, found.problem) == ("saved_model", None)
    assert "All its operators are TensorFlow's own" in " ".join(found.facts.notes)
    assert next(one for one in found.candidates if one.is_native).backend == "tensorflow"


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("saved_model", "tensorflow"), ("onnx", "onnxruntime"), ("onnx", "openvino")],
)
def test_answers_are_those_of_numpy(
    example: Example, converted: dict[str, Path], kind: str, backend: str
) -> None:
    if not bridge.backends()[backend].probe().installed:
        pytest.skip(f"{backend} is not installed")
    with bridge.load(converted[kind], backend=backend) as predictor:
        assert str(predictor.signature) == str(open_model(converted[kind]).facts.signatures[""])
        assert predictor.signature.input("user").dtype is bridge.DType.INT64
        assert predictor.signature.input("items").dtype is bridge.DType.INT32
        for count in (1, 5, 64):
            given = inputs(count)
            wanted = example.score(**given)
            np.testing.assert_allclose(predictor.predict(given)["score"], wanted, 1e-5, 1e-6)
        assert predictor.info.format == f"{kind}_with_tables"
        assert predictor.info.details["atomic_delta_update"] is True


def test_a_delta_is_taken_over_and_dense_variables_are_not(
    example: Example, converted: dict[str, Path], tmp_path: Path
) -> None:
    newer = {HUGE: np.ones(DIM, np.float32), 999: np.full(DIM, 2, np.float32)}
    delta = tmp_path / ".incremental_checkpoint" / "incremental_model.ckpt-101"
    save(
        delta,
        {
            "user-sparse_incr_keys": np.array(list(newer), np.int64),
            "user-sparse_incr_values": np.stack(list(newer.values())),
            "dense/bias": np.zeros(2, np.float32),
        },
    )
    after = Example(
        example.folder,
        {**example.tables, "user": {**example.tables["user"], **newer}},
        example.kernel,
        example.bias,
    )
    given = inputs()
    with bridge.load(converted["onnx"]) as predictor:
        predictor.update(delta)
        np.testing.assert_allclose(
            predictor.predict(given)["score"], after.score(**given), 1e-5, 1e-6
        )
        with pytest.raises(ModelNotFound):
            predictor.update(tmp_path / "nothing")
        np.testing.assert_allclose(
            predictor.predict(given)["score"], after.score(**given), 1e-5, 1e-6
        )
    with pytest.raises(PredictorClosed):
        predictor.update(delta)
    with (
        bridge.load(converted["onnx"] / "model.onnx") as dense,
        pytest.raises(UnsupportedModel, match="cannot be renewed"),
    ):
        dense.update(delta)


def test_the_deltas_of_a_folder_are_taken_over_in_order(
    example: Example, converted: dict[str, Path], tmp_path: Path
) -> None:
    """Each may hold only what changed since the one before: the newest alone is not enough."""
    ones, twos = np.ones(DIM, np.float32), np.full(DIM, 2, np.float32)
    changes = {101: {7: ones, 1: ones}, 102: {1: twos}}
    for number, rows in changes.items():
        save(
            tmp_path / f"incremental_model.ckpt-{number}",
            {
                "user-sparse_incr_keys": np.array(list(rows), np.int64),
                "user-sparse_incr_values": np.stack(list(rows.values())),
            },
        )
    user = {**example.tables["user"], 7: ones, 1: twos}
    after = Example(example.folder, {**example.tables, "user": user}, example.kernel, example.bias)
    given = inputs()
    with bridge.load(converted["onnx"]) as predictor:
        predictor.update(tmp_path)
        np.testing.assert_allclose(
            predictor.predict(given)["score"], after.score(**given), 1e-5, 1e-6
        )
        assert predictor.info.details["tables_version"] == 102
        with pytest.raises(InvalidModel, match="wanted one above 102"):
            predictor.update(tmp_path)


@pytest.mark.parametrize("deltas", [True, False])
def test_a_conversion_takes_the_newest_values_of_all_variables(
    example: Example, tmp_path: Path, deltas: bool
) -> None:
    from bridge_deeprec.adapter import DeeprecToSavedModel

    folder, home = tmp_path / "ranker", tmp_path / "ranker/variables/.incremental_checkpoint"
    shutil.copytree(example.folder, folder)
    ones, bias = np.ones(DIM, np.float32), np.array([3, -3], np.float32)
    first = {"user-sparse_incr_keys": np.array([7]), "user-sparse_incr_values": ones[None]}
    save(home / "incremental_model.ckpt-1", {**first, "dense/bias": np.zeros(2, np.float32)})
    kernel = example.kernel.copy()
    kernel[[0, 8]] = 5  # a row in each of its parts
    save(
        home / "incremental_model.ckpt-2",
        {
            "dense/bias": bias,
            "dense/kernel-sparse_incr_keys": np.array([8, 0], np.int32),
            "dense/kernel-sparse_incr_values": kernel[[8, 0]],
        },
    )
    wanted = example
    if deltas:
        tables = {**example.tables, "user": {**example.tables["user"], 7: ones}}
        wanted = Example(folder, tables, kernel, bias)
    facts = DeeprecToSavedModel().convert(
        open_model(folder), tmp_path / "made", options={"deltas": deltas}
    )
    newest = 2 if deltas else None
    assert facts["versions"] == {"full": None, "newest": newest, "dense": newest}
    given = inputs()
    with bridge.load(tmp_path / "made") as predictor:
        np.testing.assert_allclose(
            predictor.predict(given)["score"], wanted.score(**given), 1e-5, 1e-6
        )
        assert predictor.info.details["dense_version"] == newest


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"dense/kernel": ([9], (1, 2))}, "do not fit"),
        ({"dense/kernel": ([-1], (1, 2))}, "do not fit"),
        ({"dense/kernel": ([0], (1, 3))}, "do not fit"),
        (
            {"dense/kernel/part_0": ([0], (1, 2)), "dense/kernel/part_1": ([0], (1, 2))},
            "in parts, of which it is not known where they begin",
        ),
    ],
    ids=["beyond", "negative", "wide", "parts"],
)
def test_rows_of_dense_variables_that_do_not_fit_are_refused(
    example: Example, tmp_path: Path, tensors: dict[str, Any], text: str
) -> None:
    from bridge_deeprec.checkpoint import Checkpoint
    from bridge_deeprec.dense import DenseValues

    rows = {}
    for name, (places, shape) in tensors.items():
        rows[f"{name}-sparse_incr_keys"] = np.array(places, np.int32)
        rows[f"{name}-sparse_incr_values"] = np.zeros(shape, np.float32)
    save(tmp_path / "incremental_model.ckpt-1", rows)
    full = Checkpoint.open(example.folder)
    values = DenseValues(full, [Checkpoint.open(tmp_path)])
    with pytest.raises((InvalidModel, UnsupportedModel), match=text):
        values.read("dense/kernel")
    np.testing.assert_array_equal(values.read("dense/bias"), example.bias)
    assert "dense/bias" in values
    assert "dense/other" not in values


def test_a_selection_takes_the_folder_on_every_backend_of_the_dense_model(
    converted: dict[str, Path],
) -> None:
    arms = plan([open_model(converted["onnx"])])
    takers = {arm.backend for arm in arms if arm.rule is None}
    assert "onnxruntime" in takers
    assert next(arm for arm in arms if arm.is_default).backend == "onnxruntime"


Change = Callable[[Any], None]


def changed(example: Example, folder: Path, change: Change) -> Path:
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((example.folder / "saved_model.pb").read_bytes())
    change(message.meta_graphs[0].graph_def)
    target = folder / "changed"
    shutil.copytree(example.folder / "variables", target / "variables")
    (target / "saved_model.pb").write_bytes(message.SerializeToString())
    return target


def named(definition: Any, name: str) -> Any:
    return next(one for one in definition.node if one.name == name)


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_the_lookup_of_feature_columns_is_cut_and_computes_what_it_did(
    tmp_path: Path, combiner: str
) -> None:
    """TensorFlow builds and runs the graph; only then are its variable and gather DeepRec's."""
    import tensorflow as tf

    from bridge_deeprec.adapter import DeeprecToSavedModel, TablesToOnnx

    v1 = tf.compat.v1
    table = np.random.default_rng(1).standard_normal((6, DIM)).astype(np.float32)
    given = np.array([[2, 5, 2, -1], [-1, -1, -1, -1], [4, 1, -1, 5]], np.int64)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        ids = v1.placeholder(tf.int64, [None, 4], "ids")
        where = tf.where(tf.not_equal(ids, -1))
        sparse = tf.SparseTensor(where, tf.gather_nd(ids, where), tf.shape(ids, tf.int64))
        variable = v1.get_variable("emb", initializer=table, use_resource=True)
        pooled = v1.nn.safe_embedding_lookup_sparse([variable], sparse, combiner=combiner)
        score = tf.reduce_sum(pooled, 1, name="score")
        session.run(v1.global_variables_initializer())
        wanted = session.run(score, {ids: given})
        infos = [v1.saved_model.build_tensor_info(one) for one in (ids, score)]
        definition = graph.as_graph_def()
    needed = tf.compat.v1.graph_util.extract_sub_graph(definition, ["score"])
    gather = next(one for one in needed.node if one.op == "ResourceGather")
    gather.op = "KvResourceGather"
    gather.input.append(f"{gather.name}/default")
    for name in ("Tindices", "batch_dims", "_class"):
        gather.attr.pop(name, None)
    default = needed.node.add(name=f"{gather.name}/default", op="Const")
    default.attr["dtype"].type = tf.float32.as_datatype_enum
    default.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0.0))
    handle = named(needed, gather.input[0])
    handle.op = "KvVarHandleOp"
    handle.attr["shape"].shape.Clear()
    handle.attr["shape"].shape.dim.add(size=DIM)
    save_model(tmp_path / "model", needed, infos[:1], infos[1])
    rows = dict(enumerate(table))
    save(tmp_path / "model/variables/variables", embedding("emb", rows, np.int64))
    DeeprecToSavedModel().convert(open_model(tmp_path / "model"), tmp_path / "made")
    # Computed once: the order of ids is another in other runtimes' own forms of these.
    inside = open_model(tmp_path / "made" / "model").facts.operators
    assert not {"Unique", "SparseFillEmptyRows"} & set(inside)
    folders = ["made"]
    if combiner == "mean":
        facts = TablesToOnnx().convert(open_model(tmp_path / "made"), tmp_path / "onnx")
        assert facts["compared"]["calls"] == 8
        folders.append("onnx")
    for folder in folders:
        with bridge.load(tmp_path / folder) as predictor:
            assert predictor.signature.input_names == ("ids",)
            found = predictor.predict({"ids": given})["score"]
            np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)


def test_an_unknown_operator_is_named(example: Example, tmp_path: Path) -> None:
    def change(definition: Any) -> None:
        named(definition, "score").op = "FrobnicateV7"

    folder = changed(example, tmp_path, change)
    found = bridge.inspect(folder)
    assert "Operators of neither TensorFlow nor DeepRec: FrobnicateV7." in found.facts.notes
    assert "node 'score' (operator FrobnicateV7)" in " ".join(found.facts.notes)
    assert found.problem is not None
    assert "FrobnicateV7" in found.problem.message


def test_ids_that_are_not_computed_in_front_are_refused_by_node(
    example: Example, tmp_path: Path
) -> None:
    from bridge_deeprec.adapter import DeeprecToSavedModel

    def change(definition: Any) -> None:
        named(definition, "flat").op = "RandomShuffle"

    folder = changed(example, tmp_path, change)
    assert "Mode: processor" in " ".join(open_model(folder).facts.notes)
    with pytest.raises(UnsupportedModel, match=r"node 'flat' \(operator RandomShuffle\)"):
        DeeprecToSavedModel().convert(open_model(folder), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("how", ["batch_dims", "bfloat16"])
def test_steps_with_a_meaning_that_is_not_done_in_front_are_refused(
    example: Example, tmp_path: Path, how: str
) -> None:
    import tensorflow as tf

    from bridge_deeprec.adapter import DeeprecToSavedModel

    def change(definition: Any) -> None:
        node = named(definition, "unique")
        made = definition.node.add(name="odd")
        if how == "batch_dims":
            made.op = "GatherV2"
            made.input.extend(["items", "user", "odd/axis"])
            for name, kind in (("Tparams", tf.int32), ("Tindices", tf.int64), ("Taxis", tf.int32)):
                made.attr[name].type = kind.as_datatype_enum
            made.attr["batch_dims"].i = 1
            axis = definition.node.add(name="odd/axis", op="Const")
            axis.attr["dtype"].type = tf.int32.as_datatype_enum
            axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, tf.int32))
            node.input[0] = "odd"
        else:
            back = definition.node.add(name="back", op="Cast", input=["odd"])
            made.op = "Cast"
            made.input.append("flat")
            for one, source, target in (
                (made, tf.int32, tf.bfloat16),
                (back, tf.bfloat16, tf.int32),
            ):
                one.attr["SrcT"].type = source.as_datatype_enum
                one.attr["DstT"].type = target.as_datatype_enum
            node.input[0] = "back"

    folder = changed(example, tmp_path, change)
    with pytest.raises(UnsupportedModel, match=f"node 'odd' .* computed in front .*{how}"):
        DeeprecToSavedModel().convert(open_model(folder), tmp_path / "made")


def test_a_wrong_cut_does_not_pass(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bridge_deeprec import steps
    from bridge_deeprec.adapter import DeeprecToSavedModel

    def backwards(x: Any, *, dtype: str) -> Any:
        found, places = np.unique(x, return_inverse=True)
        return found[::-1].copy(), places.astype(dtype)  # not the order that the graph goes by

    monkeypatch.setattr(steps, "STEPS", {**steps.STEPS, "Unique": backwards})
    with pytest.raises(ConversionError, match="output 'score' differs from that of the graph"):
        DeeprecToSavedModel().convert(open_model(example.folder), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_rows_for_absent_ids_that_the_graph_brings_are_refused(
    example: Example, tmp_path: Path
) -> None:
    from bridge_deeprec.adapter import DeeprecToSavedModel

    def change(definition: Any) -> None:
        named(definition, "user_rows").attr["is_use_default_value_tensor"].b = True

    folder = changed(example, tmp_path, change)
    with pytest.raises(UnsupportedModel, match="'user_rows' brings its own rows"):
        DeeprecToSavedModel().convert(open_model(folder), tmp_path / "made")


def test_a_model_with_several_signatures_is_described(example: Example, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((example.folder / "saved_model.pb").read_bytes())
    signatures = message.meta_graphs[0].signature_def
    for key in ("a", "b"):
        signatures[key].CopyFrom(signatures["serving_default"])
    del signatures["serving_default"]
    (tmp_path / "saved_model.pb").write_bytes(message.SerializeToString())
    assert "Mode: processor" in " ".join(open_model(tmp_path).facts.notes)
    assert "Mode: checkpoint" in " ".join(open_model(tmp_path, signature="a").facts.notes)


def test_the_dense_model_has_a_digest_wherever_the_folder_is(
    converted: dict[str, Path], tmp_path: Path
) -> None:
    from bridge_deeprec.manifest import Manifest

    folder = tmp_path / "tables" / "model"  # as the folder inside is called
    shutil.copytree(converted["onnx"], folder)
    Manifest.read(folder).write(folder)
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(InvalidModel, match="'model.onnx' .* is not the one that was written"):
        Manifest.read(folder).check(folder, digests=True)


@pytest.mark.parametrize("damage", ["truncated", "missing", "schema", "step", "swapped"])
def test_a_damaged_folder_is_refused(
    converted: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted["onnx"], folder)
    about = json.loads((folder / "manifest.json").read_text())
    table = folder / next(name for name in sorted(about["files"]) if name.endswith(".npy"))
    if damage == "truncated":
        table.write_bytes(table.read_bytes()[:-4])
    elif damage == "missing":
        table.unlink()
    elif damage == "swapped":
        data = bytearray(table.read_bytes())
        data[-1] ^= 1
        table.write_bytes(bytes(data))
    else:
        if damage == "schema":
            about["schema"] = 99
        else:
            about["steps"][0]["op"] = "System"
        (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises((InvalidModel, ModelNotFound)):
        bridge.load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tables", "tables/tables.json"])
def test_links_out_of_the_folder_are_not_followed(
    converted: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(converted["onnx"], folder)
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    about = json.loads((folder / "manifest.json").read_text())
    about["files"] = {one: said for one, said in about["files"].items() if not one.startswith(name)}
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises((UntrustedModel, InvalidModel), match="out of the folder|does not list"):
        bridge.load(folder, trust=True)


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda about: about["rows"][0].update(table=[1]),
        lambda about: about["rows"][0].update(ids="nowhere:0"),
        lambda about: about["rows"][0].update(width="wide"),
        lambda about: about["steps"][0].update(inputs=[1]),
        lambda about: about["files"].pop("model.onnx"),
        lambda about: about.update(tensors={}),
        lambda about: about.update(model="../model"),
    ],
    ids=["table", "ids", "width", "inputs", "unlisted", "tensors", "model"],
)
def test_a_manifest_that_does_not_fit_is_refused_before_any_call(
    converted: dict[str, Path], tmp_path: Path, edit: Edit
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted["onnx"], folder)
    about = json.loads((folder / "manifest.json").read_text())
    edit(about)
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(InvalidModel):
        bridge.load(folder)
