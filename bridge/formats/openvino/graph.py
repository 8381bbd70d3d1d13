"""What the XML of an OpenVINO IR says, read without OpenVINO.

The layout is described in OpenVINO's documentation, "OpenVINO IR format", and was read
off files that OpenVINO 2026.4 wrote.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from xml.parsers import expat

from bridge.dtypes import DType
from bridge.signature import Dim, Signature, TensorSpec, dim

__all__ = ["ELEMENT_TYPES", "Constant", "Contents", "GraphError", "read_graph"]

_MAX_DEPTH = 500
# OpenVINO's names, in files and in its Python API alike.
ELEMENT_TYPES = {
    "boolean": DType.BOOL,
    "i8": DType.INT8,
    "i16": DType.INT16,
    "i32": DType.INT32,
    "i64": DType.INT64,
    "u8": DType.UINT8,
    "u16": DType.UINT16,
    "u32": DType.UINT32,
    "u64": DType.UINT64,
    "f8e4m3": DType.FLOAT8_E4M3FN,
    "f8e5m2": DType.FLOAT8_E5M2,
    "f8e8m0": DType.FLOAT8_E8M0FNU,
    "f16": DType.FLOAT16,
    "bf16": DType.BFLOAT16,
    "f32": DType.FLOAT32,
    "f64": DType.FLOAT64,
    "string": DType.STRING,
}
_CUT_OFF = {
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
}


class GraphError(ValueError):
    """The XML is broken, or no graph.

    Args:
        reason: What is wrong, without a full stop.
        truncated: It ends too early.
    """

    def __init__(self, reason: str, *, truncated: bool = False) -> None:
        super().__init__(reason)
        self.truncated = truncated


@dataclass(frozen=True, slots=True)
class Constant:
    """A ``Const`` layer; offset and size in the ``.bin`` as the file writes them."""

    name: str
    offset: str
    size: str


@dataclass(slots=True)
class Contents:
    """What ``read_graph`` found.

    Attributes:
        signature: From the parameters and results of the outermost graph.
        operators: Count of each layer type in all graphs; those that are in no opset of
            OpenVINO as ``version.Type``.
        opsets: Opsets of the layers.
        ir_version: Version of the format.
        producer: Who wrote the file, if it says so.
        constants: All ``Const`` layers with data.
        notes: Sentences about the signature and the operators.
    """

    signature: Signature = field(default_factory=lambda: Signature((), ()))
    operators: Counter[str] = field(default_factory=Counter)
    opsets: set[str] = field(default_factory=set)
    ir_version: int = 0
    producer: str = ""
    constants: list[Constant] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Layer:
    """A parameter or result of the outermost graph, as it is read."""

    id: str
    name: str
    kind: str
    names: list[str]
    element_type: str = ""
    shape: str | None = None
    dims: list[str] = field(default_factory=list)


def read_graph(data: bytes) -> Contents:
    """Reads the XML of an IR; nothing but the given bytes is ever opened.

    Raises:
        GraphError: It is truncated, corrupt, holds a document type definition, or is
            nested too deep.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.doctype
    is_all = True
    try:
        parser.Parse(data, is_all)
    except expat.ExpatError as error:
        raise GraphError(str(error), truncated=error.code in _CUT_OFF) from None
    except (LookupError, UnicodeError) as error:  # the encoding that the file declares
        raise GraphError(f"its encoding is not known: {error}") from None
    return reader.finished()


class _Reader:
    """Takes expat's events; keeps the few layers that matter and counts the others."""

    def __init__(self) -> None:
        self.contents = Contents()
        self.path: list[str] = []
        self.open_layers: list[tuple[str, str]] = []  # name and type, outermost first
        self.layer: _Layer | None = None
        self.layers: list[_Layer] = []
        self.port = ""
        self.dim_text: list[str] = []
        self.names_of_port: dict[tuple[str, str], list[str]] = {}
        self.source_of: dict[str, tuple[str, str]] = {}
        self.layer_id = ""

    def doctype(self, *_: object) -> None:
        raise GraphError("it holds a document type definition, which may define entities")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.path.append(tag)
        depth = len(self.path)
        if depth > _MAX_DEPTH:
            raise GraphError(f"its elements are nested more than {_MAX_DEPTH} deep")
        if depth == 1:
            self._start_net(tag, attributes)
        elif tag == "layer":
            self._start_layer(attributes, outermost=depth == 3)
        elif tag == "data" and self.path[-2] == "layer":
            self._data(attributes, outermost=depth == 4)
        elif tag == "port" and depth == 5:
            self._port(attributes)
        elif tag == "edge" and depth == 3:
            source = attributes.get("from-layer", ""), attributes.get("from-port", "")
            self.source_of[attributes.get("to-layer", "")] = source
        elif self.path[1] == "rt_info" and depth == 3 and not self.contents.producer:
            # <info name="OpenVINO Runtime" value="..."/>, earlier <Runtime_version value="..."/>
            name = attributes.get("name", tag)
            if "runtime" in name.lower():
                name = "OpenVINO Runtime" if name == "Runtime_version" else name
                self.contents.producer = f"{name} {attributes.get('value', '')}".strip()

    def end(self, tag: str) -> None:
        if tag == "dim" and self.layer is not None and len(self.path) == 6:
            self.layer.dims.append("".join(self.dim_text).strip())
        elif tag == "layer" and self.open_layers:
            self.open_layers.pop()
            if len(self.path) == 3:
                self.layer = None
        self.dim_text = []
        self.path.pop()

    def text(self, text: str) -> None:
        if self.path[-1] == "dim":
            self.dim_text.append(text)

    def _start_net(self, tag: str, attributes: dict[str, str]) -> None:
        version = attributes.get("version", "")
        if tag != "net" or not re.fullmatch(r"[0-9]{1,4}", version):
            raise GraphError(f"its root is <{tag[:40]} version={version[:40]!r}>, not a <net>")
        self.contents.ir_version = int(version)

    def _start_layer(self, attributes: dict[str, str], *, outermost: bool) -> None:
        kind, version = attributes.get("type", ""), attributes.get("version", "")
        if re.fullmatch(r"opset[0-9]+", version):
            self.contents.opsets.add(version)
            self.contents.operators[kind] += 1
        else:
            self.contents.operators[f"{version}.{kind}" if version else kind] += 1
        name = attributes.get("name", "")
        self.open_layers.append((name, kind))
        if not outermost:
            return
        self.layer_id = attributes.get("id", "")
        self.layer = None
        if kind in {"Parameter", "Result"}:
            names = _split_names(attributes.get("output_names", ""))
            self.layer = _Layer(self.layer_id, name, kind, names)
            self.layers.append(self.layer)

    def _data(self, attributes: dict[str, str], *, outermost: bool) -> None:
        name, kind = self.open_layers[-1]
        if kind == "Const" and ("offset" in attributes or "size" in attributes):
            offset, size = attributes.get("offset", ""), attributes.get("size", "")
            self.contents.constants.append(Constant(name, offset, size))
        if outermost and self.layer is not None:
            self.layer.element_type = attributes.get("element_type", "")
            self.layer.shape = attributes.get("shape")

    def _port(self, attributes: dict[str, str]) -> None:
        names = _split_names(attributes.get("names", ""))
        if self.path[-2] == "output":
            self.names_of_port[self.layer_id, attributes.get("id", "")] = names
        if self.layer is None:
            return
        if self.layer.kind == "Parameter" and self.path[-2] == "output":
            self.layer.names = names
        if not self.layer.element_type:
            self.layer.element_type = _from_precision(attributes.get("precision", ""))

    def finished(self) -> Contents:
        found = self.contents
        inputs = [one for one in self.layers if one.kind == "Parameter"]
        outputs = [one for one in self.layers if one.kind == "Result"]
        for one in outputs:
            if not one.names:  # files of before 2024: the names are those of what is returned
                one.names = self.names_of_port.get(self.source_of.get(one.id, ("", "")), [])
        found.signature = Signature(
            self._specs(inputs, "input", _declared_shape),
            self._specs(outputs, "output", _port_shape),
        )
        own = sorted(name for name in found.operators if name.startswith("extension"))
        if own:
            found.notes.append(
                f"{', '.join(own)} come from an extension library; "
                "none is ever loaded because a model says so."
            )
        return found

    def _specs(
        self,
        layers: Iterable[_Layer],
        side: str,
        shape_of: Callable[[_Layer], tuple[Dim, ...] | None],
    ) -> tuple[TensorSpec, ...]:
        taken: set[str] = set()
        specs: list[TensorSpec] = []
        for layer in layers:
            label = layer.name.removesuffix("/sink_port_0")
            choices = [label] if label in layer.names else []
            choices += [*sorted(layer.names), label, layer.name, f"{side}_{len(specs)}"]
            name = next((one for one in choices if one and one not in taken), "")
            if not name:
                raise GraphError(f"its {side}s have no unique names")
            taken.add(name)
            dtype = ELEMENT_TYPES.get(layer.element_type)
            if dtype is None:
                self.contents.notes.append(
                    f"{side} '{name}' is of element type {layer.element_type or 'unknown'}, for "
                    "which numpy has no array: its dtype stays open."
                )
            specs.append(TensorSpec(name, dtype, shape_of(layer), native_name=label))
        return tuple(specs)


def _split_names(text: str) -> list[str]:
    """The names of a tensor: a list with commas, those within names escaped."""
    names = re.findall(r"(?:\\.|[^,\\])+", text)
    return [re.sub(r"\\(.)", r"\1", name) for name in names]


def _from_precision(text: str) -> str:
    """The element type of a port, which is written as ``FP32`` where layers have ``f32``."""
    lower = text.lower()
    return "boolean" if lower == "bool" else lower.replace("fp", "f", 1)


def _declared_shape(layer: _Layer) -> tuple[Dim, ...] | None:
    """A parameter's shape: ``?,3,1..8``, empty for a scalar, ``...`` for an unknown rank."""
    text = layer.shape
    if text is None or text.strip() == "...":
        return None
    return tuple(_dim(part) for part in text.split(",")) if text.strip() else ()


def _port_shape(layer: _Layer) -> tuple[Dim, ...] | None:
    """A result's shape; a port without dims is a scalar or of unknown rank, nobody knows."""
    return tuple(_dim(text) for text in layer.dims) if layer.dims else None


def _dim(text: str) -> Dim:
    stripped = text.strip()
    return dim(int(stripped)) if re.fullmatch(r"-?[0-9]{1,18}", stripped) else None
