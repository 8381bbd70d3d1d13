"""The model formats that the bridge knows by itself, one package per family.

Each recognises its files by content, tells what the bytes say without any runtime, and
refuses what would run code or leave the model's folder. Plugins may register more.

In a family, one module holds one format or a few that are alike, and ``graph.py`` reads
the largest part of the bytes. What families share is here: ``containment.py`` for the
files that a model names, ``operators.py`` for the lists of harmless operators.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

from bridge.formats.onnx import Onnx, OrtModel
from bridge.formats.openvino import OpenvinoIr, TfLite
from bridge.formats.tensorflow import Keras, SavedModel
from bridge.formats.tensorrt import Engine
from bridge.formats.torch import (
    AotInductor,
    ExportedProgram,
    TorchModule,
    TorchPickle,
    TorchScript,
)
from bridge.model import Format

__all__ = ["BUILT_IN", "register_formats"]

BUILT_IN: tuple[type[Format], ...] = (
    Onnx,
    OrtModel,
    SavedModel,
    Keras,
    TorchScript,
    ExportedProgram,
    AotInductor,
    TorchModule,
    TorchPickle,
    OpenvinoIr,
    TfLite,
    Engine,
)


@pluggy.HookimplMarker("bridge")
def register_formats(register: Callable[[Format], None]) -> None:
    """Registers the built-in formats, in the way any plugin does."""
    for kind in BUILT_IN:
        register(kind())
