"""Keras archives and live Keras models."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from bridge.errors import InvalidModel, UntrustedModel
from bridge.model import FileProbe, Format, ModelFacts, ModelRef

__all__ = ["Keras"]

_CONFIG_BYTES = 256 << 20
_MEMBER_BYTES = 1 << 30
_MEMBER_RATIO = 200  # deflate reaches 1032 on zeros; weights do not come near
_MAX_DEPTH = 400

_MODULES = re.compile(
    r"keras(\.src)?(\.(activations|constraints|dtype_policies|initializers|layers|losses|metrics"
    r"|models|ops|optimizers|quantizers|random|regularizers)(\.\w+)*)?"
)
_VALUES = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
)
_CODE = frozenset({"FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper"})
_FILES = frozenset({"idf_weights", "vocabulary"})


class Keras(Format):
    """A Keras 3 zip archive, or a live Keras model.

    Without trust an archive passes only if its configuration names nothing but classes
    and functions of Keras itself, none of which runs code from the archive or opens a
    file that the archive names. A live model runs as the object it is.
    """

    name = "keras"
    title = "Keras"
    native_backend = "tensorflow"
    suffixes = (".keras",)
    has_signature_keys = True  # one, under the key that an exported SavedModel would have

    def sniff(self, file: FileProbe) -> bool:
        return not file.is_folder and {"config.json", "metadata.json"} <= file.members

    def sniff_live(self, live: object) -> bool:
        return any(
            base.__module__.startswith("keras.") and base.__name__ == "Model"
            for base in type(live).__mro__
        )

    def describe(self, model: ModelRef) -> ModelFacts:
        note = "Signature and operators are known when Keras has built the model."
        if model.path is None:
            return ModelFacts(notes=(note,))
        metadata = _json(model, "metadata.json")
        config = _json(model, "config.json")
        versions = {"keras": str(metadata.get("keras_version", ""))}
        counts: dict[str, int] = {}
        for item in _objects(model, config):
            if ".layers" in str(item.get("module")) and isinstance(item["class_name"], str):
                counts[item["class_name"]] = counts.get(item["class_name"], 0) + 1
        return ModelFacts(
            operators=dict(sorted(counts.items())),
            versions={key: text for key, text in versions.items() if text},
            notes=(f"Operators are Keras layers. {note}",),
        )

    def check(self, model: ModelRef) -> None:
        if model.path is None:
            return
        _check_members(model)
        config = _json(model, "config.json")
        if model.trust:
            return
        config.pop("compile_config", None)  # never used: models are loaded to predict only
        for item in _objects(model, config):
            reason = _refusal(item)
            if reason:
                raise UntrustedModel(
                    f"the Keras file {model.name} {reason}.",
                    fix="Pass trust=True if you know where the model comes from.",
                    model=model.name,
                    object=str(item.get("class_name")),
                )


def _refusal(item: dict[str, Any]) -> str | None:
    """Why one object of the configuration needs trust; ``None`` if it does not."""
    kind, module, inner = item["class_name"], item.get("module"), item.get("config")
    shown = f"'{module}.{kind}'" if module else f"'{kind}'"
    if not isinstance(kind, str):
        return f"holds {shown}, which is no name of a class"
    if kind in _VALUES:
        return None
    if kind in _CODE or kind.startswith("__"):
        return f"holds {shown}, which runs code from the file"
    if isinstance(inner, dict):
        for name in _FILES.intersection(inner):
            if isinstance(inner[name], str):
                return f"holds {shown}, which reads the file '{inner[name]}'"
    if kind == "function":
        is_plain = isinstance(inner, str) and re.fullmatch(r"\w+", inner) is not None
        if not is_plain or (module != "builtins" and not _is_keras(module)):
            return f"names the function '{module}.{inner}', which is not Keras's own"
        return None
    registered = item.get("registered_name")
    if module is None and registered is None and re.fullmatch(r"\w+", kind):
        return None  # the short form, which finds Keras's own classes only
    if not _is_keras(module) or (isinstance(registered, str) and ">" in registered):
        return f"holds the custom class {shown}"
    return None


def _is_keras(module: object) -> bool:
    return isinstance(module, str) and _MODULES.fullmatch(module) is not None


def _objects(model: ModelRef, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object that the configuration describes, at any depth."""
    pending: list[tuple[Any, int]] = [(config, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise InvalidModel(
                f"the configuration of the Keras file {model.name} is nested more than "
                f"{_MAX_DEPTH} deep.",
                fix="Export the model again.",
            )
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            pending += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            pending += [(inner, depth + 1) for inner in value]


def _check_members(model: ModelRef) -> None:
    """Refuses members that would leave the folder they are unpacked to, or fill it."""
    try:
        with zipfile.ZipFile(model.file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise _broken(model, error) from error
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member.filename):
            raise UntrustedModel(
                f"the Keras file {model.name} holds '{member.filename}', which would be "
                "unpacked elsewhere.",
                fix="Save the model again with model.save.",
                path=member.filename,
            )
        if member.file_size > _MEMBER_BYTES and member.file_size > _MEMBER_RATIO * max(
            member.compress_size, 1
        ):
            raise UntrustedModel(
                f"'{member.filename}' in the Keras file {model.name} would grow from "
                f"{member.compress_size} to {member.file_size} bytes.",
                fix="Save the model again with model.save.",
                path=member.filename,
            )


def _json(model: ModelRef, name: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(model.file) as archive, archive.open(name) as stream:
            content = stream.read(_CONFIG_BYTES + 1)
        if len(content) > _CONFIG_BYTES:
            raise ValueError(f"{name} has more than {_CONFIG_BYTES} bytes")
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError(f"{name} is no JSON object")  # noqa: TRY004 - bad data
    except (
        zipfile.BadZipFile, OSError, NotImplementedError, KeyError, ValueError, EOFError,
        RecursionError, RuntimeError,
    ) as error:  # fmt: skip
        raise _broken(model, error) from error
    return found


def _broken(model: ModelRef, error: Exception) -> InvalidModel:
    return InvalidModel(
        f"the Keras file {model.name} is truncated or corrupt: {error}.",
        fix="Save or copy it again.",
        model=model.name,
    )
