"""Do two predictors of one network agree, output by output, and how closely?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.errors import InputError, nearest
from bridge.signature import Signature, TensorSpec

__all__ = [
    "Agreement",
    "Differences",
    "agreement",
    "differences",
    "match_inputs",
    "match_outputs",
    "misfit",
]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one output compares with the same output of the reference.

    Attributes:
        output: Name in the reference.
        other: Name in the other predictor; ``None`` if no output could be matched.
        max_abs: Largest absolute difference; ``None`` where numbers cannot be compared.
        max_rel: Largest difference relative to a reference value that is not zero.
        cosine: Cosine of the angle between the two, seen as vectors.
        tolerance: Smallest t for which ``|a - b| <= t + t * |b|`` holds everywhere:
            what ``numpy.allclose(a, b, rtol=t, atol=t)`` would need. Infinite where one
            has a NaN or infinity that the other has not.
        problem: What differs besides values: dtype, shape, no match.
    """

    output: str
    other: str | None
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    tolerance: float | None = None
    problem: str | None = None

    def passes(self, tolerance: float) -> bool:
        """Whether the outputs agree within a tolerance."""
        return self.problem is None and self.tolerance is not None and self.tolerance <= tolerance


@dataclass(frozen=True, slots=True)
class Differences:
    """Two arrays of numbers of one shape, element by element.

    Attributes:
        absolute: ``|y - r|`` in float64, exact for integers; 0 where both are the same
            infinity or both NaN, infinite where only one is finite or they otherwise differ.
        size: ``|r|``, 0 where it is not finite.
        has_odd: Whether a NaN or infinity of one has no counterpart in the other.
        cosine: Cosine of the angle between the two as vectors of their finite elements;
            ``None`` where one of them is zero.
    """

    absolute: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]
    has_odd: bool
    cosine: float | None

    @property
    def max_abs(self) -> float:
        """Largest absolute difference; 0 for empty arrays."""
        return float(self.absolute.max(initial=0.0))

    @property
    def max_rel(self) -> float:
        """Largest difference relative to a reference value that is not zero."""
        if self.has_odd:
            return float("inf")
        counts = self.size > 0
        # Values below the normal range may overflow the quotient, which is then infinite.
        with np.errstate(over="ignore"):
            return float((self.absolute[counts] / self.size[counts]).max(initial=0.0))


def misfit(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> str | None:
    """What differs besides values: dtype or shape; nothing is cast or broadcast."""
    if other.dtype != reference.dtype and not _is_text(reference, other):
        return f"dtype {other.dtype}, not {reference.dtype}"
    if other.shape != reference.shape:
        return f"shape {other.shape}, not {reference.shape}"
    return None


def differences(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> Differences:
    """Compares two arrays of numbers that have no ``misfit``."""
    wanted = reference.astype(np.complex128 if reference.dtype.kind == "c" else np.float64)
    got = other.astype(wanted.dtype)
    is_finite = np.isfinite(wanted) & np.isfinite(got)
    same_odd = (np.isnan(wanted) & np.isnan(got)) | (wanted == got)
    is_odd = ~is_finite & ~same_odd
    absolute = np.zeros(wanted.shape, np.float64)
    if reference.dtype.kind in "iu":
        # In float64, large ids that differ by little would look equal.
        high, low = np.maximum(other, reference), np.minimum(other, reference)
        absolute[...] = high.astype(np.uint64) - low.astype(np.uint64)
    else:
        with np.errstate(over="ignore"):
            absolute[is_finite] = np.abs(got[is_finite] - wanted[is_finite])
        absolute[is_odd] = np.inf
    size = np.where(np.isfinite(wanted), np.abs(wanted), 0.0)
    return Differences(
        absolute, size, bool(is_odd.any()), _cosine(wanted[is_finite], got[is_finite])
    )


def _cosine(right: npt.NDArray[Any], left: npt.NDArray[Any]) -> float | None:
    peaks = [float(np.abs(one).max(initial=0.0)) for one in (left, right)]
    if 0.0 in peaks or not np.all(np.isfinite(peaks)):
        return None
    # Scaled, as the squares of very large or small values leave the range.
    left, right = left / peaks[0], right / peaks[1]
    norms = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    return max(-1.0, min(1.0, float(np.real(np.vdot(right, left))) / norms))


def _is_text(*arrays: npt.NDArray[Any]) -> bool:
    return all(array.dtype.kind in "OSUT" for array in arrays)


def agreement(
    output: str,
    reference: npt.NDArray[Any],
    other_name: str | None,
    other: npt.NDArray[Any] | None,
) -> Agreement:
    """Compares one output; nothing is cast or broadcast to make it fit."""
    if other is None or other_name is None:
        return Agreement(output, None, problem="no output could be matched with it")
    problem = misfit(reference, other)
    if problem is not None:
        return Agreement(output, other_name, problem=problem)
    if _is_text(reference, other):
        differing = int(np.sum(reference != other))
        problem = f"{differing} of {reference.size} strings differ" if differing else None
        return Agreement(output, other_name, tolerance=None if differing else 0.0, problem=problem)
    found = differences(reference, other)
    cosine = found.cosine
    return Agreement(
        output,
        other_name,
        max_abs=found.max_abs,
        max_rel=found.max_rel,
        cosine=cosine if cosine is not None else float(found.max_abs == 0),
        tolerance=float((found.absolute / (1 + found.size)).max(initial=0.0)),
    )


def match_inputs(
    reference: Signature, other: Signature, given: Collection[str] | None = None
) -> dict[str, str]:
    """For each input of ``other``, the reference's input that feeds it.

    By name, then by native tensor name, then by unique dtype and rank. Inputs of
    ``other`` that have a default are only fed where they have a counterpart.

    Args:
        reference: Signature that the inputs were made for.
        other: Signature to feed.
        given: Names of the reference's inputs that have values; ``None`` means the
            required ones.

    Raises:
        InputError: An input has no counterpart.
    """

    def could_be(one: TensorSpec, source: TensorSpec) -> bool:
        same_dtype = one.dtype is None or source.dtype is None or one.dtype is source.dtype
        unknown = one.shape is None or source.shape is None
        return same_dtype and (unknown or len(one.shape or ()) == len(source.shape or ()))

    names = [spec.name for spec in reference.required] if given is None else given
    offered = [spec for spec in reference.inputs if spec.name in names]
    found = _match(other.required, offered, could_be)
    for spec in other.required:
        if spec.name not in found:
            raise InputError(
                f"input '{spec}' has no counterpart in the inputs given to the reference: "
                f"{', '.join(names)}.",
                fix=nearest(spec.name, names),
                input=spec.name,
            )
    defaults = [spec for spec in other.inputs if spec.has_default]
    left = [spec for spec in offered if spec.name not in found.values()]
    found |= _match(defaults, left, could_be)
    return found


def match_outputs(
    reference: Signature,
    other: Signature,
    results: Arrays,
    other_results: Arrays,
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """For each output of the reference, the other's name for it.

    As given (where ``other`` has that name, or lacks the reference's), then by name, by
    native tensor name, by unique dtype and shape of the results; never by position.

    Raises:
        InputError: ``given`` names an output that does not exist.
    """
    pairs = dict(given or {})
    for ours, theirs in given.items() if given else ():
        if theirs not in other.output_names and ours in other.output_names:
            del pairs[ours]  # this one calls it as the reference does
            continue
        for name, valid in ((ours, reference.output_names), (theirs, other.output_names)):
            if name not in valid:
                raise InputError(
                    f"the map names output '{name}', which is not there.",
                    fix=nearest(name, valid),
                    output=name,
                )

    def could_be(one: TensorSpec, theirs: TensorSpec) -> bool:
        mine, other = results[one.name], other_results[theirs.name]
        return mine.dtype == other.dtype and mine.shape == other.shape

    left = [spec for spec in reference.outputs if spec.name not in pairs]
    right = [spec for spec in other.outputs if spec.name not in pairs.values()]
    return {**pairs, **_match(left, right, could_be)}


def _match(
    wanted: Sequence[TensorSpec],
    offered: Sequence[TensorSpec],
    could_be: Callable[[TensorSpec, TensorSpec], bool],
) -> dict[str, str]:
    """Pairs by name, then by native name, then where exactly one pair is possible."""
    found: dict[str, str] = {}
    free = list(offered)

    def pair(one: TensorSpec, other: TensorSpec) -> None:
        found[one.name] = other.name
        free.remove(other)

    for tells_names in (_user_name, _all_names):
        for spec in wanted:
            if spec.name not in found:
                named = [one for one in free if tells_names(one) & tells_names(spec)]
                if len(named) == 1:
                    pair(spec, named[0])
    left = [spec for spec in wanted if spec.name not in found]
    possible = [(spec, one) for spec in left for one in free if could_be(spec, one)]
    for spec, one in possible:
        rivals = [pair_ for pair_ in possible if pair_[0] is spec or pair_[1] is one]
        if len(rivals) == 1:
            pair(spec, one)
    return found


def _user_name(spec: TensorSpec) -> set[str]:
    return {spec.name}


def _all_names(spec: TensorSpec) -> set[str]:
    return {spec.name} if spec.native_name is None else {spec.name, spec.native_name}
