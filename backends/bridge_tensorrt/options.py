"""Options of the TensorRT backend and of the adapter that builds engines."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bridge import Options, option
from bridge.errors import OptionError
from bridge_tensorrt.module import MODULES

__all__ = ["EngineOptions", "TensorrtOptions"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """How an engine is built from an ONNX model."""

    module: str | None = option(
        None,
        help="Module that builds and runs; none means the one that built the engine, for an "
        "ONNX model the one that is installed, and tensorrt where both are.",
        choices=MODULES,
        when="both modules are installed and the other one is to be measured; tensorrt_rtx "
        "builds without a GPU, and in seconds instead of minutes.",
    )
    batch: tuple[str, ...] | None = option(
        None,
        help="Rows that the engine takes, as min,opt,max or one number; several ranges such as "
        "1:1:1,2:64:512 make one optimisation profile each. None means 1,16,128.",
        when="the batches served are known: kernels are chosen for the middle number, and "
        "memory is taken for the last.",
    )
    buckets: tuple[str, ...] | None = option(
        None,
        help="Sizes of batches, ascending; each makes an optimisation profile that takes the "
        "batches above the size before and is tuned for its own. None means the ranges of batch.",
        unit="rows",
        when="small and large batches are served by one engine: 1,16,128,512 tunes kernels for "
        "each of the four.",
    )
    dims: tuple[str, ...] = option(
        (),
        help="Ranges of other dynamic dims by name, T=1:50:200, or whole shapes of an input, "
        "x=1x16:8x16:64x16.",
        when="the model has dynamic dims besides the rows; it is refused without their ranges.",
    )
    values: tuple[str, ...] = option(
        (),
        help="Ranges of the values of inputs that hold shapes: k=1x1:8x8:64x64.",
        when="the value of an input decides a shape; the model is refused without its range.",
    )
    tf32: bool = option(
        False,
        help="Let float32 products round their inputs to 10 bits: faster, less exact.",
        when="scores may differ in the third decimal, on GPUs since Ampere, whose tensor cores "
        "then compute the products.",
        devices=("cuda",),
    )
    workspace_bytes: int | None = option(
        None,
        help="Most scratch memory that a layer may use; none means all memory of the device.",
        unit="bytes",
        minimum=1,
        maximum=2**50,  # far above any GPU; past 2**62 the builder fails in its sums
        when="the GPU is shared with others; faster kernels may need more, so that less costs "
        "speed.",
    )
    optimization_level: int | None = option(
        None,
        help="Effort of the builder, from 0 (fast) to 5; none means its own default.",
        minimum=0,
        maximum=5,
        when="a model is served for long (5), or an engine is needed soon (0 to 2).",
    )
    targets: tuple[str, ...] = option(
        (),
        help="Kinds of GPU to build for, such as SM86,SM89; tensorrt_rtx only. Empty means all "
        "that one engine can serve.",
        when="the GPUs that will serve are known: the engine is smaller and built sooner.",
    )
    hardware: str = option(
        "none",
        help="Kinds of GPU besides this one that the engine must run on; tensorrt only, "
        "tensorrt_rtx has targets.",
        choices=("none", "ampere_plus", "same_compute_capability"),
        when="one engine is copied to machines with other GPUs; it is slower than one for each.",
    )
    version_compatible: bool = option(
        False,
        help="Build an engine that later releases of tensorrt read as well.",
        when="engines are files that outlive an update of TensorRT; it may cost speed, and the "
        "engine then holds code for the CPU, which loading has to allow (host_code).",
    )
    refittable: bool = option(
        False,
        help="Build an engine whose weights can be replaced: it is kept in the cache by the "
        "graph, and a model with the same graph and other weights is loaded by refitting. "
        "tensorrt_rtx then needs a GPU to build.",
        when="weights are renewed every few minutes and a build takes longer than that; "
        "kernels cannot be chosen by the values of weights, which may cost speed.",
    )

    def check(self) -> None:
        """Refuses what the two modules, or two ways to say the same, exclude."""
        if self.batch is not None and self.buckets is not None:
            raise OptionError(
                "options 'batch' and 'buckets' both say which batches the engine takes.",
                fix="Give one of them; batch=1:1:1,2:64:512 says what buckets cannot.",
                rule="batch-and-buckets",
                options=["batch", "buckets"],
            )
        if self.targets and self.module == "tensorrt":
            raise OptionError(
                "option 'targets' is for module tensorrt_rtx; tensorrt builds for the GPU it sees.",
                fix="Use hardware=ampere_plus for an engine that runs on other GPUs too.",
                rule="targets-of-tensorrt",
                option="targets",
            )
        if self.hardware != "none" and self.module == "tensorrt_rtx":
            raise OptionError(
                "option 'hardware' is for module tensorrt; tensorrt_rtx is used here.",
                fix="Name the kinds of GPU in targets, such as targets=SM86,SM89.",
                rule="hardware-of-tensorrt-rtx",
                option="hardware",
            )
        if self.version_compatible and self.module == "tensorrt_rtx":
            raise OptionError(
                "option 'version_compatible' is for module tensorrt; the wheels of tensorrt_rtx "
                "lack the lean runtime that it needs.",
                fix="Leave it out, and build again after an update, which takes seconds.",
                rule="version-compatible-of-tensorrt-rtx",
                option="version_compatible",
            )
        if self.version_compatible and self.refittable:
            raise OptionError(
                "options 'version_compatible' and 'refittable' exclude each other: the lean "
                "runtime that reads the one cannot replace weights.",
                fix="Give one of them.",
                rule="refitting-in-the-lean-runtime",
                options=["version_compatible", "refittable"],
            )
        names = [name.upper() for name in self.targets]
        if len(set(names)) < len(names) or ("CURRENT" in names and len(names) > 1):
            raise OptionError(
                f"option 'targets' names {', '.join(self.targets)}; wanted each kind of GPU once, "
                "and CURRENT alone.",
                fix="CURRENT must stand alone; name each kind of GPU once.",
                rule="targets-twice",
                option="targets",
            )

    @property
    def tier(self) -> str:
        """``half`` with TF32."""
        return "half" if self.tf32 else "strict"

    @property
    def prepares(self) -> bool:
        """An engine is built of an ONNX model in minutes; options do not know the format."""
        return True

    @property
    def building(self) -> dict[str, object]:
        """The options about building that differ from their defaults, in JSON types."""
        names = {item.name for item in fields(EngineOptions)} - {"module"}
        return {name: value for name, value in self.to_dict().items() if name in names}


@dataclass(frozen=True, kw_only=True)
class TensorrtOptions(EngineOptions):
    """How TensorRT loads a model; the options about building are for ONNX models only."""

    contexts: int = option(
        4,
        help="Calls that run side by side; each needs memory on the device of its own.",
        minimum=1,
        maximum=64,
        when="more threads than that call at once and one call does not fill the GPU; or 1, "
        "where memory of the device is short.",
        devices=("cuda",),
    )
    io: str = option(
        "host",
        help="Where results and the buffers of bound calls lie: host gives numpy arrays, device "
        "gives arrays in the GPU's memory that torch, cupy and others take through DLPack.",
        choices=("host", "device"),
        when="what comes before or after the model runs on the same GPU: nothing is then copied "
        "to the host and back.",
        devices=("cuda",),
    )
    cuda_graph: bool = option(
        False,
        help="Record what a bound call does (copies included) at its first run, and launch that "
        "record as one CUDA graph afterwards.",
        when="a model is many small kernels: launching each costs more than running it. Only "
        "bind() uses it, and outputs whose shape depends on data exclude it.",
        devices=("cuda",),
    )
    specialization: str | None = option(
        None,
        help="Kernels of tensorrt_rtx for a new shape: lazy compiles them while slower ones "
        "serve, eager makes the first call wait for them, never keeps the slower ones. None "
        "means lazy, and eager with cuda_graph.",
        choices=("lazy", "eager", "never"),
        when="latency must not change while kernels are compiled (eager, after a warm-up), or "
        "shapes change with every call (never).",
        devices=("cuda",),
    )
    runtime_cache: bool = option(
        True,
        help="Keep the kernels that tensorrt_rtx compiles while it runs in the bridge's cache, "
        "read at loading and written by close().",
        when="nothing may be written to disk; every process then compiles its kernels again.",
        devices=("cuda",),
    )
    host_code: bool = option(
        False,
        help="Allow code for the CPU inside an engine to run, which version-compatible engines "
        "hold.",
        when="a version-compatible engine is loaded whose maker is known: such code may do "
        "whatever the process may.",
        devices=("cuda",),
    )

    def check(self) -> None:
        """Refuses besides what cannot be loaded, or would be recorded wrongly."""
        super().check()
        if self.version_compatible and not self.host_code:
            raise OptionError(
                "option 'version_compatible' makes an engine with code for the CPU, which is not "
                "run unless 'host_code' allows it.",
                fix="Add host_code=true, or leave version_compatible to 'bridge convert'.",
                rule="version-compatible-without-host-code",
                options=["version_compatible", "host_code"],
            )
        if self.specialization is not None and self.module == "tensorrt":
            raise OptionError(
                "option 'specialization' is for module tensorrt_rtx; tensorrt compiles its kernels "
                "when it builds.",
                fix="Leave it out.",
                rule="specialization-of-tensorrt",
                option="specialization",
            )
        if self.cuda_graph and self.specialization == "lazy":
            raise OptionError(
                "option 'cuda_graph' records the kernels of the first run, which are the slower "
                "ones with specialization=lazy.",
                fix="Use specialization=eager, or leave it out.",
                rule="lazy-kernels-in-a-graph",
                options=["cuda_graph", "specialization"],
            )
