"""A model of the zoo, written into a folder in the formats asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bridge.errors import OptionError, nearest
from bridge_zoo.description import Description, describe
from bridge_zoo.onnx_file import write_onnx
from bridge_zoo.tensorflow_module import write_saved_model
from bridge_zoo.torch_module import write_pt2, write_torchscript
from bridge_zoo.weights import Weights, seeded_weights

__all__ = ["FORMATS", "build", "checked_formats", "write"]

_WRITERS: dict[str, tuple[str, Callable[[Description, Weights, Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "torchscript": (".pt", write_torchscript),
    "pt2": (".pt2", write_pt2),
    "saved_model": ("_saved_model", write_saved_model),
}

FORMATS = tuple(_WRITERS)
"""The formats that can be written, each by its own runtime, none by conversion."""


def build(
    model: str,
    *,
    folder: str | Path,
    size: str = "small",
    formats: Iterable[str] = FORMATS,
    seed: int = 0,
    weights: Weights | None = None,
) -> dict[str, Path]:
    """Writes a model of the zoo in each format asked for, all with the same weights.

    Only the runtimes of those formats are imported. A file or folder of the same name
    is replaced, and only once the new one is complete.

    Args:
        model: One of ``MODELS``.
        folder: Where to write; made if it is not there.
        size: One of ``SIZES``.
        formats: Some of ``FORMATS``.
        seed: Seed of the weights.
        weights: Such as ``trained_weights`` returns; ``None`` for ``seeded_weights``.

    Returns:
        The path written for each format, in the order asked for: ``<model>.onnx``,
        ``<model>.pt`` (TorchScript), ``<model>.pt2`` and ``<model>_saved_model/``.

    Raises:
        OptionError: No such model, size or format; nothing has been written then.
        ImportError: The runtime that writes a format is not installed.
    """
    described = describe(model, size)
    return write(described, folder=folder, formats=formats, seed=seed, weights=weights)


def write(
    description: Description,
    *,
    folder: str | Path,
    formats: Iterable[str] = FORMATS,
    seed: int = 0,
    weights: Weights | None = None,
) -> dict[str, Path]:
    """Writes a model that may be of another size than the zoo's own; see ``build``."""
    wanted = checked_formats(formats)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        weights = seeded_weights(description, seed)
    paths: dict[str, Path] = {}
    for item in wanted:
        suffix, write_file = _WRITERS[item]
        paths[item] = folder / f"{description.name}{suffix}"
        with tempfile.TemporaryDirectory(prefix=".zoo-", dir=folder) as scratch:
            written = Path(scratch) / paths[item].name
            write_file(description, weights, written)
            if paths[item].is_dir():  # a folder cannot be replaced, only moved out of the way
                paths[item].rename(Path(scratch) / "old")
            written.replace(paths[item])
    return paths


def checked_formats(formats: Iterable[str]) -> list[str]:
    """The formats, if the zoo writes all of them.

    Raises:
        OptionError: It does not write one.
    """
    wanted = list(formats)
    for item in wanted:
        if item not in _WRITERS:
            raise OptionError(f"the zoo writes no format '{item}'.", fix=nearest(item, FORMATS))
    return wanted
