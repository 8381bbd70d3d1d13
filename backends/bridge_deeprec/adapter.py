"""The adapters: a DeepRec model to a SavedModel with tables, and that to ONNX with tables."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import UnsupportedModel
from bridge.proof import find_runner
from bridge.routes import find_routes
from bridge_deeprec.checkpoint import Checkpoint
from bridge_deeprec.dense import DenseValues
from bridge_deeprec.graph import Graph
from bridge_deeprec.lookup import analyse
from bridge_deeprec.manifest import TABLES, Manifest
from bridge_deeprec.saved import DeeprecModel
from bridge_deeprec.tables import Tables
from bridge_deeprec.trial import Original, compare

__all__ = ["CheckpointOptions", "DeeprecToSavedModel", "TablesToOnnx"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions(bridge.Options):
    """Where the values of a DeepRec model are."""

    checkpoint: Path | None = bridge.option(
        None,
        help="Checkpoint with the values, or the folder of some; none means the model's own "
        "variables.",
        when="The model was exported without values, or newer ones are to be used.",
    )
    deltas: bool = bridge.option(
        True,
        help="Apply the incremental checkpoints after it too, to rows and dense variables.",
        when="Answers of the full checkpoint itself are wanted.",
    )


class DeeprecToSavedModel(bridge.Adapter):
    """Lookups cut out of the graph, tables beside it; needs none of DeepRec's software."""

    name = "deeprec-to-saved_model"
    sources = frozenset({"deeprec"})
    target = "saved_model_with_tables"
    options_type = CheckpointOptions

    def probe(self) -> bridge.Availability:
        return bridge.find_runtime(
            "tensorflow", ("tensorflow-cpu", "tensorflow"), "deeprec", exclusive=False
        )

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: CheckpointOptions
    ) -> Mapping[str, Any]:
        kind = DeeprecModel()
        graph = kind.graph(model)
        key = kind.signature_key(model, graph)
        signature = graph.signatures[key]
        _require_dense(signature)
        cut = analyse(graph, signature, model.name)
        checkpoint = Checkpoint.open(options.checkpoint or model.file / "variables" / "variables")
        later = checkpoint.deltas() if options.deltas else ()
        deltas = [Checkpoint.open(one) for one in later]
        values = DenseValues(checkpoint, deltas)
        whole = Graph(kind.files(model)[0], graph, signature, cut, model.name)
        target.mkdir()
        whole.write(target / "model", values)
        defaults = whole.default_rows()
        tables = Tables.build(
            checkpoint,
            names=sorted({one.table for one in whole.rows}),
            defaults={name: rows for name, rows in defaults.items() if rows is not None},
        )
        tables.apply(*deltas)
        tables.save(target / TABLES)
        newest = tables.current.version
        manifest = Manifest(
            holds="saved_model",
            model="model",
            signature=_plain(signature),
            tensors={spec.name: str(spec.native_name) for spec in signature.inputs},
            steps=whole.steps,
            rows=whole.rows,
            passed=whole.passed,
            versions={
                "full": checkpoint.version,
                "delta": newest if newest != checkpoint.version else None,
                "dense": values.version,
            },
            source={"model": model.name, "signature": key, "checkpoint": checkpoint.prefix.name},
        )
        manifest.write(target)
        names = [{one.name: str(one.native_name) for one in signature.inputs}]
        names.append({one.name: str(one.native_name) for one in signature.outputs})
        original = Original(whole, values, *names)
        try:
            with bridge.load(target) as made:
                compared = compare(original.predict, made, tables.current)
        finally:
            original.close()
        return {
            "compared": compared,
            "signature": key,
            "lookups": len(whole.rows),
            "tables": {name: len(one) for name, one in tables.current.tables.items()},
            "versions": {"full": checkpoint.version, "newest": newest, "dense": values.version},
            "random_default_rows": sorted(name for name, one in defaults.items() if one is None),
        }


class TablesToOnnx(bridge.Adapter):
    """The dense model inside to ONNX, by the adapter that is there for it."""

    name = "tables-to-onnx"
    sources = frozenset({"saved_model_with_tables"})
    target = "onnx_with_tables"

    def probe(self) -> bridge.Availability:
        found = bridge.find_runtime("tf2onnx", ("tf2onnx",), "convert")
        if not found.installed:
            return found
        return DeeprecToSavedModel().probe()

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        manifest = Manifest.read(model.file)
        inner = model.served
        routes = [one for one in find_routes(inner, "onnx", max_steps=1) if one.target == "onnx"]
        if not routes:
            raise UnsupportedModel(
                f"no adapter turns {inner.format.name} into onnx here.",
                fix="Install 'inference-bridge[convert]'.",
                model=model.name,
            )
        target.mkdir()
        facts = routes[0].adapters[0].convert(inner, target / "model.onnx")
        shutil.copytree(model.file / TABLES, target / TABLES, copy_function=_linked)
        dataclasses.replace(manifest, holds="onnx", model="model.onnx").write(target)
        return {
            **facts,
            "signature": manifest.source.get("signature", ""),
            "compared": _compared(model, target),
        }


def _compared(source: bridge.ModelRef, target: Path) -> dict[str, Any]:
    """The result beside its source, as a chain of conversions is not compared in between."""
    runner = find_runner("onnx_with_tables")
    if runner is None:
        return {"calls": 0}
    tables = Tables.open(target / TABLES)
    with bridge.load(source) as right, bridge.load(target, backend=runner) as made:
        return compare(lambda inputs, _: right.predict(inputs), made, tables.current)


def _linked(source: str, target: str) -> str:
    """A second name for a file, for tables are large; a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _plain(signature: bridge.Signature) -> bridge.Signature:
    """Without the names of tensors, which the dense model does not have."""
    inputs, outputs = (
        tuple(dataclasses.replace(spec, native_name=None) for spec in specs)
        for specs in (signature.inputs, signature.outputs)
    )
    return bridge.Signature(inputs, outputs)


def _require_dense(signature: bridge.Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if not spec.native_name or spec.dtype is None:
            raise UnsupportedModel(
                f"'{spec.name}' is sparse, composite or of a dtype that numpy does not have.",
                fix="Export a signature of dense tensors.",
                tensor=spec.name,
            )
