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
from bridge_openvino.runtime import core, openvino

__all__ = ["read"]


@contextlib.contextmanager
def read(model: ModelRef) -> Iterator[Any]:
    """The ``openvino.Model``; compile it inside the block, where its files exist.

    Raises:
        RuntimeError: OpenVINO cannot read it.
    """
    is_onnx = model.format.name == "onnx"
    if model.data is not None and is_onnx:
        yield core().read_model(model.data)
    elif model.path is not None and _is_usual(model, model.path):
        yield core().read_model(model.path)
    elif is_onnx:
        # Asked by name, the reader takes any file and still finds external data beside it.
        reader = openvino().frontend.FrontEndManager().load_by_framework("onnx")
        yield reader.convert(reader.load(str(model.path)))
    else:
        with tempfile.TemporaryDirectory(prefix="bridge-openvino-") as folder:
            yield core().read_model(_renamed(model, Path(folder)))


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
