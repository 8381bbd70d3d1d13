"""Options of the ONNX Runtime backend."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Self

from bridge import Options, option
from bridge.cpus import usable_cpus
from bridge.errors import OptionError

__all__ = ["OnnxruntimeOptions"]


@dataclass(frozen=True, kw_only=True)
class OnnxruntimeOptions(Options):
    """Settings of one session; each help text ends with the runtime's own word for it."""

    threads: int | None = option(
        None,
        help="Threads that one operator may use, the caller's among them; none means the CPUs "
        "that this process may use (intra_op_num_threads).",
        minimum=1,
        maximum=1024,
    )
    execution_mode: str = option(
        "sequential",
        help="Whether operators that do not need each other run one after another or side by "
        "side (execution_mode).",
        choices=("sequential", "parallel"),
    )
    inter_threads: int | None = option(
        None,
        help="Operators that run side by side with execution_mode=parallel; none means the "
        "CPUs that this process may use (inter_op_num_threads).",
        minimum=1,
        maximum=1024,
    )
    graph_optimization: str = option(
        "all",
        help="How much the graph is rewritten on loading (graph_optimization_level).",
        choices=("disable", "basic", "extended", "all"),
    )
    arena: bool = option(True, help="Keep freed CPU memory for later calls (enable_cpu_mem_arena).")
    memory_pattern: bool = option(
        True,
        help="Allocate the memory of a call at once, as earlier calls of the same shapes "
        "needed it (enable_mem_pattern).",
    )
    spinning: bool = option(
        True,
        help="Idle threads wait actively: quicker calls, at the cost of others who need the "
        "same cores (session.intra_op.allow_spinning).",
    )
    provider: str | None = option(
        None,
        help="What executes on a CUDA device; none means cuda. TensorRT may compute float32 "
        "in TF32, which only the environment variable NVIDIA_TF32_OVERRIDE=0 prevents.",
        choices=("cuda", "tensorrt"),
    )
    cpu_nodes: bool = option(
        False,
        help="On a CUDA device, accept that operators run on the CPU where the provider has "
        "none of its own or finds that quicker; otherwise such a model is refused.",
    )
    warnings: bool = option(
        False,
        help="Also log ONNX Runtime's warnings about a model while it loads; those during "
        "calls are then printed to stderr (log_severity_level).",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for inter_threads without parallel execution."""
        if self.inter_threads is not None and self.execution_mode != "parallel":
            raise OptionError(
                f"inter_threads={self.inter_threads} has no effect with "
                f"execution_mode={self.execution_mode}.",
                fix="Set execution_mode=parallel, or leave inter_threads out.",
                option="inter_threads",
                rule="inter-threads-without-parallel",
            )

    @property
    def tier(self) -> str:
        """``half`` with TensorRT, whose builder takes TF32 where it likes."""
        is_exact = self.provider != "tensorrt" or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
        return "strict" if is_exact else "half"

    @property
    def prepares(self) -> bool:
        """TensorRT builds an engine while the session is made."""
        return self.provider == "tensorrt"

    def effective(self) -> Self:
        """Threads that are all CPUs are none; without a second thread nobody can spin."""
        cpus = usable_cpus()
        threads = None if self.threads == cpus else self.threads
        beside = None if self.inter_threads == cpus else self.inter_threads
        is_alone = (threads or cpus) == 1 and self.execution_mode == "sequential"
        return replace(
            self, threads=threads, inter_threads=beside, spinning=self.spinning or is_alone
        )
