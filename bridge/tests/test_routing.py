"""Routing by rows, splitting and renaming, over predictors that keep a list of their calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.check import Arrays
from bridge.errors import (
    DTypeMismatch,
    ForkedPredictor,
    InputError,
    MissingInput,
    PredictorClosed,
    ShapeMismatch,
    UnexpectedInput,
    UnknownOutput,
)
from bridge.renaming import RenamedPredictor
from bridge.routing import Branch, RoutedPredictor, routed_info, split_predict

F32, I64 = bridge.DType.FLOAT32, bridge.DType.INT64
# Rows lie along axis 1 of "state", and "scale" has none.
SPEC = bridge.Signature(
    (
        bridge.TensorSpec("scale", F32, (1,)),
        bridge.TensorSpec("x", F32, ("n", 3)),
        bridge.TensorSpec("state", F32, (2, "n")),
    ),
    (
        bridge.TensorSpec("y", F32, ("n", 3)),
        bridge.TensorSpec("next", F32, (2, "n")),
        bridge.TensorSpec("top", F32, (1,)),
    ),
)
AXES = {"x": 0, "state": 1}
OUTPUT_AXES = {"y": 0, "next": 1}


class Scaling(bridge.Predictor):
    """Scales and shifts; notes the rows of every call."""

    def __init__(self, name: str, signature: bridge.Signature = SPEC) -> None:
        super().__init__(
            signature, bridge.PredictorInfo(backend=name, model=name, provider=name, threads=2)
        )
        self.rows: list[int] = []
        self.asked: list[tuple[str, ...]] = []
        self.closings = 0
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        claims = bridge.Capabilities(zero_rows=True, thread_safety=bridge.ThreadSafety.SHARED)
        self._attach(self.info, claims, (), None)

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        scale, x, state = (inputs[name] for name in self.signature.input_names)
        self.rows.append(len(x))
        self.asked.append(tuple(outputs))
        self.entered.set()
        if self.gate is not None:
            self.gate.wait(10)
        found = {
            "y": x * scale + state.sum(axis=0)[:, None],
            "next": state + scale,
            "top": np.array([x.sum()], np.float32),
        }
        return dict(zip(self.signature.output_names, found.values(), strict=True))

    def _close(self) -> None:
        self.closings += 1


def inputs(rows: int) -> dict[str, Any]:
    values = np.random.default_rng(rows)
    return {
        "scale": np.array([2], np.float32),
        "x": values.normal(size=(rows, 3)).astype(np.float32),
        "state": values.normal(size=(2, rows)).astype(np.float32),
    }


def routed(*branches: Branch, **more: Any) -> RoutedPredictor:
    arms = {one.predictor.info.backend: one.predictor for one in branches}
    info = routed_info(arms, [{"to_rows": one.to_rows} for one in branches])
    given: dict[str, Any] = {"batch_axes": AXES, "output_axes": OUTPUT_AXES, **more}
    return RoutedPredictor(SPEC, info, branches, **given)


def assert_equal(found: Arrays, wanted: Arrays) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_calls_go_by_their_rows() -> None:
    small, middle, large = Scaling("small"), Scaling("middle"), Scaling("large")
    predictor = routed(Branch(4, small), Branch(16, middle), Branch(None, large))
    oracle = Scaling("oracle")
    for rows in (0, 1, 4, 5, 16, 17, 100):
        assert_equal(predictor.predict(inputs(rows)), oracle.predict(inputs(rows)))
    assert (small.rows, middle.rows, large.rows) == ([0, 1, 4], [5, 16], [17, 100])
    assert list(predictor.predict(inputs(5), ["next"])) == ["next"]
    assert middle.asked[-1] == ("next",)
    assert list(predictor.predict(inputs(5), "y")) == ["y"]


def test_info_says_what_really_runs() -> None:
    small, large = Scaling("small"), Scaling("large")
    info = routed(Branch(4, small), Branch(None, large)).info
    assert (info.backend, info.provider, info.threads) == ("routed", "mixed", 2)
    assert info.precision == "float32"
    assert info.details["routes"] == [{"to_rows": 4}, {"to_rows": None}]
    assert info.details["arms"]["large"]["provider"] == "large"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"x": None}, InputError, "'x' is of class"),
        ({"x": [[1.0, 2.0, 3.0]]}, InputError, "'x' is of class list"),
        ({"x": np.float32(1)}, ShapeMismatch, "'x'"),
        ({"x": np.zeros((2, 3))}, DTypeMismatch, "'x' has dtype float64"),
        ({"x": np.zeros((9, 3), np.float32)}, ShapeMismatch, "'state'"),
        ({"more": np.zeros(1)}, UnexpectedInput, "'more'"),
    ],
)
def test_wrong_inputs(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    small, large = Scaling("small"), Scaling("large")
    for branches in ((Branch(4, small), Branch(None, large)), (Branch(None, large, 4),)):
        with pytest.raises(kind, match=words):
            routed(*branches).predict({**inputs(5), **change})
        with pytest.raises(MissingInput, match="'x' is missing"):
            routed(*branches).predict({name: inputs(5)[name] for name in ("scale", "state")})
        with pytest.raises(InputError, match="wanted a dict"):
            routed(*branches).predict([1])  # type: ignore[arg-type]
        with pytest.raises(UnknownOutput, match="'z'"):
            routed(*branches).predict(inputs(5), ["z"])
        with pytest.raises(InputError, match="wanted names"):
            routed(*branches).predict(inputs(5), 5)  # type: ignore[arg-type]


def test_other_arrays_than_numpys() -> None:
    class Foreign:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return self.array

    one = Scaling("one")
    given = inputs(9)
    wanted = one.predict(given, ["y"])
    for branches in ((Branch(4, one), Branch(None, one)), (Branch(None, one, 4),)):
        found = routed(*branches).predict({**given, "x": Foreign(given["x"])}, ["y"])
        assert_equal(found, wanted)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 11])
def test_a_split_call_equals_the_whole(rows: int) -> None:
    whole, cut = Scaling("whole"), Scaling("cut")
    predictor = routed(Branch(None, cut, split_rows=4))
    asked = ["next", "y"]
    assert_equal(predictor.predict(inputs(rows), asked), whole.predict(inputs(rows), asked))
    assert cut.rows == ([4] * (rows // 4) + [rows % 4] * bool(rows % 4) or [0])
    assert_equal(
        split_predict(cut, inputs(rows), iter(asked), 4, AXES, OUTPUT_AXES),
        whole.predict(inputs(rows), asked),
    )


def test_what_has_no_rows_cannot_be_split() -> None:
    predictor = routed(Branch(None, Scaling("cut"), split_rows=4))
    with pytest.raises(InputError, match="output 'top' has no rows"):
        predictor.predict(inputs(5))
    assert set(predictor.predict(inputs(4))) == {"y", "next", "top"}
    assert predictor.predict(inputs(5), []) == {}


def test_without_rows_there_is_one_branch() -> None:
    only = Scaling("only")
    predictor = routed(Branch(None, only), batch_axes={})
    predictor.predict(inputs(3))
    predictor.warmup(inputs(2))
    assert only.rows == [3, 2, 2]


def test_warm_up_at_the_sizes_that_were_measured() -> None:
    small, large = Scaling("small"), Scaling("large")
    predictor = routed(Branch(4, small), Branch(None, large), warm_rows=(1, 4, 32))
    predictor.warmup()
    assert (small.rows, large.rows) == ([1, 1, 4, 4], [32, 32])
    predictor.warmup(batches=(2, 64))
    assert (small.rows[-2:], large.rows[-2:]) == ([2, 2], [64, 64])
    predictor.warmup(inputs(5))
    assert large.rows[-2:] == [5, 5]


def test_warm_up_without_shapes_says_so() -> None:
    spec = bridge.Signature((bridge.TensorSpec("x", None, None),), ())
    predictor = RoutedPredictor(
        spec,
        bridge.PredictorInfo(),
        [Branch(None, Scaling("one"))],
        batch_axes={"x": 0},
        output_axes={},
    )
    with pytest.raises(InputError, match="warm-up inputs cannot be made"):
        predictor.warmup()


def test_bound_calls_belong_to_a_branch() -> None:
    small, large = Scaling("small"), Scaling("large")
    predictor = routed(Branch(4, small), Branch(None, large))
    for rows in (2, 8):
        given = inputs(rows)
        bound = predictor.bind({name: array.shape for name, array in given.items()})
        for name, array in given.items():
            bound.inputs[name][...] = array
        bound.predict()
        assert_equal(bound.outputs, Scaling("oracle").predict(given))
    assert (small.rows, large.rows) == ([2], [8])
    for shapes in ({}, {"x": 3}, {"x": ("a", 3)}):
        with pytest.raises(InputError):
            predictor.bind(shapes)  # type: ignore[arg-type]


def test_closing_closes_each_once() -> None:
    one, other = Scaling("one"), Scaling("other")
    predictor = routed(Branch(4, one), Branch(16, other), Branch(None, one, split_rows=4))
    with predictor:
        predictor.predict(inputs(5))
    predictor.close()
    assert (one.closings, other.closings) == (1, 1)
    for rows in (1, 8, 20):
        with pytest.raises(PredictorClosed):
            predictor.predict(inputs(rows), ["y"])
    with pytest.raises(PredictorClosed):
        predictor.bind({name: array.shape for name, array in inputs(2).items()})
    assert "closed" in repr(predictor)


def test_one_that_fails_to_close_keeps_no_other_open() -> None:
    one, other = Scaling("one"), Scaling("other")

    def failing() -> None:
        raise OSError("no")

    one._close = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no"):
        routed(Branch(4, one), Branch(None, other)).close()
    assert other.closings == 1


def test_a_split_call_outlives_a_close() -> None:
    one = Scaling("one")
    predictor = routed(Branch(None, one, split_rows=2))
    one.gate = threading.Event()
    found: list[Arrays] = []
    thread = threading.Thread(target=lambda: found.append(predictor.predict(inputs(6), ["y"])))
    thread.start()
    assert one.entered.wait(10)
    predictor.close()
    one.gate.set()
    thread.join(10)
    assert_equal(found[0], Scaling("oracle").predict(inputs(6), ["y"]))
    assert one.closings == 1


def test_threads() -> None:
    small, large = Scaling("small"), Scaling("large")
    predictor = routed(Branch(8, small), Branch(None, large, split_rows=16))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(40):
                rows = (seed * 7 + step * 5) % 40
                wanted = Scaling("oracle").predict(inputs(rows), ["y", "next"])
                assert_equal(predictor.predict(inputs(rows), ["y", "next"]), wanted)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child_it_refuses() -> None:
    predictor = routed(Branch(4, Scaling("one")), Branch(None, Scaling("two"), split_rows=4))
    child = os.fork()
    if child == 0:
        count = 0
        for rows in (1, 9):
            try:
                predictor.predict(inputs(rows), ["y"])
            except ForkedPredictor:
                count += 1
        predictor.close()
        os._exit(count)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    predictor.predict(inputs(1))


# Other names

THEIRS = bridge.Signature(
    (
        bridge.TensorSpec("a", F32, (1,)),
        bridge.TensorSpec("b", F32, ("n", 3)),
        bridge.TensorSpec("state", F32, (2, "n")),
    ),
    (
        bridge.TensorSpec("y:0", F32, ("n", 3)),
        bridge.TensorSpec("y:1", F32, (2, "n")),
        bridge.TensorSpec("top", F32, (1,)),
    ),
)


@pytest.fixture
def renamed() -> RenamedPredictor:
    return RenamedPredictor(
        Scaling("inner", THEIRS), SPEC, {"a": "scale", "b": "x"}, {"y": "y:0", "next": "y:1"}
    )


def test_other_names(renamed: RenamedPredictor) -> None:
    wanted = Scaling("oracle").predict(inputs(3))
    assert_equal(renamed.predict(inputs(3)), wanted)
    assert_equal(renamed.predict(inputs(3), ["next"]), {"next": wanted["next"]})
    assert renamed.signature == SPEC
    assert renamed.info.backend == "inner"
    assert_equal(routed(Branch(None, renamed)).predict(inputs(3)), wanted)
    renamed.warmup()
    inner = renamed._inner
    assert isinstance(inner, Scaling)
    renamed.close()
    assert inner.closings == 1
    with pytest.raises(PredictorClosed):
        renamed.predict(inputs(3))


def test_errors_have_the_names_that_users_know(renamed: RenamedPredictor) -> None:
    given = inputs(3)
    with pytest.raises(DTypeMismatch, match="'x' has dtype float64"):
        renamed.predict({**given, "x": np.zeros((3, 3))})
    with pytest.raises(MissingInput, match="'x' is missing"):
        renamed.predict({name: given[name] for name in ("scale", "state")})
    with pytest.raises(UnexpectedInput, match="'b' is not"):
        renamed.predict({"scale": given["scale"], "b": given["x"], "state": given["state"]})
    with pytest.raises(UnknownOutput, match="'y:0' is not"):
        renamed.predict(given, ["y:0"])


def test_bound_calls_under_other_names(renamed: RenamedPredictor) -> None:
    given = inputs(3)
    bound = renamed.bind({name: array.shape for name, array in given.items()})
    for seed in (3, 3):
        for name, array in inputs(seed).items():
            bound.inputs[name][...] = array
        bound.predict()
        assert_equal(bound.outputs, Scaling("oracle").predict(inputs(seed)))
    renamed.close()
    with pytest.raises(PredictorClosed):
        bound.predict()
