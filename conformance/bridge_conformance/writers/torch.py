"""Networks as torch programs: TorchScript, ExportedProgram, AOTInductor package."""

from __future__ import annotations

import operator
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bridge import DType
from bridge_conformance.network import Network
from bridge_conformance.writing import NotExpressible

__all__ = ["write_exported_program", "write_package", "write_torchscript"]

# Names without operators in torch 2.13, which its archives do not know.
_SHELLS = frozenset({DType.INT2, DType.INT4, DType.UINT2, DType.UINT4})
_COMPILED = "affine"
_ROWS = 3  # of the example; a 1 would be taken for a constant


def write_torchscript(network: Network, folder: Path) -> Path:
    """Writes the scripted module, whose ``forward`` has the network's names.

    Raises:
        NotExpressible: torch lacks an element type, or a kernel for it.
    """
    import torch

    module, _ = _module(network)
    path = folder / f"{network.name}.pt"
    with warnings.catch_warnings():
        # TorchScript is the format asked for; torch 2.13 calls it deprecated.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        # Said of the attributes that fx.GraphModule's own __init__ annotates.
        warnings.filterwarnings(
            "ignore", r"The TorchScript type system doesn't support instance-level", UserWarning
        )
        torch.jit.script(module).save(str(path))
    return path


def write_exported_program(network: Network, folder: Path) -> Path:
    """Writes the ExportedProgram; every number of rows is within its bounds.

    Raises:
        NotExpressible: torch lacks an element type, or a kernel for it, or cannot export.
    """
    import torch

    path = folder / f"{network.name}.pt2"
    torch.export.save(_exported(network), path)
    return path


def write_package(network: Network, folder: Path) -> Path:
    """Compiles the ExportedProgram; takes some 10 s of a C++ compiler.

    Raises:
        NotExpressible: It is not the one network that is compiled.
    """
    if network.name != _COMPILED:
        raise NotExpressible(f"Only {_COMPILED} is compiled by AOTInductor: each takes some 10 s.")
    path = folder / f"{network.name}.pt2"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        # Both are of torch's own making: its compiler uses what torch 2.13 calls deprecated.
        warnings.filterwarnings(
            "ignore", r"`torch\.jit\.script_method` is deprecated", DeprecationWarning
        )
        warnings.filterwarnings(
            "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
        )
        import torch._inductor

        # Its usual cache lies below /tmp, where others may have put something. The process
        # that writes does nothing else, so nobody minds the variable.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch
        torch._inductor.aoti_compile_and_package(_exported(network), package_path=str(path))
    return path


def _exported(network: Network) -> Any:
    import torch

    unsaved = network.dtypes & _SHELLS
    if unsaved:
        raise NotExpressible(f"torch.export saves no {', '.join(map(str, unsaved))}.")
    module, example = _module(network)
    sizes: dict[str, Any] = {
        item: torch.export.Dim(item, min=0)
        for spec in network.inputs
        for item in spec.shape or ()
        if isinstance(item, str)
    }
    shapes = {
        spec.name: {
            axis: sizes[item] for axis, item in enumerate(spec.shape or ()) if item in sizes
        }
        for spec in network.inputs
    }
    return torch.export.export(
        module,
        (),
        example,
        dynamic_shapes=shapes,
        strict=False,
        # ``reshape`` asks when it runs whether there are six elements, not of every size now.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _module(network: Network) -> tuple[Any, dict[str, Any]]:
    """A ``torch.nn.Module`` with the constants as buffers, and example inputs.

    It is a ``torch.fx.GraphModule``, because torch takes input names from the arguments
    of ``forward``. ``Identity`` is no operator there: what it passes on comes out as the
    very same tensor, be it an input or a buffer.
    """
    import torch
    from torch import fx

    graph = fx.Graph()
    known: dict[str, Any] = {
        spec.name: graph.placeholder(spec.name, torch.Tensor) for spec in network.inputs
    }
    known.update({name: graph.get_attr(name) for name in network.constants})
    operators = _operators(torch)
    for node in network.nodes:
        values = [known[name] for name in node.inputs]
        if node.op == "Identity":
            known[node.output] = values[0]
            continue
        function, keys = operators[node.op]
        keywords = {keys.get(key, key): value for key, value in node.attributes.items()}
        known[node.output] = graph.call_function(function, tuple(values), keywords)
    graph.output({spec.name: known[spec.name] for spec in network.outputs})
    root = torch.nn.Module()
    for name, value in network.constants.items():
        root.register_buffer(name, _tensor(torch, value))
    module = fx.GraphModule(root, graph, class_name="Network").eval()
    example = {name: _tensor(torch, value) for name, value in network.inputs_for(_ROWS).items()}
    try:
        with torch.inference_mode():
            module.forward(**example)  # what calls it would print the error as well
    except NotImplementedError as error:
        raise NotExpressible(f"torch lacks a kernel: {error}.") from error
    return module, example


def _tensor(torch: Any, value: np.ndarray[Any, Any]) -> Any:
    dtype = DType.of(value.dtype)
    wanted = getattr(torch, str(dtype), None)
    if wanted is None:
        raise NotExpressible(f"torch has no dtype {dtype}.")
    if value.dtype.isbuiltin == 1:
        return torch.from_numpy(value)
    carrier = torch.from_numpy(value.view(f"i{value.itemsize}"))  # what numpy itself lacks
    return carrier.view(wanted)


def _operators(torch: Any) -> dict[str, tuple[Callable[..., Any], dict[str, str]]]:
    """For each operator torch's function, and its names of attributes."""
    dim = {"axis": "dim"}
    return {
        "Add": (torch.add, {}),
        "And": (torch.logical_and, {}),
        "Exp": (torch.exp, {}),
        "Gather": (operator.getitem, {}),
        "MatMul": (torch.matmul, {}),
        "Mul": (torch.mul, {}),
        "Neg": (torch.neg, {}),
        "Not": (torch.logical_not, {}),
        "Or": (torch.logical_or, {}),
        "ReduceMean": (torch.mean, dim),
        "ReduceSum": (torch.sum, dim),
        "Reshape": (torch.reshape, {}),
        "Softmax": (torch.softmax, dim),
        "Sub": (torch.sub, {}),
        "Tanh": (torch.tanh, {}),
        "Where": (torch.where, {}),
    }
