"""Calls in which torch computes products and convolutions with 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.signature import Signature

__all__ = ["PRECISIONS", "with_autocast"]

PRECISIONS = {"off": "float32", "bf16": "bfloat16", "f16": "float16"}
"""torch's names for the values of the option."""


def with_autocast(
    call: Callable[..., Any], precision: str, kind: str, signature: Signature
) -> Callable[..., Any]:
    """``call`` under ``torch.autocast``, which holds for the calling thread and this call.

    Outputs are float32 as they are without it, except those of a model that has outputs of
    16 bits itself. torch's cache of converted weights is left unused: it belongs to the
    process, and would hand tensors of inference mode to code that trains the same weights.

    Args:
        call: The program.
        precision: ``bf16`` or ``f16``.
        kind: Kind of device that computes.
        signature: The program's.
    """
    import torch
    from torch.utils import _pytree as pytree

    name = PRECISIONS[precision]
    dtype = getattr(torch, name)
    is_own = any(spec.dtype is not None and spec.dtype.value == name for spec in signature.outputs)

    def widened(tensor: Any) -> Any:
        return tensor.float() if tensor.dtype is dtype else tensor

    def run(*tensors: Any, **keywords: Any) -> Any:
        with torch.autocast(kind, dtype, cache_enabled=False):
            result = call(*tensors, **keywords)
        return result if is_own else pytree.tree_map_only(torch.Tensor, widened, result)

    return run
