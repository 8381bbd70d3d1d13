"""Serialized TensorRT engines."""

from __future__ import annotations

from bridge.model import FileProbe, Format

__all__ = ["Engine"]


class Engine(Format):
    """A plan for one kind of GPU; deserialising it trusts its maker."""

    name = "engine"
    title = "TensorRT engine"
    native_backend = "tensorrt"
    suffixes = (".engine", ".plan", ".trt")
    devices = ("cuda",)

    def sniff(self, file: FileProbe) -> bool:
        return file.head[:4] in (b"ftrt", b"ptrt")
