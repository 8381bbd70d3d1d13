"""The ranker in torch: a live module, TorchScript and an ``ExportedProgram``.

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
from bridge_zoo.description import BATCH, Ranker
from bridge_zoo.weights import Weights

__all__ = ["torch_module", "write_pt2", "write_torchscript"]


def torch_module(ranker: Ranker, weights: Weights) -> Any:
    """A ``torch.nn.Module`` in eval mode, on CPU, with copies of the weights.

    ``forward`` takes every input by name (or in signature order) and returns a dict of
    the scores by task.
    """
    import torch
    from torch import fx, nn

    graph = fx.Graph()

    def dense_layer(value: Any, name: str) -> Any:
        return graph.call_module(name, (value,))

    def relu_layers(value: Any, name: str, count: int) -> Any:
        for index in range(count):
            value = graph.call_function(torch.relu, (dense_layer(value, f"{name}.{index}"),))
        return value

    arguments = {name: graph.placeholder(name, torch.Tensor) for name in ranker.input_names}
    embedded = [
        graph.call_module(f"tables.{item.name}", (arguments[item.name],))
        for item in ranker.id_features
    ]
    joined = graph.call_function(torch.cat, ([*embedded, arguments["dense"]], 1))
    experts = [
        relu_layers(joined, f"experts.{expert}", len(ranker.expert_widths))
        for expert in range(ranker.expert_count)
    ]
    stacked = graph.call_function(torch.stack, (experts, 1))
    scores = {}
    for task in ranker.tasks:
        gate = graph.call_function(torch.softmax, (dense_layer(joined, f"gates.{task}"), 1))
        gate = graph.call_method("unsqueeze", (gate, 2))
        weighted = graph.call_function(torch.mul, (stacked, gate))
        mixed = graph.call_function(torch.sum, (weighted, 1))
        hidden = relu_layers(mixed, f"towers.{task}", len(ranker.tower_widths))
        logit = graph.call_method("squeeze", (dense_layer(hidden, f"heads.{task}"), 1))
        scores[task] = graph.call_function(torch.sigmoid, (logit,))
    graph.output(scores)

    # On "meta" torch draws no initial values, so its global random state stays as it was.
    layers: dict[str, nn.Module] = {}
    for name, value in weights.items():
        if name.startswith("tables."):
            rows, width = value.shape
            layers[name] = nn.Embedding(rows, width, device="meta")
            layers[name].weight = nn.Parameter(torch.tensor(value))
        elif name.endswith(".kernel"):
            layer = name.removesuffix(".kernel")
            fan_in, units = value.shape  # torch keeps (out, in), and the strides it is given
            layers[layer] = nn.Linear(fan_in, units, device="meta")
            layers[layer].weight = nn.Parameter(torch.tensor(value.T).contiguous())
            layers[layer].bias = nn.Parameter(torch.tensor(weights[f"{layer}.bias"]))
    return fx.GraphModule(layers, graph, class_name="Ranker").eval()


def write_torchscript(ranker: Ranker, weights: Weights, path: Path) -> None:
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
        scripted = torch.jit.script(torch_module(ranker, weights))
        scripted.save(str(path))


def write_pt2(ranker: Ranker, weights: Weights, path: Path) -> None:
    """Writes the ``ExportedProgram``; any batch from one row up is within its bounds.

    Inputs were exported by keyword, so ``load(path).module()`` is called by keyword
    too. The format keeps that all first dims are one and the same, not that its name
    is ``batch``.
    """
    import torch

    # Two rows or more: torch.export takes a 1 that it sees for a constant.
    example = {name: torch.tensor(value) for name, value in inputs(ranker, rows=4).items()}
    batch = torch.export.Dim(BATCH, min=1)
    program = torch.export.export(
        torch_module(ranker, weights),
        (),
        example,
        dynamic_shapes={name: {0: batch} for name in example},
        strict=False,
    )
    torch.export.save(program, path)
