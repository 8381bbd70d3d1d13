"""Files that a model names: they have to lie in the model's own folder.

Whether a path stays inside is decided twice: by its text, so that it means the same to
every runtime on every system, and by its real path, symbolic links resolved. This is
refused even with ``trust``: a model that may run code still has no business elsewhere.

What this does not do: a file swapped for a link between this check and the moment when
the runtime opens it (the runtimes take paths, not open files), and hard links, which are
names like any other (installers such as uv and conda fill environments with them).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import InvalidModel, ModelNotFound, UnsupportedModel, UntrustedModel
from bridge.model import ModelRef

__all__ = ["NamedFile", "named_file", "outside"]

_MOVE = (
    "Move the file into the folder of the model and name it there; "
    "paths that leave it are refused even with trust=True."
)


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file of the model's folder.

    Attributes:
        path: The model's folder and the name in the model, links not resolved.
        size_bytes: Its size.
    """

    path: Path
    size_bytes: int


def outside(location: str) -> str | None:
    """Why the text of a location is refused, ``None`` if it is not.

    Stricter than it need be on Linux (backslashes, drive letters, ``..`` that comes back
    in): runtimes and systems read such paths in different ways, and no exporter writes
    them.
    """
    if not location:
        return "is empty"
    if "\0" in location:
        return "holds a NUL byte"
    if "_ORT_MEM_ADDR_" in location:
        return "stands for an address in memory, which only a running program may use"
    if location.startswith("/"):
        return "is absolute"
    if "\\" in location:
        return "holds a backslash"
    if re.match(r"[A-Za-z]:", location):
        return "starts with a drive letter"
    if ".." in location.split("/"):
        return "holds '..'"
    return None


def named_file(model: ModelRef, location: str, what: str) -> NamedFile:
    """The file at a location that the model names.

    A model that is itself a symbolic link may also name files beside its target: the
    caches of model hubs keep every file of a folder as a link into one store.

    Args:
        model: The model.
        location: Path relative to the model's folder.
        what: What it is for, to begin the sentence of an error, such as
            ``tensor 'w'``.

    Raises:
        UntrustedModel: The location leaves the model's folder.
        UnsupportedModel: The model was given as bytes, so there is no folder.
        ModelNotFound: There is no such file.
        InvalidModel: It is no regular file, or no name for one.
    """
    shown = location if len(location) <= 200 else location[:200] + "..."
    reason = outside(location)
    if reason is not None:
        raise UntrustedModel(
            f"{what} of model {model.name} names the file {shown!r}, which {reason}.",
            fix=_MOVE,
            model=model.name,
            location=location,
        )
    folder = model.folder
    if folder is None:
        raise UnsupportedModel(
            f"{what} of model {model.name} is in a file of its own, {shown!r}, "
            "and a model given as bytes has no folder.",
            fix="Pass the path of the model instead of its bytes.",
            model=model.name,
            location=location,
        )
    path = folder / location
    try:
        real = Path(os.path.realpath(path))
        homes = {Path(os.path.realpath(folder)), Path(os.path.realpath(model.file)).parent}
        if not any(real.is_relative_to(home) for home in homes):
            raise UntrustedModel(
                f"{what} of model {model.name} names the file {shown!r}, "
                "which is a symbolic link, or lies behind one, that leaves the model's folder.",
                fix=_MOVE,
                model=model.name,
                location=location,
            )
        status = real.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(
            f"{what} of model {model.name} is in the file {shown!r}, which is missing.",
            fix=f"Copy it into '{folder}': it belongs to the model.",
            model=model.name,
            location=location,
        ) from error
    except UntrustedModel:
        raise
    except (OSError, ValueError) as error:
        raise InvalidModel(
            f"{what} of model {model.name} names the file {shown!r}, "
            f"which cannot be read: {error}.",
            fix="Check its name and its permissions, or export the model again.",
            model=model.name,
            location=location,
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModel(
            f"{what} of model {model.name} names {shown!r}, which is not a regular file.",
            fix="Export the model again; its data has to be in a file.",
            model=model.name,
            location=location,
        )
    return NamedFile(path, status.st_size)
