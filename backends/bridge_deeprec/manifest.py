"""``manifest.json`` of a model with tables: what is in the folder, and how a call goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import InvalidModel, ModelNotFound, UntrustedModel
from bridge.signature import Signature
from bridge_deeprec.graph import Rows
from bridge_deeprec.steps import Step

__all__ = ["NAME", "TABLES", "Manifest", "holds"]

NAME = "manifest.json"
TABLES = "tables"
"""The folder of the tables' arrays."""

KIND = "bridge-model-with-tables"
_SCHEMA = 1
_MOST_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the folder of a model with tables says about itself.

    Attributes:
        holds: Name of the format of the model inside.
        model: Its file or folder, in this folder.
        signature: What users see.
        tensors: The graph's tensor of each input, by the input's name: what steps call it.
        steps: What is computed from the inputs, in order.
        rows: The lookups, each an input of the model inside.
        passed: What of the steps is an input of the model inside: tensors by its name.
        versions: ``full`` and ``delta``: numbers of the checkpoints that it was made from.
        files: Size and SHA-256 of every other file, by its path in the folder; the tables,
            which have digests of their own, have none here.
        source: What it was made from, for people.
    """

    holds: str
    model: str
    signature: Signature
    tensors: Mapping[str, str]
    steps: tuple[Step, ...]
    rows: tuple[Rows, ...]
    passed: Mapping[str, str]
    versions: Mapping[str, int | None]
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes it, with sizes and digests of all that is in the folder."""
        files = {
            path.relative_to(folder).as_posix(): (
                path.stat().st_size,
                "" if path.relative_to(folder).parts[0] == TABLES else _digest(path),
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / NAME
        }
        about = {
            "kind": KIND,
            "schema": _SCHEMA,
            "holds": self.holds,
            "model": self.model,
            "signature": self.signature.to_dict(),
            "tensors": dict(self.tensors),
            "steps": [one.to_dict() for one in self.steps],
            "rows": [asdict(one) for one in self.rows],
            "passed": dict(self.passed),
            "versions": dict(self.versions),
            "source": dict(self.source),
            "files": files,
        }
        (folder / NAME).write_text(json.dumps(about, indent=1), "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads it, as untrusted input.

        Raises:
            ModelNotFound: There is none.
            InvalidModel: It is damaged, or of another version.
        """
        about = _read(folder / NAME)
        if about.get("kind") != KIND or about.get("schema") != _SCHEMA:
            raise InvalidModel(
                f"'{folder / NAME}' is of schema {about.get('schema')!r}; wanted {_SCHEMA}.",
                fix="Convert the model again, with this version.",
                model=folder.name,
            )
        try:
            found = cls(
                holds=str(about["holds"]),
                model=str(about["model"]),
                signature=Signature.from_dict(about["signature"]),
                tensors={str(name): str(one) for name, one in about["tensors"].items()},
                steps=tuple(Step.from_dict(one) for one in about["steps"]),
                rows=tuple(_rows(one) for one in about["rows"]),
                passed={str(name): str(one) for name, one in about["passed"].items()},
                versions=dict(about["versions"]),
                files={
                    str(name): (int(one[0]), str(one[1])) for name, one in about["files"].items()
                },
                source=dict(about["source"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise _damaged(folder, error) from error
        if Path(found.model).name != found.model or found.model in ("", ".", ".."):
            raise _damaged(folder, ValueError(f"the model inside is called {found.model!r}"))
        return found

    def require_inside(self, folder: Path) -> None:
        """Looks where the model inside and the tables are, before anything of them is read.

        Raises:
            UntrustedModel: A symbolic link leads out of the folder.
        """
        home = folder.resolve()
        for name in (self.model, TABLES):
            target = (folder / name).resolve()
            if not target.is_relative_to(home):
                raise UntrustedModel(
                    f"'{name}' in model {folder.name} is a link that leads out of the folder, to "
                    f"'{target}'.",
                    fix="Copy the model with its links followed (cp -rL).",
                    model=folder.name,
                    path=str(target),
                )

    def require_listed(self, folder: Path, paths: Iterable[Path]) -> None:
        """Refuses files that it does not list, which no digest of the model would cover.

        Raises:
            InvalidModel: There is one.
        """
        listed = {(folder / name).resolve() for name in self.files}
        for path in paths:
            if path.resolve() not in listed:
                raise _damaged(folder, ValueError(f"it does not list '{path.name}'"))

    def check(self, folder: Path, *, digests: bool = False) -> None:
        """Compares the files with what was written.

        Args:
            folder: Where they are.
            digests: Read all of the dense model; else only sizes are looked at.

        Raises:
            ModelNotFound: One is missing.
            InvalidModel: One has another size or content, or lies elsewhere.
        """
        home = folder.resolve()
        for name, (size_bytes, digest) in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ModelNotFound(
                    f"model {folder.name} has no file '{name}'.",
                    fix="Copy the whole folder again.",
                    model=folder.name,
                    path=str(path),
                )
            if not path.resolve().is_relative_to(home):
                raise _damaged(folder, ValueError(f"'{name}' leads out of the folder"))
            if path.stat().st_size != size_bytes or (
                digests and digest and _digest(path) != digest
            ):
                raise InvalidModel(
                    f"file '{name}' of model {folder.name} is not the one that was written.",
                    fix="Copy the whole folder again, or convert the model again.",
                    model=folder.name,
                    path=str(path),
                    size_bytes=path.stat().st_size,
                    wanted_bytes=size_bytes,
                )


def _rows(one: Mapping[str, Any]) -> Rows:
    return Rows(str(one["input"]), str(one["table"]), str(one["ids"]), int(one["width"]))


def holds(folder: Path) -> str | None:
    """The format inside, if the folder is a model with tables; never raises."""
    try:
        if not (folder / NAME).is_file():  # opening a pipe would wait for a writer
            return None
        with (folder / NAME).open("rb") as stream:
            if KIND.encode() not in stream.read(4096):
                return None
        about = _read(folder / NAME)
    except (OSError, InvalidModel, ModelNotFound):
        return None
    return str(about.get("holds")) if about.get("kind") == KIND else None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("it is too large")
        about = json.loads(data)
        if not isinstance(about, dict):
            raise TypeError("it is no JSON object")
    except FileNotFoundError as error:
        raise ModelNotFound(f"there is no file '{path}'.", fix="Copy the folder again.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path.parent, error) from error
    return about


def _damaged(folder: Path, error: Exception) -> InvalidModel:
    return InvalidModel(
        f"'{folder / NAME}' is damaged: {error!r}.",
        fix="Copy the whole folder again, or convert the model again.",
        model=folder.name,
    )


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
