"""ExportedPrograms of torch with the OpenVINO backend."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.loading import open_model

pytest.importorskip("openvino")
torch = pytest.importorskip("torch")

from bridge_openvino import exported, program  # noqa: E402

Dim = torch.export.Dim


class Ranker(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Inputs and outputs whose order is not that of their names, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)
        self.dense = torch.nn.Linear(7, 2)

    def forward(self, zeta: Any, ids: Any, idle: Any, alpha: Any) -> dict[str, Any]:
        found = self.table(ids).sum(1)
        joined = torch.cat([zeta, found, alpha.expand(zeta.shape[0], 1)], 1)
        score = torch.relu(self.dense(joined))
        return {"second": zeta * 2, "first": score, "same": zeta}


class Other(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.seen.add_(1)
        return x + self.seen


def save(path: Path, module: Any, arguments: tuple[Any, ...], shapes: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes)
        torch.export.save(program, str(path))
    return program


def example(rows: int, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "zeta": generator.standard_normal((rows, 2), np.float32),
        "ids": generator.integers(0, 10, (rows, 3)),
        "idle": np.zeros((rows, 2), np.float32),
        "alpha": generator.standard_normal((1, 1), np.float32),
    }


def tensors(inputs: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(torch.from_numpy(array) for array in inputs.values())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    module = Ranker()
    rows = Dim("rows", min=2, max=64)
    first = {0: rows}
    path = tmp_path_factory.mktemp("exported") / "ranker.pt2"
    save(path, module, tensors(example(5)), (first, first, first, None))
    return path, module


def load(path: Path, **options: Any) -> bridge.Predictor:
    return bridge.load(path, backend="openvino", options=options)


def test_names_dims_and_answers_are_those_of_torch(saved: tuple[Path, Any]) -> None:
    path, module = saved
    predictor = load(path)
    theirs = bridge.load(path)
    assert theirs.info.backend == "torch"
    assert predictor.signature == theirs.signature
    assert predictor.signature.output_names == ("second", "first", "same")
    for rows in (2, 7, 64):
        inputs = example(rows, rows)
        results = predictor.predict(inputs)
        with torch.no_grad():
            wanted = module(*tensors(inputs))
        assert list(results) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(results[name], array.numpy(), rtol=1e-5, atol=1e-6)


def test_sizes_that_torch_refuses_are_refused(saved: tuple[Path, Any]) -> None:
    predictor = load(saved[0])
    for rows in (1, 65):
        with pytest.raises(errors.ShapeMismatch, match="2 to 64"):
            predictor.predict(example(rows))
    predictor = load(saved[0], bounds=("rows=8",))
    assert predictor.signature.input("zeta").shape == (8, 2)
    assert predictor.predict(example(8))["first"].shape == (8, 2)


def test_the_cache_spares_torch(
    saved: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    first = load(saved[0], cache=True)
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(exported, "importlib", nothing)
    with pytest.raises(errors.BackendUnavailable, match="torch"):
        exported.read_exported(open_model(saved[0]))
    monkeypatch.setattr(program, "read", None)  # nothing is to be converted
    again = load(saved[0], cache=True)
    assert again.info.details["origin"] == "cache"
    assert again.signature == first.signature
    inputs = example(7)
    np.testing.assert_array_equal(again.predict(inputs)["first"], first.predict(inputs)["first"])
    with pytest.raises(errors.ShapeMismatch, match="2 to 64"):
        again.predict(example(65))


def test_programs_with_state_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "m.pt2", Other(), (torch.ones(3),))
    with pytest.raises(errors.UnsupportedModel, match="changes its inputs or buffers") as caught:
        load(tmp_path / "m.pt2")
    assert "torch" in (caught.value.fix or "")


def test_live_programs_are_refused(tmp_path: Path) -> None:
    live = save(tmp_path / "m.pt2", torch.nn.Linear(2, 2), (torch.ones(3, 2),))
    with pytest.raises(errors.UnsupportedModel, match="disk"):
        bridge.load(live, backend="openvino")
    assert load(tmp_path / "m.pt2").predict({"input": np.ones((3, 2), np.float32)})


def test_conditions_that_only_torch_can_check_are_refused(tmp_path: Path) -> None:
    class Branch(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any, y: Any) -> Any:
            return x * 2 + y.sum() if x.shape[0] <= y.shape[0] else x * 3 + y.sum()

    shapes = {"x": {0: Dim("n", min=2, max=99)}, "y": {0: Dim("m", min=2, max=99)}}
    save(tmp_path / "m.pt2", Branch(), (torch.ones(3), torch.ones(5)), shapes)
    with pytest.raises(errors.UnsupportedModel, match="conditions on sizes"):
        load(tmp_path / "m.pt2")
