"""Live torch modules and programs converted: exported first, with free rows, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import ConversionError, OptionError, UnsupportedModel
from bridge.live import signature_of_inputs, written
from bridge.loading import open_model
from bridge_convert.torch_module import TorchToExportedProgram

torch = pytest.importorskip("torch")


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "ids": random.integers(0, 10, count),
        "x": random.normal(size=(count, 3)).astype(np.float32),
    }


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """In training mode it drops values: what is converted must not."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = torch.nn.Embedding(10, 4)
            self.linear = torch.nn.Linear(7, 2)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, ids: Any, x: Any) -> dict[str, Any]:
        whole = self.dropout(torch.cat([self.table(ids), x], 1))
        return {"click": torch.tanh(self.linear(whole)), "norm": (x * x).sum(1)}


def expected(net: Any, given: dict[str, Any]) -> dict[str, Any]:
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value) for name, value in given.items()}
        return {name: value.numpy() for name, value in net.eval()(**tensors).items()}


def test_a_live_module_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path))
    net = Net().train()
    # Verified below, in this process: two workers would only take seconds.
    made = bridge.convert(net, "onnx", inputs=[rows(4)], verify=False)
    assert net.training  # the caller's own is as it was
    assert made.path.name == "net.onnx"
    with bridge.load(made.path) as predictor:
        assert predictor.signature.input("x").shape == ("batch", 3)
        for count in (1, 7):  # the example's four rows are not in it
            given = rows(count, seed=count)
            found = predictor.predict(given)
            for name, right in expected(net, given).items():
                np.testing.assert_allclose(found[name], right, rtol=1e-4, atol=1e-5)
    assert bridge.convert(net, "onnx", inputs=[rows(4)], verify=False).is_cached


@pytest.mark.parametrize("kind", ["stated", "inputs", "program"])
def test_the_file_of_a_live_model_is_there_for_so_long(kind: str) -> None:
    live: Any = Net().eval()
    stated = bridge.Signature(
        (
            bridge.TensorSpec("ids", bridge.DType.INT64, ("batch",)),
            bridge.TensorSpec("x", bridge.DType.FLOAT32, ("batch", 3)),
        ),
        (),
    )
    if kind == "program":
        dim = torch.export.Dim("batch", min=1)
        example = {name: torch.from_numpy(value) for name, value in rows(4).items()}
        shapes = {"ids": {0: dim}, "x": {0: dim}}
        live = torch.export.export(live, (), example, dynamic_shapes=shapes)
    model = open_model(live, signature=stated if kind == "stated" else None)
    with written(model, [rows(4)] if kind == "inputs" else None) as path:
        with bridge.load(path) as predictor:
            found = predictor.predict(rows(6))
            batch = {spec.shape[0] for spec in predictor.signature.inputs if spec.shape}
        assert len(batch) == 1  # one and the same dim
        assert not isinstance(batch.pop(), int)
    assert not path.exists()
    for name, right in expected(Net(), rows(6)).items():
        np.testing.assert_allclose(found[name], right, rtol=1e-5, atol=1e-6)


def test_a_module_that_says_nothing_is_told_what_to_pass() -> None:
    with pytest.raises(UnsupportedModel, match="Net does not say what goes in") as caught:
        bridge.convert(Net(), "onnx")
    assert "inputs=" in str(caught.value)
    assert "signature=" in str(caught.value)


def test_inputs_that_do_not_fit_the_module_are_refused() -> None:
    given = rows(4)
    with pytest.raises(OptionError, match=r"no argument 'idz'.*Did you mean 'ids'"):
        bridge.convert(Net(), "onnx", inputs=[{"idz": given["ids"], "x": given["x"]}])
    with pytest.raises(OptionError, match="needs an argument 'x'"):
        bridge.convert(Net(), "onnx", inputs=[{"ids": given["ids"]}])


def test_what_torch_cannot_export_is_refused_with_its_reason(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    given = [{"x": np.ones((4, 2), np.float32)}]
    with pytest.raises(UnsupportedModel, match=r"torch.export does not take the module Branching"):
        bridge.convert(Branching(), "onnx", inputs=given)

    class Fixed(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x + torch.ones(4, 2)

    with pytest.raises(UnsupportedModel, match=r"does not take the module Fixed"):
        bridge.convert(Fixed(), "onnx", inputs=given)


def test_an_export_that_computes_something_else_is_not_used() -> None:
    class Counting(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Reads what torch.export takes for a constant."""

        scale = 1.0

        def forward(self, x: Any) -> Any:
            self.scale = self.scale + 1.0
            return x * self.scale

    with pytest.raises(ConversionError, match="computes something else than <live Counting>"):
        bridge.convert(Counting().eval(), "onnx", inputs=[{"x": np.ones((4, 2), np.float32)}])


def test_files_are_not_exported_again(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), path)
    refusal = TorchToExportedProgram().refuse(open_model(path))
    assert refusal is not None
    assert "in a file already" in refusal.reason


def test_dims_follow_from_the_sets_of_inputs() -> None:
    def shapes(*sets: dict[str, Any]) -> list[Any]:
        return [spec.shape for spec in signature_of_inputs(sets).inputs]

    one = {"a": np.zeros((4, 3)), "b": np.zeros(4, np.int64)}
    assert shapes(one) == [("batch", 3), ("batch",)]
    assert shapes(one, {"a": np.zeros((2, 5)), "b": np.zeros(2, np.int64)}) == [
        ("batch", None),
        ("batch",),
    ]
    user = {"user": np.zeros((1, 3)), "item": np.zeros((4, 2))}
    assert shapes(user, {**user, "item": np.zeros((6, 2))}) == [(1, 3), (None, 2)]
    with pytest.raises(OptionError, match=r"have \[1, 4\] rows"):
        shapes(user)
    with pytest.raises(OptionError, match="differ in more than sizes, as input 'b' shows"):
        shapes(one, {**one, "b": np.zeros(4, np.int32)})
    with pytest.raises(OptionError, match="differ in more than sizes"):
        shapes(one, {"a": one["a"]})
