"""Options of the Torch backend."""

from __future__ import annotations

from dataclasses import dataclass

from bridge import Options, option

__all__ = ["TorchOptions"]


@dataclass(frozen=True, kw_only=True)
class TorchOptions(Options):
    """How torch runs a model."""

    execution: str = option(
        "eager",
        help="eager runs the model as it is; frozen turns TorchScript (or a live module that "
        "can be scripted) into constants-folded, optimised TorchScript; compiled uses "
        "torch.compile on a live module or ExportedProgram, which compiles in the first call.",
        choices=("eager", "frozen", "compiled"),
    )
    dynamic: bool = option(
        True,
        help="With execution=compiled: compile once for all sizes instead of once per size.",
    )
    threads: int | None = option(
        None,
        help="Threads that one call may use, set for the calling thread during the call and "
        "restored after it (1 to 3 µs a call); none leaves torch's own number.",
        minimum=1,
        maximum=1024,
    )
    tf32: bool = option(
        False,
        help="On CUDA: let matrix products and convolutions of float32 use TensorFloat-32, "
        "which keeps 10 bits of the mantissa.",
    )
