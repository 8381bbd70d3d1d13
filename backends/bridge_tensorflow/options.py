"""Options of the TensorFlow backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from bridge import Options, option
from bridge.cpus import usable_cpus
from bridge.errors import OptionError

__all__ = ["TensorflowOptions"]


@dataclass(frozen=True, kw_only=True)
class TensorflowOptions(Options):
    """Settings of one graph session; all but ``tf32`` leave the rest of the process alone."""

    threads: int | None = option(
        None,
        minimum=1,
        help="Threads that one operator may use; none means the CPUs this process may use.",
    )
    inter_threads: int = option(
        0,
        minimum=0,
        help="Threads that run operators side by side; 0 runs them all on the calling thread, "
        "which has the lowest latency.",
    )
    executor: str = option(
        "default",
        choices=("default", "single_threaded"),
        help="single_threaded runs a graph without control flow in a fixed order, with less "
        "overhead for each operator.",
    )
    graph_optimizer: bool = option(
        True, help="Let TensorFlow's Grappler rewrite the graph: fold constants, fuse operators."
    )
    xla: bool = option(
        False,
        help="Compile clusters of operators with XLA; each new input shape is compiled on its "
        "first calls.",
    )
    tf32: bool = option(
        False,
        process_wide=True,
        help="Allow TF32 arithmetic on CUDA devices. TensorFlow has one switch for the whole "
        "process: loading for a CUDA device sets it to this.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for what a single thread cannot use."""
        if self.executor == "single_threaded" and self.inter_threads:
            raise OptionError(
                f"executor=single_threaded has no use for inter_threads={self.inter_threads}.",
                fix="Leave inter_threads at 0.",
                option="inter_threads",
                rule="single-threaded-with-inter-threads",
            )
        if self.executor == "single_threaded" and self.xla:
            raise OptionError(
                "executor=single_threaded cannot run the control flow that xla=true adds.",
                fix="Choose one of the two.",
                option="xla",
                rule="single-threaded-with-xla",
            )

    @property
    def tier(self) -> str:
        """``half`` with TF32."""
        return "half" if self.tf32 else "strict"

    @property
    def prepares(self) -> bool:
        """XLA compiles in the first calls."""
        return self.xla

    def effective(self) -> Self:
        """Threads that are all CPUs are none."""
        return replace(self, threads=None if self.threads == usable_cpus() else self.threads)
