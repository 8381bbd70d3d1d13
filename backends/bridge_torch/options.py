"""Options of the Torch backend."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Self

from bridge import Options, option
from bridge.errors import OptionError

__all__ = ["TorchOptions"]


@dataclass(frozen=True, kw_only=True)
class TorchOptions(Options):
    """How torch runs a model."""

    execution: str = option(
        "eager",
        help="eager runs the model as it is; frozen turns TorchScript (or a live module that "
        "can be scripted) into constants-folded, optimised TorchScript; compiled uses "
        "torch.compile on a live module or ExportedProgram, which compiles in the first call; "
        "aot_inductor compiles an ExportedProgram file on loading, into the bridge's cache.",
        choices=("eager", "frozen", "compiled", "aot_inductor"),
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
        process_wide=True,
    )
    tf32: bool = option(
        False,
        help="On CUDA: let matrix products and convolutions of float32 use TensorFloat-32, "
        "which keeps 10 bits of the mantissa.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for sizes of what is not compiled by size."""
        if not self.dynamic and self.execution != "compiled":
            raise OptionError(
                f"dynamic=False has no effect with execution={self.execution}.",
                fix="Set execution=compiled, or leave dynamic out.",
                option="dynamic",
                rule="dynamic-without-compiled",
            )

    @property
    def tier(self) -> str:
        """``half`` with TF32."""
        return "half" if self.tf32 else "strict"

    @property
    def prepares(self) -> bool:
        """Compilers take from seconds to minutes, on loading or in the first calls."""
        return self.execution in ("compiled", "aot_inductor")

    def effective(self) -> Self:
        """Threads that are all CPUs are none, unless the environment gives torch another number."""
        is_told = any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
        is_all = not is_told and self.threads == _affinity()
        return replace(self, threads=None if is_all else self.threads)


def _affinity() -> int | None:
    """CPUs that this process may run on, which is OpenMP's own number, whatever the quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
