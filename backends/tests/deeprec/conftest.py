"""The ABI stub, and models that it computes.

``abi_stub.c`` has the four functions of DeepRec's serving library and a model of its own. It is
not DeepRec: what is tested with it is this backend, not that library.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.isolated import Isolation

SOURCE = Path(__file__).with_name("abi_stub.c")
TYPES = {"float": 1, "int": 3, "string": 7, "long": 9}
DTYPES = {"float": np.float32, "int": np.int32, "string": object, "long": np.int64}
ROWS, DIM = 50, 4


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    """A protobuf message: varints and length-delimited fields."""
    found = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            found += varint(number << 3 | 2) + varint(len(raw)) + raw
    return bytes(found)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


@dataclass
class Stub:
    """The stub's library and how to load models with it."""

    path: Path

    def build(self, path: Path, *flags: str) -> Path:
        """Compiles the stub once more, with these flags."""
        return compiled(path, *flags)

    def load(self, model: StubModel, *words: str, **more: Any) -> bridge.Predictor:
        """A predictor over the stub.

        Args:
            words: What goes wrong; see ``abi_stub.c``.
            more: ``poll_ms``, times and ``environment`` of ``Isolation``, and options.
        """
        environment = {
            "ABI_STUB": ",".join(words),
            "ABI_STUB_POLL_MS": str(more.pop("poll_ms", 1)),
            **more.pop("environment", {}),
        }
        times = {name: more.pop(name) for name in list(more) if name.endswith("timeout_s")}
        return bridge.load(
            model.folder,
            backend="deeprec",
            options={"library": str(self.path), **more},
            isolated=Isolation(environment=environment, **times),
        )


@dataclass
class StubModel:
    """A model: the folder, its tensors, its weights, what it computes, an operator in it."""

    folder: Path
    inputs: list[tuple[str, str, tuple[int, ...]]]
    outputs: list[tuple[str, str]] = field(default_factory=lambda: [("score", "score")])
    weights: dict[str, Any] = field(default_factory=dict)
    op: str = "KvVarHandleOp"  # what makes a SavedModel one of DeepRec

    def write(self) -> StubModel:
        """The SavedModel's folder."""
        floats = sum(int(np.prod(shape)) for _, kind, shape in self.inputs if kind == "float")
        self.weights = random_weights(0, floats)
        self.folder.mkdir(parents=True)
        lines, sides = [], []
        tensors = [("i", *one) for one in self.inputs] + [
            ("o", name, kind, (DIM,) if kind == "embedding" else ()) for name, kind in self.outputs
        ]
        for side, name, kind, shape in tensors:
            dims = (-1, *shape)
            native = f"{name}_tensor:0"
            text = " ".join(map(str, dims))
            lines.append(f"{side} {name} {native} {kind} {len(dims)} {text}")
            info = message(
                (1, native),
                (2, TYPES.get(kind, 1)),
                (3, message(*[(2, message((1, size))) for size in dims])),
            )
            sides.append((1 if side == "i" else 2, message((1, name), (2, info))))
        signature = message(*sides, (3, "tensorflow/serving/predict"))
        graph = message((1, message((1, "x"), (2, self.op))))
        meta = message(
            (1, message((4, "serve"), (5, "1.15.5"))),
            (2, graph),
            (5, message((1, "serving_default"), (2, signature))),
        )
        (self.folder / "saved_model.pb").write_bytes(message((1, 1), (2, meta)))
        (self.folder / "abi_stub.signature").write_text("\n".join(lines))
        write_weights(self.folder / "abi_stub.weights", self.weights)
        return self

    def checkpoint(self, parent: Path, folder: str, version: int, seed: int) -> dict[str, Any]:
        """Publishes a full checkpoint below ``parent``; its weights."""
        weights = random_weights(seed, len(self.weights["v"]))
        (parent / folder).mkdir(parents=True, exist_ok=True)
        write_weights(parent / folder / f"model.ckpt-{version}.index", weights)
        (parent / folder / "checkpoint").write_text(f"model.ckpt-{version}")
        return weights

    def delta(self, parent: Path, folder: str, version: int, rows: dict[int, Any]) -> None:
        """Publishes an incremental checkpoint: new values of some rows of the table."""
        where = parent / folder / ".incremental_checkpoint"
        where.mkdir(exist_ok=True)
        parts = [struct.pack("<q", row) + values.tobytes() for row, values in rows.items()]
        data = struct.pack("<i", len(rows)) + b"".join(parts)
        (where / "part").write_bytes(data)
        (where / "part").rename(where / f"incremental_model.ckpt-{version}.index")

    def batch(self, rows: int, seed: int = 1) -> dict[str, Any]:
        """Inputs for the model."""
        rng = np.random.default_rng(seed)
        found: dict[str, Any] = {}
        for name, kind, shape in self.inputs:
            size = (rows, *shape)
            if kind == "float":
                found[name] = rng.standard_normal(size).astype(np.float32)
            elif kind == "string":
                found[name] = np.array(["x" * int(one) for one in rng.integers(0, 9, rows)], object)
                found[name] = np.broadcast_to(found[name].reshape(rows, *[1] * len(shape)), size)
            else:
                low = 0 if kind == "int" else -(2**62)
                high = 2**31 - 1 if kind == "int" else 2**62
                found[name] = rng.integers(low, high, size).astype(DTYPES[kind])
        return found

    def answer(self, inputs: dict[str, Any], weights: dict[str, Any] | None = None) -> Any:
        """What numpy computes: score and embedding."""
        known = self.weights if weights is None else weights
        rows = len(next(iter(inputs.values())))
        table, at = known["table"], 0
        found = np.zeros((rows, DIM), np.float32)
        logit = np.full(rows, known["b"], np.float32)
        for name, kind, _ in self.inputs:
            values = inputs[name].reshape(rows, -1)
            if kind == "float":
                logit += values @ known["v"][at : at + values.shape[1]]
                at += values.shape[1]
                continue
            if kind == "string":
                values = np.vectorize(len, otypes=[np.int64])(values)
            found += table[values % len(table)].sum(axis=1)
        return {"score": 1 / (1 + np.exp(-(logit + found @ known["w"]))), "embedding": found}


def random_weights(seed: int, floats: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    table, w, v = (
        (rng.standard_normal(shape) * 0.1).astype(np.float32)
        for shape in ((ROWS, DIM), (DIM,), (floats,))
    )
    return {"table": table, "w": w, "v": v, "b": np.float32(0.05)}


def write_weights(path: Path, weights: dict[str, Any]) -> None:
    parts = [weights[name].tobytes() for name in ("table", "w", "v", "b")]
    path.write_bytes(struct.pack("<3i", ROWS, DIM, len(weights["v"])) + b"".join(parts))


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    if shutil.which("cc") is None:
        pytest.skip("the ABI stub is compiled with cc, which is not installed")
    return Stub(compiled(tmp_path_factory.mktemp("stub") / "libserving_processor.so"))


def compiled(path: Path, *flags: str) -> Path:
    libraries = ["-lm", "-lpthread", "-ldl"]
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(path), *flags, str(SOURCE), *libraries]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


@pytest.fixture
def ranker(tmp_path: Path) -> StubModel:
    return StubModel(
        tmp_path / "ranker",
        [
            ("user", "long", ()),
            ("items", "long", (3,)),
            ("age", "int", ()),
            ("price", "float", (2,)),
        ],
        [("score", "score"), ("embedding", "embedding")],
    ).write()


Load = Callable[..., bridge.Predictor]


@pytest.fixture
def load(stub: Stub) -> Iterator[Load]:
    """``Stub.load``, whose predictors are closed at the end."""
    made: list[bridge.Predictor] = []

    def one(model: StubModel, *words: str, **more: Any) -> bridge.Predictor:
        made.append(stub.load(model, *words, **more))
        return made[-1]

    yield one
    for predictor in made:
        predictor.close()
