"""Calls in which torch computes products and convolutions with 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["PRECISIONS", "with_autocast"]

PRECISIONS = {"off": "float32", "bf16": "bfloat16", "f16": "float16"}
"""torch's names for the values of the option."""


def with_autocast(call: Callable[..., Any], precision: str, kind: str) -> Callable[..., Any]:
    """``call`` under ``torch.autocast``, which holds for the calling thread and this call.

    torch's cache of converted weights is left unused: it belongs to the process, and would
    hand tensors of inference mode to code that trains the same weights.

    Args:
        call: The program.
        precision: ``bf16`` or ``f16``.
        kind: Kind of device that computes.
    """
    import torch

    dtype = getattr(torch, PRECISIONS[precision])

    def run(*tensors: Any, **keywords: Any) -> Any:
        with torch.autocast(kind, dtype, cache_enabled=False):
            return call(*tensors, **keywords)

    return run
