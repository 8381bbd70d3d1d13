"""Reduced precision: what is kept, what is smaller, what is refused."""

from __future__ import annotations

import errno
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import (
    ConversionError,
    DTypeMismatch,
    InputError,
    OptionError,
    ShapeMismatch,
    UnsupportedModel,
)
from bridge.loading import open_model
from bridge.registry import registry
from bridge.routes import find_routes, route_of
from bridge_bench.gate import Gate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROWS = 300
WIDTH = 16


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ranker") / "ranker.onnx")


def write(path: Path, *, outlier: float = 0.0, nodes: list[Any] | None = None) -> Path:
    """A table, a ``Gemm`` and a ``MatMul`` over 64-bit ids and floats."""
    helper, kinds = onnx.helper, onnx.TensorProto
    random = np.random.default_rng(0)
    kernel = random.normal(0, 0.3, (WIDTH + 4, 32))
    kernel[0, 0] += outlier
    weights = {
        "table": random.normal(size=(ROWS, WIDTH)),
        "kernel": kernel,
        "bias": random.normal(size=32),
        "head": random.normal(0, 0.3, (32, 1)),
    }
    graph = helper.make_graph(
        nodes
        or [
            helper.make_node("Gather", ["table", "ids"], ["row"]),
            helper.make_node("Concat", ["row", "x"], ["whole"], axis=1),
            helper.make_node("Gemm", ["whole", "kernel", "bias"], ["hidden"], name="first"),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "head"], ["logit"], name="last"),
            helper.make_node("Sigmoid", ["logit"], ["click"]),
        ],
        "net",
        [
            helper.make_tensor_value_info("ids", kinds.INT64, ["batch"]),
            helper.make_tensor_value_info("x", kinds.FLOAT, ["batch", 4]),
        ],
        [helper.make_tensor_value_info("click", kinds.FLOAT, ["batch", 1])],
        [
            onnx.numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ]
        if nodes is None
        else [],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), str(path))
    return path


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "ids": random.integers(0, ROWS, count),
        "x": random.normal(size=(count, 4)).astype(np.float32),
    }


def convert(name: str, model: Path, folder: Path, **how: Any) -> tuple[Path, dict[str, Any]]:
    """Converts in this process; the result, and what the adapter says of it."""
    target = folder / f"{name}.onnx"
    return target, dict(registry().adapters.get(name).convert(open_model(model), target, **how))


def answers(path: Path, given: dict[str, Any]) -> np.ndarray:
    with bridge.load(path, backend="onnxruntime") as predictor:
        return predictor.predict(given)["click"]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize(
    ("name", "operator", "count", "share", "most"),
    [
        ("onnx-float16", "Cast", 2, 0.6, 2e-3),
        ("onnx-int8-dynamic", "MatMulInteger", 2, 1.0, 5e-2),
        ("onnx-int8-static", "QuantizeLinear", 4, 1.3, 5e-2),
        ("onnx-int8-embeddings", "DequantizeLinear", 1, 0.6, 5e-2),
    ],
)
def test_reduced_models_keep_what_users_see(
    name: str, operator: str, count: int, share: float, most: float, ranker: Path, tmp_path: Path
) -> None:
    samples = rows(300, 1) if name.endswith("static") else None
    path, before, root = sys.path[:], ranker.stat().st_size, logging.getLogger().level
    made, facts = convert(name, ranker, tmp_path, samples=samples)
    assert operators(made)[operator] == count
    assert facts["bytes"] <= share * facts["bytes_before"]
    assert (sys.path, logging.getLogger().level, ranker.stat().st_size) == (path, root, before)
    assert [item.name for item in tmp_path.iterdir()] == [made.name]
    assert (
        open_model(made).facts.signatures == open_model(ranker).facts.signatures
    )  # 64-bit ids among them
    for size in (1, 7):
        given = rows(size, size)
        error = np.abs(answers(made, given) - answers(ranker, given)).max()
        assert 0 < error <= most


def test_options_of_the_quantiser(ranker: Path, tmp_path: Path) -> None:
    made, facts = convert(
        "onnx-int8-dynamic",
        ranker,
        tmp_path,
        options={"per_channel": True, "reduce_range": True, "exclude": ("last",)},
    )
    assert (facts["matrices"], operators(made)["MatMul"]) == (1, 1)
    stored = {one.name: one for one in onnx.load(made).graph.initializer}
    assert stored["kernel_scale"].dims == [32]
    assert np.abs(onnx.numpy_helper.to_array(stored["kernel_quantized"])).max() <= 64
    made.unlink()
    with pytest.raises(OptionError, match="no node 'lost' to exclude"):
        convert("onnx-int8-dynamic", ranker, tmp_path, options={"exclude": ("lost",)})


def test_operators_stay_in_float32_where_the_model_has_them(ranker: Path, tmp_path: Path) -> None:
    made, _ = convert("onnx-float16", ranker, tmp_path, options={"keep": ("Gemm",)})
    stored = {one.name: one.data_type for one in onnx.load(made).graph.initializer}
    kinds = onnx.TensorProto
    assert (stored["kernel"], stored["head"]) == (kinds.FLOAT, kinds.FLOAT16)
    made.unlink()
    with pytest.raises(OptionError, match="no operator 'Gem' that could stay"):
        convert("onnx-float16", ranker, tmp_path, options={"keep": ("Gem",)})


def test_tables_and_matrices_one_after_the_other(ranker: Path, tmp_path: Path) -> None:
    tables, _ = convert("onnx-int8-embeddings", ranker, tmp_path)
    both, _ = convert("onnx-int8-dynamic", tables, tmp_path)
    assert operators(both)["DequantizeLinear"] == 1
    assert operators(both)["MatMulInteger"] == 2
    given = rows(5)
    assert np.abs(answers(both, given) - answers(ranker, given)).max() < 0.1
    with pytest.raises(UnsupportedModel, match=r"onnx-int8-dynamic.onnx is quantised already"):
        convert("onnx-float16", both, tmp_path)


def test_what_has_nothing_to_reduce_is_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    plain = write(
        tmp_path / "plain.onnx",
        nodes=[node("ReduceMean", ["x"], ["click"], keepdims=1), node("Identity", ["ids"], ["i"])],
    )
    for name, text in (
        ("onnx-float16", "plain.onnx has no float32 weights"),
        ("onnx-int8-dynamic", "plain.onnx has nothing to quantise: no MatMul or Gemm"),
        ("onnx-int8-embeddings", "plain.onnx has nothing to quantise: no Gather"),
        ("onnx-int8-static", "plain.onnx has nothing to quantise: none of Conv"),
    ):
        with pytest.raises(UnsupportedModel, match=text):
            convert(name, plain, tmp_path, samples=rows(4) if "static" in name else None)
    assert [item.name for item in tmp_path.iterdir()] == ["plain.onnx"]


def test_a_full_disk_leaves_nothing(
    ranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onnx.save_model", full)
    with pytest.raises(ConversionError, match="no room") as caught:
        convert("onnx-int8-dynamic", ranker, tmp_path)
    assert caught.value.detail["full"]
    assert not list(tmp_path.iterdir())


def test_no_route_takes_them_unasked(ranker: Path) -> None:
    model = open_model(ranker)
    strict = {one.name for one in find_routes(model, "onnx")}
    assert strict == {"onnx-slim"}
    half = {one.name for one in find_routes(model, "onnx", tier="half")}
    assert half == {"onnx-slim", "onnx-float16"}
    found = find_routes(model, "onnx", tier="int8")
    assert {one.precision for one in found} == {None, "float16", "int8"}
    both = route_of("onnx-float16+onnx-int8-dynamic")
    assert (both.tier, both.precision, both.pays_on("cpu")) == ("int8", "int8", False)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"x": None}, InputError, "'x'"),
        ({"x": np.zeros((4, 4))}, DTypeMismatch, "float64"),
        ({"x": np.zeros((4, 3), np.float32)}, ShapeMismatch, "3"),
        ({"x": np.zeros((3, 4), np.float32)}, ShapeMismatch, "batch"),
        ({"x": np.full((4, 4), np.nan, np.float32)}, InputError, "16 values that are NaN"),
        ({"y": np.zeros(4)}, InputError, "'y'"),
        (
            {"ids": np.zeros(0, np.int64), "x": np.zeros((0, 4), np.float32)},
            InputError,
            "no values",
        ),
    ],
)
def test_samples_that_do_not_fit_are_refused_before_anything_runs(
    change: dict[str, Any],
    kind: type[Exception],
    text: str,
    ranker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.conversion.Worker", None)
    given = {name: array for name, array in {**rows(4), **change}.items() if array is not None}
    with pytest.raises(kind, match=text):
        bridge.convert(ranker, "onnx", route=["onnx-int8-static"], samples=given)


def test_samples_are_for_those_who_look_at_them(
    ranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.conversion.Worker", None)
    with pytest.raises(OptionError, match="'onnx-int8-static' is calibrated by recorded inputs"):
        bridge.convert(ranker, "onnx", route=["onnx-int8-static"])
    with pytest.raises(OptionError, match="no adapter of onnx-int8-dynamic looks at any"):
        bridge.convert(ranker, "onnx", route=["onnx-int8-dynamic"], samples=rows(4))
    with pytest.raises(OptionError, match="looks at no samples"):
        convert("onnx-float16", ranker, tmp_path, samples=rows(4))
    with pytest.raises(OptionError, match="there are none"):
        convert("onnx-int8-static", ranker, tmp_path)


def test_figures_are_kept_and_samples_are_part_of_the_key(
    ranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))

    def made(seed: int, **how: Any) -> Any:
        route = ["onnx-int8-static"]
        return bridge.convert(ranker, "onnx", route=route, samples=rows(200, seed), **how)

    first = made(1)
    assert first.precision == "int8"
    assert first.proof.is_equal is False
    (difference,) = first.proof.differences
    assert difference.output == "click"
    assert 0 < difference.max_abs < 0.1
    assert difference.excess > 1
    assert made(1).is_cached
    assert not made(2, verify=False).is_cached
    with pytest.raises(ConversionError, match="computes something else"):
        made(1, tolerance=(1e-6, 0.0))  # who names a tolerance wants it held


def test_weights_that_float16_cannot_hold_are_counted(tmp_path: Path) -> None:
    model = write(tmp_path / "large.onnx", outlier=1e6)
    made, facts = convert("onnx-float16", model, tmp_path)
    assert facts["clipped"] == 1
    stored = {one.name: one for one in onnx.load(made).graph.initializer}
    assert np.abs(onnx.numpy_helper.to_array(stored["kernel"])).max() == 65504


def test_only_the_gate_admits_a_model_that_outliers_spoil(tmp_path: Path) -> None:
    """One weight of 1000 makes the step of 8 bits 8, in which all others are nothing."""
    model = write(tmp_path / "spoilt.onnx", outlier=1000.0)
    made, _ = convert("onnx-int8-dynamic", model, tmp_path)
    sets = [rows(64, seed) for seed in range(2)]
    gate, right = Gate(tier="int8"), [{"click": answers(model, one)} for one in sets]
    found = gate.check(
        right, [{"click": answers(made, one)} for one in sets], {"click": "click"}, tier="int8"
    )
    assert not found.passes
    assert found.outputs[0].max_abs is not None
    assert found.outputs[0].max_abs > 0.05
    assert "times what is allowed" in found.reason
