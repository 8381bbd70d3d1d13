"""Optimisation profiles: the shapes that an engine is built for, from options.

A dim that changes from call to call needs a range: the smallest size, the one to tune
for, the largest. Dim 0 of an input, if it is dynamic, counts rows and takes its range
from ``batch``, or several ranges from ``buckets``; every other dynamic dim must be named
in ``dims``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.errors import OptionError, nearest
from bridge.signature import TensorSpec
from bridge_tensorrt.options import EngineOptions

__all__ = ["DEFAULT_BATCH", "Profile", "Range", "Shape", "make_profiles"]

Shape: TypeAlias = tuple[int, ...]
Range: TypeAlias = tuple[Shape, Shape, Shape]

DEFAULT_BATCH = ("1", "16", "128")


@dataclass(frozen=True)
class Profile:
    """One optimisation profile; each range is (smallest, tuned for, largest).

    Attributes:
        shapes: Shapes of inputs with dynamic dims.
        values: Values of inputs that hold shapes.
    """

    shapes: dict[str, Range]
    values: dict[str, Range]

    def to_dict(self) -> dict[str, dict[str, list[int]]]:
        """JSON form."""
        names = ("min", "opt", "max")
        both = {**self.shapes, **self.values}
        return {
            name: {word: list(shape) for word, shape in zip(names, group, strict=True)}
            for name, group in both.items()
        }


def make_profiles(
    inputs: Sequence[TensorSpec], options: EngineOptions, holding_shapes: Sequence[str] = ()
) -> tuple[Profile, ...]:
    """One profile for each range of rows or bucket; none where every shape is fixed.

    Args:
        inputs: Inputs of the network, ``None`` and names for dynamic dims.
        options: The ranges.
        holding_shapes: Names of the inputs whose values are shapes.

    Raises:
        OptionError: A range is malformed, names nothing, or is missing.
    """
    batches = _batches(options)
    stated = _stated(inputs, options.dims)
    values = _values(options.values, holding_shapes)
    dynamic = [spec for spec in inputs if any(not isinstance(dim, int) for dim in spec.shape or ())]
    rows = {
        dim
        for spec in dynamic
        for dim in (spec.shape or ())[:1]
        if isinstance(dim, str) and dim not in stated
    }
    uses_batch = bool(rows) or any(
        spec.shape and spec.shape[0] is None and spec.name not in stated for spec in dynamic
    )
    given = "buckets" if options.buckets is not None else "batch"
    if not uses_batch and (options.batch is not None or options.buckets is not None):
        raise OptionError(
            f"option '{given}' has no effect: no input has a dynamic dim 0 left to it.",
            fix="Leave it out.",
            rule="batches-of-fixed-rows",
            option=given,
        )
    if not dynamic and not values:
        return ()
    return tuple(
        Profile({spec.name: _range_of(spec, stated, rows, batch) for spec in dynamic}, values)
        for batch in (batches if uses_batch else batches[:1])
    )


def _range_of(
    spec: TensorSpec, stated: dict[str, Range], rows: set[str], batch: tuple[int, int, int]
) -> Range:
    if spec.name in stated:
        return stated[spec.name]
    columns: list[tuple[int, int, int]] = []
    for axis, dim in enumerate(spec.shape or ()):
        if isinstance(dim, int):
            columns.append((dim, dim, dim))
        elif dim is not None and dim in stated:
            low, best, high = stated[dim]
            columns.append((low[0], best[0], high[0]))
        elif axis == 0 or dim in rows:
            columns.append(batch)
        else:
            # A name can be ranged alone; a dim without one only with its whole shape.
            shown = "x".join(
                "1" if not isinstance(one, int) else str(one) for one in spec.shape or ()
            )
            example = f"{dim}=1:16:128" if dim else f"{spec.name}={shown}:{shown}:{shown}"
            raise OptionError(
                f"input '{spec.name}' {spec.shape_text} changes in dim {axis}, for which no range "
                "is given.",
                fix=f"Add one to the option dims, such as dims='{example}'.",
                rule="range-missing",
                option="dims",
                input=spec.name,
                axis=axis,
            )
    low_shape, best_shape, high_shape = (tuple(column[at] for column in columns) for at in range(3))
    return low_shape, best_shape, high_shape


def _batches(options: EngineOptions) -> list[tuple[int, int, int]]:
    """Ranges of rows: smallest, tuned for, largest."""
    if options.buckets is None:
        pieces = _batch_pieces(options.batch or DEFAULT_BATCH)
        return [_numbers(piece, "batch") for piece in pieces]
    texts = [text.strip() for text in options.buckets]
    if not texts or not all(text.isdecimal() and 0 < int(text) < 2**31 for text in texts):
        raise OptionError(
            f"option 'buckets' holds '{','.join(texts)}'; wanted sizes of batches of at least 1.",
            fix="Write for example buckets=1,16,128.",
            rule="malformed-range",
            option="buckets",
        )
    sizes = [int(text) for text in texts]
    if any(size <= before for before, size in itertools.pairwise(sizes)):
        raise OptionError(
            f"option 'buckets' holds '{','.join(texts)}'; wanted each size once, the smallest "
            "first.",
            fix=f"Write buckets={','.join(str(size) for size in sorted(set(sizes)))}.",
            rule="descending-range",
            option="buckets",
        )
    below = [1, *(size + 1 for size in sizes[:-1])]
    return [(low, size, size) for low, size in zip(below, sizes, strict=True)]


def _batch_pieces(pieces: tuple[str, ...]) -> list[str]:
    if all(piece.strip().isdecimal() for piece in pieces) and len(pieces) != 1:
        if len(pieces) != 3:
            raise OptionError(
                f"option 'batch' has {len(pieces)} numbers, '{','.join(pieces)}'; wanted "
                "min,opt,max.",
                fix="Write for example batch=1,16,128, or several ranges as batch=1:1:1,2:64:512.",
                rule="malformed-range",
                option="batch",
            )
        return [":".join(pieces)]
    return list(pieces)


def _numbers(text: str, option: str) -> tuple[int, int, int]:
    parts = [part.strip() for part in text.split(":")]
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3 or not all(part.isdecimal() and int(part) < 2**31 for part in parts):
        raise OptionError(
            f"option '{option}' holds '{text}'; wanted min:opt:max or one number.",
            fix="Write for example 1:16:128.",
            rule="malformed-range",
            option=option,
            value=text,
        )
    low, best, high = (int(part) for part in parts)
    if not 1 <= low <= best <= high:
        raise OptionError(
            f"option '{option}' holds '{text}'; wanted 1 <= min <= opt <= max.",
            fix="Put the smallest size first, then the one to tune for, then the largest.",
            rule="descending-range",
            option=option,
            value=text,
        )
    return low, best, high


def _stated(inputs: Sequence[TensorSpec], entries: tuple[str, ...]) -> dict[str, Range]:
    """Ranges of the option ``dims``: of whole inputs, and of named dims (as rank 1)."""
    specs = {spec.name: spec for spec in inputs}
    named = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    found: dict[str, Range] = {}
    for entry in entries:
        name, text = _entry(entry, "dims")
        if name in specs:
            found[name] = _shapes(specs[name], text)
        elif name in named:
            low, best, high = _numbers(text, "dims")
            found[name] = (low,), (best,), (high,)
        else:
            raise OptionError(
                f"option 'dims' names '{name}', which is neither an input nor a named dim.",
                fix=nearest(name, named | set(specs)),
                rule="unknown-dim",
                option="dims",
                valid=sorted(named | set(specs)),
            )
    return found


def _shapes(spec: TensorSpec, text: str) -> Range:
    shapes = _triple(text, "dims")
    wanted = spec.shape or ()
    for shape in shapes:
        fits = len(shape) == len(wanted) and all(
            size == dim if isinstance(dim, int) else size >= 1
            for size, dim in zip(shape, wanted, strict=False)
        )
        if not fits:
            raise OptionError(
                f"option 'dims' gives input '{spec.name}' the shape {shape}; the model has "
                f"{spec.shape_text}.",
                fix="Repeat the fixed dims as they are, and give the others a size of at least 1.",
                rule="shape-mismatch",
                option="dims",
                input=spec.name,
            )
    _ascending(shapes, text, "dims")
    return shapes


def _values(entries: tuple[str, ...], wanted: Sequence[str]) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for entry in entries:
        name, text = _entry(entry, "values")
        if name not in wanted:
            raise OptionError(
                f"option 'values' names '{name}', which is no input that holds a shape.",
                fix=nearest(name, wanted) if wanted else "Leave it out.",
                rule="unknown-values",
                option="values",
            )
        found[name] = _triple(text, "values")
        _ascending(found[name], text, "values")
    for name in wanted:
        if name not in found:
            raise OptionError(
                f"the values of input '{name}' decide a shape, and no range is given for them.",
                fix=f"Add one, such as values='{name}=1:8:64'.",
                rule="range-missing",
                option="values",
                input=name,
            )
    return found


def _entry(entry: str, option: str) -> tuple[str, str]:
    # Input names may hold '=' and ':' themselves: the last '=' is ours.
    name, sign, text = entry.rpartition("=")
    if not sign or not name.strip():
        raise OptionError(
            f"option '{option}' holds '{entry}'; wanted NAME=RANGE.",
            fix="Write for example T=1:50:200 or x=1x16:8x16:64x16.",
            rule="malformed-range",
            option=option,
            value=entry,
        )
    return name.strip(), text


def _triple(text: str, option: str) -> Range:
    groups = [group.split("x") for group in text.split(":")]
    if len(groups) == 1:
        groups *= 3
    parts = [part.strip() for group in groups for part in group]
    if len(groups) != 3 or not all(part.isdecimal() and int(part) < 2**31 for part in parts):
        raise OptionError(
            f"option '{option}' holds '{text}'; wanted three shapes, or one.",
            fix="Write for example 1x16:8x16:64x16.",
            rule="malformed-range",
            option=option,
            value=text,
        )
    low, best, high = (tuple(int(part) for part in group) for group in groups)
    return low, best, high


def _ascending(shapes: Range, text: str, option: str) -> None:
    low, best, high = shapes
    is_sorted = len(low) == len(best) == len(high) and all(
        a <= b <= c for a, b, c in zip(low, best, high, strict=True)
    )
    if not is_sorted:
        raise OptionError(
            f"option '{option}' holds '{text}'; wanted min <= opt <= max in every place.",
            fix="Put the smallest shape first, then the one to tune for, then the largest.",
            rule="descending-range",
            option=option,
            value=text,
        )
