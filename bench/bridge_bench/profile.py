"""Inputs for a signature: made up, or drawn from recorded rows."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.errors import InputError, MissingInput, nearest
from bridge.model import ModelFacts
from bridge.signature import Signature, TensorSpec
from bridge_bench.samples import Samples, read_inputs
from bridge_bench.values import Values

__all__ = ["InputProfile", "Samples", "Values", "read_inputs"]

_WORDS = ("", "a", "bridge", "straße", "推荐", "0123456789" * 4)
_GLOB = frozenset("*?[")
DEFAULT_HIGHEST_ID = 9
"""Largest made-up integer where no table is known; small, as it may be a row number."""


@dataclass(frozen=True, kw_only=True)
class InputProfile:
    """How to make inputs for a signature; equal profiles make equal inputs.

    Each input gets the first of these that there is: what ``values`` say, its constant,
    rows of the samples, Zipf ids below its vocabulary, the default. By default floats are
    standard normal, integers uniform within ``[0, highest_id]``, booleans fair coins, and
    strings come from a short list with empty and non-ASCII ones. What one input gets does
    not depend on what is said of the others.

    Attributes:
        rows: Size of the batch dim.
        batch_dim: Name of the batch dim, where it is not dim 0.
        dims: Sizes of other named dims; free dims are 1.
        shapes: Whole shapes by input name, for signatures that leave dims open.
        constants: Fixed values by input name, such as a sampling rate.
        values: Kinds of values by input name or pattern (``user_*``), as ``Values`` or
            its text; a mapping or pairs. The later of two kinds counts; ``broadcast``
            joins whatever kind there is.
        vocabularies: Size of the smallest table that an input indexes, by input name, as
            ``ModelFacts`` tells it; names of other models are ignored.
        samples: Recorded rows.
        highest_id: Largest integer; if given, inputs with a vocabulary keep to it as well.
        seed: Seed of the generator.

    Raises:
        InputError: One of ``values`` is no kind of values.
    """

    rows: int = 1
    batch_dim: str | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Values | str] | Sequence[tuple[str, Values | str]] = ()
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    samples: Samples | None = None
    highest_id: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        pairs = self.values.items() if isinstance(self.values, Mapping) else self.values
        parsed = tuple(
            (pattern, Values.parse(one) if isinstance(one, str) else one) for pattern, one in pairs
        )
        object.__setattr__(self, "values", parsed)

    @property
    def rules(self) -> tuple[tuple[str, Values], ...]:
        """``values`` as pairs of name or pattern and ``Values``, in the order given."""
        return self.values  # type: ignore[return-value]  # __post_init__ has seen to it

    def informed(self, facts: ModelFacts) -> InputProfile:
        """This profile with the vocabularies that the model's bytes tell."""
        return dataclasses.replace(self, vocabularies=dict(facts.vocabularies))

    def make(self, signature: Signature, variant: int = 0, rows: int | None = None) -> Arrays:
        """Inputs that fit the signature; another ``variant`` gives other values.

        Inputs that have a default are made where this profile names them.

        Args:
            signature: What the inputs are for.
            variant: Which inputs; from 0 on.
            rows: Size of the batch dim; ``None`` is the profile's own.

        Raises:
            InputError: The signature leaves a dtype or rank open, a name given in this
                profile is none of its inputs or dims, the samples do not fit, or a number
                is out of range.
        """
        count = self.rows if rows is None else rows
        if self.samples is None:
            return self._filled(signature, variant, count, {})
        self.samples.check(signature, self.batch_dim)
        total = self.samples.rows(signature, self.batch_dim)
        picks = None if total is None else self._picks(total, variant * count, count)
        return self._filled(signature, variant, count, self._drawn(signature, picks))

    def zeros(self, signature: Signature, rows: int | None = None) -> Arrays:
        """Inputs of zeros (false, empty strings), but constants and choices as they are.

        Raises:
            InputError: As for ``make``.
        """
        arrays = self.make(signature, rows=rows)
        for name, array in arrays.items():
            given = self._given(signature.input(name))
            if name in self.constants or (given and given.kind in ("constant", "choice")):
                continue
            filler = "" if array.dtype.kind == "O" else 0
            arrays[name] = np.full(array.shape, filler, array.dtype)
        return arrays

    def batches(self, signature: Signature, rows: int) -> Iterator[Arrays]:
        """All rows of the samples once, in order, ``rows`` at a time; the last may be fewer.

        Nothing of them is broadcast: labels and expected outputs are those of rows as they
        were recorded.

        Raises:
            InputError: There are no samples, or none with a batch axis; as for ``make``.
        """
        total = None
        if self.samples is not None:
            self.samples.check(signature, self.batch_dim)
            total = self.samples.rows(signature, self.batch_dim)
        if total is None:
            raise InputError(
                "there are no rows of samples to go through.",
                fix="Give samples, with rows along the batch axis of the model's inputs.",
            )
        size = max(1, rows)
        for start in range(0, total, size):
            picks = np.arange(start, min(start + size, total))
            drawn = self._drawn(signature, picks)
            yield self._filled(signature, start, len(picks), drawn, is_recorded=True)

    def describe(self, signature: Signature) -> dict[str, str]:
        """What each input gets, and why, in words; for reports.

        Raises:
            InputError: As for ``make``.
        """
        self._check(signature)
        return {spec.name: self._kind(spec)[1] for spec in self._wanted(signature)}

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it; of samples only name and digest."""
        return {
            "rows": self.rows,
            "batch_dim": self.batch_dim,
            "dims": dict(self.dims),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "constants": dict(self.constants),
            "values": [[pattern, str(one)] for pattern, one in self.rules],
            "vocabularies": dict(self.vocabularies),
            "samples": self.samples and {"name": self.samples.name, "sha256": self.samples.sha256},
            "highest_id": self.highest_id,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], samples: Samples | None = None) -> InputProfile:
        """Reads the JSON form.

        Args:
            data: What ``to_dict`` made.
            samples: The samples that it names.

        Raises:
            InputError: It names other samples than are given, or values that are none.
        """
        wanted = data.get("samples")
        named = None if wanted is None else (wanted["name"], wanted["sha256"])
        if (named and named[1]) != (samples and samples.sha256):
            got = "none were given" if samples is None else f"'{samples.name}' is another file"
            raise InputError(
                f"the profile draws from the samples '{named[0]}'; {got}."
                if named
                else "samples were given to a profile without.",
                fix="Pass the same samples as before.",
                wanted=named and named[1],
                got=samples and samples.sha256,
            )
        return cls(
            rows=data["rows"],
            batch_dim=data["batch_dim"],
            dims=dict(data["dims"]),
            shapes={name: tuple(shape) for name, shape in data["shapes"].items()},
            constants=dict(data["constants"]),
            values=tuple((pattern, text) for pattern, text in data["values"]),
            vocabularies=dict(data["vocabularies"]),
            samples=samples,
            highest_id=data["highest_id"],
            seed=data["seed"],
        )

    def _filled(
        self,
        signature: Signature,
        variant: int,
        rows: int,
        drawn: Arrays,
        *,
        is_recorded: bool = False,
    ) -> Arrays:
        """Makes what is not drawn, and repeats what is broadcast, unless drawn rows stay."""
        self._check(signature, rows)
        wanted = self._wanted(signature)
        try:
            sizes = self._sizes(signature, wanted, rows, drawn)
        except ValueError as error:
            raise InputError(
                f"no inputs can be made: {error}",
                fix="Give the shape, or real inputs from a file.",
            ) from error
        axes = signature.batch_axes(self.batch_dim)
        arrays: Arrays = {}
        for spec in wanted:
            kind, _ = self._kind(spec)
            is_drawn = kind is None or kind.kind is None
            repeats = kind is not None and kind.broadcast and not (is_drawn and is_recorded)
            axis = axes.get(spec.name) if repeats else None
            if kind is None or kind.kind is None:
                array = drawn[spec.name]
                if axis is not None:
                    array = array.take(range(min(1, rows)), axis)
            else:
                shape = list(sizes[spec.name])
                if axis is not None:
                    shape[axis] = min(1, rows)
                stream = [self.seed, variant, zlib.crc32(spec.name.encode())]
                array = self._array(spec, kind, tuple(shape), np.random.default_rng(stream))
            arrays[spec.name] = array if axis is None else np.repeat(array, max(1, rows), axis)
        return arrays

    def _check(self, signature: Signature, rows: int = 0) -> None:
        plain = [pattern for pattern, _ in self.rules if not _GLOB & set(pattern)]
        for name in (*self.shapes, *self.constants, *plain):
            if name not in signature.input_names:
                raise InputError(
                    f"the profile names input '{name}', which the signature does not have.",
                    fix=nearest(name, signature.input_names),
                    input=name,
                )
        for pattern, _ in self.rules:
            if pattern in plain or pattern in signature.input_names:
                continue
            if not fnmatch.filter(signature.input_names, pattern):
                raise InputError(
                    f"no input of the signature is called like '{pattern}'.",
                    fix=nearest(pattern, signature.input_names),
                    input=pattern,
                )
        axes = signature.batch_axes(self.batch_dim)
        for name, one in self.rules:
            if one.broadcast and name in plain and name not in axes:
                raise InputError(
                    f"input '{name}' has no batch axis along which one row could be repeated.",
                    fix="Leave out 'broadcast', or name the batch dim.",
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
        numbers = [self.rows, rows, *self.dims.values(), *itertools.chain(*self.shapes.values())]
        if min([*numbers, self.highest_id or 0]) < 0:
            raise InputError(
                "the profile has a negative size or highest id.", fix="Give numbers from 0 on."
            )

    def _wanted(self, signature: Signature) -> tuple[TensorSpec, ...]:
        """The inputs that are made: what the profile names, and what cannot be left out."""
        plain = {pattern for pattern, _ in self.rules}
        sampled = self.samples.arrays if self.samples is not None else {}
        named = {*self.shapes, *self.constants, *plain, *sampled}
        wanted = []
        for spec in signature.inputs:
            if spec.has_default and spec.name not in named:
                continue
            if sampled and spec.name not in named and self._given(spec) is None:
                raise MissingInput(
                    f"the samples lack input '{spec}'.",
                    fix="Add it to the samples, or say what values it gets.",
                    input=spec.name,
                )
            wanted.append(dataclasses.replace(spec, has_default=False))
        return tuple(wanted)

    def _sizes(
        self, signature: Signature, wanted: tuple[TensorSpec, ...], rows: int, drawn: Arrays
    ) -> dict[str, tuple[int, ...]]:
        dims = dict(self.dims)
        for name, array in drawn.items():
            shape = signature.input(name).shape or ()
            sizes = zip(shape, array.shape, strict=False)
            for label, size in sizes:
                if isinstance(label, str) and dims.setdefault(label, size) != size:
                    raise InputError(
                        f"dim '{label}' is {size} in the samples of '{name}' and "
                        f"{dims[label]} in the profile.",
                        fix="Give both the same size, or leave it to the samples.",
                        dim=label,
                    )
        given = {*self.shapes, *drawn}
        rest = Signature(tuple(spec for spec in wanted if spec.name not in given), ())
        found = rest.concrete_shapes(rows, batch_dim=self.batch_dim, dims=dims)
        return {**found, **self.shapes}

    def _given(self, spec: TensorSpec) -> Values | None:
        """What the rules say, all together."""
        found: Values | None = None
        for pattern, one in self.rules:
            if pattern == spec.name or fnmatch.fnmatchcase(spec.name, pattern):
                found = one.over(found)
        return found

    def _kind(self, spec: TensorSpec) -> tuple[Values | None, str]:
        """What an input gets, and why; no kind where rows of the samples are drawn.

        What it gets has no kind either if it is broadcast from such rows.
        """
        given = self._given(spec)
        if given is not None and given.kind is not None:
            return given, f"{given} (given)"
        base: Values | None
        if spec.name in self.constants:
            base = Values("constant", {"value": self.constants[spec.name]})
            why = "given"
        elif self.samples is not None and spec.name in self.samples.arrays:
            base, why = None, f"rows of '{self.samples.name}', in random order"
        else:
            base, why = self._default(spec)
        if given is None:
            return base, why if base is None else f"{base} ({why})"
        if base is None:
            return given, f"one row repeated, of the {why}"
        return given.over(base), f"{given.over(base)} ({why}; broadcast as given)"

    def _default(self, spec: TensorSpec) -> tuple[Values, str]:
        kind = spec.dtype
        if kind is None:
            raise InputError(
                f"no values can be made for input '{spec.name}': its dtype is unknown.",
                fix="Give real inputs from a file, or declare the signature.",
                input=spec.name,
            )
        if kind is DType.STRING:
            return Values("choice", choices=_WORDS), "default"
        if kind is DType.BOOL:
            return Values("bernoulli"), "default"
        size = self.vocabularies.get(spec.name)
        if size and self.highest_id is None:
            if kind.is_integer:
                size = min(size, kind.bounds[1] + 1)
            why = f"inferred from a table of {self.vocabularies[spec.name]} rows"
            return Values("zipf", {"vocab": size}), why
        if kind.is_integer:
            highest = DEFAULT_HIGHEST_ID if self.highest_id is None else self.highest_id
            why = "default: no table is known" if self.highest_id is None else "highest id given"
            return Values("ids", {"vocab": min(highest, kind.bounds[1]) + 1}), why
        return Values("normal"), "default"

    def _array(
        self,
        spec: TensorSpec,
        kind: Values,
        shape: tuple[int, ...],
        generator: np.random.Generator,
    ) -> npt.NDArray[Any]:
        if spec.dtype is None:
            raise InputError(
                f"no values can be made for input '{spec.name}': its dtype is unknown.",
                fix="Give real inputs from a file, or declare the signature.",
                input=spec.name,
            )
        return kind.make(spec.name, spec.dtype, shape, generator)

    def _picks(self, total: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """Row numbers: each pass over the rows has an order of its own."""
        pieces = [np.empty(0, np.int64)]
        position, end = start, start + count
        while position < end:
            turn, first = divmod(position, total)
            order = np.random.default_rng([self.seed, turn]).permutation(total)
            pieces.append(order[first : first + end - position])
            position += len(pieces[-1])
        return np.concatenate(pieces)

    def _drawn(self, signature: Signature, picks: npt.NDArray[np.int64] | None) -> Arrays:
        if self.samples is None:
            return {}
        axes = signature.batch_axes(self.batch_dim)
        drawn: Arrays = {}
        for name, array in self.samples.arrays.items():
            given = self._given(signature.input(name))
            if name in self.constants or (given is not None and given.kind is not None):
                continue
            axis = axes.get(name) if picks is not None else None
            drawn[name] = array if axis is None else array.take(picks, axis)  # type: ignore[arg-type]
        return drawn
