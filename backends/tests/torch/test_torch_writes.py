"""The torch backend: models that write to inputs or to themselves where schemas do not say so."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge

torch = pytest.importorskip("torch")
functional = torch.nn.functional

FORMS = pytest.mark.parametrize("form", ["module", "script", "program"])
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 3, 2)


def load(module: Any, form: str, folder: Path, *examples: Any) -> bridge.Predictor:
    if form == "module":
        return bridge.load(module.eval())
    if form == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(module.eval()).save(str(folder / "net.pt"))
        return bridge.load(folder / "net.pt")
    torch.export.save(torch.export.export(module.eval(), examples), folder / "net.pt2")
    return bridge.load(folder / "net.pt2")


class BatchNorm(torch.nn.Module):
    def forward(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(x, mean, variance, training=True)


class InstanceNorm(torch.nn.Module):
    def forward(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return functional.instance_norm(x, mean, variance, use_input_stats=True)


@FORMS
@pytest.mark.parametrize("kind", [BatchNorm, InstanceNorm])
def test_running_statistics_that_are_inputs_stay_as_they_were(
    kind: Any, form: str, tmp_path: Path
) -> None:
    given = {"x": X, "mean": np.zeros(3, np.float32), "variance": np.ones(3, np.float32)}
    examples = [torch.from_numpy(array.copy()) for array in given.values()]
    with load(kind(), form, tmp_path, *examples) as predictor:
        for _ in range(3):
            predictor.predict(given)
    np.testing.assert_array_equal(given["mean"], 0)
    np.testing.assert_array_equal(given["variance"], 1)


@FORMS
def test_running_statistics_of_the_model_are_state(form: str, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.batch_norm(x, self.mean, self.variance, training=True)

    with load(Net(), form, tmp_path, torch.from_numpy(X.copy())) as predictor:
        predictor.predict({"x": X})
        assert predictor.info.stateful


@FORMS
def test_running_statistics_that_are_only_read_are_none(form: str, tmp_path: Path) -> None:
    net = torch.nn.BatchNorm1d(3)
    with load(net, form, tmp_path, torch.from_numpy(X.copy())) as predictor:
        predictor.predict({"input": X})
        assert not predictor.info.stateful


class Holding(torch.nn.Module):
    def __init__(self, held: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("held", held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_large_buffer_with_nan_is_no_state_and_is_no_list() -> None:
    held = torch.full((1 << 20,), float("nan"))
    with bridge.load(Holding(held).eval()) as predictor:
        tracemalloc.start()
        try:
            predictor.predict({"x": X})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert not predictor.info.stateful
    assert peak < held.numel()  # a list takes 8 bytes an element, and 24 more for its float


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
@pytest.mark.parametrize(
    "make",
    {
        "0-d": lambda: torch.tensor(float("nan")),
        "empty": lambda: torch.zeros(0),
        "bool": lambda: torch.tensor([True, False]),
        "complex64": lambda: torch.tensor([1 + 2j, float("nan")]),
        "complex32": lambda: torch.zeros(3, dtype=torch.complex32),
        "conjugate": lambda: torch.tensor([1 + 2j, 3]).conj(),
        "negative": lambda: torch._neg_view(torch.ones(3)),
        "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
        "strided": lambda: torch.arange(6.0)[::2],
        "expanded": lambda: torch.ones(1).expand(3),
        "sparse": lambda: torch.ones(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.quint8),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_buffer_of_any_kind_that_is_only_read_is_no_state(make: tuple[str, Any]) -> None:
    with bridge.load(Holding(make[1]()).eval()) as predictor:
        np.testing.assert_array_equal(predictor.predict({"x": X})["output_0"], X + 1)
        assert not predictor.info.stateful


class WithoutGradients(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.calls.add_(1.0)
            x.mul_(2.0)
            return x + y + self.calls


def test_writes_in_nested_graphs_are_seen(tmp_path: Path) -> None:
    x, y = np.ones(3, np.float32), np.ones(3, np.float32)
    with load(WithoutGradients(), "program", tmp_path, torch.ones(3), torch.ones(3)) as predictor:
        assert predictor.info.stateful
        for number in (1, 2, 3):
            (result,) = predictor.predict({"x": x, "y": y}).values()
            np.testing.assert_array_equal(result, 3 + number)
    np.testing.assert_array_equal(x, 1)


class ThroughDropout(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, 0.5, training=False).add_(1.0)


class ThroughBroadcast(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.broadcast_tensors(torch.zeros(2, 4, 3, 2), x)[1][0].add_(1.0)


class ThroughEinsum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("abc->cba", x).add_(1.0)


@FORMS
@pytest.mark.parametrize("kind", [ThroughDropout, ThroughBroadcast, ThroughEinsum])
def test_writes_through_views_that_are_not_declared(kind: Any, form: str, tmp_path: Path) -> None:
    x = X.copy()
    with load(kind(), form, tmp_path, torch.from_numpy(X.copy())) as predictor:
        for _ in range(3):
            predictor.predict({"x": x})
    np.testing.assert_array_equal(x, X)


def test_tensors_that_are_no_buffers_are_state_too(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = torch.zeros(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1.0)
            return x + self.calls

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor = load(Counter(), "program", tmp_path, torch.zeros(3))
    with predictor:
        assert predictor.info.stateful


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_a_dtype_that_numpy_cannot_have_is_named(tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.complex32)

    with pytest.raises(
        bridge.errors.UnsupportedModel, match=r"'output_0' has dtype torch\.complex32"
    ):
        load(Half(), "program", tmp_path, torch.zeros(3))
