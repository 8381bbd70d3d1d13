"""OpenVINO IR, and TensorFlow Lite files, which OpenVINO runs here; read without it."""

from __future__ import annotations

from bridge.formats.openvino.ir import OpenvinoIr
from bridge.formats.openvino.tflite import TfLite

__all__ = ["OpenvinoIr", "TfLite"]
