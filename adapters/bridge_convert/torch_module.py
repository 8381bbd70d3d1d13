"""Live torch modules and ExportedPrograms, written down by torch.export."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import OptionError, UnsupportedModel, nearest
from bridge_convert.tracing import quiet

__all__ = ["TorchToExportedProgram"]

_SMALLEST = 3  # of free dims in examples: torch.export takes 0 and 1 for constants


class TorchToExportedProgram(bridge.Adapter):
    """Names of inputs are those of the arguments; dims that the signature leaves open stay so."""

    name = "torch-to-exported_program"
    sources = frozenset({"torch_module", "exported_program"})
    target = "exported_program"
    distributions = ("torch",)
    reads_live = True

    def probe(self) -> bridge.Availability:
        return bridge.find_runtime("torch", ("torch",), "torch")

    def refuse(self, model: bridge.ModelRef) -> bridge.Refusal | None:
        refusal = super().refuse(model)
        if refusal is not None:
            return refusal
        if model.live is None:
            return bridge.Refusal(
                f"model {model.name} is an exported program in a file already.",
                "torch.export.save(program, path) writes a live one.",
            )
        if model.format.name != "torch_module":
            return None
        stated = model.declared
        if stated is None or any(one.dtype is None or one.shape is None for one in stated.required):
            return bridge.Refusal(
                f"the module {type(model.live).__name__} does not say what goes in, and "
                "torch.export needs an example.",
                "Pass inputs=[{name: array, ...}] with a few rows each, or "
                "signature=bridge.Signature(...) with dtypes and shapes.",
            )
        return None

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        import torch

        with quiet():
            program: Any = model.live
            if model.format.name == "torch_module":
                assert model.declared is not None
                program = _exported(model.live, model.declared)
            torch.export.save(program, target)
        return {"nodes": len(program.graph.nodes)}


def _exported(live: Any, signature: bridge.Signature) -> Any:
    """A module as an ``ExportedProgram`` that takes its inputs by name.

    Raises:
        OptionError: The signature has other inputs than the module.
        UnsupportedModel: torch.export does not take the module, or not with free dims.
    """
    import torch

    kind = type(live).__name__
    if isinstance(live, torch.jit.ScriptModule):
        raise UnsupportedModel(
            f"the module {kind} is TorchScript, which torch.export does not take.",
            fix="Save it with torch.jit.save and pass the path, with signature=.",
        )
    _require_arguments(live, signature)
    free: dict[str, tuple[Any, int]] = {}
    tensors: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for spec in signature.inputs:
        assert spec.dtype is not None
        dims: dict[int, Any] = {}
        sizes: list[Any] = list(spec.shape or ())
        for axis, size in enumerate(sizes):
            if isinstance(size, int):
                continue
            # Each a size of its own, so that no two dims seem to be one.
            count = len(free)
            new = (torch.export.Dim(f"free_{count}", min=1), _SMALLEST + count)
            dims[axis], sizes[axis] = free.setdefault(size or f"{spec.name}.{axis}", new)
        dtype = getattr(torch, spec.dtype.value)
        tensors[spec.name] = torch.zeros(sizes, dtype=dtype)
        shapes[spec.name] = dims
    try:
        return torch.export.export(
            _evaluating(live), (), tensors, dynamic_shapes=shapes, strict=False
        )
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModel(
            f"torch.export does not take the module {kind}: {' '.join(lines[:2]) or error!r}",
            fix="State dims that have to be fixed in signature=, change the module, or pass a file "
            "of TorchScript.",
            native_error=str(error),
        ) from error


def _require_arguments(live: Any, signature: bridge.Signature) -> None:
    arguments = inspect.signature(live.forward).parameters.values()
    known = [
        one.name for one in arguments if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in arguments)
    for name in signature.input_names:
        if name not in known and not takes_any:
            raise OptionError(
                f"{type(live).__name__}.forward has no argument '{name}'.",
                fix=nearest(name, known),
                option="signature",
                valid=known,
            )
    for one in arguments:
        if one.name in known and one.default is one.empty and one.name not in signature.input_names:
            raise OptionError(
                f"{type(live).__name__}.forward needs an argument '{one.name}', which neither the "
                "inputs nor the signature name.",
                fix="Name it as well.",
                option="signature",
                input=one.name,
            )


def _evaluating(live: Any) -> Any:
    """The module as the CPU runs it: itself, or a copy, with the same weights where it may."""
    tensors = [*live.parameters(), *live.buffers()]
    is_elsewhere = any(tensor.device.type != "cpu" for tensor in tensors)
    if not is_elsewhere and not any(part.training for part in live.modules()):
        return live
    shared = {} if is_elsewhere else {id(tensor): tensor for tensor in tensors}
    return copy.deepcopy(live, shared).cpu().eval()
