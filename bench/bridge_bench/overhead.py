"""Cost of a call through the bridge, against each runtime's own idiomatic call.

``python -m bridge_bench.overhead`` prints, for every installed backend, the ratio of
``predictor.predict`` (checks on) and of a bound call to the call in the backend's
``native.py``, on a model whose arithmetic is next to nothing: one input of 16 floats,
and 40 inputs of one int64 id each. Both sides run in the same process, in short blocks
that alternate in random order; the figures are medians over blocks. Each backend has a
process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bridge.backend import Backend
from bridge.cpus import usable_cpus
from bridge.device import driver_devices
from bridge.dtypes import DType
from bridge.loading import backends, load, open_model
from bridge.model import ModelRef
from bridge.predictor import Predictor
from bridge.signature import Signature, TensorSpec
from bridge_bench.stats import median

__all__ = ["MANY_IDS", "ONE_FLOAT", "main", "measure", "onnx_model"]

BLOCKS = 41
BLOCK_NS = 4_000_000  # long against the clock's resolution, short against drift
IDS = 40

ONE_FLOAT = Signature(
    (TensorSpec("x", DType.FLOAT32, (None, 16)),), (TensorSpec("y", DType.FLOAT32, (None, 16)),)
)
MANY_IDS = Signature(
    tuple(TensorSpec(f"id_{index:02}", DType.INT64, ("rows",)) for index in range(IDS)),
    (TensorSpec("total", DType.INT64, ("rows",)),),
)
CASES = {"1 input of 16 floats": ONE_FLOAT, f"{IDS} inputs of one id": MANY_IDS}


def measure(backend: Backend, signature: Signature, folder: Path) -> dict[str, float]:
    """Medians in microseconds of the native call, ``predict`` and the bound call.

    ``predict_ratio`` and ``bind_ratio`` are medians over blocks of the ratio to the
    native call of the same block, so that drift of the machine cancels.
    """
    model = _model(backend, signature, folder)
    native_module = importlib.import_module(f"{type(backend).__module__.rpartition('.')[0]}.native")
    native_call, named = native_module.load(model)
    predictor = load(model, backend=backend.name)
    inputs = signature.zeros(1)
    bound = predictor.bind({name: array.shape for name, array in inputs.items()})
    calls: dict[str, Callable[[], object]] = {
        "native": lambda: native_call(inputs),
        "predict": lambda: predictor.predict(inputs),
        "bind": lambda: bound.predict(),  # noqa: PLW0108 - one call more, as the others have
    }
    _check_agreement(named(native_call(inputs)), predictor, inputs)
    repeats = {name: _calibrate(call) for name, call in calls.items()}
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)  # noqa: S311 - an order, no secret
    for _ in range(BLOCKS):
        for name in order.sample(list(calls), len(calls)):
            blocks[name].append(_block(calls[name], repeats[name]) / 1e3)
    found = {f"{name}_us": median(values) for name, values in blocks.items()}
    for name in ("predict", "bind"):
        pairs = zip(blocks[name], blocks["native"], strict=True)
        found[f"{name}_ratio"] = median([mine / theirs for mine, theirs in pairs])
    predictor.close()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.overhead", description=__doc__)
    parser.add_argument("--backend", action="append", help="only this backend; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    known = backends()
    names = given.backend or [
        name
        for name, backend in known.items()
        if backend.probe().installed and backend.device_kinds[0] == "cpu"
    ]
    if given.in_process:
        (name,) = names
        with tempfile.TemporaryDirectory() as folder:
            rows = {
                case: measure(known[name], signature, Path(folder) / str(index))
                for index, (case, signature) in enumerate(CASES.items())
            }
        print(json.dumps(rows))
        return 0
    results: dict[str, Any] = {}
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "bridge_bench.overhead", "--in-process", "--backend", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            print(f"{name} failed with exit status {done.returncode}", file=sys.stderr)
            return 1
        results[name] = {"version": known[name].probe().version, **json.loads(done.stdout)}
    print(json.dumps(results, indent=2) if given.json else _table(results))
    return 0


def _table(results: dict[str, Any]) -> str:
    (_, processor), *_ = driver_devices()
    machine = f"{processor}, {usable_cpus()} CPUs, {platform.machine()}"
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    lines = [
        f"{machine}; {versions}; medians of {BLOCKS} alternating blocks",
        "",
        "| backend | model | native call, µs | predict, µs | predict ÷ native | bound ÷ native |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for case in CASES:
            row = found[case]
            lines.append(
                f"| {name} {found['version']} | {case} | {row['native_us']:.1f} | "
                f"{row['predict_us']:.1f} | {row['predict_ratio']:.2f} | {row['bind_ratio']:.2f} |"
            )
    return "\n".join(lines)


def _block(call: Callable[[], object], repeats: int) -> float:
    started = perf_counter_ns()
    for _ in range(repeats):
        call()
    return (perf_counter_ns() - started) / repeats


def _calibrate(call: Callable[[], object]) -> int:
    for _ in range(30):
        call()
    return max(3, round(BLOCK_NS / min(_block(call, 10) for _ in range(5))))


def _check_agreement(wanted: dict[str, Any], predictor: Predictor, inputs: dict[str, Any]) -> None:
    got = predictor.predict(inputs)
    if list(got) != list(wanted) or any(not np.array_equal(got[k], wanted[k]) for k in wanted):
        raise AssertionError(f"predict gave {got}, the native call {wanted}.")


def _model(backend: Backend, signature: Signature, folder: Path) -> ModelRef:
    """The model in the format that is native to the backend, else in ONNX."""
    folder.mkdir()
    formats = backend.capabilities(
        backend.default_device(open_model(onnx_model(signature)))
    ).formats
    if "onnx" in formats:
        path = folder / "model.onnx"
        path.write_bytes(onnx_model(signature))
        return open_model(path)
    if "saved_model" in formats:
        return open_model(_saved_model(signature, folder / "saved_model"))
    return open_model(_torch_module(signature), signature=signature)


def onnx_model(signature: Signature) -> bytes:
    """One addition for one input of floats, the sum of all ids for several inputs."""
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT if len(signature.inputs) == 1 else TensorProto.INT64

    def info(spec: TensorSpec) -> Any:
        return helper.make_tensor_value_info(spec.name, kind, list(spec.shape or ()))

    names = list(signature.input_names)
    if len(names) == 1:
        node = helper.make_node("Add", [names[0], names[0]], [signature.output_names[0]])
        nodes = [node]
    else:
        axes = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
        unsqueezed = [
            helper.make_node("Unsqueeze", [name, "axis"], [f"{name}_u"]) for name in names
        ]
        concat = helper.make_node("Concat", [f"{name}_u" for name in names], ["all"], axis=1)
        total = helper.make_node("ReduceSum", ["all", "axis"], ["total"], keepdims=0)
        nodes = [*unsqueezed, concat, total]
    graph = helper.make_graph(
        nodes,
        "overhead",
        [info(spec) for spec in signature.inputs],
        [info(spec) for spec in signature.outputs],
        [] if len(names) == 1 else [axes],
    )
    opsets = [helper.make_opsetid("", 17)]
    serialized: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=8
    ).SerializeToString()
    return serialized


def _saved_model(signature: Signature, folder: Path) -> Path:
    import tensorflow as tf

    kind = tf.float32 if len(signature.inputs) == 1 else tf.int64

    class Module(tf.Module):  # type: ignore[misc]
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[
                tf.TensorSpec(
                    [size if isinstance(size, int) else None for size in spec.shape or ()],
                    kind,
                    spec.name,
                )
                for spec in signature.inputs
            ]
        )
        def __call__(self, *tensors: Any) -> dict[str, Any]:
            if len(tensors) == 1:
                return {"y": tensors[0] + tensors[0]}
            return {"total": tf.reduce_sum(tf.stack(tensors, axis=1), axis=1)}

    module = Module()
    tf.saved_model.save(module, str(folder), {"serving_default": module.__call__})
    return folder


def _torch_module(signature: Signature) -> Any:
    import torch

    # A graph module, because its forward has one named argument per input.
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in signature.input_names]
    if len(inputs) == 1:
        result = graph.call_function(torch.add, (inputs[0], inputs[0]))
    else:
        result = graph.call_method("sum", (graph.call_function(torch.stack, (inputs, 1)), 1))
    graph.output({signature.output_names[0]: result})
    return torch.fx.GraphModule(torch.nn.Module(), graph)


if __name__ == "__main__":
    sys.exit(main())
