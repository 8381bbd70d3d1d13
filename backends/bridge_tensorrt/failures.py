"""What the errors of CUDA and TensorRT mean, in calls, in loading and in converting."""

from __future__ import annotations

from bridge import ErrorRule
from bridge.errors import (
    ConversionError,
    DeviceUnavailable,
    ModelLoadFailed,
    OutOfMemory,
    PredictError,
)
from bridge_tensorrt.building import BuildFailed
from bridge_tensorrt.cuda import CudaError
from bridge_tensorrt.execution import ExecutionFailed

__all__ = ["conversion_rules", "error_rules"]

_LESS_MEMORY = "Use smaller batches, fewer contexts, or free memory on the device."
_OTHER_RANGES = "Try other ranges of shapes or another backend; logging shows more."
_NO_GPU = ErrorRule(
    BuildFailed,
    DeviceUnavailable,
    pattern=r"CHECK\(status == CUDA_SUCCESS\)",  # seen in tensorrt_rtx 1.7.1, without a GPU
    fix="Build a refittable engine on a machine with a GPU, or leave refittable out.",
)


def error_rules() -> tuple[ErrorRule, ...]:
    """Rules for loading and calling; the first that fits decides."""
    return (
        ErrorRule(
            CudaError,
            OutOfMemory,
            pattern="cudaErrorMemoryAllocation",
            message="the device has not enough free memory for this call.",
            fix=_LESS_MEMORY,
        ),
        ErrorRule(ExecutionFailed, OutOfMemory, pattern="(?i)out ?of ?memory", fix=_LESS_MEMORY),
        ErrorRule(ExecutionFailed, PredictError),
        ErrorRule(CudaError, PredictError),
        _NO_GPU,
        ErrorRule(BuildFailed, ModelLoadFailed, fix=_OTHER_RANGES),
    )


def conversion_rules() -> tuple[ErrorRule, ...]:
    """Rules for building an engine file; the first that fits decides."""
    return (
        _NO_GPU,
        ErrorRule(
            BuildFailed,
            ConversionError,
            pattern="workspace limit",
            fix="Raise workspace_bytes, or leave it out.",
        ),
        ErrorRule(BuildFailed, ConversionError, fix=_OTHER_RANGES),
    )
