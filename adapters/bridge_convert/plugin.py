"""Registers the adapters."""

from __future__ import annotations

from collections.abc import Callable

import bridge
from bridge_convert.broadcast import OnnxBroadcast
from bridge_convert.exported_program import (
    ExportedProgramToAotInductor,
    ExportedProgramToIr,
    ExportedProgramToOnnx,
)
from bridge_convert.float16 import OnnxToFloat16
from bridge_convert.keras import KerasToSavedModel
from bridge_convert.openvino_ir import OnnxToIr, SavedModelToIr
from bridge_convert.quantized import OnnxInt8Dynamic, OnnxInt8Embeddings, OnnxInt8Static
from bridge_convert.saved_model import SavedModelToOnnx
from bridge_convert.slim import OnnxSlim
from bridge_convert.torch_module import TorchToExportedProgram
from bridge_convert.torchscript import TorchscriptToIr, TorchscriptToOnnx

__all__ = ["register_adapters"]


@bridge.hookimpl
def register_adapters(register: Callable[[bridge.Adapter], None]) -> None:
    """Registers every adapter of this package."""
    for adapter in (
        SavedModelToOnnx(),
        SavedModelToIr(),
        KerasToSavedModel(),
        TorchscriptToOnnx(),
        TorchscriptToIr(),
        TorchToExportedProgram(),
        ExportedProgramToOnnx(),
        ExportedProgramToIr(),
        ExportedProgramToAotInductor(),
        OnnxToIr(),
        OnnxSlim(),
        OnnxBroadcast(),
        OnnxToFloat16(),
        OnnxInt8Dynamic(),
        OnnxInt8Embeddings(),
        OnnxInt8Static(),
    ):
        register(adapter)
