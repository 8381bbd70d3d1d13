"""Options of the TensorRT backend and of the adapter that builds engines."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bridge import Options, option
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
    )
    batch: tuple[str, ...] | None = option(
        None,
        help="Rows that the engine takes, as min,opt,max or one number; several ranges such as "
        "1:1:1,2:64:512 make one optimisation profile each. None means 1,16,128.",
    )
    dims: tuple[str, ...] = option(
        (),
        help="Ranges of other dynamic dims by name, T=1:50:200, or whole shapes of an input, "
        "x=1x16:8x16:64x16.",
    )
    values: tuple[str, ...] = option(
        (),
        help="Ranges of the values of inputs that hold shapes: k=1x1:8x8:64x64.",
    )
    tf32: bool = option(
        False, help="Let float32 products round their inputs to 10 bits: faster, less exact."
    )
    workspace_bytes: int | None = option(
        None,
        help="Most scratch memory that a layer may use; none means all memory of the device.",
        unit="bytes",
        minimum=1,
    )
    optimization_level: int | None = option(
        None,
        help="Effort of the builder, from 0 (fast) to 5; none means its own default.",
        minimum=0,
        maximum=5,
    )
    targets: tuple[str, ...] = option(
        (),
        help="Kinds of GPU to build for, such as SM86,SM89; tensorrt_rtx only. Empty means all "
        "that one engine can serve.",
    )
    hardware: str = option(
        "none",
        help="Kinds of GPU besides this one that the engine must run on; tensorrt only, "
        "tensorrt_rtx has targets.",
        choices=("none", "ampere_plus", "same_compute_capability"),
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
    )
