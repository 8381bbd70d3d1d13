"""CUDA graphs of bound calls, on a GPU made of numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors

SHAPES = {"x": (5, 4), "ids": (5,), "size": ()}


@pytest.fixture
def fixed(trt: Any, gpu: Any) -> Any:
    """The module, with an engine without outputs whose shape depends on data."""
    trt.engine = type(trt.engine)(gpu, left_out=("positive",))
    return trt


def fill(bound: Any, seed: int, size: int = 3) -> Any:
    """Fills a bound call's inputs; the answers."""
    generator = np.random.default_rng(seed)
    bound.inputs["x"][...] = generator.standard_normal((5, 4))
    bound.inputs["ids"][...] = generator.integers(0, 2**40, 5)
    bound.inputs["size"][...] = size
    return {
        "y": (2 * bound.inputs["x"] + bound.inputs["ids"][:, None]).astype(np.float32),
        "rows": np.int64(5),
        "steps": np.arange(size, dtype=np.float32),
    }


def assert_right(bound: Any, right: dict[str, Any]) -> None:
    assert bound.outputs.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_array_equal(bound.outputs[name], value)


def test_the_first_call_is_recorded_and_later_ones_launch_it(
    fixed: Any, gpu: Any, engine_file: Path
) -> None:
    with bridge.load(engine_file, trust=True, options={"cuda_graph": True}) as predictor:
        bound = predictor.bind(SHAPES)
        right = fill(bound, 0)
        bound.predict()
        assert_right(bound, right)
        assert gpu.launches == 0
        copies = gpu.copies
        for seed in range(1, 4):
            right = fill(bound, seed)
            bound.predict()
            assert_right(bound, right)
        assert gpu.launches == 3
        assert gpu.copies == copies  # they are in the graph
        # Another value that decides a shape: other places, so another graph.
        right = fill(bound, 4, size=6)
        bound.predict()
        assert_right(bound, right)
        assert gpu.launches == 3
        right = fill(bound, 5, size=6)
        bound.predict()
        assert_right(bound, right)
        assert gpu.launches == 4
        assert len(gpu.graphs) == 1
        outputs = predictor.predict({name: array.copy() for name, array in bound.inputs.items()})
        np.testing.assert_array_equal(outputs["y"], right["y"])
        assert gpu.launches == 4
    assert gpu.graphs == {}
    assert gpu.streams == {}


def test_kernels_of_a_graph_are_final(fixed: Any, engine_file: Path) -> None:
    strategies = fixed.DynamicShapesKernelSpecializationStrategy
    with bridge.load(engine_file, trust=True, options={"cuda_graph": True}) as predictor:
        predictor.bind(SHAPES)
        predictor.predict(dict(predictor.signature.zeros(2)))
    chosen = [
        one.made_of.dynamic_shapes_kernel_specialization_strategy for one in fixed.engine.contexts
    ]
    assert chosen == [strategies.EAGER, None]
    options = {"cuda_graph": True, "specialization": "never"}
    with bridge.load(engine_file, trust=True, options=options) as predictor:
        predictor.bind(SHAPES)
    config = fixed.engine.contexts[-1].made_of
    assert config.dynamic_shapes_kernel_specialization_strategy is strategies.NONE


def test_outputs_that_depend_on_data_exclude_a_graph(trt: Any, gpu: Any, engine_file: Path) -> None:
    with bridge.load(engine_file, trust=True, options={"cuda_graph": True}) as predictor:
        with pytest.raises(errors.UnsupportedModel, match="'positive' depends on data"):
            predictor.bind(SHAPES)
        predictor.predict(dict(predictor.signature.zeros(2)))  # which no graph is needed for
    assert gpu.graphs == {}


def test_what_fails_while_recorded_is_told(
    fixed: Any, gpu: Any, engine_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bridge.load(engine_file, trust=True, options={"cuda_graph": True}) as predictor:
        bound = predictor.bind(SHAPES)
        fill(bound, 0)
        begin = gpu.cudaStreamBeginCapture

        def fails(stream: int, mode: int) -> Any:
            fixed.engine.fails.append("it waits for the host")
            return begin(stream, mode)

        monkeypatch.setattr(gpu, "cudaStreamBeginCapture", fails)
        with pytest.raises(errors.PredictError, match="it waits for the host"):
            bound.predict()
        assert gpu.capturing == gpu.graphs == {}  # the recording has ended
        monkeypatch.undo()


def test_on_the_gpu_nothing_but_the_engine_is_recorded(
    fixed: Any, gpu: Any, engine_file: Path
) -> None:
    options = {"cuda_graph": True, "io": "device"}
    with bridge.load(engine_file, trust=True, options=options) as predictor:
        bound = predictor.bind(SHAPES)
        copies = gpu.copies
        for _ in range(3):
            bound.predict()
        assert gpu.copies == copies
        assert gpu.launches == 2
        assert len(gpu.followed) == 3  # each call waits for the default stream
        assert not np.asarray(bound.outputs["y"]).any()
