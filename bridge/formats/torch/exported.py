"""ExportedProgram archives and AOTInductor packages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bridge.dtypes import DType
from bridge.errors import InvalidModel, UnsupportedModel, UntrustedModel
from bridge.formats.torch.archive import Archive, open_archive, pickled_globals
from bridge.formats.torch.graph import DICTS, LISTS, operator_counts, scan_graph
from bridge.formats.torch.structure import ExportedTensor, named_leaves, program_signature
from bridge.formats.torch.tables import read_vocabularies
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.signature import Signature

__all__ = ["AotInductor", "ExportedProgram"]

_NATIVE_FOLDER = "data/aotinductor/"
_LEGACY_GRAPH = "serialized_exported_program.json"

_SAFE_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.\w+Storage|torch\.storage\.UntypedStorage"
    r"|torch\._utils\._rebuild_(tensor_v[23]|parameter)|torch\.(Size|device)"
    r"|torch\.(u?int\d+|float\d+|float8_\w+|bfloat16|bool|complex\d+)"
)
"""What pickled tensors are made of. Source: torch/_weights_only_unpickler.py (torch 2.13)."""

_DTYPES = {
    1: DType.UINT8,
    2: DType.INT8,
    3: DType.INT16,
    4: DType.INT32,
    5: DType.INT64,
    6: DType.FLOAT16,
    7: DType.FLOAT32,
    8: DType.FLOAT64,
    10: DType.COMPLEX64,
    11: DType.COMPLEX128,
    12: DType.BOOL,
    13: DType.BFLOAT16,
    28: DType.UINT16,
    29: DType.FLOAT8_E4M3FN,
    30: DType.FLOAT8_E5M2,
    31: DType.FLOAT8_E4M3FNUZ,
    32: DType.FLOAT8_E5M2FNUZ,
    33: DType.FLOAT8_E8M0FNU,
    34: DType.UINT32,
    35: DType.UINT64,
}
"""Source: ``ScalarType`` in torch/_export/serde/schema.py (torch 2.13)."""

# What reading JSON of another form than torch's raises.
_ODD = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class ExportedProgram(Format):
    """A ``torch.export.save`` archive, or a live ``ExportedProgram``.

    Loading one in torch 2.13 can run code in many ways: the sample inputs are unpickled
    without limits if the safe way fails, weights and constants may be pickles, sizes are
    given to ``sympify`` and guards to ``exec``, names become part of generated code, and
    an operator may be any function below ``torch``. Without ``trust`` all of these have
    to be of the harmless kind that ``torch.export.save`` writes for an ordinary model.
    """

    name = "exported_program"
    title = "ExportedProgram"
    native_backend = "torch"
    suffixes = (".pt2",)

    def sniff(self, file: FileProbe) -> bool:
        names = file.members
        return (_LEGACY_GRAPH in names or any(_is_graph(name) for name in names)) and not any(
            name.startswith(_NATIVE_FOLDER) for name in names
        )

    def sniff_live(self, live: object) -> bool:
        kind = type(live)
        return kind.__name__ == "ExportedProgram" and kind.__module__.startswith("torch.export")

    def describe(self, model: ModelRef) -> ModelFacts:
        if model.live is not None:
            return ModelFacts(notes=("A live program is described by loading it.",))
        with _opened(model) as archive:
            graph = _graph(archive, "models/model.json")
        signatures = {}
        tables: dict[str, int] = {}
        notes = []
        try:
            signatures[""] = _signature(graph)
        except _ODD as error:
            notes.append(f"The signature could not be read without torch ({error!r}).")
        try:
            tables = read_vocabularies(graph)
        except _ODD as error:
            notes.append(f"Which tables the inputs index could not be read ({error!r}).")
        versions = {
            "torch": str(graph.get("torch_version", "unknown")),
            "schema": ".".join(str(part) for part in graph.get("schema_version", {}).values()),
        }
        return ModelFacts(
            signatures=signatures,
            operators=operator_counts(graph),
            versions=versions,
            notes=tuple(notes),
            vocabularies=tables,
        )

    def check(self, model: ModelRef) -> None:
        if model.live is not None:
            return
        with _opened(model) as archive:
            graphs = {name: _graph(archive, name) for name in archive.members if _is_graph(name)}
            if model.trust:
                return
            findings = [
                f"{what} (in {name})"
                for name, graph in graphs.items()
                for what in scan_graph(graph)
            ]
            for name in archive.members:
                findings += _scan_member(archive, name)
        if findings:
            more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
            raise UntrustedModel(
                f"ExportedProgram '{model.name}' may do more than compute: {findings[0]}{more}.",
                fix="Pass trust=True if you know who made the file, or export it without that.",
                model=model.name,
                findings=findings,
            )


class AotInductor(Format):
    """An AOTInductor package: native code in a ``.pt2`` archive.

    Loading one runs whatever its shared library holds, so it always needs ``trust``.
    """

    name = "aot_inductor"
    title = "AOTInductor package"
    native_backend = "torch"
    suffixes = (".pt2",)

    def sniff(self, file: FileProbe) -> bool:
        return any(name.startswith(_NATIVE_FOLDER) for name in file.members)

    def describe(self, model: ModelRef) -> ModelFacts:
        return ModelFacts(notes=("Native code: what is in it only shows when it is loaded.",))

    def check(self, model: ModelRef) -> None:
        if not model.trust:
            raise UntrustedModel(
                f"'{model.name}' is an AOTInductor package, which is native code.",
                fix="Pass trust=True if you know who made the file.",
                model=model.name,
            )
        with open_archive(model.file, model.name):
            pass


@contextmanager
def _opened(model: ModelRef) -> Iterator[Archive]:
    head = FileProbe(model.file, b"PK\x03\x04")
    if _LEGACY_GRAPH in head.members:
        raise UnsupportedModel(
            f"ExportedProgram '{model.name}' is in the layout of torch 2.7 and older.",
            fix="Load it with the torch that wrote it and save it with torch 2.8 or newer.",
            model=model.name,
        )
    with open_archive(model.file, model.name) as archive:
        yield archive


def _is_graph(name: str) -> bool:
    return name.startswith("models/") and name.endswith(".json")


def _graph(archive: Archive, name: str) -> dict[str, Any]:
    return _json(archive, name)


def _json(archive: Archive, name: str) -> dict[str, Any]:
    try:
        value = json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise InvalidModel(
            f"the archive '{archive.name}' is not as torch writes it: its member '{name}' is no "
            f"JSON ({error}).",
            fix="It may be truncated or altered; export it again.",
            model=archive.name,
        ) from error
    if not isinstance(value, dict):
        raise InvalidModel(
            f"the archive '{archive.name}' is not as torch writes it: its member '{name}' is no "
            "JSON object.",
            fix="Export it again.",
            model=archive.name,
        )
    return value


def _scan_member(archive: Archive, name: str) -> list[str]:
    """What is wrong with a member that is no graph; reads only those that torch unpickles."""
    folder, _, file = name.rpartition("/")
    if folder in ("data/weights", "data/constants"):
        if file.startswith(("custom_obj", "opaque_obj")):
            return [f"it holds a pickled object of another class ({name})"]
        if file.endswith("_config.json"):
            return _scan_payloads(archive, folder, name)
    if folder == "data/sample_inputs" or (folder.startswith("data/") and file.endswith(".pt")):
        return _scan_pickle(archive, name)
    if _is_graph(name) or folder.startswith(("data/", "extra", ".data")) or "/" not in name:
        return []
    return [f"its member '{name}' is unknown here"]


def _scan_payloads(archive: Archive, folder: str, name: str) -> list[str]:
    config = _json(archive, name).get("config", {})
    findings = []
    for item in config.values() if isinstance(config, dict) else [None]:
        if not isinstance(item, dict):
            return [f"its {name} is no list of tensors"]
        path = item.get("path_name")
        if not isinstance(path, str) or not re.fullmatch(r"(weight|tensor)_\d+", path):
            findings.append(f"its {name} names something that is no tensor")
        elif item.get("use_pickle") is not False:
            findings += _scan_pickle(archive, f"{folder}/{path}")
    return findings


def _scan_pickle(archive: Archive, name: str) -> list[str]:
    data = archive.read(name)
    with open_archive(data, f"{archive.name}/{name}") as inner:
        unsafe = [
            item
            for item in pickled_globals(inner.read("data.pkl"), inner.name)
            if not _SAFE_GLOBALS.fullmatch(item)
        ]
    return [f"unpickling {name} would call '{item}'" for item in unsafe]


def _signature(graph: dict[str, Any]) -> Signature:
    module = graph["graph_module"]
    tensors = module["graph"]["tensor_values"]
    specs = module["signature"]
    top = module["module_call_graph"][0]["signature"]

    inputs = []
    for item in specs["input_specs"]:
        if "user_input" not in item:
            continue
        argument = item["user_input"]["arg"]
        if "as_tensor" in argument:
            name = argument["as_tensor"]["name"]
            inputs.append(_tensor(name, tensors[name]))
        elif "as_sym_int" in argument:
            inputs.append(ExportedTensor(argument["as_sym_int"]["as_name"], DType.INT64, None))
    leaves = iter(
        item["user_output"]["arg"] for item in specs["output_specs"] if "user_output" in item
    )
    nested = _structure(json.loads(top["out_spec"])[1], leaves)
    outputs = [
        _tensor(name, tensors[leaf["as_tensor"]["name"]])
        for name, leaf in named_leaves(nested)
        if "as_tensor" in leaf.value
    ]
    return program_signature(inputs, outputs)


@dataclass(frozen=True)
class _Leaf:
    """Keeps a leaf's own dict from being taken for structure."""

    value: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.value[key]


def _structure(spec: dict[str, Any], leaves: Iterator[dict[str, Any]]) -> Any:
    """The nesting that a JSON tree spec describes, filled with leaves in order."""
    kind = spec["type"]
    if kind is None:
        return _Leaf(next(leaves))
    children = [_structure(child, leaves) for child in spec["children_spec"]]
    if kind in DICTS:
        return dict(zip(json.loads(spec["context"]), children, strict=True))
    if kind in LISTS:
        return children
    raise ValueError(f"structure of class {kind}")


def _tensor(name: str, value: dict[str, Any]) -> ExportedTensor:
    dims: list[int | str] = []
    for size in value["sizes"]:
        if "as_int" in size:
            dims.append(size["as_int"])
        else:
            expression = size["as_expr"]["expr_str"]
            symbol = re.match(r"Symbol\('(\w+)'[^()]*\)$", expression)
            dims.append(symbol[1] if symbol else expression)
    return ExportedTensor(name, _DTYPES.get(value["dtype"]), dims)
