"""Inputs for a signature: made up, or read from a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays, check_inputs
from bridge.dtypes import DType
from bridge.errors import InputError, ModelNotFound, nearest
from bridge.signature import Signature, TensorSpec

__all__ = ["InputProfile", "read_inputs"]

_WORDS = ("", "a", "bridge", "straße", "推荐", "0123456789" * 4)


@dataclass(frozen=True, kw_only=True)
class InputProfile:
    """How to make inputs for a signature; equal profiles make equal inputs.

    Floats are standard normal; integers are uniform within ``[0, highest_id]``, small by
    default because they may be row numbers of tables; booleans are fair coins; strings
    come from a short list with empty and non-ASCII ones.

    Attributes:
        rows: Size of the batch dim.
        batch_dim: Name of the batch dim, where it is not dim 0.
        dims: Sizes of other named dims; free dims are 1.
        shapes: Whole shapes by input name, for signatures that leave dims open.
        constants: Fixed values by input name, such as a sampling rate.
        highest_id: Largest integer.
        seed: Seed of the generator.
    """

    rows: int = 1
    batch_dim: str | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    highest_id: int = 9
    seed: int = 0

    def make(self, signature: Signature, variant: int = 0) -> Arrays:
        """Inputs that fit the signature; another ``variant`` gives other values.

        Inputs that have a default are made where ``shapes`` or ``constants`` name them.

        Raises:
            InputError: The signature leaves a dtype or rank open, a name given in this
                profile is none of its inputs or dims, or a number is out of range.
        """
        for name in (*self.shapes, *self.constants):
            if name not in signature.input_names:
                raise InputError(
                    f"the profile names input '{name}', which the signature does not have.",
                    fix=nearest(name, signature.input_names),
                    input=name,
                )
        named = {item for spec in signature.inputs for item in spec.shape or () if item}
        dims = sorted(item for item in named if isinstance(item, str))
        for name in (*self.dims, *([] if self.batch_dim is None else [self.batch_dim])):
            if name not in dims:
                raise InputError(
                    f"the profile names dim '{name}', which no input of the signature has.",
                    fix=nearest(name, dims),
                    dim=name,
                )
        sizes_given = (self.rows, *self.dims.values(), *itertools.chain(*self.shapes.values()))
        if min(sizes_given) < 0 or self.highest_id < 0:
            raise InputError(
                "the profile has a negative size or highest id.", fix="Give numbers from 0 on."
            )
        # What the profile names is made, whether or not it could be left out.
        wanted = tuple(
            dataclasses.replace(spec, has_default=False)
            for spec in signature.inputs
            if not spec.has_default or spec.name in self.shapes or spec.name in self.constants
        )
        try:
            sizes = self._sizes(wanted)
        except ValueError as error:
            raise InputError(
                f"no inputs can be made: {error}",
                fix="Give the shape, or real inputs from a file.",
            ) from error
        generator = np.random.default_rng([self.seed, variant])
        return {spec.name: self._array(spec, sizes[spec.name], generator) for spec in wanted}

    def _sizes(self, wanted: tuple[TensorSpec, ...]) -> dict[str, tuple[int, ...]]:
        rest = Signature(tuple(spec for spec in wanted if spec.name not in self.shapes), ())
        found = rest.concrete_shapes(self.rows, batch_dim=self.batch_dim, dims=self.dims)
        return {**found, **self.shapes}

    def _array(
        self, spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator
    ) -> npt.NDArray[Any]:
        kind = spec.dtype
        if kind is None:
            raise InputError(
                f"no values can be made for input '{spec.name}': its dtype is unknown.",
                fix="Give real inputs from a file, or declare the signature.",
                input=spec.name,
            )
        if spec.name in self.constants:
            return self._constant(spec, kind, shape)
        if kind is DType.STRING:
            return np.array(_WORDS, object)[generator.integers(0, len(_WORDS), shape)].reshape(
                shape
            )
        if kind is DType.BOOL:
            return generator.integers(0, 2, shape).astype(bool)
        if kind.is_integer:
            limit = min(self.highest_id, kind.bounds[1])
            return generator.integers(0, limit, shape, dtype=np.int64, endpoint=True).astype(
                kind.numpy
            )
        values = generator.standard_normal(shape)
        if kind in (DType.COMPLEX64, DType.COMPLEX128):
            return (values + 1j * generator.standard_normal(shape)).astype(kind.numpy)
        return np.asarray(values, np.float32).astype(kind.numpy)

    def _constant(self, spec: TensorSpec, kind: DType, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        value = self.constants[spec.name]
        limits = kind.bounds if kind.is_integer else None
        if limits is not None and not (
            math.isfinite(value) and value == int(value) and limits[0] <= value <= limits[1]
        ):
            raise InputError(
                f"the constant {value} for input '{spec.name}' is no {kind}.",
                fix=f"Give a whole number from {limits[0]} to {limits[1]}.",
                input=spec.name,
            )
        return np.full(shape, value).astype(kind.numpy)


def read_inputs(path: Path, signature: Signature) -> Arrays:
    """Inputs from a ``.npz``, ``.npy`` or ``.json`` file, checked against the signature.

    A ``.npy`` file serves a signature with one required input. JSON is an object from
    input names to (nested) lists; numbers take the dtype of the signature.

    Raises:
        ModelNotFound: There is no such file.
        InputError: The file is of another kind, is broken, or does not fit.
    """
    if not path.is_file():
        raise ModelNotFound(f"there is no inputs file at '{path}'.", fix="Check the path.")
    try:
        arrays = _read(path, signature)
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise InputError(
            f"the inputs file '{path}' cannot be read: {error}.",
            fix="Write it with numpy.savez(path, name=array, ...); pickled objects are refused.",
        ) from error
    return check_inputs(signature, arrays)


def _read(path: Path, signature: Signature) -> dict[str, Any]:
    if path.suffix == ".npz":
        with path.open("rb") as stream:  # numpy leaves a damaged archive open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"'{path}' holds a single array.", fix="Call it .npy.")
            with archive:
                return {name: _stringless(archive[name]) for name in archive.files}
    if path.suffix == ".npy":
        names = [spec.name for spec in signature.required]
        if len(names) != 1:
            raise InputError(
                f"'{path}' holds one array, but the signature requires {len(names)} inputs.",
                fix="Use a .npz file with one array per input name.",
            )
        with path.open("rb") as stream:
            return {names[0]: _stringless(np.lib.format.read_array(stream, allow_pickle=False))}
    if path.suffix == ".json":
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise InputError(
                f"'{path}' holds a JSON {type(data).__name__}; wanted an object.",
                fix='Write {"input name": [values], ...}.',
            )
        known = {spec.name: spec for spec in signature.inputs}
        return {
            name: _typed(name, values, known[name].dtype if name in known else None)
            for name, values in data.items()
        }
    raise InputError(
        f"'{path}' has the suffix '{path.suffix}'; wanted .npz, .npy or .json.",
        fix="Write the inputs with numpy.savez(path, name=array, ...).",
    )


def _typed(name: str, values: Any, kind: DType | None) -> npt.NDArray[Any]:
    """JSON values in the dtype of the signature, unless that would change them."""
    if kind is None:
        return np.array(values)
    if kind is DType.STRING:
        return np.array(values, object)
    plain = np.array(values)
    numbers = "b" if kind is DType.BOOL else "iu" if kind.is_integer else "iuf"
    if plain.size and plain.dtype.kind not in numbers:
        raise InputError(
            f"the values for input '{name}' are of dtype {plain.dtype}; the signature wants "
            f"{kind}.",
            fix="Write true and false for booleans, and whole numbers for integers.",
            input=name,
        )
    return np.array(values, kind.numpy)


def _stringless(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(object) if array.dtype.kind == "U" else array
