"""Models with tables: a dense model of some format, and tables in front of it.

A folder of ``manifest.json``, the dense model, and ``tables/``. Backends get the dense
model; users get ``TablesPredictor`` around it, whose inputs are the ids.
"""

from __future__ import annotations

from pathlib import Path

from bridge.errors import InvalidModel
from bridge.loading import open_model
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.predictor import Predictor
from bridge_deeprec.front import TablesPredictor
from bridge_deeprec.manifest import NAME, TABLES, Manifest, holds
from bridge_deeprec.tables import Tables

__all__ = ["OnnxWithTables", "SavedModelWithTables", "WithTables"]


class WithTables(Format):
    """A dense model of the format ``holds``, and the tables of its embeddings."""

    holds: str

    def sniff(self, file: FileProbe) -> bool:
        return (
            file.is_folder
            and file.path is not None
            and NAME in file.members
            and holds(file.path) == self.holds
        )

    def files(self, model: ModelRef) -> tuple[Path, ...]:
        manifest = Manifest.read(model.file)
        manifest.check(model.file)
        return (model.file / NAME, *(model.file / name for name in sorted(manifest.files)))

    def describe(self, model: ModelRef) -> ModelFacts:
        manifest = Manifest.read(model.file)
        inner = self.inner(model)
        tables = sorted({one.table for one in manifest.rows})
        version = "-".join(
            f"{name} {number}" for name, number in manifest.versions.items() if number is not None
        )
        return ModelFacts(
            signatures={"": manifest.signature},
            operators=inner.facts.operators,
            versions={**inner.facts.versions, **({"tables": version} if version else {})},
            notes=(
                *inner.facts.notes,
                f"Rows of {', '.join(tables)} are looked up in front of '{manifest.model}'.",
            ),
        )

    def check(self, model: ModelRef) -> None:
        manifest = Manifest.read(model.file)
        manifest.check(model.file)
        inner = self.inner(model)
        tables = [path for path in (model.file / TABLES).glob("*") if path.is_file()]
        manifest.require_listed(model.file, (*inner.format.files(inner), *tables))

    def inner(self, model: ModelRef) -> ModelRef:
        manifest = Manifest.read(model.file)
        manifest.require_inside(model.file)
        found = open_model(model.file / manifest.model, trust=model.trust)
        if found.format.name != self.holds:
            raise InvalidModel(
                f"the model inside {model.name} is of format {found.format.name}; wanted "
                f"{self.holds}.",
                fix="Convert the model again.",
                model=model.name,
            )
        return found

    def front(self, model: ModelRef, predictor: Predictor) -> Predictor:
        manifest = Manifest.read(model.file)
        manifest.check(model.file, digests=True)
        tables = Tables.open(model.file / TABLES)
        return TablesPredictor(manifest, tables, predictor)


class SavedModelWithTables(WithTables):
    """Tables in front of a SavedModel."""

    name = "saved_model_with_tables"
    title = "SavedModel with tables"
    native_backend = "tensorflow"
    holds = "saved_model"


class OnnxWithTables(WithTables):
    """Tables in front of an ONNX model."""

    name = "onnx_with_tables"
    title = "ONNX model with tables"
    native_backend = "onnxruntime"
    holds = "onnx"
