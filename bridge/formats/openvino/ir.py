"""OpenVINO IR: an ``.xml`` graph, and the ``.bin`` of weights beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bridge.errors import InvalidModel, UnsupportedModel
from bridge.formats.containment import NamedFile, named_file
from bridge.formats.openvino.graph import Contents, GraphError, read_graph
from bridge.model import FileProbe, Format, ModelFacts, ModelRef

__all__ = ["OpenvinoIr"]

_XML_LIMIT_BYTES = 1 << 28
_NUMBER = re.compile(r"[0-9]{1,19}")
# Version 10 came in 2020; OpenVINO reads no older one since 2022.1 (its release notes).
_OLDEST_IR_VERSION = 10
_SPACE = b" \t\r\n"


class OpenvinoIr(Format):
    """An ``.xml`` graph with its ``.bin`` of weights beside it.

    A document type definition is refused: no exporter writes one, and entities defined
    there could name other files or grow without bound.
    """

    name = "openvino_ir"
    title = "OpenVINO IR"
    native_backend = "openvino"
    suffixes = (".xml",)

    def sniff(self, file: FileProbe) -> bool:
        return not file.is_folder and _root_is_net(file.head)

    def files(self, model: ModelRef) -> tuple[Path, ...]:
        weights = _weights(model, _contents(model))
        return (model.file,) if weights is None else (model.file, weights.path)

    def describe(self, model: ModelRef) -> ModelFacts:
        contents = _contents(model)
        versions = {"ir_version": str(contents.ir_version)}
        if contents.opsets:
            ranked = sorted(contents.opsets, key=lambda name: (len(name), name))
            versions["opsets"] = ", ".join(ranked)
        if contents.producer:
            versions["producer"] = contents.producer[:200]
        return ModelFacts(
            signatures={"": contents.signature},
            operators=dict(contents.operators.most_common()),
            versions=versions,
            notes=tuple(contents.notes),
        )

    def check(self, model: ModelRef) -> None:
        contents = _contents(model)
        if contents.ir_version < _OLDEST_IR_VERSION:
            raise UnsupportedModel(
                f"model {model.name} is OpenVINO IR of version {contents.ir_version}; "
                f"OpenVINO reads {_OLDEST_IR_VERSION} and newer.",
                fix="Convert the original model again with a current OpenVINO.",
                model=model.name,
            )
        _weights(model, contents)


def _root_is_net(head: bytes) -> bool:
    """Whether the first element is ``net``, behind what XML allows before it."""
    position = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    while True:
        while head[position : position + 1] and head[position] in _SPACE:
            position += 1
        rest = head[position : position + 9]
        if rest.startswith(b"<!--"):
            end = head.find(b"-->", position + 4)
        elif rest.startswith(b"<?"):
            end = head.find(b"?>", position)
        elif rest.upper().startswith(b"<!DOCTYPE"):
            # Recognised here so that it can be refused with its reason.
            subset = head.find(b"]", position)
            end = head.find(b">", max(position, subset))
        else:
            return rest[:4] == b"<net" and rest[4:5] in {b" ", b"\t", b"\r", b"\n", b">"}
        if end < 0:
            return False
        position = head.index(b">", end) + 1


def _contents(model: ModelRef) -> Contents:
    """Reads the XML.

    Raises:
        InvalidModel: It is truncated, corrupt, or holds a document type definition.
        UnsupportedModel: There is no XML, or too much.
    """
    size = len(model.data) if model.data is not None else model.file.stat().st_size
    if size > _XML_LIMIT_BYTES:
        raise UnsupportedModel(
            f"the graph {model.name} has {size} bytes; up to {_XML_LIMIT_BYTES} are read.",
            fix="An IR keeps its weights in the .bin: check what makes the .xml so large.",
            model=model.name,
        )
    data = model.data if model.data is not None else model.file.read_bytes()
    try:
        return read_graph(data)
    except GraphError as error:
        state = "truncated" if error.truncated else "not sound"
        raise InvalidModel(
            f"the OpenVINO IR {model.name} is {state}: {error}.",
            fix="Export or copy it again.",
            model=model.name,
        ) from error


def _weights(model: ModelRef, contents: Contents) -> NamedFile | None:
    """The ``.bin``, checked; ``None`` if there is none and none is needed."""
    if model.path is None:
        if contents.constants:
            raise UnsupportedModel(
                f"model {model.name} keeps its weights in a .bin, and a model given as bytes "
                "has no folder.",
                fix="Pass the path of the .xml instead of its bytes.",
                model=model.name,
            )
        return None
    beside = model.path.with_suffix(".bin")
    if not contents.constants and not os.path.lexists(beside):
        return None
    found = named_file(model, beside.name, "the weights")
    for constant in contents.constants:
        sizes = (constant.offset, constant.size)
        if not all(_NUMBER.fullmatch(text) for text in sizes):
            problem = f"has the offset {sizes[0][:40]!r} and the size {sizes[1][:40]!r}"
        elif int(constant.offset) + int(constant.size) > found.size_bytes:
            problem = (
                f"needs {constant.size} bytes at {constant.offset} of '{beside.name}', which "
                f"has {found.size_bytes}: it is truncated, or of another model"
            )
        else:
            continue
        raise InvalidModel(
            f"constant '{constant.name[:200]}' of model {model.name} {problem}.",
            fix="Copy the .xml and the .bin again, both from one export.",
            model=model.name,
        )
    return found
