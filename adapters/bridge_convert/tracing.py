"""torch programs of any kind as traced functions over flat tensors, as older exporters want.

Tracing a scripted module keeps its control flow: what is traced is only the function around
it, which turns nested results into a tuple. Freezing then inlines and folds all of it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import ConversionError, OptionError, UnsupportedModel
from bridge.formats.torch.structure import named_leaves
from bridge_convert import onnx_file

__all__ = ["NEWEST_OPSET", "examples", "export_onnx", "quiet", "traced"]


NEWEST_OPSET = 20
"""Newest that torch's older exporter writes (2.13)."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings, those about deprecation of what is used here among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def examples(signature: bridge.Signature) -> tuple[Any, ...]:
    """Tensors of zeros that fit a signature, in its order; free dims of rows are 2.

    Raises:
        UnsupportedModel: A dtype or shape is not known.
    """
    import torch

    try:
        arrays = signature.zeros(2)
        return tuple(torch.from_numpy(arrays[spec.name]) for spec in signature.required)
    except (TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"no example can be made to trace the model with: {error}",
            fix="State dtype and shape of each input: signature=, or --signature FILE.json.",
        ) from error


def traced(call: Any, tensors: tuple[Any, ...]) -> tuple[Any, tuple[str, ...]]:
    """A frozen function of flat tensors, and the names of its results.

    Args:
        call: A module that takes these tensors.
        tensors: See ``examples``.

    Raises:
        UnsupportedModel: A result is no tensor, or calls change the module.
    """
    import torch

    with torch.no_grad():
        leaves = named_leaves(call(*tensors))
    odd = [name for name, leaf in leaves if not isinstance(leaf, torch.Tensor)]
    if odd:
        raise UnsupportedModel(
            f"the model's result '{odd[0]}' is no tensor.", fix="Return tensors only."
        )

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = call

        def forward(self, *given: Any) -> Any:
            found = tuple(leaf for _, leaf in named_leaves(self.inner(*given)))
            return found[0] if len(found) == 1 else found

    flat = Flat()
    flat.training = False  # eval() would ask the modules of an ExportedProgram, which refuse
    with torch.no_grad():
        trace: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            flat, tensors, check_trace=False, strict=False
        )
        frozen = torch.jit.freeze(trace.eval())
    if _keeps_state(frozen.graph):
        raise UnsupportedModel(
            "calls of the module change it, which a converted model would not do.",
            fix="Use backend='torch', or export it with its state as inputs and outputs.",
        )
    return frozen, tuple(name for name, _ in leaves)


def _keeps_state(graph: Any) -> bool:
    """Whether a frozen graph writes to attributes; those that nothing writes to are constants."""
    aliases = graph.alias_db()
    return bool(graph.findAllNodes("prim::SetAttr")) or any(
        aliases.has_writers(node.output()) for node in graph.findAllNodes("prim::GetAttr")
    )


def _weight_bytes(graph: Any) -> int:
    """Size of the tensors in a frozen graph, which are constants of it."""
    tensors = [
        node.t("value")
        for node in graph.findAllNodes("prim::Constant")
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def export_onnx(
    frozen: Any,
    outputs: tuple[str, ...],
    tensors: tuple[Any, ...],
    signature: bridge.Signature,
    target: Path,
    opset: int,
) -> None:
    """Writes a traced function as ONNX with torch's older exporter.

    Args:
        frozen: See ``traced``.
        outputs: Names of its results, in order.
        tensors: See ``examples``.
        signature: Its inputs, in order, and dims of its outputs.
        target: Path to write to.
        opset: Version of ONNX's operators.

    Raises:
        OptionError: It does not write this opset.
        UnsupportedModel: The weights do not fit into one file.
        ConversionError: An operator is not known to it, by name.
    """
    import torch

    if opset > NEWEST_OPSET:
        raise OptionError(
            f"torch's older exporter writes opsets up to {NEWEST_OPSET}; got {opset}.",
            fix=f"Take opset={NEWEST_OPSET} or less.",
            option="opset",
            value=opset,
        )

    weights = _weight_bytes(frozen.graph)
    if weights > onnx_file.LARGEST_BYTES:
        raise UnsupportedModel(
            f"torch's older exporter writes one file; the model has {weights} bytes of weights, "
            f"and {onnx_file.LARGEST_BYTES} fit into it.",
            fix="Export the model with torch.export.save and convert that, or convert to "
            "openvino_ir.",
            weights=weights,
        )
    axes: dict[str, dict[int, str]] = {}
    for spec in signature.required:
        for axis, size in enumerate(spec.shape or ()):
            if not isinstance(size, int):
                axes.setdefault(spec.name, {})[axis] = size or f"{spec.name}_{axis}"
    by_name = {spec.name: spec for spec in signature.outputs}
    for name in outputs:
        shape = by_name[name].shape if name in by_name else None
        for axis, size in enumerate(shape or ()):
            if not isinstance(size, int):
                axes.setdefault(name, {})[axis] = size or f"{name}_{axis}"
    try:
        torch.onnx.export(
            frozen,
            tensors,
            str(target),
            dynamo=False,
            opset_version=opset,
            input_names=[spec.name for spec in signature.required],
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    except torch.onnx.errors.UnsupportedOperatorError as error:
        text = str(error)
        named = re.search(r"operator '([^']+)'", text)
        operator = named[1] if named is not None else text.partition("\n")[0]
        raise ConversionError(
            f"torch.onnx cannot convert the operator {operator}.",
            fix="Try another route: 'bridge routes' shows them.",
            operator=operator,
            native_error=text,
        ) from error
