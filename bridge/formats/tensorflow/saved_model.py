"""SavedModel folders of TensorFlow 1 and 2."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar

from bridge.errors import (
    InvalidModel,
    ModelNotFound,
    OptionError,
    UnsupportedModel,
    UntrustedModel,
    nearest,
)
from bridge.formats.operators import allowed, refused
from bridge.formats.tensorflow.graph import MetaGraph, read_meta_graphs, serving
from bridge.formats.tensorflow.reach import forbidden, reach
from bridge.formats.tensorflow.tables import vocabularies
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.wire import WireError

__all__ = ["SavedModel"]

_GRAPH = "saved_model.pb"
_DEFAULT_KEY = "serving_default"
_VARIABLE_OPS = frozenset({"VarHandleOp", "Variable", "VariableV2"})


class SavedModel(Format):
    """A folder with ``saved_model.pb``, of TensorFlow 1 or 2.

    Without trust a model passes only if every operator that can run is on the list of
    harmless ones; see ``reach`` for what can run. A list is no sandbox: TensorFlow itself
    reads hostile graphs with native code.

    Attributes:
        has_own_variables: The values of its variables are in the folder.
    """

    name = "saved_model"
    title = "SavedModel"
    native_backend = "tensorflow"
    has_signature_keys = True
    has_own_variables: ClassVar[bool] = True

    def admits(self, op: str) -> bool:
        """Whether an operator that TensorFlow does not have may run without trust."""
        return False

    def sniff(self, file: FileProbe) -> bool:
        return file.is_folder and not file.members.isdisjoint({_GRAPH, f"{_GRAPH}txt"})

    def files(self, model: ModelRef) -> tuple[Path, ...]:
        return (_graph_file(model), *_parts(model.file))

    def describe(self, model: ModelRef) -> ModelFacts:
        graphs = self._read(model)
        graph = self.graph(model, graphs)
        notes = []
        odd = sorted(
            f"{key}:{spec.name}"
            for key, signature in graph.signatures.items()
            for spec in (*signature.inputs, *signature.outputs)
            if not spec.native_name
        )
        if odd:
            notes.append(f"These tensors are sparse or composite: {', '.join(odd)}.")
        others = [", ".join(sorted(one.tags)) for one in graphs if one is not graph]
        if others:
            notes.append(f"Graphs with other tags are left alone: {'; '.join(others)}.")
        if not graph.signatures:
            notes.append("No signature was saved with the model.")
        operators = Counter(node.op for node in graph.every_node())
        known = allowed("tensorflow") | refused("tensorflow") | graph.functions.keys()
        if graph.version.startswith("1.") and known.issuperset(operators):
            # Forks of TensorFlow 1 that add operators are still in use.
            notes.append(
                "All its operators are TensorFlow's own, so that stock TensorFlow runs it as it is."
            )
        versions = {"tensorflow": graph.version, "tags": ",".join(sorted(graph.tags))}
        return ModelFacts(
            signatures=graph.signatures,
            operators=dict(sorted(operators.items())),
            versions={key: text for key, text in versions.items() if text},
            notes=tuple(notes),
            vocabularies=vocabularies(graph),
        )

    def check(self, model: ModelRef) -> None:
        graph = self.graph(model)
        parts = set(_parts(model.file))
        if self.has_own_variables:
            _check_variables(model, graph, parts)
        _check_assets(model, graph, parts)
        if not model.trust:
            self._check_operators(model, graph)

    def graph(self, model: ModelRef, graphs: list[MetaGraph] | None = None) -> MetaGraph:
        """The graph to serve; see ``serving``."""
        return serving(self._read(model) if graphs is None else graphs, model.name)

    def signature_key(self, model: ModelRef, graph: MetaGraph) -> str:
        """The key asked for, else ``serving_default``, else the only one there is.

        Raises:
            OptionError: There is no such key, or no telling which one is meant.
            UnsupportedModel: The model has no signature at all.
        """
        keys = graph.signatures
        if not keys:
            raise UnsupportedModel(
                f"SavedModel {model.name} has no signature, so nothing in it can be called.",
                fix="Save it again with tf.saved_model.save(..., signatures=...).",
            )
        key = model.signature_key
        if key is None:
            key = _DEFAULT_KEY if len(keys) > 1 else next(iter(keys))
        if key in keys:
            return key
        if model.signature_key is None:
            raise OptionError(
                f"SavedModel {model.name} has {len(keys)} signatures and none is called "
                f"'{_DEFAULT_KEY}'.",
                fix=f"Pass signature=; {nearest('', keys)[0].lower()}{nearest('', keys)[1:]}",
                valid=sorted(keys),
            )
        raise OptionError(
            f"SavedModel {model.name} has no signature '{key}'.",
            fix=nearest(key, keys),
            signature=key,
            valid=sorted(keys),
        )

    def _read(self, model: ModelRef) -> list[MetaGraph]:
        path = _graph_file(model)
        try:
            return read_meta_graphs(path)
        except WireError as error:
            raise error.invalid(model.name, self.title) from None
        except OSError as error:
            raise ModelNotFound(
                f"'{path}' cannot be read: {error.strerror}.", fix="Check its permissions."
            ) from error

    def _check_operators(self, model: ModelRef, graph: MetaGraph) -> None:
        keys = list(graph.signatures)
        with contextlib.suppress(OptionError, UnsupportedModel):
            keys = [self.signature_key(model, graph)]
        outputs = [spec for key in keys for spec in graph.signatures[key].outputs]
        # The paths are fed in these steps only: in a call the same nodes would hold whatever
        # path the file says.
        restore = reach(graph, graph.restore)
        init = reach(graph, graph.init)
        call = reach(graph, [(spec.native_name or "").partition(":")[0] for spec in outputs])
        bad = {
            item.node.op
            for item in (
                *forbidden(graph, restore, checkpoints={graph.filename}),
                *forbidden(graph, init, assets=set(graph.assets)),
                *forbidden(graph, call),
            )
            if not self.admits(item.node.op)
        }
        if not bad:
            return
        known = refused("tensorflow")
        shown = ", ".join(f"'{op}'" for op in sorted(bad)[:8])
        if known.isdisjoint(bad):
            raise UnsupportedModel(
                f"SavedModel {model.name} runs {shown}, which TensorFlow does not have as far as "
                "is known here.",
                fix="If a library registers it, import that library and pass trust=True.",
                model=model.name,
                operators=sorted(bad),
            )
        raise UntrustedModel(
            f"SavedModel {model.name} runs {shown}: operators that may reach beyond the model "
            "(files, network, Python, code that is not read here).",
            fix="Pass trust=True if you know where the model comes from.",
            model=model.name,
            operators=sorted(bad),
        )


def _graph_file(model: ModelRef) -> Path:
    path = model.file / _GRAPH
    _check_inside(path, model.file)
    if path.is_file():
        if not path.stat().st_size:
            raise InvalidModel(f"'{path}' is empty.", fix="Export or copy the model again.")
        return path
    if path.with_suffix(".pbtxt").is_file():
        raise UnsupportedModel(
            f"SavedModel {model.name} is in text form ({_GRAPH}txt).",
            fix="Load it with TensorFlow and save it again; that writes the binary form.",
        )
    raise ModelNotFound(f"there is no file '{path}'.", fix="Copy the whole folder again.")


def _parts(folder: Path) -> list[Path]:
    """Variables and assets, sorted; all inside the folder.

    Raises:
        UntrustedModel: A symbolic link leads out of the folder.
    """
    found = []
    for top in ("variables", "assets", "assets.extra"):
        for path in _walk(folder / top, folder):
            _check_inside(path, folder)
            if path.is_file():
                found.append(path)
    return sorted(found)


def _walk(path: Path, folder: Path) -> Iterator[Path]:
    if not path.is_dir():
        return
    _check_inside(path, folder)
    for parent, names, files in os.walk(path):  # links to folders are listed, not followed
        for name in (*names, *files):
            yield Path(parent, name)


def _check_inside(path: Path, folder: Path) -> None:
    if not path.is_symlink():
        return
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InvalidModel(
            f"the link '{path}' leads nowhere: {error}.", fix="Copy the whole folder again."
        ) from error
    if not target.is_relative_to(folder.resolve()):
        raise UntrustedModel(
            f"'{path.relative_to(folder)}' in SavedModel {folder.name} is a link that leads out "
            f"of the folder, to '{target}'.",
            fix="Copy the model with its links followed (cp -rL).",
            model=folder.name,
            path=str(target),
        )


def _check_variables(model: ModelRef, graph: MetaGraph, parts: set[Path]) -> None:
    if not graph.restore:
        return
    folder = model.file / "variables"
    shards = [
        match
        for path in parts
        if path.parent == folder
        and (match := re.fullmatch(r"variables\.data-\d{5}-of-(\d{5})", path.name))
    ]
    wanted = [folder / "variables.index"]
    count = max((int(match[1]) for match in shards), default=1)
    if any(node.op in _VARIABLE_OPS for node in graph.every_node()):
        names = (f"variables.data-{index:05d}-of-{count:05d}" for index in range(count))
        wanted += [folder / name for name in names]
    for path in wanted:
        if path not in parts:
            raise ModelNotFound(
                f"SavedModel {model.name} has variables, but not the file "
                f"'{path.relative_to(model.file)}' that holds them.",
                fix="Copy the whole folder again.",
                model=model.name,
                path=str(path),
            )


def _check_assets(model: ModelRef, graph: MetaGraph, parts: set[Path]) -> None:
    for name in graph.assets.values():
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts:
            raise UntrustedModel(
                f"SavedModel {model.name} names the asset '{name}', outside of its folder.",
                fix="Save the model again; assets belong into its assets folder.",
                model=model.name,
                path=name,
            )
        if model.file / "assets" / plain not in parts:
            raise ModelNotFound(
                f"SavedModel {model.name} has no asset file '{name}'.",
                fix="Copy the whole folder again.",
                model=model.name,
                path=name,
            )
