"""What the torch backend refuses, and how: inputs, pickles, damaged files."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import (
    DeviceUnavailable,
    DTypeMismatch,
    InvalidModel,
    MissingInput,
    ModelError,
    PredictError,
    ShapeMismatch,
    UnexpectedInput,
    UnsupportedModel,
    UntrustedModel,
)

torch = pytest.importorskip("torch")

X = np.arange(8, dtype=np.float32).reshape(2, 4)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(x))


def scripted(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, which is not what is tested
        torch.jit.script(module.eval()).save(str(path))
    return path


def exported(module: torch.nn.Module, path: Path, *args: Any, **options: Any) -> Path:
    torch.export.save(torch.export.export(module.eval(), args, **options), path)
    return path


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_run_only_with_trust(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"evil": Touch(marker)}, tmp_path / "evil.pt")
    with pytest.raises(UntrustedModel, match="pickle"):
        bridge.load(tmp_path / "evil.pt")
    assert not marker.exists()
    with pytest.raises(UnsupportedModel, match="state dict"):
        bridge.load(tmp_path / "evil.pt", trust=True)
    assert marker.exists()  # the test can tell


def test_a_pickled_module_loads_with_trust(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(4, 3), tmp_path / "net.pt")
    with pytest.raises(UntrustedModel):
        bridge.load(tmp_path / "net.pt")
    with bridge.load(tmp_path / "net.pt", trust=True) as predictor:
        assert predictor.predict({"input": X})["output_0"].shape == (2, 3)


def test_a_state_dict_is_no_model(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UnsupportedModel, match="load_state_dict"):
        bridge.load(tmp_path / "weights.pt", trust=True)


def test_an_export_with_a_pickle_inside_does_not_run_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = exported(Net(), tmp_path / "net.pt2", torch.zeros(2, 4))
    inner = tmp_path / "inner.pt"
    torch.save(Touch(marker), inner)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as target:
        for info in source.infolist():
            evil = "sample_inputs" in info.filename
            target.writestr(info.filename, inner.read_bytes() if evil else source.read(info))
    with pytest.raises(UntrustedModel, match="sample_inputs"):
        bridge.load(tmp_path / "evil.pt2")
    assert not marker.exists()


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    path = exported(
        Net(),
        tmp_path / "net.pt2",
        torch.zeros(3, 4),
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    with bridge.load(path) as predictor:
        with pytest.raises(MissingInput):
            predictor.predict({})
        with pytest.raises(UnexpectedInput, match="Did you mean 'x'"):
            predictor.predict({"xx": X})
        with pytest.raises(DTypeMismatch, match="float64"):
            predictor.predict({"x": X.astype(np.float64)})
        with pytest.raises(ShapeMismatch):
            predictor.predict({"x": X[0]})
        assert predictor.predict({"x": X[:0]})["output_0"].shape == (0, 3)


def test_what_torch_refuses_in_a_call_is_a_predict_error(tmp_path: Path) -> None:
    with bridge.load(scripted(Net(), tmp_path / "net.pt")) as predictor:
        with pytest.raises(PredictError) as caught:
            predictor.predict({"x": np.zeros((2, 5), np.float32)})
        assert caught.value.backend == "torch"
        for array in (np.zeros((2, 4), ">f4"), np.zeros((2, 4), np.longdouble)):
            with pytest.raises(DTypeMismatch):
                predictor.predict({"x": array})
        assert predictor.predict({"x": X})["output_0"].shape == (2, 3)


def test_broken_files(tmp_path: Path) -> None:
    for name in ("net.pt", "net.pt2"):
        path = tmp_path / name
        if name == "net.pt":
            scripted(Net(), path)
        else:
            exported(Net(), path, torch.zeros(2, 4))
        whole = path.read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(InvalidModel):
                bridge.load(path)


def test_a_damaged_script_is_a_model_error(tmp_path: Path) -> None:
    path = scripted(Net(), tmp_path / "net.pt")
    for left_out in ("data.pkl", ".py", "data/0"):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
            for info in source.infolist():
                if not info.filename.endswith(left_out):
                    target.writestr(info.filename, source.read(info))
        with pytest.raises(ModelError):
            bridge.load(tmp_path / "b.pt")


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path = scripted(Net(), tmp_path / "net.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith(".py"):
                data = data.replace(b"torch.dropout(", b"ops.mylib.dropout(")
                data = data.replace(b"torch.linear(", b"ops.mylib.linear(")
            target.writestr(info.filename, data)
    with pytest.raises(UntrustedModel, match="mylib::"):
        bridge.load(tmp_path / "b.pt")
    with pytest.raises(UnsupportedModel, match=r"mylib::(linear|dropout)"):
        bridge.load(tmp_path / "b.pt", trust=True)


def test_pickles_of_something_else_and_missing_devices(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "listed.pt")
    with pytest.raises(UnsupportedModel, match="object of class list"):
        bridge.load(tmp_path / "listed.pt", trust=True)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailable, match="cuda:0"):
            bridge.load(Net().eval(), device="cuda")


def test_an_operator_that_is_not_registered_is_named(tmp_path: Path) -> None:
    library = torch.library.Library("bridge_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    library.impl("twice", torch.empty_like, "Meta")

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.bridge_test.twice(x)

    path = exported(Twice(), tmp_path / "net.pt2", torch.zeros(3))
    library._destroy()
    with pytest.raises(
        UnsupportedModel, match="does not know the model's operator bridge_test::twice"
    ):
        bridge.load(path, trust=True)
