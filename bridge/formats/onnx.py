"""ONNX models and ONNX Runtime's own ``.ort`` files."""

from __future__ import annotations

from bridge.model import FileProbe, Format

__all__ = ["Onnx", "OrtModel"]


class Onnx(Format):
    """A ``ModelProto``, with or without external data."""

    name = "onnx"
    title = "ONNX"
    native_backend = "onnxruntime"
    suffixes = (".onnx",)

    def sniff(self, file: FileProbe) -> bool:
        return file.head[:1] == b"\x08" and not file.is_folder


class OrtModel(Format):
    """ONNX Runtime's flatbuffer format."""

    name = "ort"
    title = "ORT format"
    native_backend = "onnxruntime"
    suffixes = (".ort",)

    def sniff(self, file: FileProbe) -> bool:
        return file.head[4:8] == b"ORTM"
