"""Inputs sent once: the converted model computes what the plain one does, whatever is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
import bridge_zoo
from bridge.errors import ConversionError, InputError, OptionError, UnsupportedModel
from bridge.loading import open_model
from bridge.proof import verify
from bridge.registry import registry
from bridge_convert.broadcast import OnnxBroadcast

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxslim")

RANDOM = np.random.default_rng(0)
CONSTANTS = {
    "w9": RANDOM.normal(size=(9, 6)).astype(np.float32),
    "w9t": RANDOM.normal(size=(6, 9)).astype(np.float32),
    "w4": RANDOM.normal(size=(4, 4)).astype(np.float32),
    "bias": RANDOM.normal(size=6).astype(np.float32),
    "nine": RANDOM.normal(size=9).astype(np.float32),
    "four": RANDOM.uniform(0.5, 2, size=4).astype(np.float32),
    "table": RANDOM.normal(size=(20, 4)).astype(np.float32),
    "one": np.array([1]),
    "zero": np.array([0]),
    "two": np.array([2]),
    "pairs": np.array([1, 2, 3, 6, 7, 11]),
    "last": np.array([3, 8, 0]),
    "flat": np.array([-1, 2]),
    "keep": np.array([0, 2, 2]),
    "half": np.array(0.5, np.float32),
    "wide": np.array([1, 3]),
    "scale": np.array(0.1, np.float32),
    "point": np.array(3, np.uint8),
    "fold": np.array([-1, 1, 4]),
    "before": np.array([0, 1, 0, 0]),
    "swap": np.array([1, 0]),
    "naught": np.array(0, np.float32),
    "three": np.array(3),
    "gates": RANDOM.normal(size=(1, 12, 4)).astype(np.float32),
}
MARKED = ("u", "v", "ids", "list")
SHAPES: Mapping[str, tuple[int, ...]] = {
    "u": (4,),
    "v": (4,),
    "x": (5,),
    "z": (4,),
    "ids": (),
    "list": (3,),
}

# Each computes y from u, v, ids and list, which are marked, and from x and z.
GRAPHS = {
    "gemm": "c = Concat<axis=1>(u, x) y = Gemm(c, w9, bias)",
    "transposed": "c = Concat<axis=-1>(x, u) y = Gemm<transB=1, alpha=0.5, beta=2.0>(c, w9t, bias)",
    "no_bias": "c = Concat<axis=1>(u, x) y = Gemm(c, w9)",
    "bias_of_rows": "c = Concat<axis=1>(u, x) b = Gemm(c, w9) y = Gemm(c, w9, b)",
    "bias_of_one_row": "c = Concat<axis=1>(u, x) a = MatMul(u, w4) b = ReduceSum(a, one) "
    "d = Gemm(z, w4, a) e = Gemm(c, w9, b) y = Concat<axis=1>(d, e)",
    "matmul": "c = Concat<axis=1>(u, x) m = MatMul(c, w9) y = Add(bias, m)",
    "matmul_read_twice": "c = Concat<axis=1>(u, x) m = MatMul(c, w9) a = Add(m, bias) "
    "y = Mul(a, m)",
    "cube": "c = Concat<axis=1>(u, x) d = Unsqueeze(c, one) m = MatMul(d, w9) y = Add(m, bias)",
    "two_readers": "c = Concat<axis=1>(u, x) m = Gemm(c, w9, bias) s = Softmax(c) "
    "r = ReduceSum(s, one) y = Mul(m, r)",
    "mixed_order": "c = Concat<axis=1>(z, u, x) k = Concat<axis=1>(u, z, v) s = Softmax(k) "
    "a = ReduceMax(s, one) b = ReduceSum(c, one) y = Add(a, b)",
    "of_concats": "a = Concat<axis=1>(u, x) c = Concat<axis=1>(z, a, v) y = Softmax(c)",
    "of_columns": "c = Concat<axis=1>(u, x) d = Mul(c, nine) e = Relu(d) y = Gemm(e, w9, bias)",
    "picked": "c = Concat<axis=1>(u, x) d = Gather<axis=1>(c, last) e = Exp(d) y = Softmax(e)",
    "picked_of_one": "c = Concat<axis=1>(u, x) y = Gather<axis=1>(c, wide)",
    "sums": "c = Concat<axis=1>(u, x) a = ReduceSum<keepdims=0>(c, one) "
    "b = ReduceMean<keepdims=0>(c, one) d = ReduceL2<keepdims=0>(c, one) e = Sub(a, b) "
    "y = Mul(e, d)",
    "second_order": "a = Unsqueeze(u, one) b = Unsqueeze(z, one) d = Unsqueeze(v, one) "
    "c = Concat<axis=1>(a, b, d) s = ReduceSum<keepdims=0>(c, one) q = Mul(s, s) "
    "o = Mul(c, c) p = ReduceSum<keepdims=0>(o, one) y = Sub(q, p)",
    "dots": "a = Unsqueeze(u, one) b = Unsqueeze(z, one) d = Unsqueeze(v, one) e = Relu(b) "
    "c = Concat<axis=1>(b, a, e, d) t = Transpose<perm=[0,2,1]>(c) m = MatMul(c, t) "
    "f = Flatten(m) y = Gather<axis=1>(f, pairs)",
    "all_dots": "a = Unsqueeze(u, one) b = Unsqueeze(z, one) c = Concat<axis=1>(b, a) "
    "t = Transpose<perm=[0,2,1]>(c) m = MatMul(c, t) y = Flatten(m)",
    "lookup": "a = Gather(table, ids) r = Gather(table, list) s = ReduceSum<keepdims=0>(r, one) "
    "p = Equal(list, zero) n = Not(p) f = Cast<to=1>(n) l = ReduceSum(f, one) m = Div(s, l) "
    "q = Add(a, m) y = Mul(q, z)",
    "cosine": "m = MatMul(u, w4) l = ReduceL2(m, one) s = Shape(m) e = Expand(l, s) d = Div(m, e) "
    "p = Mul(d, z) y = ReduceSum<keepdims=0>(p, one)",
    "shape_of_user": "s = Shape(u) n = Gather(s, zero) k = Concat<axis=0>(n, two, two) "
    "a = Reshape(z, k) b = Reshape(u, k) d = Mul(a, b) y = Reshape(d, s)",
    "shape_of_item": "s = Shape(z) a = Slice(s, zero, one, zero) k = Concat<axis=0>(a, two, two) "
    "b = Reshape(u, k) y = Transpose<perm=[2,0,1]>(b)",
    "zeros": "s = Shape(u) n = ConstantOfShape<value=float[1] {2.0}>(s) y = Add(n, z)",
    "count": "s = Shape(u) n = Gather(s, zero) f = Cast<to=1>(n) d = Div(u, f) y = Add(d, z)",
    "over_rows": "m = ReduceSum(u, zero) y = Add(m, z)",
    "over_rows_of_items": "m = ReduceSum(z, zero) y = Add(m, u)",
    "softmax_of_rows": "m = Softmax<axis=0>(u) y = Mul(m, z)",
    "running": "a = Constant<value_int=0>() m = CumSum(u, a) y = Mul(m, z)",
    "square": "t = Transpose(u) m = MatMul(z, t) n = ReduceMax(m, one) y = Add(n, z)",
    "folded_rows": "m = Reshape(u, flat) n = Reshape(z, flat) y = Mul(m, n)",
    "kept_rows": "m = Reshape(u, keep) n = Reshape(z, keep) y = Mul(m, n)",
    "reversed": "r = Constant<value_ints=[-1]>() b = Constant<value_ints=[-9223372036854775807]>() "
    "m = Slice(z, r, b, zero, r) y = Add(m, u)",
    "branch": "s = ReduceSum<keepdims=0>(z) c = Greater(s, half) y = If(c) "
    "<then_branch = a () => (float[N, 4] p) { p = Mul(u, z) }, "
    "else_branch = b () => (float[N, 4] q) { q = Add(u, v) }>",
    "contrib": "m = com.microsoft.FastGelu(u) n = Mul(m, four) y = Add(n, z)",
    "dynamic": "q, s, p = DynamicQuantizeLinear(u) d = DequantizeLinear(q, s, p) y = Add(d, z)",
    "quantized": "q = QuantizeLinear(u, scale, point) d = DequantizeLinear(q, scale, point) "
    "y = Add(d, z)",
    "normed": "a = LayerNormalization(u, four) b = BatchNormalization(a, four, four, four, four) "
    "y = Mul(b, z)",
    "cut": "a, b = Split<axis=1, num_outputs=2>(u) d = Concat<axis=1>(b, a) p, i = TopK(d, two) "
    "e = Tile(p, wide) y = Concat<axis=1>(e, x)",
    "chosen": "b = Greater(u, v) c = Where(b, u, z) y = Clip(c, , half)",
    "loop": "a = Unsqueeze(z, zero) b = Squeeze(a, zero) c = Loop(three, , u) "
    "<body = l (int64 i, bool go, float[N, 4] s) => (bool on, float[N, 4] t) "
    "{ on = Identity(go) r = ReduceSum(u, zero) t = Add(s, r) }> y = Mul(c, b)",
    "padded": "p = Pad(u, before, naught, swap) s = ReduceSum(p, zero) y = Mul(s, z)",
    "recurrent": "a = Unsqueeze(z, zero) , h = GRU<hidden_size=4>(a, gates, gates) "
    "b = Squeeze(h, zero) c = Clip(u, , half) y = Mul(b, c)",
    "user_only": "m = MatMul(u, w4) y = Relu(m)",
    "constant": "y = Mul(w4, half)",
    "swapped": "a = Transpose(u) b = Transpose(z) c = Concat<axis=0>(a, b) "
    "d = Transpose(c) y = Softmax(d)",
    "across_ranks": "a = Unsqueeze(u, zero) b = Mul(a, z) y = ReduceSum(b)",
    "matrices": "a = Reshape(u, fold) b = Reshape(z, fold) t = Transpose<perm=[0,2,1]>(a) "
    "y = MatMul(t, b)",
}

NEED_ROWS = {"folded_rows", "count", "over_rows_of_items", "branch", "dynamic", "recurrent"}


def written(body: str, path: Path) -> Path:
    """A model with the body, and one input that nothing reads."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
    net (float[N, 4] u, float[N, 4] v, int64[N] ids, int64[N, 3] list, float[N, 5] x,
         float[N, 4] z) => (float[N] y) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name)
        for name, value in CONSTANTS.items()
        if name in used
    )
    onnx.save(model, path)
    return path


def made_of(path: Path, inputs: Any = MARKED) -> tuple[Path, Mapping[str, Any]]:
    target = path.with_name(f"once_{path.name}")
    facts = OnnxBroadcast().convert(open_model(path), target, options={"inputs": inputs})
    return target, facts


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of inputs that nothing reads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def agree(plain: Any, once: Any, items: Mapping[str, Any], marked: Any) -> None:
    """Both models on these items, with the user that the first of them has."""
    rows = len(next(array for name, array in items.items() if name not in marked))
    full = {n: np.repeat(a[:1], rows, 0) if n in marked else a for n, a in items.items()}
    short = {n: a[:1] if n in marked else a for n, a in items.items()}
    for wanted, got in zip(plain.run(None, full), once.run(None, short), strict=True):
        assert wanted.shape == got.shape
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-4)


def drawn(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    found: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        count = max(1, rows) if name in MARKED else rows
        if name in ("ids", "list"):
            found[name] = random.integers(1, 20, (count, *shape))
        else:
            found[name] = random.normal(size=(count, *shape)).astype(np.float32)
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_it_computes_the_same(name: str, tmp_path: Path) -> None:
    path = written(GRAPHS[name], tmp_path / "net.onnx")
    target, facts = made_of(path)
    assert facts["broadcast"] == list(MARKED)
    plain, once = session(path), session(target)
    assert [one.shape[0] for one in once.get_inputs()] == [1, 1, 1, 1, "N", "N"]
    for rows in (4, 1, 0):
        if rows or name not in NEED_ROWS:
            agree(plain, once, drawn(rows), MARKED)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("name", "split"),
    [("gemm", 1), ("transposed", 1), ("matmul", 1), ("of_columns", 1), ("bias_of_rows", 2)],
)
def test_layers_are_split_and_nothing_is_put_together(
    name: str, split: int, tmp_path: Path
) -> None:
    target, facts = made_of(written(GRAPHS[name], tmp_path / "net.onnx"))
    assert len(facts["split"]) == split
    assert facts["repeated"] == []
    assert not {"Concat", "Expand"} & set(kinds(target))


def test_inputs_with_a_default_become_constants(tmp_path: Path) -> None:
    """As old exporters write all weights."""
    path = written(GRAPHS["gemm"], tmp_path / "net.onnx")
    model = onnx.load(path)
    declared = onnx.helper.make_tensor_value_info("w9", onnx.TensorProto.FLOAT, [9, 6])
    model.graph.input.append(declared)
    onnx.save(model, path)
    target, facts = made_of(path)
    once = session(target)
    assert "w9" not in [one.name for one in once.get_inputs()]
    assert len(facts["split"]) == 1
    agree(session(path), once, drawn(3), MARKED)


def test_what_couples_rows_gets_them_all(tmp_path: Path) -> None:
    _, facts = made_of(written(GRAPHS["softmax_of_rows"], tmp_path / "net.onnx"))
    assert facts["repeated"] == ["u"]


def test_rows_are_counted_by_an_input_of_the_same_dim(tmp_path: Path) -> None:
    """What has a first dim without a name may be as long as it likes."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> net (float[?, 4] w, float[N, 4] u, '
        "float[N, 4] x) => (float[N, 4] y) { z = Constant<value_ints=[0]>() "
        "a = ReduceSum(u, z) b = ReduceSum(w, z) s = Add(a, b) y = Mul(s, x) }"
    )
    onnx.save(model, tmp_path / "net.onnx")
    target, _ = made_of(tmp_path / "net.onnx", ["u"])
    given = {name: drawn(3)["u"] for name in ("u", "x")} | {"w": drawn(2)["u"]}
    (wanted,) = session(tmp_path / "net.onnx").run(None, {**given, "u": given["u"][[0, 0, 0]]})
    (got,) = session(target).run(None, {**given, "u": given["u"][:1]})
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_results_that_nobody_wants_do_not_stop_what_comes_after(tmp_path: Path) -> None:
    _, facts = made_of(written(GRAPHS["recurrent"], tmp_path / "net.onnx"))
    assert facts["once"] == 1
    assert facts["repeated"] == ["c"]


def test_pairs_of_the_user_are_multiplied_once(tmp_path: Path) -> None:
    target, facts = made_of(written(GRAPHS["dots"], tmp_path / "net.onnx"))
    assert facts["repeated"] == ["y"]  # users ask for it, so there its halves are joined
    assert kinds(target)["MatMul"] == 3


@pytest.mark.parametrize("name", bridge_zoo.MODELS)
def test_models_of_the_zoo(name: str, tmp_path: Path) -> None:
    described = bridge_zoo.describe(name)
    path = bridge_zoo.build(name, folder=tmp_path, formats=["onnx"])["onnx"]
    model = bridge_zoo.model_of(described)
    users = {one.name for one in model.id_features if one.side == "user"}
    users |= {one.name for one in model.dense_features if one.side == "user"}
    target, facts = made_of(path, sorted(users))
    assert facts["repeated"] == []
    assert facts["once"] > len(users)
    assert facts["split"] or name == "dual_tower"
    plain, once = session(path), session(target)
    for rows in (3, 1):
        agree(plain, once, dict(bridge_zoo.inputs(described, rows)), users)


@pytest.mark.parametrize("source", ["torchscript", "saved_model"])
def test_models_of_other_exporters(
    source: str, request: pytest.FixtureRequest, stated: bridge.Signature, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    how: dict[str, Any] = {"signature": stated} if source == "torchscript" else {}
    adapter = registry().adapters.get(f"{source}-to-onnx")
    adapter.convert(open_model(request.getfixturevalue(source), **how), path)
    target, facts = made_of(path, ["ids"])
    assert len(facts["split"]) == 1
    assert facts["repeated"] == []
    random = np.random.default_rng(0)
    given = {"ids": random.integers(0, 50, 5), "x": random.normal(size=(5, 3)).astype(np.float32)}
    agree(session(path), session(target), given, ["ids"])


def test_the_signature_wants_one_row(tmp_path: Path) -> None:
    target, _ = made_of(written(GRAPHS["gemm"], tmp_path / "net.onnx"), "u,v,ids,list")
    with bridge.load(target) as predictor:
        assert predictor.signature.input("u").shape == (1, 4)
        assert predictor.signature.input("x").shape == ("N", 5)
        given = drawn(3)
        short = {name: array[:1] if name in MARKED else array for name, array in given.items()}
        assert predictor.predict(short)["y"].shape == (3, 6)
        with pytest.raises(InputError, match=r"'u'.*\(1, 4\)"):
            predictor.predict(given)


def test_a_wrong_split_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(GRAPHS["gemm"], tmp_path / "net.onnx")
    target, facts = made_of(path)
    found, _ = verify(open_model(path), target, "onnx", broadcast=facts["broadcast"])
    assert found.is_equal
    assert "input 'u' has the shape (1, 4), not (N, 4)" in found.changes
    model = onnx.load(target)
    weights = next(one for one in model.graph.initializer if one.name == "w9.one")
    wrong = onnx.numpy_helper.to_array(weights)[::-1].copy()
    weights.CopyFrom(onnx.numpy_helper.from_array(wrong, weights.name))
    onnx.save(model, target)
    with pytest.raises(ConversionError, match="computes something else: output 'y'"):
        verify(open_model(path), target, "onnx", broadcast=facts["broadcast"])


def test_no_route_takes_it_unless_it_is_named(tmp_path: Path) -> None:
    from bridge.routes import find_routes, named_route

    model = open_model(written(GRAPHS["gemm"], tmp_path / "net.onnx"))
    assert all("onnx-broadcast" not in one.name for one in find_routes(model))
    assert all("onnx-broadcast" not in one.name for one in find_routes(model, "onnx"))
    assert named_route(model, ["onnx-broadcast"]).status == "possible"


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ((), OptionError, "no input is named"),
        (("us*",), OptionError, "no input 'us\\*'"),
        (("u", "v", "ids", "list", "x", "z"), UnsupportedModel, "says how many rows"),
        (("*",), UnsupportedModel, "says how many rows"),
    ],
)
def test_inputs_that_cannot_be_meant(
    inputs: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        made_of(written(GRAPHS["gemm"], tmp_path / "net.onnx"), inputs)


def test_models_that_it_cannot_take(tmp_path: Path) -> None:
    model = onnx.load(written(GRAPHS["gemm"], tmp_path / "net.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(UnsupportedModel, match="no free first dim"):
        made_of(tmp_path / "fixed.onnx")
    model = onnx.load(written(GRAPHS["gemm"], tmp_path / "net.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(UnsupportedModel, match="different ones: M, N"):
        made_of(tmp_path / "two.onnx")
    model = onnx.load(written(GRAPHS["gemm"], tmp_path / "net.onnx"))
    model.graph.output.append(model.graph.input[0])
    onnx.save(model, tmp_path / "passed.onnx")
    with pytest.raises(UnsupportedModel, match="output 'u' .* is an input as it is"):
        made_of(tmp_path / "passed.onnx")
