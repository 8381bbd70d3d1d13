"""The zip archives that torch writes, read with suspicion and without torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from bridge.errors import InvalidModel

__all__ = ["Archive", "open_archive", "pickled_globals"]

_RATIO_LIMIT = 100
"""Largest compression of a member; torch stores without compression, other tools reach 2 to 10."""
_TEXT_LIMIT_BYTES = 256 << 20
"""Largest member that is read for a scan: the code of a model, not its weights."""


class Archive:
    """An open archive whose members have unique, plausible sizes; made by ``open_archive``.

    Attributes:
        name: The archive as errors name it.
        members: Names inside the archive's single top folder.
    """

    def __init__(self, name: str, file: zipfile.ZipFile, top: str) -> None:
        self.name = name
        self.members = tuple(info.filename.removeprefix(top) for info in file.infolist())
        self._file = file
        self._top = top

    def read(self, member: str) -> bytes:
        """Content of a member, by its name inside the top folder.

        Raises:
            InvalidModel: It is missing, damaged, or too large for something to be scanned.
        """
        try:
            info = self._file.getinfo(self._top + member)
        except KeyError:
            raise _broken(self.name, f"its member '{member}' is missing") from None
        if info.file_size > _TEXT_LIMIT_BYTES:
            raise _broken(
                self.name,
                f"its member '{member}' holds {info.file_size} bytes, more than the "
                f"{_TEXT_LIMIT_BYTES} that are read to check a model",
            )
        try:
            return self._file.read(info)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise _broken(self.name, f"its member '{member}' is damaged: {error}") from error

    def text(self, member: str) -> str:
        """Content of a UTF-8 member; raises like ``read``."""
        try:
            return self.read(member).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _broken(self.name, f"its member '{member}' is no UTF-8 text") from error


@contextmanager
def open_archive(source: Path | bytes, name: str) -> Iterator[Archive]:
    """Opens an archive of torch's kind: one top folder, and no tricks with sizes or names.

    Torch finds members without regard to case and this library with it, so two names
    that differ in case only could show the check one file and torch another; they are
    refused like plain duplicates.

    Args:
        source: The file, or its bytes.
        name: The archive as errors should name it.

    Raises:
        InvalidModel: It is truncated, damaged, or not as torch writes archives.
    """
    stream: IO[bytes] | Path = BytesIO(source) if isinstance(source, bytes) else source
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        file = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise _broken(name, f"it is no readable zip archive ({error})") from error
    with file:
        infos = file.infolist()
        tops = {info.filename.partition("/")[0] for info in infos}
        if len(tops) != 1 or not all("/" in info.filename for info in infos):
            raise _broken(name, "its members do not share one top folder")
        seen: set[str] = set()
        stored = 0
        for info in infos:
            folded = info.filename.casefold()
            if folded in seen:
                raise _broken(name, f"it has two members called '{info.filename}'")
            seen.add(folded)
            stored += info.compress_size
            if info.file_size > _RATIO_LIMIT * max(info.compress_size, 1):
                raise _broken(
                    name,
                    f"its member '{info.filename}' would unpack {info.compress_size} bytes to "
                    f"{info.file_size}, like a zip bomb",
                )
            if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                raise _broken(name, f"the sizes of its member '{info.filename}' disagree")
        if stored > size:
            raise _broken(name, f"its members overlap: {stored} bytes in a file of {size}")
        yield Archive(name, file, tops.pop() + "/")


def pickled_globals(data: bytes, name: str) -> tuple[str, ...]:
    """The classes and functions that a pickle names, as ``module.name``, in order.

    The pickle is read opcode by opcode; nothing of it is executed.

    Raises:
        InvalidModel: The bytes are no pickle, or name something in a way that cannot be
            followed (through its memo, or the copyreg extension registry).
    """
    import pickletools

    found: list[str] = []
    pushed: list[object] = [None, None]  # what the last two opcodes pushed, None unless a text
    memo: dict[object, object] = {}
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                memo[len(memo) if code.name == "MEMOIZE" else argument] = pushed[-1]
                continue
            if code.name in ("GLOBAL", "INST"):
                found.append(str(argument).replace(" ", ".", 1))
            elif code.name == "STACK_GLOBAL":
                if not all(isinstance(item, str) for item in pushed):
                    raise _broken(name, "its pickle hides the name of something it calls")
                found.append(f"{pushed[0]}.{pushed[1]}")
            elif code.name.startswith("EXT"):
                raise _broken(name, "its pickle uses the copyreg extension registry")
            text = argument if "UNICODE" in code.name else None
            if code.name in ("GET", "BINGET", "LONG_BINGET"):
                text = memo.get(argument)
            pushed = [pushed[-1], text]
    except InvalidModel:
        raise
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise _broken(name, f"its pickle cannot be read: {error}") from error
    return tuple(found)


def _broken(name: str, what: str) -> InvalidModel:
    return InvalidModel(
        f"the archive '{name}' is not as torch writes it: {what}.",
        fix="It may be truncated or altered; export or copy it again.",
        model=name,
    )
