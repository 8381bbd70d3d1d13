"""Options of the Torch backend."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from bridge import Options, option
from bridge.cpus import default_threads
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
        when="aot_inductor for an ExportedProgram that is called often, compiled for a live "
        "module, frozen for TorchScript with convolutions or batch normalization.",
    )
    mode: str = option(
        "default",
        help="How hard torch's compiler tries, with execution=compiled or aot_inductor: "
        "max-autotune measures several kernels for each product, with the sizes of the first "
        "call or of the program's example, and keeps the fastest, which takes minutes; "
        "reduce-overhead replays calls as CUDA graphs (compiled, CUDA only).",
        choices=("default", "reduce-overhead", "max-autotune"),
        when="max-autotune where calls have the sizes that it measures (others may take twice as "
        "long as by default) and the model is served for long; "
        "reduce-overhead for many small kernels on a GPU.",
    )
    dynamic: bool = option(
        True,
        help="With execution=compiled: compile once for all sizes instead of once per size.",
        when="false where calls have few sizes, all known: code for one size is faster.",
    )
    recompiles: int = option(
        8,
        help="With execution=compiled: how many calls after the first may compile the model "
        "anew, each with a warning; the next one that would is refused.",
        minimum=0,
        maximum=200,
        when="As many as there are sizes to come, with dynamic=false; 0 where no call may stop "
        "to compile.",
    )
    freezing: bool = option(
        False,
        help="With execution=aot_inductor: fold constants and lay weights out for "
        "oneDNN's products when compiling.",
        when="Batches of some 16 rows and more (on a ranker of 60 MB 5 to 15 % less time); a "
        "single row takes longer.",
    )
    runners: int | None = option(
        None,
        help="With AOTInductor: calls that run side by side, over the same weights; others wait. "
        "None means the CPUs that this process may use, divided by the threads of one call.",
        minimum=1,
        maximum=1024,
        when="As many as there are threads that call at the same time, together with threads=1.",
    )
    threads: int | None = option(
        None,
        help="Threads that one call may use, set for the calling thread during the call and "
        "restored after it (1 to 3 µs a call, nothing where it is torch's own number); none "
        "means torch's own number, but no more than the CPUs that this process may use, or its "
        "thread budget.",
        minimum=1,
        maximum=1024,
        process_wide=True,
        when="1 for models so small that sharing one call among threads costs more than it "
        "saves, and where calls come from several threads.",
    )
    channels_last: bool = option(
        False,
        help="Pass images, which are float inputs of 4 dims, and keep the weights of "
        "convolutions, with the channels as the last axis in memory; shapes stay as they are.",
        when="Convolutional nets on images, most of all with autocast=bf16 or on a GPU.",
    )
    autocast: str = option(
        "off",
        help="Let torch compute products and convolutions in bfloat16 (bf16) or float16 (f16) "
        "where it holds that to be safe; outputs are converted back. Weights are converted in "
        "each call, but with freezing=true when compiling.",
        choices=("off", "bf16", "f16"),
        when="Large batches on CPUs or GPUs with instructions for it, where the answers stay "
        "within what the application tolerates.",
    )
    weights: Path | None = option(
        None,
        help="A safetensors file whose tensors take the place of a live module's parameters and "
        "buffers; names, shapes and dtypes must be the module's own. The module itself is "
        "not changed.",
        when="The module is built in code, and its weights come as a file.",
    )
    tf32: bool = option(
        False,
        help="On CUDA: let matrix products and convolutions of float32 use TensorFloat-32, "
        "which keeps 10 bits of the mantissa.",
        devices=("cuda",),
        when="Ampere and newer GPUs, where three decimal digits are enough.",
    )
    cuda_graphs: bool = option(
        False,
        help="On CUDA: record the kernels of a call once per combination of shapes (the last 8 "
        "are kept) and replay them as one. Calls run one at a time.",
        devices=("cuda",),
        when="Models of many small kernels whose launches cost more than they compute, called "
        "with few different shapes.",
    )
    pinned: bool = option(
        False,
        help="On CUDA: copy inputs to the device by way of page-locked host memory, which torch "
        "keeps for the next call.",
        devices=("cuda",),
        when="Inputs of more than about a megabyte.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for options that another one leaves without effect."""
        for is_set, name, needs, rule in (
            (not self.dynamic, "dynamic", ("compiled",), "dynamic-without-compiled"),
            (self.recompiles != 8, "recompiles", ("compiled",), "recompiles-without-compiled"),
            (
                self.mode == "max-autotune",
                "mode",
                ("compiled", "aot_inductor"),
                "mode-without-compiler",
            ),
            (self.mode == "reduce-overhead", "mode", ("compiled",), "mode-without-compiler"),
            (self.freezing, "freezing", ("aot_inductor",), "freezing-without-aot-inductor"),
            # Packages, which run eagerly as far as this option goes, have runners too.
            (self.runners is not None, "runners", ("aot_inductor", "eager"), "runners-elsewhere"),
            (
                self.channels_last,
                "channels_last",
                ("eager", "frozen", "compiled"),
                "channels-last-with-aot-inductor",
            ),
            (
                self.autocast != "off",
                "autocast",
                ("eager", "compiled", "aot_inductor"),
                "autocast-of-fixed-code",
            ),
        ):
            if is_set and self.execution not in needs:
                value = getattr(self, name)
                raise OptionError(
                    f"{name}={value} has no effect with execution={self.execution}.",
                    fix=f"Set execution={' or '.join(needs)}, or leave {name} out.",
                    option=name,
                    rule=rule,
                )
        if self.cuda_graphs and self.execution == "compiled" and self.mode != "default":
            raise OptionError(
                f"mode={self.mode} records CUDA graphs itself, so cuda_graphs cannot.",
                fix="Leave one of the two out.",
                option="cuda_graphs",
                rule="cuda-graphs-twice",
            )

    @property
    def tier(self) -> str:
        """``half`` with TF32 and with autocast."""
        return "half" if self.tf32 or self.autocast != "off" else "strict"

    @property
    def prepares(self) -> bool:
        """Compilers take from seconds to minutes, on loading or in the first calls."""
        return self.execution in ("compiled", "aot_inductor")

    def effective(self) -> Self:
        """Threads as many as none means are none, unless torch may have another number of its own.

        The environment tells it one, or CPUs that share a core: it takes one thread a core.
        """
        is_told = any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
        is_own = not is_told and not _cores_are_shared() and self.threads == default_threads()
        return replace(self, threads=None if is_own else self.threads)


def _cores_are_shared() -> bool:
    """Whether the system has two CPUs a core, as far as Linux tells."""
    try:
        return Path("/sys/devices/system/cpu/smt/active").read_text(encoding="ascii")[:1] == "1"
    except OSError:
        return False
