"""Whether a converted model computes what its source computes.

Both run on generated inputs, each in a process of its own on the backend native to its
format: two sizes of the dim that counts rows, and two of other free dims where there are
some, two draws each. Floats are drawn from a normal distribution, whole numbers from the
ids of the table that they index where the model tells it, else from 0 and 1. Sets that the
source itself does not take are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.device import CPU
from bridge.dtypes import DType
from bridge.errors import (
    BridgeError,
    ConversionError,
    DeviceUnavailable,
    InputError,
    OptionError,
    OutOfMemory,
    PredictError,
    PredictTimeout,
    WorkerDied,
)
from bridge.isolation import Worker
from bridge.model import ModelRef
from bridge.registry import registry
from bridge.routes import held_format, runners
from bridge.signature import Signature

__all__ = [
    "STRICT",
    "Difference",
    "Proof",
    "difference",
    "digest",
    "find_runner",
    "generated",
    "require",
    "verify",
]

STRICT = (1e-5, 1e-4)
"""``(atol, rtol)``: float32 sums in another order, over some thousand terms."""

_SIZES = ((1, 1), (4, 1), (4, 6))
"""Rows, and what other free dims get: a size that a converter has frozen shows."""
_DRAWS = 2
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Difference:
    """One output of the result against that of the source, the worst over all calls.

    Attributes:
        output: Its name in the source.
        max_abs: Largest absolute difference.
        excess: Largest difference as a multiple of what is allowed: at most 1 passes.
            Infinite where one has a NaN or infinity that the other has not.
    """

    output: str
    max_abs: float
    excess: float


@dataclass(frozen=True)
class Proof:
    """How a converted model compares with its source.

    Attributes:
        is_equal: It computes the same within the tolerance; ``None`` if it could not be run.
        reason: Why it could not be run; empty otherwise.
        backends: What ran source and result.
        calls: Sets of inputs.
        differences: One for each output.
        changes: Sentences about inputs and outputs whose dtype or dims are others.
    """

    is_equal: bool | None
    reason: str = ""
    backends: tuple[str, str] = ("", "")
    calls: int = 0
    differences: tuple[Difference, ...] = ()
    changes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Proof:
        """Reads the JSON form."""
        return cls(
            **{
                **data,
                "backends": tuple(data["backends"]),
                "differences": tuple(Difference(**one) for one in data["differences"]),
                "changes": tuple(data["changes"]),
            }
        )


def verify(
    source: ModelRef,
    made: Path,
    target: str,
    *,
    is_code: bool = False,
    renamed: Mapping[str, str] | None = None,
    broadcast: Collection[str] = (),
    inputs: Sequence[Arrays] | None = None,
    tolerance: tuple[float, float] | None = STRICT,
    timeout_s: float | None = None,
) -> tuple[Proof, Signature | None]:
    """Runs a converted model beside its source.

    Args:
        source: The model that was converted.
        made: The result.
        target: Name of its format.
        is_code: It is native code that was just made, which may be loaded.
        renamed: Names of the source -> names of the result, where they differ.
        broadcast: Inputs of the source of which the result takes one row for all: the source
            gets the first row as often as there are rows.
        inputs: Sets of inputs; ``None`` makes some up.
        tolerance: ``(atol, rtol)`` of floats; whole numbers, booleans and strings have to
            be equal. ``None`` refuses no difference, and tells it against ``STRICT``: what
            reduced precision may cost, a gate decides.
        timeout_s: Deadline of each load and call.

    Returns:
        The proof, and the source's signature where it was loaded.

    Raises:
        BackendUnavailable: The source's native backend is not installed.
        ConversionError: The result does not load or run, or computes something else;
            ``detail["differences"]`` has the figures.
    """
    runner = find_runner(target)
    if runner is None:
        return Proof(None, f"no backend can run {target} here"), None
    limit_s = timeout_s or _TIMEOUT_S
    native = source.format.native_backend
    if _is_out_of_reach(native):
        return Proof(None, f"{native}, which runs the source, is not here"), None
    signature, sets, wanted = _answers(source, native, inputs, broadcast, limit_s)
    names = dict(renamed or {})
    given = [
        {
            names.get(name, name): array[:1] if name in broadcast else array
            for name, array in one.items()
        }
        for one in sets
    ]
    results = []
    try:
        with Worker() as worker:
            loaded = worker.load(
                made,
                backend=runner,
                signature=signature if is_code else None,
                trust=is_code or source.trust,
                timeout_s=limit_s,
            )
            taken = set(loaded.signature.input_names)
            for one in given:
                fed = {name: array for name, array in one.items() if name in taken}
                results.append(worker.predict(fed, timeout_s=limit_s)[0])
    except DeviceUnavailable as error:
        return Proof(None, error.message), signature
    except BridgeError as error:
        raise ConversionError(
            f"the converted model does not run on {runner}: {error.message}",
            fix="Try another route, or look at the model with --no-verify.",
            model=source.name,
            **error.detail,
        ) from error
    differences = [
        difference(spec.name, names.get(spec.name, spec.name), wanted, results, tolerance or STRICT)
        for spec in signature.outputs
    ]
    found = Proof(
        all(one.excess <= 1 for one in differences),
        backends=(native, runner),
        calls=len(sets),
        differences=tuple(differences),
        changes=_changes(signature, loaded.signature, names),
    )
    if not found.is_equal and tolerance is not None:
        worst = max(differences, key=lambda one: one.excess)
        raise ConversionError(
            f"the converted model computes something else: output '{worst.output}' is off by "
            f"{worst.max_abs:.3g}, {worst.excess:.3g} times what is allowed.",
            fix="Try another route; --no-verify keeps the result all the same.",
            model=source.name,
            differences=[asdict(one) for one in differences],
        )
    return found, signature


def require(inputs: Sequence[Arrays] | None, tolerance: tuple[float, float] | None) -> None:
    """Raises ``OptionError`` for inputs or a tolerance by which nothing can be compared."""
    if inputs is not None and not inputs:
        raise OptionError(
            "there is no set of inputs to verify with.",
            fix="Pass one at least, or leave inputs= out, so that some are made up.",
            option="inputs",
        )
    if tolerance is not None and not all(0 <= one < math.inf for one in tolerance):
        raise OptionError(
            f"a tolerance is two finite numbers of at least 0, atol and rtol; got {tolerance}.",
            fix="Give for example (1e-5, 1e-4), or leave it out.",
            option="tolerance",
            value=tolerance,
        )


def generated(
    signature: Signature, vocabularies: Mapping[str, int] | None = None, *, seed: int = 0
) -> list[Arrays]:
    """Sets of inputs that fit a signature; equal for equal arguments.

    Args:
        signature: With dtype and shape of every required input.
        vocabularies: Rows of the table that an input indexes, by input.
        seed: Where randomness starts.

    Raises:
        ConversionError: A dtype or shape is not known.
    """
    random = np.random.default_rng(seed)
    known = vocabularies or {}
    try:
        shapes = [_shapes(signature, *sizes) for sizes in _SIZES]
        shapes = [one for index, one in enumerate(shapes) if one not in shapes[:index]]
        return [
            {
                name: _drawn(signature.input(name).dtype, shape, known.get(name, 2), random)
                for name, shape in one.items()
            }
            for one in shapes
            for _ in range(_DRAWS)
        ]
    except ValueError as error:
        raise ConversionError(
            f"no inputs can be made to verify with: {error}",
            fix="State the signature, pass inputs=, or leave verifying out.",
        ) from error


def digest(inputs: Sequence[Arrays]) -> str:
    """SHA-256 over sets of inputs."""
    found = hashlib.sha256()
    for one in inputs:
        for name in sorted(one):
            array = np.ascontiguousarray(one[name])
            found.update(repr((name, array.dtype.str, array.shape)).encode())
            found.update(
                repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            )
    return found.hexdigest()


def _is_out_of_reach(native: str) -> bool:
    """Whether a backend is missing for good: there is nothing that everybody could install."""
    backend = next((one for one in registry().backends if one.name == native), None)
    return backend is not None and not backend.is_public and not backend.probe().installed


def _answers(
    source: ModelRef,
    native: str,
    inputs: Sequence[Arrays] | None,
    broadcast: Collection[str],
    limit_s: float,
) -> tuple[Signature, Sequence[Arrays], list[Arrays]]:
    """The source's signature, the inputs, and what it answers."""
    with Worker() as worker:
        loaded = worker.load(
            source.file,
            backend=native,
            signature=source.declared or source.signature_key,
            trust=source.trust,
            timeout_s=limit_s,
        )
        sets = inputs
        if sets is None:
            sets = generated(loaded.signature, source.facts.vocabularies)
        sets = [_of_one_row(one, broadcast) for one in sets]
        taken, answers = [], []
        failure: BridgeError | None = None
        for one in sets:
            try:
                answers.append(worker.predict(one, timeout_s=limit_s)[0])
                taken.append(one)
            except (WorkerDied, PredictTimeout) as error:
                failure = error
                break
            except (PredictError, InputError, OutOfMemory) as error:
                failure = error
    if failure is not None and (inputs is not None or not taken):
        raise ConversionError(
            f"the source itself fails on the inputs to verify with: {failure.message}",
            fix="Pass inputs that it takes, or leave verifying out (--no-verify).",
            model=source.name,
        ) from failure
    return loaded.signature, taken, answers


def _of_one_row(given: Arrays, names: Collection[str]) -> Arrays:
    """The same inputs, of which some repeat their first row."""
    return {
        name: np.repeat(array[:1], len(array), axis=0) if name in names else array
        for name, array in given.items()
    }


def find_runner(target: str) -> str | None:
    """Name of the backend that runs a format on this machine's CPU: the native one, if it can."""
    native = {one.name: one.native_backend for one in registry().formats}.get(target)
    able = [
        one.name
        for one in runners(target)
        if one.probe().installed
        and held_format(target) in one.capabilities(CPU).formats
        and one.capabilities(CPU).predicts
    ]
    return native if native in able else next(iter(able), None)


def _shapes(signature: Signature, rows: int, others: int) -> dict[str, tuple[int, ...]]:
    axes = signature.batch_axes()
    counts = {(signature.input(name).shape or ())[axis] for name, axis in axes.items()} - {None}
    found = {}
    for name, shape in signature.concrete_shapes(rows).items():
        dims = signature.input(name).shape or ()
        found[name] = tuple(
            size if isinstance(dim, int) or dim in counts or axes.get(name) == axis else others
            for axis, (dim, size) in enumerate(zip(dims, shape, strict=True))
        )
    return found


def _drawn(
    dtype: DType | None, shape: tuple[int, ...], vocabulary: int, random: np.random.Generator
) -> npt.NDArray[Any]:
    if dtype is None:
        raise ValueError("an input has no known dtype.")
    if dtype is DType.STRING:
        texts = np.empty(shape, object)
        texts.ravel()[:] = random.choice(["a", "b"], math.prod(shape)).tolist()
        return texts
    if dtype is DType.BOOL:
        return random.random(shape) < 0.5
    if dtype.is_integer:
        top = max(1, min(vocabulary, int(dtype.bounds[1])))
        return random.integers(0, top, shape).astype(dtype.numpy)
    numbers = random.standard_normal(shape, np.float32)
    return np.asarray(numbers).astype(dtype.numpy)


def difference(
    name: str,
    other: str,
    wanted: Sequence[Arrays],
    results: Sequence[Arrays],
    tolerance: tuple[float, float],
) -> Difference:
    """The worst difference of one output over some calls.

    Args:
        name: Its name in the source.
        other: Its name in the result.
        wanted: What the source answers, call by call.
        results: What the result answers.
        tolerance: ``(atol, rtol)`` of floats.

    Raises:
        ConversionError: The result lacks it, or has it in another dtype or shape.
    """
    worst = Difference(name, 0.0, 0.0)
    for right, made in zip(wanted, results, strict=True):
        if other not in made:
            raise ConversionError(
                f"the converted model has no output '{other}'; it has {', '.join(made)}.",
                fix="Try another route.",
                output=name,
            )
        expected, got = right[name], made[other]
        if expected.shape != got.shape or expected.dtype != got.dtype:
            raise ConversionError(
                f"output '{name}' is {got.dtype} {got.shape} in the converted model; wanted "
                f"{expected.dtype} {expected.shape}.",
                fix="Try another route.",
                output=name,
            )
        found = _compared(name, expected, got, tolerance)
        worst = max(worst, found, key=lambda one: one.excess)
    return worst


def _compared(
    name: str, expected: npt.NDArray[Any], got: npt.NDArray[Any], tolerance: tuple[float, float]
) -> Difference:
    if expected.dtype.kind in "OSUTb":
        is_same = bool(np.all(expected == got))
        return Difference(name, 0.0 if is_same else 1.0, 0.0 if is_same else math.inf)
    if expected.dtype.kind in "iu":
        high, low = np.maximum(expected, got), np.minimum(expected, got)
        most = float((high.astype(object) - low.astype(object)).max()) if high.size else 0.0
        return Difference(name, most, math.inf if most else 0.0)
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    left, right = expected.astype(kind), got.astype(kind)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        absolute = np.where(same, 0.0, np.abs(left - right))
    absolute = np.where(np.isfinite(absolute), absolute, np.inf)
    allowed = tolerance[0] + tolerance[1] * np.where(np.isfinite(left), np.abs(left), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing may be allowed
        excess = np.where(same, 0.0, absolute / allowed)
    return Difference(name, float(absolute.max(initial=0.0)), float(excess.max(initial=0.0)))


def _changes(source: Signature, made: Signature, names: Mapping[str, str]) -> tuple[str, ...]:
    """What differs between two signatures, apart from names of dims."""
    found = []
    for kind, ours, theirs in (
        ("input", source.inputs, made.inputs),
        ("output", source.outputs, made.outputs),
    ):
        by_name = {spec.name: spec for spec in theirs}
        for spec in ours:
            other = by_name.get(names.get(spec.name, spec.name))
            if other is None:
                found.append(f"{kind} '{spec.name}' is not there any more")
                continue
            if other.name != spec.name:
                found.append(f"{kind} '{spec.name}' is called '{other.name}'")
            if None not in (spec.dtype, other.dtype) and spec.dtype is not other.dtype:
                found.append(f"{kind} '{spec.name}' is {other.dtype}, not {spec.dtype}")
            if spec.shape is None or other.shape is None:
                continue
            mine = [item if isinstance(item, int) else None for item in spec.shape]
            if mine != [item if isinstance(item, int) else None for item in other.shape]:
                found.append(
                    f"{kind} '{spec.name}' has the shape {other.shape_text}, not {spec.shape_text}"
                )
    return tuple(found)
