"""The catalogue: what numpy computes is what the networks say, and inputs are legal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bridge import DType
from bridge_conformance.network import Network, Node
from bridge_conformance.networks import ARITHMETIC, FLOATS, NETWORKS, digest

EACH = pytest.mark.parametrize("network", NETWORKS.values(), ids=lambda network: network.name)


def test_there_is_a_network_for_every_dtype() -> None:
    for dtype in DType:
        assert NETWORKS[f"identity_{dtype}"].dtypes == {dtype}
    for dtype in ARITHMETIC:
        assert NETWORKS[f"arith_{dtype}"].dtypes == {dtype}
    for dtype in FLOATS:
        assert NETWORKS[f"math_{dtype}"].dtypes == {dtype}


@EACH
def test_nodes_read_what_is_there_and_everything_is_used(network: Network) -> None:
    known = {*network.signature.input_names, *network.constants}
    used: set[str] = set()
    for node in network.nodes:
        assert known.issuperset(node.inputs)
        assert node.output not in known
        known.add(node.output)
        used.update(node.inputs)
    made = {node.output for node in network.nodes}
    assert made.issuperset(network.signature.output_names)
    assert used.issuperset({*network.signature.input_names, *network.constants})


@EACH
def test_the_oracle_keeps_the_signature(network: Network) -> None:
    for rows in (0, 1, 3):
        if network.name == "reshape" and rows != 3:
            continue  # six elements only
        inputs = network.inputs_for(rows)
        results = network.oracle(inputs)
        assert list(results) == list(network.signature.output_names)
        for spec in network.outputs:
            result = results[spec.name]
            assert spec.dtype is not None
            assert spec.shape is not None
            assert result.dtype == spec.dtype.numpy
            sizes = {"N": rows, "M": 2}
            assert result.shape == tuple(
                sizes[item] if isinstance(item, str) else item for item in spec.shape
            )
            if spec.dtype.is_float:
                assert np.isfinite(result.astype(np.float64)).all()
            kept = [*inputs.values(), *network.constants.values()]
            assert not any(np.shares_memory(result, array) for array in kept)


@EACH
def test_inputs_depend_on_the_seed_alone(network: Network) -> None:
    first, again, other = (network.inputs_for(3, seed=seed) for seed in (5, 5, 6))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        assert array.shape == other[name].shape
    assert any(not np.array_equal(array, other[name]) for name, array in first.items())


@pytest.mark.parametrize("dtype", [dtype for dtype in ARITHMETIC if dtype.is_integer], ids=str)
def test_integers_do_not_overflow(dtype: DType) -> None:
    network = NETWORKS[f"arith_{dtype}"]
    low, high = max(dtype.bounds[0], -(2**31)), min(dtype.bounds[1], 2**31 - 1)
    for seed in range(20):
        inputs = network.inputs_for(64, seed=seed)
        a, b = (inputs[name].astype(object) for name in "ab")  # Python's own integers
        for values in (a, b, a * b, a * b + a, a * b + a - b):
            assert low <= values.min() <= values.max() <= high
        np.testing.assert_array_equal(network.oracle(inputs)["y"].astype(object), a * b + a - b)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_float_arithmetic_is_exact(dtype: DType) -> None:
    network = NETWORKS[f"arith_{dtype}"]
    inputs = network.inputs_for(64, seed=1)
    a, b = (inputs[name].astype(np.float64) for name in "ab")
    np.testing.assert_array_equal(network.oracle(inputs)["y"].astype(np.float64), a * b + a - b)


def test_values_are_varied() -> None:
    words = set(NETWORKS["strings"].inputs_for(64)["x"])
    assert "" in words
    assert any(not word.isascii() for word in words)
    assert all(type(word) is str for word in words)
    for seed in range(8):
        assert set(NETWORKS["identity_bool"].inputs_for(1, seed=seed)["x"].flat) == {False, True}
    for dtype in (DType.INT8, DType.UINT8):
        values = NETWORKS[f"identity_{dtype}"].inputs_for(64)["x"]
        assert values.max() > 100
        assert (values.min() < -100) == (dtype is DType.INT8)


def test_ids_are_rows_of_the_table() -> None:
    ids = NETWORKS["lookup"].inputs_for(500)["ids"]
    assert set(ids) == set(range(10))
    ids = NETWORKS["mixed"].inputs_for(500)["ids"]
    assert set(ids.flat) == set(range(50))


def test_other_dims_are_named() -> None:
    network = NETWORKS["reduce"]
    assert network.inputs_for(4)["x"].shape == (4, 2)
    assert network.inputs_for(4, M=7)["x"].shape == (4, 7)
    with pytest.raises(ValueError, match="network 'reduce' has no dim 'K'; it has: M, N"):
        network.inputs_for(4, K=7)


def test_mixed_by_hand() -> None:
    network = NETWORKS["mixed"]
    inputs = network.inputs_for(6)
    results = network.oracle(inputs)
    assert set(inputs["flag"]) == {False, True}
    for row, flag in enumerate(inputs["flag"]):
        embedded = sum(network.constants["table"][index].sum() for index in inputs["ids"][row])
        projected = (inputs["dense"][row] @ network.constants["W"]).sum()
        total = int(inputs["ids"][row].sum())
        assert results["score"][row] == projected + (embedded if flag else -embedded)
        assert results["picked"][row] == (total if flag else -total)


def test_small_networks_by_hand() -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(NETWORKS["two"].oracle({"x": x})["negative"], -x)
    np.testing.assert_array_equal(NETWORKS["reduce"].oracle({"x": x})["total"], [10])
    assert NETWORKS["scalar"].oracle({"x": np.float32(3)})["y"] == 7
    ones = {f"in_{index:02}": np.ones(1, np.float32) for index in range(40)}
    assert NETWORKS["forty"].oracle(ones)["y"] == 820
    aliasing = NETWORKS["aliasing"].oracle({"x": x})
    np.testing.assert_array_equal(aliasing["constant"], [1, 2, 3])
    np.testing.assert_array_equal(aliasing["y"], x + 1)
    zeros = np.zeros((1, 8), np.float32)
    flat = NETWORKS["math_float32"].oracle({"x": zeros})
    np.testing.assert_array_equal(flat["soft"], np.full((1, 8), 0.125, np.float32))
    with pytest.raises(IndexError):
        NETWORKS["lookup"].oracle({"ids": np.array([10])})


def test_the_digest_tells_networks_apart() -> None:
    network = NETWORKS["affine"]
    changes = (
        {"constants": {**network.constants, "b": network.constants["b"] + 1}},
        {"nodes": (network.nodes[0], Node("Sub", ("product", "b"), "y"))},
        {"inputs": NETWORKS["fixed"].inputs},
    )
    digests = {dataclasses.replace(network, **change).digest for change in changes}
    assert len({network.digest, *digests}) == 4
    assert digest() == digest()
