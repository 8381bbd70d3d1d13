"""OpenVINO IR, and TensorFlow Lite files, which OpenVINO reads here."""

from __future__ import annotations

from bridge.model import FileProbe, Format

__all__ = ["OpenvinoIr", "TfLite"]


class OpenvinoIr(Format):
    """An ``.xml`` graph with its ``.bin`` of weights."""

    name = "openvino_ir"
    title = "OpenVINO IR"
    native_backend = "openvino"
    suffixes = (".xml",)

    def sniff(self, file: FileProbe) -> bool:
        return b"<net " in file.head and file.head.lstrip()[:1] == b"<"


class TfLite(Format):
    """A TensorFlow Lite flatbuffer."""

    name = "tflite"
    title = "TensorFlow Lite"
    native_backend = "openvino"
    suffixes = (".tflite",)

    def sniff(self, file: FileProbe) -> bool:
        return file.head[4:8] == b"TFL3"
