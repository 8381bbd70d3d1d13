"""Serialized TensorRT engines.

The first bytes of a plan are a tag, then the version of the module that built it. The
tag and the place of the version are those that trtexec of NVIDIA/TensorRT checks
(``printPlanVersion`` in ``samples/common/sampleEngines.cpp``, release 11). The tag of
TensorRT-RTX, and the size of the whole plan at offset 16, were seen in engines built by
tensorrt_rtx 1.7.1.
"""

from __future__ import annotations

import struct

from bridge.errors import InvalidModel, UntrustedModel
from bridge.model import FileProbe, Format, ModelFacts, ModelRef

__all__ = ["Engine"]

_MODULES = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_HEADER_BYTES = 28
_CACHE_KIND = "engine"


class Engine(Format):
    """A plan for one kind of GPU; deserialising it trusts its maker."""

    name = "engine"
    title = "TensorRT engine"
    native_backend = "tensorrt"
    suffixes = (".engine", ".plan", ".trt")
    devices = ("cuda",)

    def sniff(self, file: FileProbe) -> bool:
        return file.head[:4] in _MODULES and file.head[4:8] == bytes(4)

    def describe(self, model: ModelRef) -> ModelFacts:
        """The module that built it, and its version; names and shapes need that module."""
        head = _head(model)
        version = ".".join(str(part) for part in head[24:28])
        return ModelFacts(
            versions={_MODULES.get(head[:4], "unknown module"): version},
            notes=("Inputs and outputs of an engine can only be read by its runtime, on a GPU.",),
        )

    def check(self, model: ModelRef) -> None:
        """Refuses truncated engines, and those of others unless they are trusted."""
        head = _head(model)
        size_bytes = struct.unpack_from("<Q", head, 16)[0] if head[:4] == b"vtrt" else 0
        if model.size_bytes < size_bytes:
            raise InvalidModel(
                f"engine {model.name} is truncated: {model.size_bytes} of {size_bytes} bytes.",
                fix="Copy or build it again.",
                model=model.name,
                size_bytes=model.size_bytes,
                wanted_bytes=size_bytes,
            )
        if not model.trust and not _is_ours(model):
            raise UntrustedModel(
                f"engine {model.name} holds code for the GPU, and is not from the bridge's own "
                "cache.",
                fix="Pass trust=True if you know who built it, or load the ONNX model instead.",
                model=model.name,
            )


def _head(model: ModelRef) -> bytes:
    if model.data is not None:
        head = model.data[:_HEADER_BYTES]
    else:
        with model.file.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES:
        raise InvalidModel(
            f"engine {model.name} is truncated: it ends within its header.",
            fix="Copy or build it again.",
            model=model.name,
        )
    return head


def _is_ours(model: ModelRef) -> bool:
    """Whether it lies in the cache, whole, as an engine that the bridge built there."""
    from bridge.cache import default_cache

    entry = default_cache().entry_of(model.path) if model.path is not None else None
    return entry is not None and entry.kind == _CACHE_KIND
