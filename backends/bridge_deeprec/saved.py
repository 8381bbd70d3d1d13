"""SavedModels whose graphs hold operators of DeepRec, told without any runtime."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

from bridge.errors import BridgeError, ModelError, OptionError
from bridge.formats.tensorflow import SavedModel
from bridge.formats.tensorflow.graph import read_meta_graphs
from bridge.model import FileProbe, ModelFacts, ModelRef
from bridge.wire import WireError
from bridge_deeprec.lookup import Cut, analyse
from bridge_deeprec.operators import foreign, is_own

__all__ = ["DeeprecModel", "cut_of"]

_GRAPH = "saved_model.pb"
# Every name of ``is_own`` holds one of these.
_MARKS = (b"KvVar", b"KvResource", b"EVGet", b"Embedding")
_EXACT = (b"PruneInvalidAndFillEmptyRows", b"UniqueWithCountsV3", b"PartitionWithPermutation")


class DeeprecModel(SavedModel):
    """A SavedModel folder with embedding variables or fused lookups of DeepRec in it.

    Stock TensorFlow does not load it. ``describe`` says which of two ways is open: DeepRec's
    own library (``processor``), or cutting the lookups out (``checkpoint``).
    """

    name = "deeprec"
    title = "DeepRec SavedModel"
    native_backend = "deeprec"
    refines = "saved_model"
    has_own_variables = False  # they may be in a checkpoint elsewhere

    def sniff(self, file: FileProbe) -> bool:
        if not super().sniff(file) or file.path is None:
            return False
        path = file.path / _GRAPH
        try:
            if not path.is_file() or not _holds(path, (*_MARKS, *_EXACT)):
                return False
            graphs = read_meta_graphs(path)
        except (OSError, WireError, ValueError, BridgeError):
            return False  # what is wrong with it, SavedModel says
        return any(is_own(node.op) for graph in graphs for node in graph.every_node())

    def describe(self, model: ModelRef) -> ModelFacts:
        found = super().describe(model)
        own = sorted(op for op in found.operators if is_own(op))
        notes = [*found.notes, f"Operators of DeepRec: {', '.join(own)}."]
        others = foreign(found.operators)
        if others:
            notes.append(f"Operators of neither TensorFlow nor DeepRec: {', '.join(others)}.")
        return dataclasses.replace(found, notes=(*notes, self._mode(model)))

    def admits(self, op: str) -> bool:
        """Embedding variables read files only where the model itself is restored from."""
        return is_own(op)

    def _mode(self, model: ModelRef) -> str:
        """Which mode it needs, and why."""
        try:
            found = cut_of(model)
        except (ModelError, OptionError) as error:
            return f"Mode: processor (DeepRec's own library), because {error.message}"
        tables = sorted({one.table for one in found.lookups})
        return (
            f"Mode: checkpoint (bridge convert --to saved_model or onnx), because the "
            f"{len(found.lookups)} lookups in {', '.join(tables)} can be done before the call; "
            "or processor, with DeepRec's own library."
        )


def cut_of(model: ModelRef) -> Cut:
    """How the lookups of a model's signature can be cut out of its graph.

    Raises:
        UnsupportedModel: They cannot; the sentence names the node.
        OptionError: There is no telling which signature is meant.
    """
    kind = DeeprecModel()
    graph = kind.graph(model)
    return analyse(graph, graph.signatures[kind.signature_key(model, graph)], model.name)


def _holds(path: Path, marks: tuple[bytes, ...]) -> bool:
    """Whether one of some texts is in a file; reads no more than it has to."""
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            return False
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(data.find(mark) >= 0 for mark in marks)
