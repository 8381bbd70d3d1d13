"""ONNX models and ONNX Runtime's own ``.ort`` files, read without either."""

from __future__ import annotations

from bridge.formats.onnx.model import NEWEST_OPSET, Onnx, OrtModel, require_known_opset

__all__ = ["NEWEST_OPSET", "Onnx", "OrtModel", "require_known_opset"]
