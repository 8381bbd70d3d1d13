"""A small backend that keeps every promise, to be broken in one place at a time.

It runs the networks of the suite with numpy, from files of two formats of its own, of
which it claims one. A second one promises less, and keeps that too. Both are reached
through ``BRIDGE_CONFORMANCE_PLUGINS``; see ``broken.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bridge
from bridge.binding import Bound
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.check import Arrays, Layout
from bridge.device import Device
from bridge.dtypes import DType
from bridge.errors import InvalidModel
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.signature import Signature, TensorSpec
from bridge_conformance.network import Network, Node

_DIGEST_BYTES = 32


class NetworkFile(Format):
    """A first line, a digest of the rest, and the network: JSON on one line, then constants."""

    name = "network"
    title = "Network file"
    native_backend = "sound"
    suffixes = (".network",)
    devices = ("cpu",)
    first_line = b"NETWORK\n"

    def sniff(self, file: FileProbe) -> bool:
        return file.head.startswith(self.first_line)

    def describe(self, model: ModelRef) -> ModelFacts:
        network = self.read(model)
        return ModelFacts(signatures={"": network.signature})

    def check(self, model: ModelRef) -> None:
        self.read(model)

    def read(self, model: ModelRef) -> Network:
        data = model.file.read_bytes()[len(self.first_line) :]
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise InvalidModel(
                f"{model.name} is damaged: its digest is that of other bytes.",
                fix="Write or copy it again.",
                model=model.name,
            )
        text, _, values = body.partition(b"\n")
        said = json.loads(text)
        constants = {}
        for name, dtype, shape in said["constants"]:
            kind = DType(dtype).numpy
            count = math.prod(shape)
            constants[name] = np.frombuffer(values, kind, count).reshape(shape).copy()
            values = values[count * kind.itemsize :]
        return Network(
            said["name"],
            tuple(map(TensorSpec.from_dict, said["inputs"])),
            tuple(map(TensorSpec.from_dict, said["outputs"])),
            tuple(Node(**node) for node in said["nodes"]),
            constants,
        )

    def write(self, network: Network, folder: Path) -> Path:
        said = {
            "name": network.name,
            "inputs": [spec.to_dict() for spec in network.inputs],
            "outputs": [spec.to_dict() for spec in network.outputs],
            "nodes": [vars(node) for node in network.nodes],
            "constants": [
                (name, DType.of(value.dtype).value, value.shape)
                for name, value in network.constants.items()
            ],
        }
        values = b"".join(value.tobytes() for value in network.constants.values())
        body = json.dumps(said).encode() + b"\n" + values
        path = folder / f"{network.name}{self.suffixes[0]}"
        path.write_bytes(self.first_line + hashlib.sha256(body).digest() + body)
        return path


class SketchFile(NetworkFile):
    """The same under another name, which the sound backend does not claim."""

    name = "sketch"
    title = "Sketch file"
    suffixes = (".sketch",)
    first_line = b"SKETCH\n"


def _softmax(x: Any, axis: int) -> Any:
    raised = np.exp(x - x.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "And": np.logical_and,
    "Exp": np.exp,
    "Gather": lambda table, ids: table[ids],
    "Identity": np.copy,
    "MatMul": np.matmul,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "ReduceMean": lambda x, axis: x.mean(axis),
    "ReduceSum": lambda x, axis: x.sum(axis, dtype=x.dtype),
    "Reshape": lambda x, shape: x.reshape(shape).copy(),
    "Softmax": _softmax,
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Where": np.where,
}


def run(network: Network, inputs: Mapping[str, Any], results: Arrays | None = None) -> Arrays:
    """The outputs, new or written into ``results``; 16-bit floats are computed in 32 bits."""
    known = {**network.constants, **inputs}
    with np.errstate(all="ignore"):
        for node in network.nodes:
            values = [known[name] for name in node.inputs]
            dtype = values[-1].dtype
            is_short = dtype.itemsize == 2 and DType.of(dtype).is_float and node.op != "Identity"
            if is_short:
                values = [value.astype(np.float32) for value in values]
            operator = _OPERATORS[node.op]
            into = None if results is None or is_short else results.get(node.output)
            if into is not None and isinstance(operator, np.ufunc):
                result = operator(*values, out=into)
            else:
                result = np.asarray(operator(*values, **node.attributes))
            known[node.output] = result.astype(dtype) if is_short else result
    if results is None:
        return {name: known[name] for name in network.signature.output_names}
    for name, array in results.items():
        if known[name] is not array:
            np.copyto(array, known[name])
    return results


class SoundBound(Bound):
    """Works in the bound arrays themselves, once the first call has told their shapes."""

    def _run(self) -> None:
        predictor = self._predictor
        assert isinstance(predictor, SoundPredictor)
        if self.outputs:
            run(predictor.network, self.inputs, self.into)
        else:
            self.outputs.update(run(predictor.network, self.inputs))
            # Views of its own, as native code has addresses.
            self.into = {name: array[...] for name, array in self.outputs.items()}


class SoundPredictor(bridge.Predictor):
    """A network, read."""

    layout = Layout.ANY

    def __init__(self, network: Network, signature: Signature, info: bridge.PredictorInfo) -> None:
        super().__init__(signature, info)
        self.network = network

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return run(self.network, inputs)

    def _bind(self, inputs: Arrays) -> Bound:
        return SoundBound(self, inputs)

    def _close(self) -> None:
        del self.network


class SoundBackend(bridge.Backend):
    """Claims all that it does, and does all that it claims."""

    name = "sound"
    predictor_type: type[SoundPredictor] = SoundPredictor

    def probe(self) -> bridge.Availability:
        return bridge.Availability(installed=True, version=np.__version__, distribution="numpy")

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            formats=frozenset({"network"}),
            dtypes=frozenset(DType),
            dynamic_dims=True,
            zero_rows=True,
            bind=True,
            dlpack=True,
            deterministic=True,
            thread_safety=ThreadSafety.SHARED,
        )

    def _load(self, model: ModelRef, device: Device, options: Any) -> bridge.Predictor:
        assert isinstance(model.format, NetworkFile)
        network = model.format.read(model)
        info = bridge.PredictorInfo(
            device=Device("cpu"), provider="numpy", versions={"numpy": np.__version__}
        )
        return self.predictor_type(network, network.signature, info)


class ModestPredictor(SoundPredictor):
    """Wants copies, and binds by the bridge's means."""

    layout = Layout.WRITABLE

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return run(self.network, {name: array.copy() for name, array in inputs.items()})

    def _bind(self, inputs: Arrays) -> Bound:
        return Bound(self, inputs)


class ModestBackend(SoundBackend):
    """Says no wherever a backend may say no and still take the networks of the suite."""

    name = "modest"
    predictor_type = ModestPredictor

    def capabilities(self, device: Device) -> Capabilities:
        return dataclasses.replace(
            super().capabilities(device),
            dtypes=frozenset({DType.FLOAT32, DType.FLOAT64, DType.INT64, DType.BOOL}),
            zero_rows=False,
            bind=False,
            dlpack=False,
            deterministic=False,
            thread_safety=ThreadSafety.EXCLUSIVE,
        )


class StaticBackend(SoundBackend):
    """Takes float32 in dims that never change, and nothing else."""

    name = "static"

    def capabilities(self, device: Device) -> Capabilities:
        return dataclasses.replace(
            super().capabilities(device),
            dtypes=frozenset({DType.FLOAT32}),
            dynamic_dims=False,
            zero_rows=False,
        )
