"""Reading a model in the format that it is, whatever it is called.

OpenVINO asks its readers in turn which of them takes a file, partly by suffix: an ONNX
model called ``.pdmodel`` is read as PaddlePaddle, without an error and without inputs.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge import ModelRef
from bridge_openvino.bounds import Limits
from bridge_openvino.exported import read_exported
from bridge_openvino.runtime import core, openvino

__all__ = ["read"]


@contextlib.contextmanager
def read(model: ModelRef, *, is_mapped: bool = True) -> Iterator[tuple[Any, Limits]]:
    """The ``openvino.Model``, and sizes that it is limited to.

    Compile it inside the block, where its files exist.

    Args:
        model: The model.
        is_mapped: Whether weights may be mapped into memory, instead of being read.

    Raises:
        RuntimeError: OpenVINO cannot read it.
    """
    config = {"ENABLE_MMAP": is_mapped}
    is_onnx = model.format.name == "onnx"
    if model.format.name == "exported_program":
        yield read_exported(model)
    elif model.data is not None and is_onnx:
        yield core().read_model(model.data), {}
    elif model.path is not None and _is_usual(model, model.path):
        yield core().read_model(model.path, config=config), {}
    elif is_onnx:
        # Asked by name, the reader takes any file and still finds external data beside it.
        reader = openvino().frontend.FrontEndManager().load_by_framework("onnx")
        yield reader.convert(reader.load(str(model.path))), {}
    else:
        with tempfile.TemporaryDirectory(prefix="bridge-openvino-") as folder:
            yield core().read_model(_renamed(model, Path(folder)), config=config), {}


def _is_usual(model: ModelRef, path: Path) -> bool:
    if path.is_dir():
        return True
    return path.suffix in model.format.suffixes


def _renamed(model: ModelRef, folder: Path) -> Path:
    """The model under the usual name of its format."""
    place = folder / f"model{model.format.suffixes[0]}"
    if model.data is not None:
        place.write_bytes(model.data)
        return place
    place.symlink_to(model.file)
    weights = model.file.with_suffix(".bin")
    if model.format.name == "openvino_ir" and weights.exists():
        place.with_suffix(".bin").symlink_to(weights)
    return place
