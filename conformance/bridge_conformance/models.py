"""The bridge plugin ``conformance``: registers the writers that the suite itself has.

Another distribution registers writers of its own formats with the same hook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import bridge

if TYPE_CHECKING:
    from bridge_conformance.writing import Writer

__all__ = ["register_conformance_models"]


@bridge.hookimpl
def register_conformance_models(register: Callable[[Writer], None]) -> None:
    """Registers a writer for each format that the suite can write."""
    # Imported here: every process that uses the bridge imports this module.
    from bridge_conformance.writers.keras import write_keras
    from bridge_conformance.writers.onnx import write_onnx
    from bridge_conformance.writers.onnxruntime import write_ort
    from bridge_conformance.writers.openvino import write_ir
    from bridge_conformance.writers.tensorflow import write_saved_model, write_tflite
    from bridge_conformance.writers.torch import (
        write_exported_program,
        write_package,
        write_torchscript,
    )
    from bridge_conformance.writing import Writer

    register(Writer("onnx", "onnx", write_onnx))
    register(Writer("ort", "onnxruntime", write_ort))
    register(Writer("openvino_ir", "openvino", write_ir))
    register(Writer("saved_model", "tensorflow", write_saved_model))
    register(Writer("tflite", "tensorflow", write_tflite))
    register(Writer("keras", "keras", write_keras))
    register(Writer("torchscript", "torch", write_torchscript))
    register(Writer("exported_program", "torch", write_exported_program))
    register(Writer("aot_inductor", "torch", write_package, is_code=True))
