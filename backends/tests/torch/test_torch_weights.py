"""Weights of live modules from safetensors files, and weights that predictors share."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import InvalidModel, ModelNotFound, OptionError

torch = pytest.importorskip("torch")

X = np.arange(8, dtype=np.float32).reshape(2, 4)
KINDS = {"float32": "F32", "float64": "F64", "int64": "I64"}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.shift + self.count


def write(path: Path, tensors: dict[str, Any], pad: int = 0, **changes: Any) -> Path:
    """A safetensors file as its specification has it; ``pad`` moves the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        about = {
            "dtype": KINDS[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        header[name] = about | changes.get(name.replace(".", "_"), {})
        body += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize("pad", [0, 1], ids=["aligned", "odd"])
def test_a_file_takes_the_place_of_a_modules_weights(tmp_path: Path, pad: int) -> None:
    there, mine = Net().eval(), Net().eval()
    with torch.no_grad():
        there.count += 5
    before = mine.layer.weight.clone()
    path = write(tmp_path / "net.safetensors", there.state_dict(), pad)
    with torch.inference_mode():
        want = there(torch.from_numpy(X)).numpy()
    with bridge.load(mine, options={"weights": path}) as predictor:
        for _ in range(2):
            np.testing.assert_array_equal(predictor.predict({"x": X})["output_0"], want)
        assert predictor.info.options["weights"] == str(path)
    assert torch.equal(mine.layer.weight, before)
    assert mine.count == 0


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    net, path = Net().eval(), tmp_path / "net.safetensors"
    state = net.state_dict()
    wrong = {
        "'layer.bias' is missing": {k: v for k, v in state.items() if k != "layer.bias"},
        "'more' is not in the module": {**state, "more": torch.zeros(1)},
        r"'layer.bias' is float64\[3\] in the file": {
            **state,
            "layer.bias": torch.zeros(3).double(),
        },
        r"'count' is int64\[2\]": {**state, "count": torch.zeros(2, dtype=torch.int64)},
    }
    for said, tensors in wrong.items():
        with pytest.raises(OptionError, match=said) as caught:
            bridge.load(net, options={"weights": write(path, tensors)})
        assert caught.value.detail["rule"] == "weights-do-not-fit"
    torch.export.save(torch.export.export(net, (torch.zeros(2, 4),)), tmp_path / "net.pt2")
    with pytest.raises(OptionError, match="weights of its own") as caught:
        bridge.load(tmp_path / "net.pt2", options={"weights": path})
    assert caught.value.detail["rule"] == "weights-out-of-place"


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    net, path = Net().eval(), tmp_path / "net.safetensors"
    state = net.state_dict()
    whole = write(path, state).read_bytes()
    for bad in (b"", whole[:5], whole[:40], whole[:-1], b"\xff" * 64, b"\0" * 64):
        path.write_bytes(bad)
        with pytest.raises(InvalidModel, match="no safetensors file"):
            bridge.load(net, options={"weights": path})
    for change in (
        {"shape": [3, 5]},
        {"shape": [-3, -4]},
        {"dtype": "F33"},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [-48, 0]},
        {"more": 1},
        {"shape": [0, 2**70], "data_offsets": [0, 0]},
    ):
        write(path, state, layer_weight=change)
        said = "dtype F33" if "dtype" in change else "header cannot be read"
        with pytest.raises(InvalidModel, match=said) as broken:
            bridge.load(net, options={"weights": path})
        assert "frame #" not in str(broken.value)
    with pytest.raises(ModelNotFound):
        bridge.load(net, options={"weights": tmp_path / "none.safetensors"})
    with pytest.raises(InvalidModel):
        bridge.load(net, options={"weights": tmp_path})


def saved(module: torch.nn.Module, path: Path) -> Path:
    if path.suffix == ".pt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, which is not what is tested
            torch.jit.script(module.eval()).save(str(path))
    else:
        torch.export.save(torch.export.export(module.eval(), (torch.zeros(2, 4),)), path)
    return path


class Plain(torch.nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4,), float(fill)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Counts(Plain):
    def __init__(self, fill: float) -> None:
        super().__init__(fill)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x * self.weight + self.count


def answer(predictor: bridge.Predictor) -> float:
    (result,) = predictor.predict({"x": np.ones((2, 4), np.float32)}).values()
    return float(result[0, 0])


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_predictors_of_one_file_share_its_weights(tmp_path: Path, name: str) -> None:
    path = saved(Plain(2), tmp_path / name)
    first, second = bridge.load(path), bridge.load(path, options={"threads": 1})
    assert first._program.source is second._program.source is not None  # type: ignore[attr-defined]
    first.close()
    assert answer(second) == 2
    if name == "net.pt":  # freezing makes a module of its own
        with bridge.load(path, options={"execution": "frozen"}) as frozen:
            assert (answer(frozen), answer(second)) == (2, 2)
    # A file in the place of the old one, and the same file written anew, are other models.
    saved(Plain(3), tmp_path / f"new-{name}").replace(path)
    with bridge.load(path) as third:
        assert (answer(second), answer(third)) == (2, 3)
        path.write_bytes(saved(Plain(4), tmp_path / f"new-{name}").read_bytes())
        with bridge.load(path) as fourth:
            assert answer(fourth) == 4
    second.close()


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_predictors_with_state_share_nothing(tmp_path: Path, name: str) -> None:
    path = saved(Counts(2), tmp_path / name)
    with bridge.load(path) as first, bridge.load(path) as second:
        assert [answer(first), answer(first), answer(second)] == [3, 4, 3]
