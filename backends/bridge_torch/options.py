"""Options of the ``torch`` backend."""

from __future__ import annotations

import dataclasses

import bridge

__all__ = ["TorchOptions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchOptions(bridge.Options):
    """How torch runs a model."""

    execution: str = bridge.option(
        "eager",
        help="eager runs the model as it is; frozen turns TorchScript (or a live module that "
        "can be scripted) into constants-folded, optimised TorchScript; compiled uses "
        "torch.compile on a live module or ExportedProgram, which compiles in the first call.",
        choices=("eager", "frozen", "compiled"),
    )
    dynamic: bool = bridge.option(
        True,
        help="With execution=compiled: compile once for all sizes instead of once per size.",
    )
    threads: int | None = bridge.option(
        None,
        help="Threads that one call may use, set for the calling thread during the call and "
        "restored after it (1 to 3 µs a call); none leaves torch's own number.",
        minimum=1,
        maximum=1024,
    )
    tf32: bool = bridge.option(
        False,
        help="On CUDA: let matrix products and convolutions of float32 use TensorFloat-32, "
        "which keeps 10 bits of the mantissa.",
    )
