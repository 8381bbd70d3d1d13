"""Images with the channels as the last axis in memory, which convolutions are faster on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.errors import OptionError
from bridge.signature import Signature

__all__ = ["require_images", "with_images_last", "with_weights_last"]

_FLOATS = ("float32", "float16", "bfloat16", "float64")


def require_images(signature: Signature) -> None:
    """Raises ``OptionError`` if no input can be an image: a float tensor of 4 dims."""
    for spec in signature.inputs:
        is_float = spec.dtype is None or spec.dtype.value in _FLOATS
        if is_float and (spec.shape is None or len(spec.shape) == 4):
            return
    raise OptionError(
        "channels_last=True has no effect: no input is a float tensor of 4 dims.",
        fix="Leave it out.",
        option="channels_last",
        rule="channels-last-without-images",
    )


def with_images_last(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` on copies of the images with the channels as the last axis in memory."""
    import torch

    last = torch.channels_last

    def placed(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point():
            return value.contiguous(memory_format=last)
        return value

    def run(*tensors: Any, **keywords: Any) -> Any:
        placed_keywords = {name: placed(value) for name, value in keywords.items()}
        return call(*map(placed, tensors), **placed_keywords)

    return run


def with_weights_last(module: Any) -> Any:
    """The module itself, which nobody else may use, with the weights of convolutions so too."""
    import torch

    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return module
