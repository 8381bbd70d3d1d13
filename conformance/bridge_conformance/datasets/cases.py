"""Sets of models with inputs and expected outputs, built once and kept in the cache.

A set is built by a process of its own (``python -m MODULE FOLDER``), because the library
that makes the models must not share a process with the runtime under test. What it
leaves is plain data::

    index.json                  names of the cases; what was left out, and why
    <case>/<model>              in the format of the set
    <case>/inputs.npz           arrays by name
    <case>/outputs.npz          arrays by name, in the order of the outputs

Building takes up to minutes, so it is asked for: ``make conformance-data``, or
``python -m bridge_conformance.datasets``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.cache import Cache, default_cache
from bridge.dtypes import DType
from bridge.errors import BackendUnavailable, BridgeError

__all__ = ["Case", "CaseSet", "LibraryMissing", "NotBuilt", "Stored", "write_arrays", "write_index"]

Arrays = dict[str, npt.NDArray[Any]]

_INDEX = "index.json"
_KIND = "conformance-cases"


class LibraryMissing(Exception):
    """A set cannot be had here; the text is one sentence that names what is not installed."""


class NotBuilt(Exception):
    """A set could be had and is not there; the text is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model, what to feed it, and what has to come out.

    Attributes:
        name: Unique in its set.
        model: Path of the model.
        inputs: Arrays by name.
        outputs: Arrays by name, in order.
    """

    name: str
    model: Path
    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class Stored:
    """A set that is built.

    Attributes:
        folder: Where it is; read only.
        model: Name of every case's model.
        names: Names of the cases, in order.
        left_out: What is in the set's source and not in the set, with the reason.
    """

    folder: Path
    model: str
    names: tuple[str, ...]
    left_out: Mapping[str, str]

    def case(self, name: str) -> Case:
        """The case of that name, read from disk."""
        own = self.folder / name
        return Case(name, own / self.model, _read(own / "inputs.npz"), _read(own / "outputs.npz"))


@dataclass(frozen=True, slots=True)
class CaseSet:
    """Says how a set is built and finds it in the cache.

    Attributes:
        name: What people call it.
        builder: Module of this package whose ``main`` builds it.
        model: Name of the model in the folder of each case.
        libraries: Modules that must be importable to build; the set is built anew for
            other versions of them.
    """

    name: str
    builder: str
    model: str
    libraries: tuple[str, ...]

    def stored(self) -> Stored:
        """The set, if it is built for the libraries that are installed.

        Raises:
            LibraryMissing: One that it takes is not installed.
            NotBuilt: It is not built for them.
        """
        return _stored(self, default_cache())

    def build(self) -> Stored:
        """The set, built now unless the cache has it; progress goes to stderr.

        Raises:
            BackendUnavailable: A library that it takes is not installed.
            BridgeError: The process that builds failed; it has said why on stderr.
        """
        missing = self.missing()
        if missing is not None:
            raise BackendUnavailable(
                f"the {self.name} cannot be built: module '{missing}' is not installed.",
                fix="Install it, or go without this set.",
            )
        return self._open(default_cache().entry(_KIND, self._parts(), self._build))

    def missing(self) -> str | None:
        """The module that is not installed and without which it cannot be built."""
        specs = {library: importlib.util.find_spec(library) for library in self.libraries}
        return next((library for library, spec in specs.items() if spec is None), None)

    def _parts(self) -> dict[str, Any]:
        # Sources, because the version of a checkout lags behind them.
        source = Path(__file__).with_name(f"{self.builder}.py").read_bytes()
        return {
            "set": self.name,
            "source": hashlib.sha256(source + Path(__file__).read_bytes()).hexdigest(),
            "libraries": {library: _version(library) for library in self.libraries},
        }

    def _build(self, folder: Path) -> None:
        command = [sys.executable, "-P", "-m", f"{__package__}.{self.builder}", str(folder)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise BridgeError(
                f"the process that builds the {self.name} ended with status {done.returncode}.",
                fix="What it printed says why.",
            )

    def _open(self, folder: Path) -> Stored:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        return Stored(folder, self.model, tuple(index["cases"]), index["left_out"])


@functools.cache
def _stored(cases: CaseSet, cache: Cache) -> Stored:
    missing = cases.missing()
    if missing is not None:
        raise LibraryMissing(f"the {cases.name} need module '{missing}', which is not installed.")

    def refuse(_: Path) -> None:
        raise NotBuilt(f"the {cases.name} are not built here: run make conformance-data.")

    return cases._open(cache.entry(_KIND, cases._parts(), refuse))


def _version(module: str) -> list[str]:
    names = importlib.metadata.packages_distributions().get(module, [])
    return sorted({f"{name} {importlib.metadata.version(name)}" for name in names})


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays of any dtype but strings as ``.npz``, without pickles.

    The dtype is part of each member's name, because ``.npy`` has no word for bfloat16.
    """
    members = {}
    for name, array in arrays.items():
        dtype = DType.of(array.dtype)
        if dtype is DType.STRING:
            raise TypeError(f"'{name}' holds strings, which could only be stored as a pickle.")
        is_plain = array.dtype.isbuiltin == 1
        members[f"{name}:{dtype}"] = array if is_plain else array.view(f"u{array.itemsize}")
    np.savez(path, **members)  # type: ignore[arg-type] # numpy's stub sees its own keywords


def _read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as members:
        found = [(key.rpartition(":"), members[key]) for key in members.files]
    return {name: array.view(DType(dtype).numpy) for (name, _, dtype), array in found}


def write_index(folder: Path, cases: Sequence[str], left_out: Mapping[str, str]) -> None:
    """Writes what ``CaseSet`` reads; the last step of building."""
    index = {"cases": list(cases), "left_out": dict(left_out)}
    (folder / _INDEX).write_text(json.dumps(index, indent=1), "utf-8")
