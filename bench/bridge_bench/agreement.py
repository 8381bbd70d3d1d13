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

__all__ = ["Agreement", "agreement", "match_inputs", "match_outputs"]


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


def agreement(
    output: str,
    reference: npt.NDArray[Any],
    other_name: str | None,
    other: npt.NDArray[Any] | None,
) -> Agreement:
    """Compares one output; nothing is cast or broadcast to make it fit."""
    if other is None or other_name is None:
        return Agreement(output, None, problem="no output could be matched with it")
    if other.dtype != reference.dtype:
        return Agreement(output, other_name, problem=f"dtype {other.dtype}, not {reference.dtype}")
    if other.shape != reference.shape:
        return Agreement(output, other_name, problem=f"shape {other.shape}, not {reference.shape}")
    if reference.dtype.kind in "OSU":
        differing = int(np.sum(reference != other))
        problem = f"{differing} of {reference.size} strings differ" if differing else None
        return Agreement(output, other_name, tolerance=None if differing else 0.0, problem=problem)
    wanted = reference.astype(np.complex128 if reference.dtype.kind == "c" else np.float64)
    got = other.astype(wanted.dtype)
    is_finite = np.isfinite(wanted) & np.isfinite(got)
    same_odd = (np.isnan(wanted) & np.isnan(got)) | (wanted == got)
    has_odd = bool(np.any(~is_finite & ~same_odd))
    left, right = got[is_finite], wanted[is_finite]
    if reference.dtype.kind in "iu":
        # In float64, large ids that differ by little would look equal.
        high, low = np.maximum(other, reference), np.minimum(other, reference)
        difference = (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64).ravel()
    else:
        difference = np.abs(left - right)
    size = np.abs(right)
    nonzero = size > 0
    norms = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    dot = float(np.real(np.vdot(right, left)))
    largest = float(difference.max(initial=0.0))
    return Agreement(
        output,
        other_name,
        max_abs=float("inf") if has_odd else largest,
        max_rel=float("inf")
        if has_odd
        else float((difference[nonzero] / size[nonzero]).max(initial=0.0)),
        cosine=dot / norms if norms else (1.0 if largest == 0 else 0.0),
        tolerance=float("inf") if has_odd else float((difference / (1 + size)).max(initial=0.0)),
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
