"""Calls in which torch computes products and convolutions with 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.signature import Signature

__all__ = ["PRECISIONS", "lowered", "widened", "with_autocast"]

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

    dtype = getattr(torch, PRECISIONS[precision])

    def run(*tensors: Any, **keywords: Any) -> Any:
        with torch.autocast(kind, dtype, cache_enabled=False):
            return call(*tensors, **keywords)

    return widened(run, precision, signature)


def widened(call: Callable[..., Any], precision: str, signature: Signature) -> Callable[..., Any]:
    """``call`` with float32 in place of what autocast has made of float32 outputs."""
    import torch
    from torch.utils import _pytree as pytree

    name = PRECISIONS[precision]
    dtype = getattr(torch, name)
    if any(spec.dtype is not None and spec.dtype.value == name for spec in signature.outputs):
        return call

    def wide(tensor: Any) -> Any:
        return tensor.float() if tensor.dtype is dtype else tensor

    def run(*tensors: Any, **keywords: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, wide, call(*tensors, **keywords))

    return run


def lowered(exported: Any, precision: str, kind: str) -> Any:
    """An exported program with autocast's conversions as operators of its own."""
    import torch

    with torch.autocast(kind, getattr(torch, PRECISIONS[precision]), cache_enabled=False):
        return exported.run_decompositions({})  # no other ones than those that autocast asks for
