"""The ranker as an ONNX file, written node by node with ``onnx.helper``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge_zoo.description import BATCH, Ranker
from bridge_zoo.weights import Weights

__all__ = ["OPSET", "onnx_model", "write_onnx"]

OPSET = 18
"""Opset of the file. It belongs to IR version 8 (both of ONNX 1.13), which is what is
written, so that runtimes older than the installed onnx read the file too.
Source: the table of versions in onnx, ``docs/Versioning.md``."""

_IR_VERSION = 8


def write_onnx(ranker: Ranker, weights: Weights, path: Path) -> None:
    """Writes one self-contained file; all weights are initializers inside it."""
    path.write_bytes(onnx_model(ranker, weights).SerializeToString(deterministic=True))


def onnx_model(ranker: Ranker, weights: Weights) -> Any:
    """The checked ``onnx.ModelProto``.

    Values are named after the layer that makes them, initializers after the weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: dict[str, npt.NDArray[Any]] = {"one": np.array([1]), "two": np.array([2])}

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def dense_layer(value: str, name: str) -> str:
        return node("Gemm", [value, f"{name}.kernel", f"{name}.bias"], f"{name}.linear")

    def relu_layers(value: str, name: str, count: int) -> str:
        for index in range(count):
            value = node("Relu", [dense_layer(value, f"{name}.{index}")], f"{name}.{index}.relu")
        return value

    rows = [
        node("Gather", [f"tables.{item.name}", item.name], f"tables.{item.name}.row", axis=0)
        for item in ranker.id_features
    ]
    joined = node("Concat", [*rows, "dense"], "joined", axis=1)
    experts = [
        node(
            "Unsqueeze",
            [relu_layers(joined, f"experts.{expert}", len(ranker.expert_widths)), "one"],
            f"experts.{expert}.stackable",
        )
        for expert in range(ranker.expert_count)
    ]
    stacked = node("Concat", experts, "experts.stacked", axis=1)
    for task in ranker.tasks:
        gate = node("Softmax", [dense_layer(joined, f"gates.{task}")], f"gates.{task}.softmax")
        gate = node("Unsqueeze", [gate, "two"], f"gates.{task}.column")
        weighted = node("Mul", [stacked, gate], f"gates.{task}.weighted")
        mixed = node("ReduceSum", [weighted, "one"], f"gates.{task}.mixed", keepdims=0)
        hidden = relu_layers(mixed, f"towers.{task}", len(ranker.tower_widths))
        logit = node("Squeeze", [dense_layer(hidden, f"heads.{task}"), "one"], f"heads.{task}")
        node("Sigmoid", [logit], task)

    graph = helper.make_graph(
        nodes,
        ranker.name,
        inputs=[
            *(
                helper.make_tensor_value_info(item.name, TensorProto.INT64, [BATCH])
                for item in ranker.id_features
            ),
            helper.make_tensor_value_info("dense", TensorProto.FLOAT, [BATCH, ranker.dense_width]),
        ],
        outputs=[
            helper.make_tensor_value_info(task, TensorProto.FLOAT, [BATCH]) for task in ranker.tasks
        ],
        initializer=[
            numpy_helper.from_array(value, name) for name, value in {**weights, **constants}.items()
        ],
    )
    model = helper.make_model(
        graph,
        producer_name="bridge_zoo",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model
