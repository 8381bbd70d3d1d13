"""ONNX models and ONNX Runtime's own ``.ort`` files.

Before any runtime sees an ONNX model, every tensor with data in a file of its own is
found (initializers, attributes, subgraphs, functions, sparse tensors, training graphs)
and its file is checked: it has to lie in the model's folder and to hold the bytes that
the model claims. See ``bridge.formats.containment`` for what counts as inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import InvalidModel, UnsupportedModel, UntrustedModel
from bridge.formats.containment import NamedFile, named_file, outside
from bridge.formats.onnx.graph import Contents, StoredTensor, read_model
from bridge.formats.onnx.tables import read_vocabularies
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.wire import LENGTH, VARINT, Span, WireError, opened

__all__ = ["NEWEST_OPSET", "Onnx", "OrtModel", "require_known_opset"]

NEWEST_OPSET = 28
"""Newest opset of ONNX's own operators. Source: onnx 1.23.2, defs.onnx_opset_version()."""

_IR_VERSION, _DOC_STRING, _GRAPH = 1, 6, 7
# Wire types of ModelProto's fields, onnx/onnx.proto of onnx 1.23.
_MODEL_FIELDS = {
    1: VARINT,
    2: LENGTH,
    3: LENGTH,
    4: LENGTH,
    5: VARINT,
    6: LENGTH,
    7: LENGTH,
    8: LENGTH,
    14: LENGTH,
    20: LENGTH,
    25: LENGTH,
    26: LENGTH,
}
# A graph begins with a node, its name, or (written by hand) any field of GraphProto with
# a number below 16, whose tag is one byte.
_GRAPH_TAGS = {bytes([number << 3 | LENGTH]) for number in (1, 2, 5, 10, 11, 12, 13, 14, 15)}
_NEWEST_IR_VERSION = 1000
_LONGEST_NAME = 1024
_NUMBER = re.compile(r"[0-9]{1,19}")
# Domains whose operators come with onnx or with onnxruntime, without a library of custom
# operators (onnxruntime, docs/ContribOperators.md).
_KNOWN_DOMAINS = re.compile(r"ai\.onnx(\..+)?|com\.microsoft(\..+)?|com\.ms\..+|org\.pytorch\..+")


class Onnx(Format):
    """A ``ModelProto``, with or without external data.

    Models given as bytes must hold all their data. Inputs and outputs that are no dense
    tensors (sequences, maps, optional values) have neither dtype nor shape in the
    signature, and a note.
    """

    name = "onnx"
    title = "ONNX"
    native_backend = "onnxruntime"
    suffixes = (".onnx",)

    def sniff(self, file: FileProbe) -> bool:
        return not file.is_folder and _looks_like_model(file.head)

    def files(self, model: ModelRef) -> tuple[Path, ...]:
        main = model.file
        named = _named_files(model, _contents(model))
        return (main, *sorted(set(named) - {main}))

    def describe(self, model: ModelRef) -> ModelFacts:
        contents = _contents(model)
        versions = {"ir_version": str(contents.ir_version)}
        for domain, version in sorted(contents.opsets.items()):
            versions["opset" if domain == "ai.onnx" else f"opset {domain}"] = str(version)
        if contents.producer:
            versions["producer"] = contents.producer
        return ModelFacts(
            signatures={"": contents.signature},
            operators=dict(contents.operators.most_common()),
            versions=versions,
            notes=tuple(_notes(contents)),
            vocabularies=_vocabularies(model, contents),
        )

    def check(self, model: ModelRef) -> None:
        contents = _contents(model)
        _named_files(model, contents)
        if contents.compiled and not model.trust:
            raise UntrustedModel(
                f"model {model.name} holds {len(contents.compiled)} EPContext node(s): parts "
                "compiled for one execution provider, which may be native code.",
                fix="Pass trust=True if you trust its origin, or use the model that it was "
                "compiled from.",
                model=model.name,
            )


class OrtModel(Format):
    """ONNX Runtime's flatbuffer format, which only onnxruntime reads."""

    name = "ort"
    title = "ORT format"
    native_backend = "onnxruntime"
    suffixes = (".ort",)

    def sniff(self, file: FileProbe) -> bool:
        return file.head[4:8] == b"ORTM"

    def describe(self, model: ModelRef) -> ModelFacts:
        return ModelFacts(
            notes=("signature and operators of an ORT file are told by onnxruntime alone.",)
        )


def _looks_like_model(head: bytes) -> bool:
    """Whether the first bytes are those of a ``ModelProto``, up to its graph.

    Other protobufs begin alike (a SavedModel has a number and a long field 2); what tells
    them apart is that texts are texts, and that the graph begins like a graph.
    """
    version = 0
    seen = set()
    try:
        for number, kind, value in Span(head, size=1 << 62).fields():
            if _MODEL_FIELDS.get(number) != kind:
                return False
            seen.add(number)
            if isinstance(value, int):
                version = value if number == _IR_VERSION else version
            elif number == _GRAPH:
                return 0 < version <= _NEWEST_IR_VERSION and value.raw()[:1] in _GRAPH_TAGS
            elif number <= _DOC_STRING and not _is_text(value, long=number == _DOC_STRING):
                return False
    except (WireError, IndexError):
        # The head ends here. Such a file has its graph behind a long text or its opsets.
        return len(head) >= 4096 and 0 < version <= _NEWEST_IR_VERSION and len(seen) > 2
    return False


def _is_text(span: Span, *, long: bool) -> bool:
    if not long and len(span) > _LONGEST_NAME:
        return False
    data = span.raw()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        # The head may end within a character.
        if len(data) == len(span) or error.start < len(data) - 3:
            return False
        text = data[: error.start].decode()
    return "\0" not in text if long else text.isprintable()


def _contents(model: ModelRef) -> Contents:
    """Reads the model's graph.

    Raises:
        InvalidModel: The bytes are truncated or corrupt.
        UnsupportedModel: There are no bytes.
    """
    source = model.data if model.data is not None else model.file
    try:
        with opened(source) as root:
            return read_model(root)
    except WireError as error:
        raise error.invalid(model.name, Onnx.title) from error


def _vocabularies(model: ModelRef, contents: Contents) -> dict[str, int]:
    """What the inputs index, for those that the signature has and that hold numbers."""
    if "Gather" not in contents.operators:
        return {}
    source = model.data if model.data is not None else model.file
    try:
        with opened(source) as root:
            found = read_vocabularies(root)
    except WireError as error:
        raise error.invalid(model.name, Onnx.title) from error
    known = {
        spec.name
        for spec in contents.signature.inputs
        if spec.dtype is not None and (spec.dtype.is_integer or spec.dtype.is_float)
    }
    return {name: rows for name, rows in found.items() if name in known}


def _named_files(model: ModelRef, contents: Contents) -> list[Path]:
    """Checks every file that the model names; see ``Format.files`` for the errors."""
    found: dict[str, NamedFile] = {}

    def look_up(location: str, what: str) -> NamedFile:
        if location not in found:
            found[location] = named_file(model, location, what)
        return found[location]

    for tensor in contents.stored:
        what = f"tensor '{tensor.name[:200]}'" if tensor.name else "a constant"
        locations = [value for key, value in tensor.entries if key == "location"]
        if not tensor.is_external:
            # Runtimes ignore the entries of such a tensor; they need not be sound, but
            # must not lead anybody outside who reads them after all.
            for location in filter(outside, locations):
                look_up(location, what)
            continue
        if not locations:
            raise _unsound(model, what, "is kept in a file of its own and names none")
        for location in locations:
            _check_range(model, tensor, look_up(location, what), what)
    for part in contents.compiled:
        for location in part.locations:
            look_up(location, f"EPContext node '{part.name[:200]}'")
    return [file.path for file in found.values()]


def _check_range(model: ModelRef, tensor: StoredTensor, file: NamedFile, what: str) -> None:
    for key, value in tensor.entries:
        if key in {"offset", "length"} and not _NUMBER.fullmatch(value):
            raise _unsound(model, what, f"has the {key} {value[:40]!r}, which is no size in bytes")
    offsets = [int(value) for key, value in tensor.entries if key == "offset"] or [0]
    # A length of 0 means that none is stated, to onnx and to onnxruntime alike.
    lengths = [int(value) for key, value in tensor.entries if key == "length" and int(value)]
    for offset in offsets:
        left = file.size_bytes - offset
        for length in lengths or [tensor.size_bytes or 0]:
            if length > left:
                raise _unsound(
                    model,
                    what,
                    f"needs {length} bytes at {offset} of '{file.path.name}', "
                    f"which has {file.size_bytes}: it is truncated, or of another model",
                )
    if tensor.size_bytes is not None and lengths and min(lengths) < tensor.size_bytes:
        raise _unsound(
            model,
            what,
            f"needs {tensor.size_bytes} bytes and is given {min(lengths)} of '{file.path.name}'",
        )


def _unsound(model: ModelRef, what: str, problem: str) -> InvalidModel:
    return InvalidModel(
        f"{what} of model {model.name} {problem}.",
        fix="Export the model again, or copy it again with all its files.",
        model=model.name,
    )


def _notes(contents: Contents) -> Iterator[str]:
    yield from contents.notes
    external = sorted(
        {
            value
            for tensor in contents.stored
            for key, value in tensor.entries
            if tensor.is_external and key == "location"
        }
    )
    if external:
        shown = ", ".join(external[:5]) + (", ..." if len(external) > 5 else "")
        yield f"weights are in {len(external)} file(s) of their own: {shown}."
    if contents.compiled:
        yield "EPContext nodes hold parts compiled for one execution provider."
    foreign = sorted(
        {
            operator.rpartition(".")[0]
            for operator in contents.operators
            if "." in operator and operator not in contents.functions
        }
    )
    for domain in foreign:
        if not _KNOWN_DOMAINS.fullmatch(domain):
            yield (
                f"operators of domain '{domain}' come from a library of custom operators; "
                "none is ever loaded because a model says so."
            )
    if "ort_config" in contents.metadata_keys:
        yield "session options stored in the model (ort_config) are not used."


def require_known_opset(model: ModelRef) -> None:
    """For runtimes that read a model of an unknown opset without a word.

    Raises:
        UnsupportedModel: The model is of an opset newer than any that is known here.
    """
    opset = model.facts.versions.get("opset", "")
    if opset.isdecimal() and int(opset) > NEWEST_OPSET:
        raise UnsupportedModel(
            f"the model is of opset {opset} of ONNX; known are opsets up to {NEWEST_OPSET}.",
            fix="Export the model for an older opset.",
            opset=opset,
        )
