"""Ordinary networks, in every form that torch saves: accepted without trust, right answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.loading import open_model
from bridge_torch.native import load as native_load

torch = pytest.importorskip("torch")
nn = torch.nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.rest = nn.Sequential(nn.ReLU6(), nn.SiLU(inplace=True), nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rest(self.norm(self.first(x)))
        y = y + self.second(y)
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(torch.flatten(self.pool(y), 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.lstm(x)
        z, state = self.gru(y)
        return self.norm(z), state


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.table(ids)).softmax(-1)


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 4, mode="mean")

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bags": self.bag(ids, offsets)}


class Segmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.group = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = nn.functional.gelu(self.group(self.down(x)))
        for block in self.blocks:
            y = block(y)
        return nn.functional.pad(self.up(self.instance(y)), [1, 1]), y.argmax(1)


CASES: dict[str, tuple[Any, Any]] = {
    "residual": (Residual, lambda: (torch.randn(2, 3, 16, 16),)),
    "recurrent": (Recurrent, lambda: (torch.randn(2, 5, 4),)),
    "attention": (Attention, lambda: (torch.randint(0, 50, (2, 7)),)),
    "bags": (Bags, lambda: (torch.randint(0, 20, (6,)), torch.tensor([0, 3]))),
    "segmentation": (Segmentation, lambda: (torch.randn(1, 1, 16, 16),)),
}


def save(form: str, module: Any, args: Any, folder: Path) -> Path:
    path = folder / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "scripted":
            torch.jit.save(torch.jit.script(module), path)
        elif form == "traced":
            torch.jit.save(torch.jit.trace(module, args, strict=False, check_trace=False), path)
        elif form == "frozen":
            torch.jit.save(torch.jit.freeze(torch.jit.script(module)), path)
        elif form == "exported":
            torch.export.save(torch.export.export(module, args), path)
        else:
            torch.export.save(torch.export.export(module, args).run_decompositions(), path)
    return path


@pytest.mark.parametrize("form", ["scripted", "traced", "frozen", "exported", "decomposed"])
@pytest.mark.parametrize("case", CASES)
def test_ordinary_networks(case: str, form: str, tmp_path: Path) -> None:
    make, examples = CASES[case]
    torch.manual_seed(3)
    module, args = make().eval(), examples()
    path = save(form, module, args, tmp_path)
    with torch.inference_mode():
        want = module(*args)
    want = list(want.values()) if isinstance(want, dict) else want
    want = [want] if isinstance(want, torch.Tensor) else list(want)
    with bridge.load(path) as predictor:
        assert predictor.signature == open_model(path).facts.signatures[""]
        assert not predictor.info.stateful
        names = predictor.signature.input_names
        inputs = {name: tensor.numpy() for name, tensor in zip(names, args, strict=True)}
        results = predictor.predict(inputs)
        for got, tensor in zip(results.values(), want, strict=True):
            np.testing.assert_allclose(got, tensor.numpy(), atol=1e-5)
    call, named = native_load(open_model(path))
    native = named(call(inputs))
    for got, other in zip(results.values(), native.values(), strict=True):
        np.testing.assert_allclose(got, other, atol=1e-5)
