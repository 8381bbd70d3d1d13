"""The models in torch: a live module, TorchScript and an ``ExportedProgram``.

The module is a ``torch.fx.GraphModule``: the description decides how many inputs
there are, TorchScript and ``torch.export`` take input names from the arguments of
``forward``, and ``fx`` is torch's own way to make a ``forward`` with arguments that
are not known when the code is written.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from bridge_zoo.batches import inputs
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

__all__ = ["torch_module", "torch_weights", "write_pt2", "write_torchscript"]


def torch_module(description: Description, weights: Weights) -> Any:
    """A ``torch.nn.Module`` in eval mode, on CPU, with copies of the weights.

    ``forward`` takes every input by name (or in signature order) and returns a dict of
    the scores by task.
    """
    import torch
    from torch import fx

    model = model_of(description)
    graph = fx.Graph()
    values = {name: graph.placeholder(name, torch.Tensor) for name in model.input_names}
    parts: dict[str, Any] = {}
    for layer in model.layers:
        values[layer.name] = _value(layer, graph, [values[name] for name in layer.inputs])
        parts |= _part(layer, weights)
    graph.output(
        {task: graph.call_method("squeeze", (values[name], 1)) for task, name in model.outputs}
    )
    return fx.GraphModule(parts, graph, class_name="Ranker").eval()


def _part(layer: Layer, weights: Weights) -> dict[str, Any]:
    """What the module holds of a layer, by name."""
    import torch
    from torch import nn

    # On "meta" torch draws no initial values, so its global random state stays as it was.
    part: Any
    match layer:
        case Embed() | Bag():
            rows, width = weights[layer.name].shape
            part = nn.Embedding(rows, width, device="meta")
            part.weight = nn.Parameter(torch.tensor(weights[layer.name]))
        case Dense():
            kernel = weights[f"{layer.name}.kernel"]
            fan_in, units = kernel.shape  # torch keeps (out, in), and the strides it is given
            part = nn.Linear(fan_in, units, device="meta")
            part.weight = nn.Parameter(torch.tensor(kernel.T).contiguous())
            part.bias = nn.Parameter(torch.tensor(weights[f"{layer.name}.bias"]))
        case Dots():
            count = len(layer.inputs)
            part = torch.tensor([one * count + two for one, two in pairs(count)])
            return {f"{layer.name}.indices": part}
        case _:
            return {}
    return {layer.name: part}


def _value(layer: Layer, graph: Any, values: list[Any]) -> Any:
    import torch

    call, method, first = graph.call_function, graph.call_method, values[0]
    match layer:
        case Embed() | Dense():
            return graph.call_module(layer.name, (first,))
        case Bag():
            rows = graph.call_module(layer.name, (first,))
            counted = method("to", (call(torch.ne, (first, PAD_ID)), torch.float32))
            total = call(torch.sum, (call(torch.mul, (rows, method("unsqueeze", (counted, 2)))), 1))
            if layer.pooling == "sum":
                return total
            count = method("sum", (counted, 1, True))
            return call(torch.div, (total, call(torch.clamp, (count, 1.0))))
        case Concat():
            return call(torch.cat, (values, 1))
        case Activate():
            if layer.function == "softmax":
                return call(torch.softmax, (first, 1))
            return call({"relu": torch.relu, "sigmoid": torch.sigmoid}[layer.function], (first,))
        case Product():
            return call(torch.mul, (first, values[1]))
        case RowSum():
            return method("sum", (first, 1, True))
        case Mix():
            stacked = call(torch.stack, (values[1:], 1))
            gate = method("unsqueeze", (first, 2))
            return call(torch.sum, (call(torch.mul, (stacked, gate)), 1))
        case Dots():
            stacked = call(torch.stack, (values, 1))
            dots = call(torch.bmm, (stacked, method("transpose", (stacked, 1, 2))))
            indices = graph.get_attr(f"{layer.name}.indices")
            return call(torch.index_select, (call(torch.flatten, (dots, 1)), 1, indices))
        case PairSum():
            stacked = call(torch.stack, (values, 1))
            squares = call(torch.sum, (call(torch.square, (stacked,)), 1))
            square = call(torch.square, (call(torch.sum, (stacked, 1)),))
            return call(torch.mul, (call(torch.sub, (square, squares)), 0.5))
        case Normalise():
            return call(torch.nn.functional.normalize, (first, 2.0, 1, 1e-6))
        case _:
            raise TypeError(f"no such layer: {layer!r}")


def torch_weights(module: Any, names: list[str]) -> Weights:
    """The weights of those names, copied out of a module that ``torch_module`` made."""
    found: Weights = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        if kind == "kernel":
            found[name] = module.get_submodule(layer).weight.detach().numpy().T.copy()
        elif kind == "bias":
            found[name] = module.get_submodule(layer).bias.detach().numpy().copy()
        else:
            found[name] = module.get_submodule(name).weight.detach().numpy().copy()
    return found


def write_torchscript(description: Description, weights: Weights, path: Path) -> None:
    """Writes the scripted module; its ``forward`` has the signature's argument names.

    Scripted, not traced: nothing of an example batch can get into the file.
    """
    import torch

    with warnings.catch_warnings():
        # TorchScript is the format asked for; torch 2.13 calls it deprecated.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        # Said of the attributes that fx.GraphModule's own __init__ annotates.
        warnings.filterwarnings(
            "ignore", r"The TorchScript type system doesn't support instance-level", UserWarning
        )
        scripted = torch.jit.script(torch_module(description, weights))
        scripted.save(str(path))


def write_pt2(description: Description, weights: Weights, path: Path) -> None:
    """Writes the ``ExportedProgram``; any batch from one row up is within its bounds.

    Inputs were exported by keyword, so ``load(path).module()`` is called by keyword
    too. The format keeps that all first dims are one and the same, not that its name
    is ``batch``.
    """
    import torch

    # Two rows or more: torch.export takes a 1 that it sees for a constant.
    example = {name: torch.tensor(value) for name, value in inputs(description, rows=4).items()}
    batch = torch.export.Dim(BATCH, min=1)
    program = torch.export.export(
        torch_module(description, weights),
        (),
        example,
        dynamic_shapes={name: {0: batch} for name in example},
        strict=False,
    )
    torch.export.save(program, path)
