"""The shortest idiomatic load and call of torch: the yardstick for the bridge's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from bridge.model import ModelRef

__all__ = ["load"]

_Arrays = dict[str, npt.NDArray[Any]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> tuple[Callable[[_Arrays], Any], Callable[[Any], _Arrays]]:
    """A call from inputs, in the order of ``forward``, to outputs by name.

    Args:
        model: A TorchScript file, an ExportedProgram, an AOTInductor package, or a live
            module in evaluation mode.
        threads: Given to ``torch.set_num_threads``, which holds for the whole process.
        signature_key: Not used: torch's formats have one signature.

    Returns:
        The call, and what turns its result into arrays by name. Arrays of no dimension
        are passed as Python numbers. Unnamed outputs are ``output_0``, ``output_1``, ...
    """
    import warnings

    import torch

    del signature_key
    if threads is not None:
        torch.set_num_threads(threads)
    positional: int | None = None  # arguments after these go by keyword
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run: Any
        if model.format.name == "torchscript":
            run = torch.jit.load(str(model.file)).eval()  # type: ignore[no-untyped-call]
        elif model.format.name == "aot_inductor":
            import torch._inductor

            run = torch._inductor.aoti_load_package(str(model.file))
        elif model.format.name == "exported_program":
            program: Any = model.live
            if program is None:
                program = torch.export.load(str(model.file))
            run = program.module()
            positional = program.call_spec.in_spec.children_specs[0].num_children
        else:
            run = model.live

    def call(inputs: _Arrays) -> _Arrays:
        with torch.inference_mode():
            tensors = [
                torch.from_numpy(array) if array.ndim else array.item() for array in inputs.values()
            ]
            if positional is None or positional == len(tensors):
                result = run(*tensors)
            else:
                names = list(inputs)[positional:]
                result = run(
                    *tensors[:positional],
                    **dict(zip(names, tensors[positional:], strict=True)),
                )
        if isinstance(result, torch.Tensor):
            return {"output_0": result.numpy()}
        if isinstance(result, dict):
            return {name: tensor.numpy() for name, tensor in result.items()}
        return {f"output_{index}": tensor.numpy() for index, tensor in enumerate(result)}

    return call, dict
