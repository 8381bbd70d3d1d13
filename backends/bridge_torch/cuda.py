"""What only CUDA has: TensorFloat-32 for one call, and graphs of recorded kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from bridge.device import Device
from bridge.errors import OptionError
from bridge_torch.options import TorchOptions

__all__ = ["recorded", "require_cuda", "with_tf32"]

GRAPHS = 8
"""Graphs that one predictor keeps: each holds device memory for all that its call computes."""

_WARM_UPS = 3
"""Calls before a recording, in which libraries settle on kernels and workspaces.

Source: the torch.cuda.graphs notes.
"""

_tf32 = threading.Lock()


def require_cuda(options: TorchOptions) -> None:
    """Raises ``OptionError`` for an option that needs CUDA; called for other devices."""
    for is_set, name in (
        (options.tf32, "tf32"),
        (options.cuda_graphs, "cuda_graphs"),
        (options.pinned, "pinned"),
        (options.mode == "reduce-overhead", "mode"),
    ):
        if is_set:
            raise OptionError(
                f"{name}={getattr(options, name)} has no effect on the CPU.",
                fix=f"Leave {name} out, or load the model on cuda.",
                option=name,
                rule=f"{name.replace('_', '-')}-without-cuda",
            )


def with_tf32(call: Callable[..., Any], *, allowed: bool) -> Callable[..., Any]:
    """``call`` with TensorFloat-32 on or off for float32 products and convolutions.

    torch's switches hold for the whole process, and the one for convolutions is on by
    default. They are read when a kernel is launched, so they are set for the duration of
    the call and put back; the lock keeps predictors from crossing each other. CUDA code of
    the program's own that runs in other threads meanwhile sees the changed switches.
    """
    import torch

    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn

    def run(*args: Any, **keywords: Any) -> Any:
        with _tf32:
            before = products.allow_tf32, convolutions.allow_tf32
            products.allow_tf32 = convolutions.allow_tf32 = allowed
            try:
                return call(*args, **keywords)
            finally:
                products.allow_tf32, convolutions.allow_tf32 = before

    return run


class _Graph(NamedTuple):
    """A recording, with the tensors that it reads and writes."""

    graph: Any
    given: list[Any]
    result: Any


def recorded(call: Callable[..., Any], device: Device) -> Callable[..., Any]:
    """``call`` as CUDA graphs, one for each combination of shapes; for one caller at a time.

    The first call of a combination runs as it is: a live module's outputs are learned from
    it. The second records, all others replay: inputs are copied to where the recording has
    them, and outputs from there. The graphs used last are kept, ``GRAPHS`` of them.
    """
    import torch
    from torch.utils import _pytree as pytree

    graphs: dict[Hashable, _Graph | None] = {}

    def record(tensors: tuple[Any, ...]) -> _Graph:
        given = [item.clone() if isinstance(item, torch.Tensor) else item for item in tensors]
        current = torch.cuda.current_stream(str(device))
        side = torch.cuda.Stream(str(device))  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                call(*given)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with calls of their own, which are none of this recording's.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = call(*given)
        return _Graph(graph, given, result)

    def run(*tensors: Any, **keywords: Any) -> Any:
        if keywords:
            return call(*tensors, **keywords)
        key = tuple(
            (item.shape, item.dtype) if isinstance(item, torch.Tensor) else item for item in tensors
        )
        with torch.cuda.device(str(device)):
            if key not in graphs:
                graphs[key] = None
                if len(graphs) > GRAPHS:
                    del graphs[next(iter(graphs))]
                return call(*tensors)
            found = graphs.pop(key) or record(tensors)
            graphs[key] = found  # now the one used last
            for place, item in zip(found.given, tensors, strict=True):
                if isinstance(item, torch.Tensor):
                    place.copy_(item)
            found.graph.replay()
            return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, found.result)

    return run
