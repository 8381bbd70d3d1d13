"""Selection records on disk: a relocatable folder, written whole or not at all.

::

    <folder>/
      record.json        the document, with a checksum over all of it
      models/<n>/...     the models that serve, every file that belongs to them
      calls.npz          and other attachments

Nothing in it is pickled or run. Paths in it are relative and may not lead outside: a
record is untrusted input like a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge import consistency, document, placement, staging
from bridge.errors import (
    InvalidRecord,
    ModelNotFound,
    RecordNotWritten,
    StaleRecord,
    UnsupportedRecord,
    UntrustedModel,
)
from bridge.manifest import reason
from bridge.model import ModelRef
from bridge.record import SCHEMA, SelectionRecord
from bridge.signature import Signature

__all__ = [
    "NAME",
    "attachment",
    "check_target",
    "checksum",
    "is_record",
    "model",
    "model_files",
    "read",
    "to_document",
    "verify",
    "write",
]

NAME = "record.json"
"""File name of the document in a record's folder."""

_MOST_BYTES = 256 * 2**20
_HEAD_BYTES = 4096
_FAMILY = SCHEMA.rpartition("/")[0].encode()
_MOST_ATTACHMENT_BYTES = 2**30
# What a record's folder may hold besides its models and attachments and still be replaced.
_DERIVED = frozenset({NAME, "models", "report.html"})
_AGAIN = "Take the record from its origin again, or run the selection again."


def to_document(record: SelectionRecord) -> dict[str, Any]:
    """What ``record.json`` holds: ``record.to_dict()`` and its ``checksum``.

    Raises:
        InvalidRecord: A field does not fit its type; the message names it.
    """
    plain = record.to_dict()
    return {**plain, "checksum": _checksum(plain)}


def checksum(record: SelectionRecord) -> str:
    """SHA-256 over the record's canonical JSON, by which it is known."""
    return _checksum(record.to_dict())


def is_record(path: Path) -> bool:
    """Whether a path that a user gave means a record.

    A folder with ``record.json``, a file of that name, or a JSON file of another name
    that speaks of the schema near its beginning: other files may end in ``.json`` too.
    """
    try:
        if path.is_dir():
            return (path / NAME).is_file()
        if path.suffix != ".json" or path.name == NAME:
            return path.name == NAME
        with path.open("rb") as stream:
            return _FAMILY in stream.read(_HEAD_BYTES)
    except OSError:  # a name too long, a folder that may not be looked into: for others to tell
        return False


def model_files(model: ModelRef, index: int) -> tuple[str, dict[str, Path | bytes]]:
    """Where a model goes in a record's folder: ``ModelRecord.path``, and ``files`` of ``write``.

    Args:
        model: A model on disk or given as bytes.
        index: Its index in ``SelectionRecord.models``.

    Raises:
        UnsupportedModel: It is a live object.
        ModelNotFound, UntrustedModel: As ``Format.files``.
    """
    home = f"models/{index}"
    if model.data is not None:
        path = f"{home}/model{next(iter(model.format.suffixes), '')}"
        return path, {path: model.data}
    source = model.file
    folder = model.folder
    path = f"{home}/{source.name}"
    inside = path if folder == source else home
    names = ((os.path.relpath(file, folder), file) for file in model.format.files(model))
    return path, {f"{inside}/{Path(name).as_posix()}": file for name, file in names}


def write(
    record: SelectionRecord,
    folder: Path,
    *,
    files: Mapping[str, Path | bytes],
    attachments: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a record's folder: complete in its place, or not at all.

    An older record there is replaced as a whole. Everything is on the disk before the
    folder gets its name; of several processes that write at once, one wins.

    Args:
        record: What to write; its ``attachments`` and ``folder`` are filled in.
        folder: Where; its parent folders are made.
        files: Content of ``models/...`` by path inside the folder, from ``model_files``.
        attachments: Content of other files by path inside the folder.

    Returns:
        The folder, absolute.

    Raises:
        InvalidRecord: The record is not consistent, or lacks files of its models.
        RecordNotWritten: The folder holds something else, or the disk does not take it;
            what was there before is still there, and nothing else is left.
    """
    contents = dict(attachments or {})
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
    record = dataclasses.replace(record, attachments=digests)
    consistency.check(record)
    _check_files(record, files)
    text = _text(to_document(record))
    check_target(folder)
    target = Path(os.path.abspath(folder))  # noqa: PTH100 - links in the path are to be kept
    staged = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            placement.fill(staged, {**files, **contents, NAME: text})
            _check_digests(record, staged)
            placement.install(staged, target, check_target)
        finally:
            staging.delete(staged)
    except OSError as error:
        if isinstance(error, RecordNotWritten):
            raise
        raise RecordNotWritten(
            f"the record could not be written to '{folder}': {reason(error)}.",
            fix="Name a folder on a disk with free space that you may write to.",
            path=str(folder),
        ) from error
    return target


def check_target(folder: Path) -> None:
    """Refuses a folder that ``write`` would not replace; to be asked before hours of work.

    Raises:
        RecordNotWritten: It is a file or a link, holds something besides a record, cannot
            change its name, or nothing can be created there.
    """
    try:
        target = Path(os.path.abspath(folder))  # noqa: PTH100 - as in write
    except FileNotFoundError:
        raise RecordNotWritten(
            f"the record cannot be written to '{folder}': the current folder was removed.",
            fix="Pass an absolute path.",
            path=str(folder),
        ) from None
    problem = placement.obstacle(target, _foreign)
    if problem is not None:
        raise RecordNotWritten(
            f"the record cannot be written to '{folder}': {problem}.",
            fix="Name a folder that does not exist yet, that is empty, or that holds "
            "a record and nothing else.",
            path=str(folder),
        )


def read(path: str | os.PathLike[str]) -> SelectionRecord:
    """Reads a record.

    Args:
        path: Its folder, or the ``record.json`` in it.

    Returns:
        The record, whose ``folder`` is absolute.

    Raises:
        ModelNotFound: There is nothing to read.
        InvalidRecord: It is truncated, was changed, or is not consistent.
        UnsupportedRecord: It is of a later version, or something else.
    """
    try:
        given = Path(os.path.abspath(path))  # noqa: PTH100 - links in the path are to be kept
    except FileNotFoundError:
        raise ModelNotFound(
            f"there is no record at '{path}': the current folder was removed.",
            fix="Pass an absolute path.",
            model=str(path),
        ) from None
    file = given / NAME if given.is_dir() else given
    data = _bytes(file.parent, file.name, _MOST_BYTES, "the record")
    try:
        found = document.parse(data)
    except ValueError as error:  # not JSON, not UTF-8, numbers or nesting beyond all bounds
        raise InvalidRecord(
            f"'{path}' is no selection record: {str(error).rstrip('.')}.",
            fix=_AGAIN,
            path=str(path),
        ) from error
    _check_schema(found, path)
    stated = found.pop("checksum", None)
    if stated != _checksum(found):
        raise InvalidRecord(
            f"the record '{path}' was changed or is damaged: its checksum does not fit.",
            fix=_AGAIN,
            path=str(path),
        )
    try:
        record = SelectionRecord.from_dict(found)
        consistency.check(record)
    except InvalidRecord as error:
        error.detail.setdefault("path", str(path))
        raise
    return dataclasses.replace(record, folder=file.parent)


def attachment(record: SelectionRecord, name: str) -> bytes | None:
    """Content of an attachment, such as ``calls.npz``; ``None`` if the record has none.

    Raises:
        InvalidRecord: It was changed.
        ModelNotFound: It is missing.
    """
    if name not in record.attachments or record.folder is None:
        return None
    data = _bytes(record.folder, name, _MOST_ATTACHMENT_BYTES, "the record's attachment")
    if hashlib.sha256(data).hexdigest() != record.attachments[name]:
        raise InvalidRecord(
            f"the attachment '{name}' of the record in '{record.folder}' was changed.",
            fix=_AGAIN,
            path=str(record.folder),
        )
    return data


def model(record: SelectionRecord, index: int, *, trust: bool = False) -> ModelRef:
    """A model of the record, opened and compared with its digest.

    Args:
        record: A record with a folder.
        index: Index into ``models``.
        trust: The caller trusts the model; needed where the record's writer did.

    Raises:
        ModelNotFound: It, or one of its files, is missing, or was not copied.
        UntrustedModel: One of its files lies outside the record's folder, or ``trust``
            is needed.
        StaleRecord: It is not the model that was measured.
    """
    from bridge.loading import open_model

    about = record.models[index]
    if record.folder is None or about.path is None:
        missing = "is in memory only" if record.folder is None else f"does not hold {about.name}"
        raise ModelNotFound(
            f"the record {missing}, so this model cannot be loaded from it.",
            fix="Write the record to a folder and load that."
            if record.folder is None
            else "Choose an arm whose model is in the record, or load the model itself.",
            model=about.name,
        )
    if about.trust and not trust:
        raise UntrustedModel(
            f"model {about.name} of the record was loaded with trust=True when it was measured.",
            fix="Pass trust=True if you trust whoever made the record: the model may run code.",
            model=about.name,
        )
    _contained(record.folder / about.path, record.folder)
    found = open_model(
        record.folder / about.path,
        signature=about.signature_key
        if about.declared is None
        else Signature.from_dict(about.declared),
        trust=about.trust,
    )
    for file in found.format.files(found):
        _contained(file, record.folder)
    if found.format.name != about.format or found.digest != about.digest:
        raise StaleRecord(
            f"model '{found.path}' is not the one that was measured: its content was changed.",
            fix="Select again for the new model, or restore the record.",
            model=about.name,
            wanted=about.digest,
            got=found.digest,
        )
    return found


def verify(record: SelectionRecord) -> None:
    """Reads every file of the record and compares it with its digest.

    Raises:
        InvalidRecord, StaleRecord, ModelNotFound, UntrustedModel: As ``attachment`` and
            ``model``.
    """
    for name in record.attachments:
        attachment(record, name)
    for index, about in enumerate(record.models):
        if about.path is not None:
            model(record, index, trust=True)


def _checksum(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(document.canonical(plain)).hexdigest()


def _text(found: Mapping[str, Any]) -> bytes:
    """JSON for people: indented, but rows of numbers on one line.

    A JSON text has no line breaks inside of strings, so the pattern finds only lists.
    """
    text = json.dumps(found, indent=1, allow_nan=False)
    number = r"(?:-?[\d.]+(?:e[+-]?\d+)?|null)"
    rows = re.compile(rf"\[\s*\n\s*({number}(?:,\s*\n\s*{number})*)\s*\n\s*\]")
    flat = rows.sub(lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)
    return flat.encode("ascii") + b"\n"


def _check_files(record: SelectionRecord, files: Mapping[str, Path | bytes]) -> None:
    for path in files:
        consistency.check_path(path, f"files[{path[:200]!r}]")
    for index, about in enumerate(record.models):
        inside = f"{about.path}/"
        if about.path is not None and not any(f"{path}/".startswith(inside) for path in files):
            raise InvalidRecord(
                f"models[{index}].path: no file is given for {about.path!r}.",
                fix="Pass the files of every model that has a path, from model_files.",
            )


def _check_digests(record: SelectionRecord, folder: Path) -> None:
    """The model that was measured has to be the one that was copied just now."""
    try:
        placed = dataclasses.replace(record, folder=folder)
        for index, about in enumerate(record.models):
            if about.path is not None:
                model(placed, index, trust=True)
    except StaleRecord as error:
        raise RecordNotWritten(
            f"model {error.model} was changed since it was measured.",
            fix="Run the selection again, and leave the model alone meanwhile.",
            model=error.model,
        ) from error


def _check_schema(found: object, path: str | os.PathLike[str]) -> None:
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema == SCHEMA:
        return
    family, _, version = SCHEMA.rpartition("/")
    match = re.fullmatch(re.escape(family) + r"/(\d{1,9})", schema if type(schema) is str else "")
    if match is not None and int(match[1]) > int(version):
        raise UnsupportedRecord(
            f"the record '{path}' has version {match[1]} of the format; "
            f"this version of inference-bridge reads {version}.",
            fix="Upgrade inference-bridge.",
            path=str(path),
            schema=schema,
        )
    raise UnsupportedRecord(
        f"'{path}' is no selection record: its schema is {str(schema)[:80]!r}, not {SCHEMA!r}.",
        fix="Pass the folder that 'bridge select -o' wrote, or the record.json in it.",
        path=str(path),
    )


def _foreign(target: Path, names: set[str]) -> str | None:
    """Why a folder is not simply an older record; ``None`` if it is."""
    if NAME not in names:
        return f"it holds '{min(names)}' and no {NAME}"
    with (target / NAME).open("rb") as stream:
        if SCHEMA.rpartition("/")[0].encode() not in stream.read(4096):
            return f"its {NAME} is no selection record"
    extra = names - _DERIVED - _attached(target)
    return f"it holds '{min(extra)}', which is no part of the record there" if extra else None


def _attached(folder: Path) -> set[str]:
    """Names in a record's folder that its attachments take, as far as it can be read."""
    try:
        found = read(folder)
    except (InvalidRecord, UnsupportedRecord, ModelNotFound):
        return {"calls.npz"}
    return {path.partition("/")[0] for path in found.attachments}


def _bytes(folder: Path, name: str, most_bytes: int, what: str) -> bytes:
    """Content of a regular file that lies in a folder, symbolic links resolved."""
    file = folder / name
    try:
        real = Path(os.path.realpath(file))
        if not real.is_relative_to(os.path.realpath(folder)):
            raise InvalidRecord(
                f"{what} '{file}' is a symbolic link that leaves its folder.",
                fix="Pass the folder that it leads to.",
                path=str(file),
            )
        # Not through a link made meanwhile; a FIFO in place of a file must not block.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidRecord(
                    f"{what} '{file}' is not a regular file.", fix=_AGAIN, path=str(file)
                )
            data = stream.read(most_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(
            f"{what} '{file}' does not exist.",
            fix="Pass the folder that 'bridge select -o' wrote.",
            model=str(file),
        ) from error
    except InvalidRecord:
        raise
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"{what} '{str(file)[:200]}' cannot be read: {reason(error)}.",
            fix="Check its path and its permissions.",
            model=str(file),
        ) from error
    if len(data) > most_bytes:
        raise InvalidRecord(
            f"{what} '{file}' has more than {most_bytes} bytes.", fix=_AGAIN, path=str(file)
        )
    return data


def _contained(file: Path, folder: Path) -> None:
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise UntrustedModel(
            f"'{file}' is a symbolic link, or lies behind one, that leaves the record's folder.",
            fix="Put the file itself there; what leaves the folder is refused even with "
            "trust=True.",
            model=file.name,
        )
