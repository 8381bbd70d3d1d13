"""A model as the user named it, and the formats it may be in.

What a file is, its content decides: magic bytes, the members of a zip archive, the
shape of a folder. The suffix only helps to word errors.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import InvalidModel, ModelNotFound, OptionError, UnsupportedModel, nearest
from bridge.signature import Signature

if TYPE_CHECKING:
    from bridge.predictor import Predictor

__all__ = ["FileProbe", "Format", "ModelFacts", "ModelRef"]

_HEAD_BYTES = 4096
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileProbe:
    """What a format may look at to recognise a model, read once for all formats.

    Attributes:
        path: The file or folder; ``None`` for a model given as bytes.
        head: The first 4096 bytes of a file; empty for a folder.
        data: The whole model, if given as bytes.
    """

    path: Path | None
    head: bytes
    data: bytes | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder."""
        return self.path is not None and not self.head and self.path.is_dir()

    @property
    def suffix(self) -> str:
        """The lower-case suffix, such as ``.onnx``; empty for bytes."""
        return self.path.suffix.lower() if self.path is not None else ""

    @property
    def size_bytes(self) -> int:
        """Size of the file or of the given bytes."""
        if self.data is not None:
            return len(self.data)
        return self.path.stat().st_size if self.path is not None else 0

    @functools.cached_property
    def members(self) -> frozenset[str]:
        """Names in a zip archive without its single top folder; else of a folder's entries."""
        if self.path is None:
            return frozenset()
        if self.is_folder:
            return frozenset(entry.name for entry in self.path.iterdir())
        if not self.head.startswith(b"PK\x03\x04"):
            return frozenset()
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError):
            return frozenset()
        tops = {name.partition("/")[0] for name in names}
        if len(tops) == 1 and all("/" in name for name in names):
            return frozenset(name.partition("/")[2] for name in names)
        return frozenset(names)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model's own bytes say, read without any runtime.

    Attributes:
        signatures: Signatures by key; ONNX models have one, under the key ``""``.
        operators: Count of each operator, those of other domains as ``domain.Op``.
        versions: Producer, opsets, format version and the like, for people to read.
        notes: Sentences about what cannot be told without the runtime.
        vocabularies: Rows of the smallest table that an input indexes, by input name, for
            those inputs of which the graph tells it.
    """

    signatures: Mapping[str, Signature] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    vocabularies: Mapping[str, int] = field(default_factory=dict)

    @property
    def tells_inputs(self) -> bool:
        """Whether there is a signature, with dtype and rank of every input."""
        return bool(self.signatures) and not any(
            spec.dtype is None or spec.shape is None
            for signature in self.signatures.values()
            for spec in signature.inputs
        )


class Format:
    """One kind of model on disk (or in memory); subclass and register it with a hook.

    Attributes:
        name: Short name, such as ``onnx``.
        title: What people call it, such as ``ONNX``.
        native_backend: Name of the backend that loads it when none is named.
        suffixes: Usual suffixes, lower case, for error texts only.
        devices: Kinds of device that can run it; the first is the default.
        has_signature_keys: A model may hold several signatures, told apart by keys.
        refines: Name of a format that its models are of as well, as far as that format's
            ``sniff`` tells: of the two, this one is meant.
        holds: Name of the format of the model inside, for a composite; see ``inner``.
    """

    name: str
    title: str
    native_backend: str
    suffixes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    has_signature_keys: bool = False
    refines: str | None = None
    holds: str | None = None

    def sniff(self, file: FileProbe) -> bool:
        """Whether the content is of this format; must be cheap and never raise."""
        return False

    def sniff_live(self, live: object) -> bool:
        """Whether a live Python object is a model of this format; imports nothing."""
        return False

    def files(self, model: ModelRef) -> tuple[Path, ...]:
        """Every file that belongs to the model, the main one first.

        Raises:
            ModelNotFound: A file that the model names is missing.
            UntrustedModel: The model names a file outside its folder.
        """
        return (model.file,)

    def describe(self, model: ModelRef) -> ModelFacts:
        """What the bytes say, read without a runtime.

        Raises:
            InvalidModel: The bytes are truncated or corrupt.
        """
        return ModelFacts()

    def check(self, model: ModelRef) -> None:
        """Called before any runtime sees the model.

        Raises:
            UntrustedModel: Loading would run code or read outside the model's folder,
                and ``model.trust`` is false (leaving the folder is refused even then).
            ModelNotFound: A file that the model names is missing.
            InvalidModel: The bytes are truncated or corrupt.
        """

    def inner(self, model: ModelRef) -> ModelRef | None:
        """The model that a backend gets in place of this one, for a composite format.

        A composite is a model of another format with something around it, such as tables
        that are looked up before each call. Backends need not know it: they are asked about
        the model inside and load that, and what users get is ``front`` around it.

        Raises:
            ModelError: There is no sound model inside.
        """
        return None

    def front(self, model: ModelRef, predictor: Predictor) -> Predictor:
        """What users get for a composite: a predictor around that of the model inside.

        Args:
            model: The composite, already checked.
            predictor: That of ``inner``, ready; the result closes it when it is closed.

        Raises:
            ModelError: What is around the model inside cannot be read.
        """
        return predictor


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """One model: where it is, what it is, and what the caller said about it.

    Attributes:
        format: What it is.
        path: Absolute path of the file or folder, symbolic links in it kept.
        data: The bytes, for a model given as bytes.
        live: The object, for a live model.
        trust: The caller trusts it: code in it may run.
        signature_key: Which of a SavedModel's signatures to use; ``None`` for the default.
        declared: Signature that the caller states, for formats that hold none.
    """

    format: Format
    path: Path | None = None
    data: bytes | None = None
    live: object | None = None
    trust: bool = False
    signature_key: str | None = None
    declared: Signature | None = None

    @classmethod
    def open(
        cls,
        model: object,
        formats: Iterable[Format],
        *,
        trust: bool = False,
        signature: str | Signature | None = None,
    ) -> ModelRef:
        """Finds out what ``model`` is.

        Args:
            model: A path, the bytes of a model, or a live model object.
            formats: The formats to try.
            trust: See ``ModelRef``.
            signature: A signature key, or a whole signature for formats without one.

        Raises:
            ModelNotFound: There is nothing at that path.
            InvalidModel: The file is empty, or broken, or not a regular file.
            UnsupportedModel: No format knows the content.
        """
        known = tuple(formats)
        if signature is not None and not isinstance(signature, (str, Signature)):
            raise OptionError(
                f"signature is of class {type(signature).__name__}; wanted a key or a Signature.",
                fix="Pass the key of one of the model's signatures, or a bridge.Signature.",
            )
        said: dict[str, Any] = {
            "trust": trust,
            "signature_key": signature if isinstance(signature, str) else None,
            "declared": signature if isinstance(signature, Signature) else None,
        }
        if isinstance(model, ModelRef):
            return dataclasses.replace(model, **{k: v for k, v in said.items() if v})
        if isinstance(model, (bytes, bytearray, memoryview)):
            data = bytes(model)
            found = _recognise(FileProbe(None, data[:_HEAD_BYTES], data), known)
            return cls(format=found, data=data, **said)
        if isinstance(model, (str, os.PathLike)):
            path = _absolute(Path(os.fsdecode(model)))
            found = _recognise(_probe(path), known)
            return cls(format=found, path=path, **said)
        for candidate in known:
            if candidate.sniff_live(model):
                return cls(format=candidate, live=model, **said)
        kind = type(model)
        raise UnsupportedModel(
            f"a live object of class {kind.__module__}.{kind.__qualname__} is no model here.",
            fix="Pass a path, the bytes of an ONNX model, or a live torch or Keras model.",
        )

    @property
    def name(self) -> str:
        """The model as error texts and tables name it."""
        if self.path is not None:
            return self.path.name
        if self.data is not None:
            return f"<{len(self.data)} bytes of {self.format.title}>"
        return f"<live {type(self.live).__name__}>"

    @property
    def file(self) -> Path:
        """The path, for formats that only exist on disk.

        Raises:
            UnsupportedModel: The model was given as bytes or as a live object.
        """
        if self.path is None:
            raise UnsupportedModel(
                f"model {self.name} is not on disk.",
                fix="Save it and pass the path.",
                model=self.name,
            )
        return self.path

    @property
    def folder(self) -> Path | None:
        """The folder that the model may read files from; ``None`` if it is not on disk."""
        if self.path is None:
            return None
        return self.path if self.path.is_dir() else self.path.parent

    @functools.cached_property
    def facts(self) -> ModelFacts:
        """What the model's bytes say, read without a runtime; see ``Format.describe``."""
        return self.format.describe(self)

    @functools.cached_property
    def inner(self) -> ModelRef | None:
        """The model inside a composite; see ``Format.inner``."""
        return self.format.inner(self)

    @property
    def served(self) -> ModelRef:
        """The model that backends are asked about and load: the innermost one.

        Raises:
            ModelError: There is no sound model inside a composite.
        """
        return self if self.inner is None else self.inner.served

    @functools.cached_property
    def size_bytes(self) -> int:
        """Size of all files that belong to the model; 0 for a live object."""
        if self.data is not None:
            return len(self.data)
        if self.path is None:
            return 0
        return sum(path.stat().st_size for path in self.format.files(self))

    @functools.cached_property
    def digest(self) -> str | None:
        """SHA-256 over all files that belong to the model; ``None`` for a live object.

        For one file it is the file's own SHA-256; for several, that of the sorted list of
        relative names and digests, so that moving the folder changes nothing.
        """
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        if self.path is None:
            return None
        files = self.format.files(self)
        if len(files) == 1:
            return _file_digest(files[0])
        folder = self.folder
        listing = sorted((os.path.relpath(path, folder), _file_digest(path)) for path in files)
        return hashlib.sha256(repr(listing).encode()).hexdigest()


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:
        raise ModelNotFound(
            f"there is no model at '{path}': the current folder was removed.",
            fix="Pass an absolute path.",
            model=str(path),
        ) from None


def _probe(path: Path) -> FileProbe:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(
            f"there is no model at '{path}'.", fix=_similar_files(path), model=str(path)
        ) from None
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"the path '{str(path)[:200]}' cannot be read: {error}.",
            fix="Check its length, its characters and its permissions.",
            model=str(path),
        ) from error
    if stat.S_ISDIR(status.st_mode):
        return FileProbe(path, b"")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModel(
            f"'{path}' is not a regular file.",
            fix="Pass a model file or folder, not a pipe, socket or device.",
            model=str(path),
        )
    if status.st_size == 0:
        raise InvalidModel(
            f"the model file '{path}' is empty.", fix="Export or copy it again.", model=str(path)
        )
    try:
        with path.open("rb") as stream:
            return FileProbe(path, stream.read(_HEAD_BYTES))
    except OSError as error:
        raise ModelNotFound(
            f"the model file '{path}' cannot be read: {error.strerror}.",
            fix="Check its permissions.",
            model=str(path),
        ) from error


def _recognise(file: FileProbe, formats: tuple[Format, ...]) -> Format:
    found = [item for item in formats if item.sniff(file)]
    if len(found) > 1:
        refined = {item.refines for item in found}
        found = [item for item in found if item.name not in refined]
    if len(found) == 1:
        return found[0]
    shown = str(file.path) if file.path is not None else f"<{file.size_bytes} bytes>"
    if len(found) > 1:
        names = " and ".join(item.name for item in found)
        raise UnsupportedModel(
            f"'{shown}' is recognised as more than one format: {names}.",
            fix="One of the plugins that register these formats sniffs too loosely; "
            "leave it out with BRIDGE_PLUGINS.",
            model=shown,
        )
    if file.path is not None and file.path.name in ("saved_model.pb", "saved_model.pbtxt"):
        raise UnsupportedModel(
            f"'{shown}' is the graph of a SavedModel, which is a whole folder.",
            fix=f"Pass '{file.path.parent}'.",
            model=shown,
        )
    if file.path is not None and file.path.with_suffix(".xml").is_file():
        raise UnsupportedModel(
            f"'{shown}' looks like the weights of an OpenVINO IR.",
            fix=f"Pass '{file.path.with_suffix('.xml')}'.",
            model=shown,
        )
    titles = ", ".join(sorted(item.title for item in formats))
    if file.path is None and not file.data:
        raise InvalidModel("the model given as bytes is empty.", fix="Read the file again.")
    if file.is_folder:
        raise UnsupportedModel(
            f"the folder '{shown}' holds no model that is known here.",
            fix="Pass a SavedModel folder (with saved_model.pb in it) or the path of one file.",
            model=shown,
        )
    by_suffix = [item for item in formats if file.suffix and file.suffix in item.suffixes]
    if by_suffix:
        raise InvalidModel(
            f"'{shown}' is called {file.suffix}, but its {file.size_bytes} bytes are no "
            f"{' or '.join(item.title for item in by_suffix)} model.",
            fix="It may be truncated, or another kind of file; export or copy it again.",
            model=shown,
        )
    if file.path is None:
        raise UnsupportedModel(
            f"the {file.size_bytes} bytes given as a model are of no format taken as bytes.",
            fix="Write them to a file and pass its path; ONNX models can be given as bytes.",
            model=shown,
        )
    raise UnsupportedModel(
        f"the content of '{shown}' is of no format known here; known are {titles}.",
        fix="Convert the model to one of these formats.",
        model=shown,
    )


def _similar_files(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"There is no folder '{path.parent}' either."
    offered = nearest(path.name, names)
    return offered if offered.startswith("Did you mean") else "Check the path."


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
