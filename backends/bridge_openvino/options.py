"""Options of the OpenVINO backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from bridge import Options, option
from bridge.cpus import usable_cpus
from bridge.errors import OptionError

__all__ = ["OpenvinoOptions"]


@dataclass(frozen=True, kw_only=True)
class OpenvinoOptions(Options):
    """How OpenVINO compiles a model."""

    threads: int | None = option(
        None,
        help="Threads that all calls together use on the CPU; none means the CPUs that this "
        "process may use.",
        minimum=1,
    )
    streams: int | None = option(
        None,
        help="Calls that run side by side, sharing the threads; none leaves it to the hint.",
        minimum=1,
    )
    hint: str = option(
        "latency",
        help="What OpenVINO tunes for: latency gives one call all threads, throughput splits "
        "them into streams.",
        choices=("latency", "throughput"),
    )
    precision: str = option(
        "f32",
        help="Precision of float arithmetic; anything but f32 is faster and less exact.",
        choices=("f32", "bf16", "f16"),
    )
    pinning: bool | None = option(
        None,
        help="Whether threads are tied to cores of the CPU; none leaves it to OpenVINO. Switch "
        "it off where several busy predictors share the cores.",
    )
    narrow_float64: bool = option(
        False,
        help="Accept models with float64 tensors, which OpenVINO computes in float32.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for more streams than threads."""
        if self.streams and self.threads and self.streams > self.threads:
            raise OptionError(
                f"streams={self.streams} is more than threads={self.threads}; a stream needs "
                "at least one thread.",
                fix=f"Use streams={self.threads} or less, or more threads.",
                streams=self.streams,
                threads=self.threads,
                rule="streams-over-threads",
            )

    @property
    def tier(self) -> str:
        """``half`` for 16 bits, and for float64 models that are computed in float32."""
        return "half" if self.precision != "f32" or self.narrow_float64 else "strict"

    def effective(self) -> Self:
        """Threads that are all CPUs are none; for latency there is one stream anyway."""
        cpus = usable_cpus()
        threads = None if self.threads == cpus else self.threads
        # With one thread there is one stream, whatever is tuned for.
        hint = "latency" if (threads or cpus) == 1 else self.hint
        streams = None if self.streams == 1 and hint == "latency" else self.streams
        return replace(self, threads=threads, hint=hint, streams=streams)
