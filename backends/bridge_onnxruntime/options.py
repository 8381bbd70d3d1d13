"""Options of the ONNX Runtime backend."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from bridge import Options, option
from bridge.cpus import default_threads, thread_budget
from bridge.errors import OptionError

__all__ = ["OnnxruntimeOptions"]

_CPUS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


@dataclass(frozen=True, kw_only=True)
class OnnxruntimeOptions(Options):
    """Settings of one session; each help text ends with the runtime's own word for it."""

    threads: int | None = option(
        None,
        help="Threads that one operator may use, the caller's among them; none means the CPUs "
        "that this process may use, or its thread budget (intra_op_num_threads).",
        minimum=1,
        maximum=1024,
        when="1 where calls come from several threads, or where operators are too small to be "
        "split.",
    )
    affinity: tuple[str, ...] = option(
        (),
        help="CPUs, counted from 0, to which each thread but the caller's is tied: one CPU "
        "(2) or range (4-7) a thread, with commas between; empty means none "
        "(session.intra_op_thread_affinities).",
        when="The scheduler moves threads between sockets, and the caller is tied to a CPU "
        "as well.",
    )
    spinning: bool | None = option(
        None,
        help="Idle threads wait actively, by default for about 38 ms after a call, so that "
        "every other predictor of the process loses a CPU for that long; none means yes, "
        "unless there is a thread budget (session.intra_op.allow_spinning).",
        when="Off where several predictors, or other work, share the CPUs.",
    )
    spin_duration: int | None = option(
        None,
        help="How long idle threads wait actively, even with a thread budget; none leaves it to "
        "onnxruntime (session.intra_op.spin_duration_us).",
        unit="µs",
        minimum=0,
        maximum=10_000_000,
        when="Some hundred where calls follow each other closely and others need the CPUs "
        "in between.",
    )
    execution_mode: str = option(
        "sequential",
        help="Whether operators that do not need each other run one after another or side by "
        "side (execution_mode).",
        choices=("sequential", "parallel"),
        when="The graph has long branches whose operators are too small to be split.",
    )
    inter_threads: int | None = option(
        None,
        help="Operators that run side by side with execution_mode=parallel; none means the "
        "CPUs that this process may use, or its thread budget (inter_op_num_threads).",
        minimum=1,
        maximum=1024,
        when="As many as the graph has branches, with few threads for each.",
    )
    graph_optimization: str = option(
        "all",
        help="How much the graph is rewritten on loading (graph_optimization_level).",
        choices=("disable", "basic", "extended", "all"),
        when="Less where loading takes too long, or where a rewrite is suspected of an error.",
    )
    cache: bool = option(
        False,
        help="Keep the rewritten model, its weights packed, in the bridge's cache and map it "
        "into memory from there, so that all processes share its weights; each load compares "
        "model and entry byte by byte (optimized_model_filepath).",
        when="Several processes serve one large model, or rewriting the graph takes longer "
        "than reading it.",
    )
    share_weights: bool = option(
        False,
        help="Predictors of this process with the same model and options use one session: "
        "its weights are in memory once, and its threads serve them all.",
        when="A process loads the same model more than once.",
    )
    arena: bool = option(
        True,
        help="Keep freed CPU memory for later calls (enable_cpu_mem_arena).",
        when="Off where memory matters more than time, or batches differ much in size.",
    )
    shared_arena: bool = option(
        False,
        help="Keep freed memory for all predictors of this process that have this option "
        "(session.use_env_allocators).",
        when="Several predictors take turns, each with large intermediate results.",
    )
    memory_pattern: bool = option(
        True,
        help="Allocate the memory of a call at once, as earlier calls of the same shapes "
        "needed it (enable_mem_pattern).",
        when="Off where shapes differ from call to call.",
    )
    profile: Path | None = option(
        None,
        help="Folder for a file with the times of all operators of all calls, written while "
        "the predictor is open and complete once it is closed (enable_profiling).",
        when="To see which operators take the time; chrome://tracing shows the file.",
    )
    custom_ops: tuple[str, ...] = option(
        (),
        help="Libraries with operators of your own; they run as native code, so that the "
        "model has to be trusted (register_custom_ops_library).",
        when="The model has operators that onnxruntime does not know.",
    )
    provider: str | None = option(
        None,
        help="What executes; none means the CPU's own provider, or cuda on a CUDA device. "
        "Else tensorrt, or the name of an installed plugin such as openvino (from the package "
        "onnxruntime-ep-openvino). TensorRT may compute float32 in TF32, which only the "
        "environment variable NVIDIA_TF32_OVERRIDE=0 prevents; plugins may compute it in bfloat16 "
        "or float16.",
        when="The plugin's own compiler is quicker on the model than onnxruntime's operators.",
    )
    cpu_nodes: bool = option(
        False,
        help="Accept that operators run on onnxruntime's CPU provider where the provider asked "
        "for has none of its own or finds that quicker; otherwise such a model is refused.",
        when="Only a few small operators are missing.",
    )
    cuda_graph: bool = option(
        False,
        help="Record the kernels of a bound call and start them at once; other calls are "
        "not recorded (enable_cuda_graph).",
        when="Bound calls of many small operators on a CUDA device.",
        devices=("cuda",),
    )
    warnings: bool = option(
        False,
        help="Also log ONNX Runtime's warnings about a model while it loads; those during "
        "calls are then printed to stderr (log_severity_level).",
        when="A model loads but behaves oddly.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for what is legal alone but not together."""
        for name, rule, is_broken, message, fix in self._rules():
            if is_broken:
                raise OptionError(message, fix=fix, option=name, rule=rule)
        if self.affinity:
            self._check_affinity()

    def _rules(self) -> tuple[tuple[str, str, bool, str, str], ...]:
        """Option, rule, whether it is broken, the sentence about it, and the fix."""
        return (
            (
                "inter_threads",
                "inter-threads-without-parallel",
                self.inter_threads is not None and self.execution_mode != "parallel",
                f"inter_threads={self.inter_threads} has no effect with sequential execution.",
                "Set execution_mode=parallel, or leave inter_threads out.",
            ),
            (
                "spin_duration",
                "spin-duration-without-spinning",
                self.spin_duration is not None and self.spinning is False,
                f"spin_duration={self.spin_duration} has no effect with spinning=False.",
                "Leave one of them out.",
            ),
            (
                "shared_arena",
                "shared-arena-without-arena",
                self.shared_arena and not self.arena,
                "shared_arena has no effect with arena=False.",
                "Leave one of them out.",
            ),
            (
                "profile",
                "profile-of-a-shared-session",
                self.profile is not None and self.share_weights,
                "profile would mix the calls of the predictors that share_weights joins.",
                "Leave one of them out.",
            ),
            (
                "cache",
                "cache-without-optimization",
                self.cache and self.graph_optimization == "disable",
                "cache keeps a rewritten model, and graph_optimization=disable rewrites none.",
                "Leave one of them out.",
            ),
            (
                "cache",
                "cache-with-another-provider",
                self.cache and self.provider not in (None, "tensorrt"),
                f"cache keeps what the CPU's own provider or TensorRT makes, not {self.provider}.",
                "Leave one of them out.",
            ),
            (
                "cuda_graph",
                "cuda-graph-with-cpu-nodes",
                self.cuda_graph and self.cpu_nodes,
                "cuda_graph records what the GPU runs, and cpu_nodes lets some run elsewhere.",
                "Leave one of them out.",
            ),
            (
                "cuda_graph",
                "cuda-graph-without-cuda",
                self.cuda_graph and self.provider not in (None, "cuda"),
                f"cuda_graph is a setting of the provider cuda; got {self.provider}.",
                "Leave one of them out.",
            ),
            (
                "provider",
                "provider-name",
                self.provider is not None
                and re.fullmatch(r"(?!cpu$)[a-z0-9]+(-[a-z0-9]+)*", self.provider) is None,
                f"provider wants a name such as cuda, tensorrt or openvino; got {self.provider!r}.",
                "Write what follows onnxruntime-ep- in the name of the plugin's package.",
            ),
        )

    def _check_affinity(self) -> None:
        for item in self.affinity:
            match = _CPUS.fullmatch(item)
            if match is None or (match[2] and int(match[2]) < int(match[1])):
                raise OptionError(
                    f"affinity wants CPUs such as 2, or ranges such as 4-7; got {item!r}.",
                    fix="Write for example affinity=1,2 for three threads.",
                    option="affinity",
                    rule="affinity-not-a-cpu",
                )
        wanted = (self.threads or default_threads()) - 1
        if len(self.affinity) != wanted:
            raise OptionError(
                f"affinity names CPUs for {len(self.affinity)} threads; with {wanted + 1} "
                f"threads, one of them the caller's, there are {wanted} to be tied.",
                fix=("Leave affinity out" if wanted == 0 else f"Give {wanted} CPUs or ranges")
                + f", or set threads={len(self.affinity) + 1}.",
                option="affinity",
                rule="affinity-count",
            )

    @property
    def spins(self) -> bool:
        """Whether idle threads wait actively, with the default filled in."""
        return self._spins_unasked if self.spinning is None else self.spinning

    @property
    def _spins_unasked(self) -> bool:
        is_alone = (self.threads or default_threads()) == 1 and self.execution_mode == "sequential"
        return not is_alone and (self.spin_duration is not None or thread_budget() is None)

    @property
    def tied(self) -> tuple[range, ...]:
        """CPUs to which each thread but the caller's is tied, counted from 0."""
        found = []
        for item in self.affinity:
            first, _, last = item.partition("-")
            found.append(range(int(first), int(last or first) + 1))
        return tuple(found)

    @property
    def tier(self) -> str:
        """``half`` with TensorRT, whose builder takes TF32 where it likes, and with plugins.

        What those compute in, they do not say: OpenVINO's takes bfloat16 where the CPU has it.
        """
        if self.provider in (None, "cuda"):
            return "strict"
        is_nvidia = "tensorrt" in self.provider
        is_exact = is_nvidia and os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
        return "strict" if is_exact else "half"

    @property
    def prepares(self) -> bool:
        """TensorRT and plugins compile while the session is made; a cache is filled then."""
        return self.cache or self.provider not in (None, "cuda")

    def effective(self) -> Self:
        """Threads that are all CPUs are none; without a second thread nobody can spin."""
        cpus = default_threads()
        threads = None if self.threads == cpus else self.threads
        beside = None if self.inter_threads == cpus else self.inter_threads
        is_alone = (threads or cpus) == 1 and self.execution_mode == "sequential"
        is_usual = is_alone or self.spinning == self._spins_unasked
        return replace(
            self,
            threads=threads,
            inter_threads=beside,
            spinning=None if is_usual else self.spinning,
            spin_duration=None if is_alone else self.spin_duration,
        )
