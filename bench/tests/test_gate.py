from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.dtypes import DType
from bridge.errors import InputError, OptionError
from bridge.record import OutputRecord
from bridge.signature import Signature, TensorSpec
from bridge_bench.gate import TOLERANCES, Gate, GateResult, Tolerance, gate_inputs
from bridge_bench.metrics import MetricRule
from bridge_bench.profile import InputProfile, Samples


def check(
    reference: Any, output: Any, tier: str = "strict", gate: Gate | None = None
) -> GateResult:
    return (gate or Gate(tier="int8")).check(
        [{"y": np.asarray(reference)}], [{"z": np.asarray(output)}], {"y": "z"}, tier=tier
    )


def one(result: GateResult) -> OutputRecord:
    (record,) = result.outputs
    json.dumps(record.max_abs, allow_nan=False)
    return record


@pytest.mark.parametrize(("tier", "atol", "rtol"), [("strict", 1e-5, 1e-4), ("half", 1e-2, 1e-2)])
def test_the_bound_is_absolute_and_relative(tier: str, atol: float, rtol: float) -> None:
    reference = np.array([0.0, 1.0, -100.0])
    allowed = atol + rtol * np.abs(reference)
    assert check(reference, reference + 0.999 * allowed, tier).passes
    off = reference.copy()
    off[2] -= 1.5 * allowed[2]
    found = check(reference, off, tier)
    record = one(found)
    assert not found.passes
    assert not record.passes
    assert record.excess == pytest.approx(1.5)
    assert record.max_abs == pytest.approx(1.5 * allowed[2])
    assert record.max_rel == pytest.approx(1.5 * allowed[2] / 100)
    assert "output 'y' differs by" in found.reason
    assert "1.5 times what is allowed" in found.reason
    assert "at [2] of call 0: -1" in found.reason
    assert "the reference -100" in found.reason


def test_reduced_tiers_look_at_the_angle_too() -> None:
    reference = np.full(1000, 0.02)
    off = reference + np.where(np.arange(1000) % 2, 0.009, -0.009)
    found = check(reference, off, "half")
    assert not found.passes
    assert one(found).excess is not None
    assert one(found).excess < 1  # type: ignore[operator]
    assert "cosine of 0.9" in found.reason
    assert "below 0.9999" in found.reason
    # A vector that the tolerance takes for zero has no direction.
    assert check(np.full(3, 1e-9), np.full(3, -1e-9), "half").passes
    assert check(np.zeros(3), np.full(3, 1e-9), "half").passes
    assert one(check(np.zeros(3), np.full(3, 1e-9), "half")).cosine is None


@pytest.mark.parametrize(
    ("reference", "output", "passes"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([np.inf, -np.inf], [np.inf, -np.inf], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([np.nan, 1.0], [1.0, 1.0], False),
        ([1.0, 1.0], [np.nan, 1.0], False),
        ([1.0, 1.0], [np.inf, 1.0], False),
        ([np.nan], [np.inf], False),
        ([], [], True),
        (0.0, -0.0, True),
        (1e300, 1.00001e300, True),
        (5e-324, 0.0, True),
    ],
)
def test_what_is_not_finite_has_to_be_the_same(reference: Any, output: Any, passes: bool) -> None:
    for tier in ("strict", "half", "int8"):
        found = check(np.float64(reference), np.float64(output), tier)
        assert found.passes is passes
        assert one(found).passes is passes
        if not passes:
            assert one(found).max_abs is None
            assert one(found).excess is None
            assert "finite where the reference is not, or the reverse" in found.reason


def test_a_reference_without_numbers_is_noted() -> None:
    assert "no finite value in call 0" in str(one(check([np.nan], [np.nan])).problem)


def test_integers_booleans_and_strings_are_equal_in_every_tier() -> None:
    words = np.array(["a", "b"], object)
    cases: list[tuple[Any, Any, str]] = [
        (np.array([2**63, 5], np.uint64), np.array([2**63 + 1, 5], np.uint64), "1 of 2 values"),
        (np.array([True, True]), np.array([True, False]), r"at \[1\] of call 0: False"),
        (np.array(7), np.array(8), "of call 0: 8, the reference 7"),
        (words, np.array(["a", "c"], object), "1 of 2 strings unequal"),
        (np.array([1, 2], ml_dtypes.int4), np.array([1, 3], ml_dtypes.int4), "1 of 2 values"),
    ]
    for reference, output, said in cases:
        assert check(reference, reference, "int8").passes
        with pytest.raises(AssertionError, match=said):
            assert check(reference, output, "int8").passes, check(reference, output, "int8").reason
    assert one(check(cases[0][0], cases[0][1])).max_abs == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "float8_e4m3fn"])
def test_every_kind_of_number_is_compared(dtype: str) -> None:
    kind = DType(dtype).numpy
    reference = np.array([1, 2, 4], kind)
    assert check(reference, reference.copy()).passes
    off = np.array([1, 2, 5], kind)
    assert not check(reference, off, "half").passes
    assert one(check(reference, off)).max_abs == 1


def test_other_dtypes_shapes_and_names_fail_whatever_the_metrics_say() -> None:
    gate = Gate(tier="half", metrics=(MetricRule.parse("rank_correlation"),))
    reference = np.arange(4, dtype=np.float32)
    for output, said in (
        (reference.astype(np.float64), "dtype float64, not float32"),
        (reference[:, None], r"shape \(4, 1\), not \(4,\)"),
    ):
        with pytest.raises(AssertionError, match=said):
            assert check(reference, output, "half", gate).passes, check(
                reference, output, "half", gate
            ).reason
    found = gate.check([{"y": reference}], [{"z": reference}], {}, tier="half")
    assert not found.passes
    assert "no output could be matched" in found.reason


def test_the_worst_call_counts_and_is_named() -> None:
    base = np.linspace(1, 2, 200)
    outputs = [{"y": base + shift} for shift in (0.0, 0.3, 0.1)]
    found = Gate().check(
        [{"y": base}] * 3, outputs, {"y": "y"}, tier="strict", keys=["1 row/0", "16 rows/0", "edge"]
    )
    assert "of 16 rows/0:" in found.reason
    assert one(found).max_abs == pytest.approx(0.3)
    assert one(found).p99_abs == pytest.approx(0.3)
    assert one(found).cosine is not None


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1, 1)), min_size=1, max_size=40))
def test_a_pass_is_what_numpy_calls_close(pairs: list[tuple[float, float]]) -> None:
    reference = np.array([a for a, _ in pairs])
    output = reference + np.array([b for _, b in pairs]) * 2e-4 * np.maximum(1e-1, abs(reference))
    found = check(reference, output)
    assert found.passes == bool(np.allclose(output, reference, rtol=1e-4, atol=1e-5)) or (
        one(found).excess == pytest.approx(1)
    )


# Metrics


def heads(count: int = 100) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    generator = np.random.default_rng(0)
    reference = generator.random(count).astype(np.float32)
    labels = (reference + generator.normal(0, 0.3, count) > 0.5).astype(int)
    return reference, (reference * np.float32(0.8)).astype(np.float32), labels


def test_metrics_admit_reduced_tiers_and_never_strict_ones() -> None:
    reference, scaled, labels = heads()
    gate = Gate(tier="half", metrics=(MetricRule.parse("auc"), MetricRule.parse("top_k:k=5")))
    calls = [{"click": reference[:60]}, {"click": reference[60:]}]
    answers = [{"click": scaled[:60]}, {"click": scaled[60:]}]
    for labelled in ({"": labels}, {"click": labels}, {"any": labels}):
        found = gate.check(calls, answers, {"click": "click"}, tier="half", labels=labelled)
        assert found.passes
        assert not one(found).passes  # the numbers are reported as they are
        assert [metric.metric for metric in found.metrics] == ["auc", "top_5"]
        assert found.metrics[0].value == found.metrics[0].reference
        assert "admitted by its metrics (auc of output 'click' is 0." in found.reason
    strict = gate.check(calls, answers, {"click": "click"}, tier="strict", labels={"": labels})
    assert not strict.passes
    assert strict.metrics
    numeric = gate.check(calls, answers, {"click": "click"}, tier="half", has_metrics=False)
    assert not numeric.passes
    assert not numeric.metrics


def test_a_metric_that_is_missed_says_by_how_much() -> None:
    reference, _, labels = heads()
    gate = Gate(tier="int8", metrics=(MetricRule.parse("auc:max_drop=0.001"),))
    found = gate.check(
        [{"y": reference}], [{"y": -reference}], {"y": "y"}, tier="int8", labels={"": labels}
    )
    (metric,) = found.metrics
    assert not found.passes
    assert metric.value == pytest.approx(1 - (metric.reference or 0))
    assert f"which is {metric.limit - metric.value:.3g} below" in found.reason


def test_outputs_without_a_metric_keep_to_the_numbers() -> None:
    reference, scaled, labels = heads()
    gate = Gate(tier="half", metrics=(MetricRule.parse("auc:output=click"),))
    calls = [{"click": reference, "share": reference}]
    names = {"click": "click", "share": "share"}
    bad = gate.check(
        calls, [{"click": scaled, "share": scaled}], names, tier="half", labels={"": labels}
    )
    assert not bad.passes
    assert "output 'share' differs" in bad.reason
    good = gate.check(
        calls, [{"click": scaled, "share": reference}], names, tier="half", labels={"": labels}
    )
    assert good.passes


def test_only_the_scored_calls_have_labels() -> None:
    reference, scaled, labels = heads()
    gate = Gate(tier="half", metrics=(MetricRule.parse("auc"),))
    extra = {"y": np.zeros(7, np.float32)}
    found = gate.check(
        [{"y": reference}, extra],
        [{"y": scaled}, extra],
        {"y": "y"},
        tier="half",
        labels={"": labels},
        scored=1,
    )
    assert found.passes


def test_one_array_of_labels_is_for_one_head() -> None:
    reference, _, labels = heads()
    both = [{"click": reference, "like": reference}]
    names = {"click": "click", "like": "like"}
    for text, labelled, said in (
        ("auc", {"": labels}, "there are labels for: no output"),
        ("auc", {"like": labels}, None),
        ("auc:output=click", {"": labels}, None),
    ):
        gate = Gate(tier="half", metrics=(MetricRule.parse(text),))
        if said is None:
            found = gate.check(both, both, names, tier="half", labels=labelled)
            assert len(found.metrics) == 1
            continue
        with pytest.raises(InputError, match=said):
            gate.check(both, both, names, tier="half", labels=labelled)


@pytest.mark.parametrize(
    ("text", "labels", "said"),
    [
        ("auc:output=clik", {"": 0}, "Did you mean 'click'"),
        ("auc", {}, "needs labels, and there are none"),
        ("auc", {"a": 0, "b": 0}, "there are labels for: a, b"),
        ("auc:labels=y", {"x": 0}, "needs labels 'y'"),
        ("auc:output=click", {"a": 0, "b": 0}, "needs labels 'click'"),
    ],
)
def test_metrics_that_suit_no_output(text: str, labels: dict[str, int], said: str) -> None:
    reference, scaled, truth = heads()
    gate = Gate(tier="half", metrics=(MetricRule.parse(text),))
    with pytest.raises(InputError, match=said):
        gate.check(
            [{"click": reference}],
            [{"click": scaled}],
            {"click": "click"},
            tier="half",
            labels=dict.fromkeys(labels, truth),
        )


# The gate itself


def test_tiers_and_tolerances() -> None:
    assert Gate(tier="half").admits("strict")
    assert not Gate(tier="half").admits("int8")
    wide = Gate(tolerances={"strict": Tolerance(1.0, 0.0)})
    assert check(1.0, 1.9, gate=wide).passes
    assert wide.tolerances["half"] == TOLERANCES["half"]
    exact = Gate(tolerances={"strict": Tolerance(0.0, 0.0)})
    assert check([0.0, 1.0], [0.0, 1.0], gate=exact).passes
    assert not check([0.0, 1.0], [1e-300, 1.0], gate=exact).passes
    record = Gate(tier="half", metrics=(MetricRule.parse("auc"),)).to_record("onnxruntime")
    assert record.tolerances == {
        "strict": {"atol": 1e-5, "rtol": 1e-4, "min_cosine": None},
        "half": {"atol": 1e-2, "rtol": 1e-2, "min_cosine": 0.9999},
    }
    assert record.metrics == ({"metric": "auc", "max_drop": 0.0005},)
    with pytest.raises(OptionError, match="no precision tier 'fp16'"):
        Gate(tier="fp16")
    with pytest.raises(OptionError, match="out of range"):
        Gate(tolerances={"half": Tolerance(-1.0, 0.0)})
    with pytest.raises(OptionError, match="no precision tier"):
        check(1.0, 1.0, "other")
    with pytest.raises(InputError, match="at least one"):
        Gate().check([], [], {}, tier="strict")


def test_inputs_of_the_gate_cover_sizes_and_edges() -> None:
    signature = Signature(
        (TensorSpec("x", DType.FLOAT32, ("N", 2)), TensorSpec("k", DType.INT64, ())), ()
    )
    found = gate_inputs(InputProfile(constants={"k": 3}), signature, [4, 16])
    assert [key for key, _ in found] == [
        "4 rows/0",
        "4 rows/1",
        "16 rows/0",
        "16 rows/1",
        "edge/1 row",
        "edge/zeros",
    ]
    shapes = [inputs["x"].shape for _, inputs in found]
    assert shapes == [(4, 2), (4, 2), (16, 2), (16, 2), (1, 2), (4, 2)]
    assert not found[-1][1]["x"].any()
    assert found[-1][1]["k"] == 3
    assert not np.array_equal(found[0][1]["x"], found[1][1]["x"])
    drawn = InputProfile(samples=Samples.of({"x": np.ones((5, 2), np.float32), "k": np.array(1)}))
    assert (gate_inputs(drawn, signature, [4])[0][1]["x"] == 1).all()


def test_no_metric_mends_a_nan_that_follows_an_infinite_miss() -> None:
    gate = Gate(
        tier="int8",
        tolerances={"int8": Tolerance(0.0, 0.05)},  # allows nothing where the reference is 0
        metrics=(MetricRule.parse("rank_correlation:min=0.9"),),
    )
    right = [{"y": np.arange(4.0)}, {"y": np.ones(2)}]
    arm = [{"y": np.arange(4.0) + 0.01}, {"y": np.array([1.0, np.nan])}]
    names = {"y": "y"}
    assert gate.check(right[:1], arm[:1], names, tier="int8").passes
    found = gate.check(right, arm, names, tier="int8", scored=1)
    assert not found.passes
    assert "is finite where the reference is not" in found.reason
