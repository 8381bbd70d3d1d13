"""The predictor that looks rows up, then asks the dense model."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.check import Arrays, Layout
from bridge.errors import InvalidModel
from bridge.logs import logger
from bridge.predictor import Predictor
from bridge_deeprec.checkpoint import Checkpoint
from bridge_deeprec.location import numbered
from bridge_deeprec.manifest import Manifest
from bridge_deeprec.steps import run
from bridge_deeprec.tables import Tables

__all__ = ["TablesPredictor"]


class TablesPredictor(Predictor):
    """Ids in, as the original model takes them; rows go to the dense model.

    A call takes one snapshot of the tables and uses nothing else, so that it sees one
    version of them, whatever ``update`` does meanwhile. Ids are used as wide as they are.
    """

    layout = Layout.ANY  # numpy takes all, and the predictor inside copies what it has to

    def __init__(self, manifest: Manifest, tables: Tables, inner: Predictor) -> None:
        """Takes over the dense model's predictor, once everything fits.

        Raises:
            InvalidModel: Manifest, tables and dense model do not fit each other.
        """
        _require_fit(manifest, tables, inner)
        super().__init__(manifest.signature, inner.info)
        self._inner = inner
        self._tables = tables
        self._known: Arrays = {}  # what needs no input is computed once
        self._steps = []
        for step in manifest.steps:
            if self._known.keys() >= set(step.inputs):
                run([step], self._known)
            else:
                self._steps.append(step)
        self._rows = manifest.rows
        self._tensors = dict(manifest.tensors)
        self._computed = dict(manifest.passed)
        added = {one.input for one in manifest.rows} | self._computed.keys()
        self._passed = [name for name in inner.signature.input_names if name not in added]
        self._versions = dict(manifest.versions)
        self._updating = threading.Lock()
        self._tell()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        tables = self._tables.current  # once
        tensors = {**self._known, **{self._tensors[name]: one for name, one in inputs.items()}}
        run(self._steps, tensors)
        given = {name: inputs[name] for name in self._passed}
        for name, tensor in self._computed.items():
            given[name] = tensors[tensor]
        for one in self._rows:
            given[one.input] = tables.gather(one.table, tensors[one.ids])
        return self._inner.predict(given, outputs)

    def _update(self, source: Path) -> None:
        with self._updating:
            # Of a folder all that come next: each may hold only what changed since the last.
            named = numbered(source, after=self._tables.current.version) or (source,)
            deltas = [Checkpoint.open(one) for one in named]
            self._tables.apply(*deltas)
            self._tell()  # of the newest version: what a call sees may be one older
        for delta in deltas:
            if delta.dense:
                logger("deeprec").info(
                    "%s holds %d dense variables, which are left as they were converted",
                    delta.prefix,
                    len(delta.dense),
                )

    def _close(self) -> None:
        self._inner.close()

    def _tell(self) -> None:
        """What ``info`` says of the tables."""
        now = self._tables.current
        about = {
            "tables": {name: len(one) for name, one in now.tables.items()},
            "tables_version": now.version,
            "dense_version": self._versions.get("dense", self._versions.get("full")),
            "atomic_delta_update": True,
            "atomic_full_update": False,
            "dense_is_updated": False,
        }
        self.info = dataclasses.replace(self.info, details={**self.info.details, **about})


def _require_fit(manifest: Manifest, tables: Tables, inner: Predictor) -> None:
    rows = {one.input for one in manifest.rows} | manifest.passed.keys()
    wanted = set(inner.signature.input_names)
    held = tables.current.tables
    for one in manifest.rows:
        if one.table not in held or held[one.table].dim != one.width:
            raise InvalidModel(
                f"there is no table '{one.table}' with rows of {one.width} numbers.",
                fix="Copy the whole folder again, or convert the model again.",
                table=one.table,
            )
    made = {_node(one) for one in manifest.tensors.values()} | {one.name for one in manifest.steps}
    used = [*(one.ids for one in manifest.rows), *manifest.passed.values()]
    used += [one for step in manifest.steps for one in step.inputs]
    unknown = [one for one in used if _node(one) not in made]
    unknown += sorted(set(manifest.signature.input_names) - manifest.tensors.keys())
    if unknown:
        raise InvalidModel(
            f"the manifest does not say where '{unknown[0]}' comes from.",
            fix="Copy the whole folder again, or convert the model again.",
            tensor=unknown[0],
        )
    if not rows <= wanted or not wanted - rows <= set(manifest.signature.input_names):
        raise InvalidModel(
            f"the dense model takes {', '.join(sorted(wanted))}, which the manifest does not "
            "account for.",
            fix="Convert the model again.",
        )


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]
