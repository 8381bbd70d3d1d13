"""Options of the ONNX Runtime backend."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.errors import OptionError
from bridge.options import Options, option

__all__ = ["OnnxruntimeOptions"]


@dataclass(frozen=True, kw_only=True)
class OnnxruntimeOptions(Options):
    """Settings of one session; the runtime's own names are in each help text."""

    threads: int | None = option(
        None,
        help="Threads inside an operator (intra_op_num_threads); none: the CPUs this "
        "process may use, by affinity and cgroup quota.",
        minimum=1,
        maximum=1024,
    )
    inter_threads: int | None = option(
        None,
        help="Threads across operators (inter_op_num_threads), used with "
        "execution_mode=parallel only.",
        minimum=1,
        maximum=1024,
    )
    execution_mode: str = option(
        "sequential",
        help="Run independent operators one after the other, or side by side.",
        choices=("sequential", "parallel"),
    )
    graph_optimization: str = option(
        "all",
        help="How far the graph is rewritten on loading.",
        choices=("disable", "basic", "extended", "layout", "all"),
    )
    arena: bool = option(True, help="Keep freed CPU memory for later calls (enable_cpu_mem_arena).")
    memory_pattern: bool = option(
        True, help="Plan memory from the shapes of the first call (enable_mem_pattern)."
    )
    spinning: bool = option(
        True,
        help="Idle threads spin before they sleep: faster single calls, slower neighbours.",
    )
    provider: str | None = option(
        None,
        help="Execution provider on CUDA devices; none: cuda.",
        choices=("cuda", "tensorrt"),
    )

    def check(self) -> None:
        """Raises ``OptionError`` for settings that do nothing together."""
        if self.inter_threads is not None and self.execution_mode != "parallel":
            raise OptionError(
                "inter_threads does nothing with execution_mode=sequential.",
                fix="Set execution_mode=parallel, or leave inter_threads out.",
                option="inter_threads",
            )
