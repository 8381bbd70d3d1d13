"""Options of the OpenVINO backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from bridge import Options, option
from bridge.cpus import default_threads
from bridge.errors import OptionError
from bridge_openvino.bounds import parsed

__all__ = ["OpenvinoOptions"]


@dataclass(frozen=True, kw_only=True)
class OpenvinoOptions(Options):
    """How OpenVINO compiles a model."""

    threads: int | None = option(
        None,
        help="Threads that all calls together use on the CPU; none means the CPUs that this "
        "process may use, or its thread budget.",
        minimum=1,
        when="Less where other busy predictors share the CPUs, and 1 for models so small that "
        "sharing one call among threads costs more than it saves.",
    )
    streams: int | None = option(
        None,
        help="Calls that run side by side, sharing the threads; none leaves it to the hint.",
        minimum=1,
        when="As many as there are threads that call at the same time, if calls per second "
        "matter more than the time of one.",
    )
    hint: str = option(
        "latency",
        help="What OpenVINO tunes for: latency gives one call all threads, throughput splits "
        "them into streams.",
        choices=("latency", "throughput"),
        when="throughput where many calls run at once and their number is not known beforehand.",
    )
    precision: str = option(
        "f32",
        help="Precision of float arithmetic; anything but f32 is faster and less exact.",
        choices=("f32", "bf16", "f16"),
        when="bf16 or f16 on CPUs with instructions for it, where the answers stay within what "
        "the application tolerates.",
    )
    pinning: bool = option(
        False,
        help="Whether threads are tied to cores of the CPU.",
        when="true for one predictor that has a machine of many cores to itself; two in one "
        "process, or in two, tie their first thread to the same core.",
    )
    cores: str = option(
        "any",
        help="Kind of core to run on, for CPUs that have two.",
        choices=("any", "performance", "efficient"),
        when="performance for even latencies on CPUs with cores of two speeds; the slow ones "
        "hold up each call.",
    )
    hyper_threading: bool | None = option(
        None,
        help="Whether both threads of a core are used; none leaves it to OpenVINO.",
        when="false for large float32 products on CPUs with two threads per core, which share "
        "one arithmetic unit.",
    )
    bounds: tuple[str, ...] = option(
        (),
        help="Sizes that dims may have, by name and with both ends included, such as "
        "rows=1:512, or rows=64 for one size only; rows stands for the first dim of all inputs "
        "where no dim is called that. Other sizes are refused.",
        when="One size, where calls have no other: OpenVINO then plans everything when it "
        "loads the model. A range does not make calls faster; it limits what a call may ask for.",
    )
    cache: bool = option(
        False,
        help="Keep the compiled model in the bridge's cache, and take it from there when it is "
        "loaded again with the same options, OpenVINO and CPU.",
        when="Where processes start often, and converting takes longer than reading the model and "
        "what was compiled once more in full: ExportedPrograms, networks of many operators.",
    )
    shared: bool = option(
        False,
        help="Use the compiled model of another predictor of this process that was loaded with "
        "shared=true from the same bytes with the same options; its streams are shared as well.",
        when="Several predictors of one model in a process, where memory matters; give it as "
        "many streams as calls are to run side by side.",
    )
    enable_mmap: bool = option(
        True,
        help="Map weights in files of their own (.bin of IR, external data of ONNX) into memory "
        "instead of reading them.",
        when="false where that file may be overwritten while the model is loaded, or lies "
        "on a disk that may go away.",
    )
    narrow_float64: bool = option(
        False,
        help="Accept models with float64 tensors, which OpenVINO computes in float32.",
        when="true where the answers are within tolerance in float32.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for more streams than threads, and for odd bounds."""
        if self.streams and self.threads and self.streams > self.threads:
            raise OptionError(
                f"streams={self.streams} is more than threads={self.threads}; a stream needs "
                "at least one thread.",
                fix=f"Use streams={self.threads} or less, or more threads.",
                streams=self.streams,
                threads=self.threads,
                rule="streams-over-threads",
            )
        parsed(self.bounds)

    @property
    def tier(self) -> str:
        """``half`` for 16 bits, and for float64 models that are computed in float32."""
        return "half" if self.precision != "f32" or self.narrow_float64 else "strict"

    def effective(self) -> Self:
        """Threads that are all CPUs are none; for latency there is one stream anyway."""
        cpus = default_threads()
        threads = None if self.threads == cpus else self.threads
        # With one thread there is one stream, whatever is tuned for.
        hint = "latency" if (threads or cpus) == 1 else self.hint
        streams = None if self.streams == 1 and hint == "latency" else self.streams
        return replace(self, threads=threads, hint=hint, streams=streams)
