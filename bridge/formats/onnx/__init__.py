"""ONNX models and ONNX Runtime's own ``.ort`` files, read without either."""

from __future__ import annotations

from bridge.formats.onnx.model import Onnx, OrtModel

__all__ = ["Onnx", "OrtModel"]
