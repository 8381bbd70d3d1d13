"""The models as ONNX files, written node by node with ``onnx.helper``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge_zoo.description import BATCH, Description, model_of
from bridge_zoo.layers import (
    PAD_ID,
    Activate,
    Bag,
    Concat,
    Dense,
    Dots,
    Embed,
    Layer,
    Mix,
    Normalise,
    PairSum,
    Product,
    RowSum,
    pairs,
)
from bridge_zoo.weights import Weights

__all__ = ["OPSET", "onnx_model", "write_onnx"]

OPSET = 18
"""Opset of the file. It belongs to IR version 8 (both of ONNX 1.13), which is what is
written, so that runtimes older than the installed onnx read the file too.
Source: the table of versions in onnx, ``docs/Versioning.md``."""

_IR_VERSION = 8


def write_onnx(description: Description, weights: Weights, path: Path) -> None:
    """Writes one self-contained file; all weights are initializers inside it."""
    path.write_bytes(onnx_model(description, weights).SerializeToString(deterministic=True))


def onnx_model(description: Description, weights: Weights) -> Any:
    """The checked ``onnx.ModelProto``.

    Values are named after the layer that makes them, initializers after the weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = model_of(description)
    sheet = _Sheet()
    values = {name: name for name in model.input_names}
    for layer in model.layers:
        values[layer.name] = sheet.draw(layer, [values[name] for name in layer.inputs])
    for task, name in model.outputs:
        sheet.node("Squeeze", [values[name], sheet.number("axis_1", [1])], task)

    def declared(name: str, kind: int, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        sheet.nodes,
        model.name,
        inputs=[
            *(
                declared(one.name, TensorProto.INT64, [BATCH, *([one.length] * (one.length > 0))])
                for one in model.id_features
            ),
            *(
                declared(one.name, TensorProto.FLOAT, [BATCH, one.width])
                for one in model.dense_features
            ),
        ],
        outputs=[declared(task, TensorProto.FLOAT, [BATCH]) for task in model.tasks],
        initializer=[
            numpy_helper.from_array(value, name)
            for name, value in {**weights, **sheet.constants}.items()
        ],
    )
    made = helper.make_model(
        graph,
        producer_name="bridge_zoo",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(made, full_check=True)
    return made


class _Sheet:
    """The nodes so far, and the constants that they need besides weights."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node with one output, after which it is named."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def number(self, name: str, value: Any, dtype: type = np.int64) -> str:
        """A constant."""
        self.constants[name] = np.array(value, dtype)
        return name

    def stack(self, values: list[str], name: str) -> str:
        """Values of one width as ``(batch, count, width)``."""
        rows = [
            self.node("Unsqueeze", [value, self.number("axis_1", [1])], f"{name}.row_{index}")
            for index, value in enumerate(values)
        ]
        return self.node("Concat", rows, f"{name}.stacked", axis=1)

    def total(self, value: str, name: str, *, keepdims: int = 0) -> str:
        """The sum over dim 1."""
        return self.node("ReduceSum", [value, self.number("axis_1", [1])], name, keepdims=keepdims)

    def draw(self, layer: Layer, values: list[str]) -> str:
        """The nodes of a layer; the name of its value."""
        name, first = layer.name, values[0]
        match layer:
            case Embed():
                return self.node("Gather", [name, first], f"{name}.row", axis=0)
            case Bag():
                return self._bag(layer, first)
            case Concat():
                return self.node("Concat", values, name, axis=1)
            case Dense():
                weights = [f"{name}.kernel", f"{name}.bias"]
                return self.node("Gemm", [first, *weights], f"{name}.linear")
            case Activate():
                op = {"relu": "Relu", "sigmoid": "Sigmoid", "softmax": "Softmax"}[layer.function]
                return self.node(op, [first], name)
            case Product():
                return self.node("Mul", values, name)
            case RowSum():
                return self.total(first, name, keepdims=1)
            case Mix():
                gate = self.node("Unsqueeze", [first, self.number("axis_2", [2])], f"{name}.column")
                stacked = self.stack(values[1:], name)
                return self.total(self.node("Mul", [stacked, gate], f"{name}.weighted"), name)
            case Dots():
                stacked, count = self.stack(values, name), len(values)
                other = self.node("Transpose", [stacked], f"{name}.columns", perm=[0, 2, 1])
                dots = self.node("MatMul", [stacked, other], f"{name}.square")
                flat = self.node("Flatten", [dots], f"{name}.flat", axis=1)
                chosen = [one * count + two for one, two in pairs(count)]
                return self.node(
                    "Gather", [flat, self.number(f"{name}.indices", chosen)], name, axis=1
                )
            case PairSum():
                stacked = self.stack(values, name)
                total = self.total(stacked, f"{name}.sum")
                square = self.node("Mul", [total, total], f"{name}.square")
                own = self.node("Mul", [stacked, stacked], f"{name}.squares")
                doubled = self.node(
                    "Sub", [square, self.total(own, f"{name}.own")], f"{name}.twice"
                )
                return self.node("Mul", [doubled, self.number("half", 0.5, np.float32)], name)
            case Normalise():
                length = self.node(
                    "ReduceL2", [first, self.number("axis_1", [1])], f"{name}.length"
                )
                least = self.number("shortest", 1e-6, np.float32)
                divisor = self.node("Max", [length, least], f"{name}.divisor")
                return self.node("Div", [first, divisor], name)
            case _:
                raise TypeError(f"no such layer: {layer!r}")

    def _bag(self, layer: Bag, ids: str) -> str:
        from onnx import TensorProto

        name = layer.name
        rows = self.node("Gather", [name, ids], f"{name}.rows", axis=0)
        padding = self.node("Equal", [ids, self.number("pad_id", PAD_ID)], f"{name}.is_padding")
        is_counted = self.node("Not", [padding], f"{name}.is_counted")
        counted = self.node("Cast", [is_counted], f"{name}.counted", to=TensorProto.FLOAT)
        column = self.node("Unsqueeze", [counted, self.number("axis_2", [2])], f"{name}.column")
        kept = self.node("Mul", [rows, column], f"{name}.kept")
        total = self.total(kept, f"{name}.sum")
        if layer.pooling == "sum":
            return total
        count = self.total(counted, f"{name}.count", keepdims=1)
        one = self.number("one", 1.0, np.float32)
        divisor = self.node("Max", [count, one], f"{name}.divisor")
        return self.node("Div", [total, divisor], f"{name}.mean")
