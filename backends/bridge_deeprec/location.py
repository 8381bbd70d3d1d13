"""Where checkpoints lie, and which of several is the newest.

Source: ``serving/processor/storage/model_store.cc`` of DeepRec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import ModelNotFound

__all__ = ["INCREMENTAL", "SSD_RECORD", "located", "number_of", "numbered", "prefixes"]

INCREMENTAL = ".incremental_checkpoint"
"""The folder, in that of a full checkpoint, with the incremental ones after it."""

SSD_RECORD = "-ssd_record.index"
"""How indices of DeepRec's storage on SSD end, which are no checkpoints."""

_NUMBER = re.compile(r"-(\d{1,18})$")


def number_of(prefix: Path) -> int | None:
    """The number at the end of a checkpoint's name, if there is one."""
    match = _NUMBER.search(prefix.name)
    return int(match[1]) if match else None


def prefixes(folder: Path) -> Iterator[Path]:
    """Every checkpoint in a folder, as a path without ``.index``, in no order."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.endswith(".index") and not path.name.endswith(SSD_RECORD):
                yield path.with_name(path.name.removesuffix(".index"))


def numbered(folder: Path, *, after: int | None) -> tuple[Path, ...]:
    """The checkpoints in a folder whose number is higher than another, the lowest first."""
    found = [(number, one) for one in prefixes(folder) if (number := number_of(one)) is not None]
    return tuple(one for number, one in sorted(found) if after is None or number > after)


def located(path: Path) -> Path:
    """The checkpoint that a path stands for; see ``Checkpoint.open``.

    Raises:
        ModelNotFound: There is none in that folder.
    """
    if path.name.endswith(".index"):
        return path.with_name(path.name.removesuffix(".index"))
    if not path.is_dir() or path.with_name(path.name + ".index").is_file():
        return path
    found = _newest(path)
    if found is None:
        dated = [(mark.stat().st_mtime_ns, mark.parent) for mark in path.glob("*/checkpoint")]
        found = _newest(max(dated)[1] if dated else path / "variables")
    if found is None:
        raise ModelNotFound(
            f"there is no checkpoint in '{path}': wanted a file that ends with '.index'.",
            fix="Name the checkpoint, its folder, or the folder that this is in.",
            model=str(path),
        )
    return found


def _newest(folder: Path) -> Path | None:
    """The checkpoint of the highest number; one without a number is older than all."""
    found = [(number_of(prefix), prefix) for prefix in prefixes(folder)]
    numbered = [(-1 if number is None else number, prefix) for number, prefix in found]
    return max(numbered)[1] if numbered else None
