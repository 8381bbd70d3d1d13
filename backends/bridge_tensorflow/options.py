"""Options of the TensorFlow backend.

All but those marked process-wide are settings of one session. oneDNN's kernels are no
option: TensorFlow reads ``TF_ENABLE_ONEDNN_OPTS`` once, for the whole process, before its
first operator. ``bridge.load(model, isolated=bridge.Isolation(environment={
"TF_ENABLE_ONEDNN_OPTS": "0"}))`` switches them off for one predictor, and
``info.details["onednn"]`` says what holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from bridge import Options, option
from bridge.cpus import default_threads
from bridge.errors import OptionError, nearest

__all__ = ["REWRITES", "TensorflowOptions"]

REWRITES = (
    "arithmetic_optimization",
    "common_subgraph_elimination",
    "constant_folding",
    "dependency_optimization",
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
    "memory_optimization",
    "remapping",
    "shape_optimization",
)
"""What Grappler does that can be switched off by name, as ``RewriterConfig`` calls it."""


@dataclass(frozen=True, kw_only=True)
class TensorflowOptions(Options):
    """Settings of one graph session, and of CUDA devices, which belong to the process."""

    threads: int | None = option(
        None,
        minimum=1,
        help="Threads that one operator may use; none means the CPUs this process may use, or "
        "its thread budget.",
        when="1 where several threads call at once, or where the model's operators are small.",
    )
    inter_threads: int = option(
        0,
        minimum=0,
        help="Threads that run operators side by side; 0 runs them all on the calling thread, "
        "which has the lowest latency and lets calls of several threads run side by side.",
        when="2 or more for wide graphs of costly operators that do not use all threads.",
    )
    executor: str = option(
        "default",
        choices=("default", "single_threaded"),
        help="single_threaded runs a graph without control flow in a fixed order, with less "
        "overhead for each operator.",
        when="For graphs of many small operators, called with few rows.",
    )
    spinning: bool = option(
        False,
        help="Let idle threads wait actively for a moment: it takes cores from others, the calling "
        "thread among them.",
        when="For large batches on cores that nobody else uses; calls of few rows get slower.",
    )
    graph_optimizer: bool = option(
        True,
        help="Let TensorFlow's Grappler rewrite the graph: fold constants, fuse operators.",
        when="false to load sooner, or to have the operators exactly as they were saved.",
    )
    rewrites_off: tuple[str, ...] = option(
        (),
        help=f"Names of Grappler's rewrites to switch off, out of: {', '.join(REWRITES)}.",
        when="For the one that makes a model slower or less exact, such as remapping.",
    )
    precision: str = option(
        "f32",
        choices=("f32", "bf16"),
        devices=("cpu",),
        help="Precision of matrix products and convolutions on the CPU; bf16 casts their "
        "inputs to bfloat16 and needs oneDNN.",
        when="bf16 for large batches on CPUs with bfloat16 instructions, if 8 bits of mantissa "
        "are enough.",
    )
    xla: bool = option(
        False,
        help="Compile clusters of operators with XLA; each new input shape is compiled on its "
        "first calls.",
        when="For models that are called with few shapes and consist of many small operators.",
    )
    tf32: bool = option(
        False,
        process_wide=True,
        devices=("cuda",),
        help="Allow TF32 arithmetic on CUDA devices. TensorFlow has one switch for the whole "
        "process: loading for a CUDA device sets it to this.",
        when="On GPUs with TF32, if 10 bits of mantissa are enough.",
    )
    gpu_growth: bool = option(
        True,
        process_wide=True,
        devices=("cuda",),
        help="Take memory of a CUDA device as it is needed instead of nearly all of it at once. "
        "The first session of the process on that device decides for all.",
        when="false where nothing else uses the device and calls must not wait for memory.",
    )
    gpu_memory_fraction: float | None = option(
        None,
        minimum=0.01,
        maximum=1,
        process_wide=True,
        devices=("cuda",),
        help="Share of a CUDA device's memory that TensorFlow may take; none means all. The "
        "first session of the process on that device decides for all.",
        when="Where other runtimes or processes need memory of the same device.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for names that Grappler has not, and for what cannot be joined."""
        for name in self.rewrites_off:
            if name not in REWRITES:
                raise OptionError(
                    f"option 'rewrites_off' has no rewrite '{name}' to switch off.",
                    fix=nearest(name, REWRITES),
                    option="rewrites_off",
                    value=name,
                    valid=list(REWRITES),
                    rule="unknown-rewrite",
                )
        for rule, is_broken, option_name, what, fix in self._conflicts():
            if is_broken:
                raise OptionError(what, fix=fix, option=option_name, rule=rule)

    def _conflicts(self) -> tuple[tuple[str, bool, str, str, str], ...]:
        """Rule, whether it is broken, the option to blame, what is wrong, and what to do."""
        is_single = self.executor == "single_threaded"
        is_bf16 = self.precision == "bf16"
        return (
            (
                "single-threaded-with-inter-threads",
                is_single and self.inter_threads > 0,
                "inter_threads",
                f"executor=single_threaded has no use for inter_threads={self.inter_threads}.",
                "Leave inter_threads at 0.",
            ),
            (
                "single-threaded-with-xla",
                is_single and self.xla,
                "xla",
                "executor=single_threaded cannot run the control flow that xla=true adds.",
                "Choose one of the two.",
            ),
            (
                "rewrites-off-without-graph-optimizer",
                bool(self.rewrites_off) and not self.graph_optimizer,
                "rewrites_off",
                "graph_optimizer=false switches all rewrites off; rewrites_off adds nothing.",
                "Leave one of the two out.",
            ),
            (
                "bf16-without-graph-optimizer",
                is_bf16 and not self.graph_optimizer,
                "precision",
                "precision=bf16 rewrites the graph, which graph_optimizer=false switches off.",
                "Leave graph_optimizer out.",
            ),
            (
                "bf16-with-xla",
                is_bf16 and self.xla,
                "precision",
                "precision=bf16 casts for oneDNN's kernels, which xla=true does without.",
                "Choose one of the two.",
            ),
        )

    @property
    def tier(self) -> str:
        """``half`` with TF32 or bfloat16."""
        return "half" if self.tf32 or self.precision == "bf16" else "strict"

    @property
    def prepares(self) -> bool:
        """XLA compiles in the first calls."""
        return self.xla

    def effective(self) -> Self:
        """Threads that are all there are are none; a single thread has nobody to wait for."""
        usual = default_threads()
        threads = None if self.threads == usual else self.threads
        is_alone = (threads or usual) == 1 and self.inter_threads <= 1
        return replace(self, threads=threads, spinning=self.spinning and not is_alone)
