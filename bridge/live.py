"""Live models, written to a file for as long as they are converted.

Converters run in processes of their own, to which no object can go. Adapters that read live
objects write them down here, in the process that holds them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bridge import proof
from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.errors import ConversionError, OptionError
from bridge.loading import load
from bridge.model import ModelRef
from bridge.registry import registry
from bridge.signature import Dim, Signature, TensorSpec

__all__ = ["signature_of_inputs", "written"]

_ROWS = "batch"


@contextmanager
def written(
    model: ModelRef,
    inputs: Sequence[Arrays] | None,
    *,
    verify: bool = True,
    tolerance: tuple[float, float] = proof.STRICT,
) -> Iterator[Path]:
    """A file with a live model in it, removed at the end.

    Args:
        model: A live model; where it does not say what goes in, its stated signature does.
        inputs: Sets of inputs, from which a signature is made where none is stated, and
            with which the file is compared with the live model; ``None`` makes some up.
        verify: Compare the two.
        tolerance: ``(atol, rtol)`` of floats.

    Raises:
        BackendUnavailable: What writes it is not installed.
        UnsupportedModel: Nothing writes such objects, or not this one.
        OptionError: The inputs do not say what a signature is to be made of.
        ConversionError: Writing failed, or the file computes something else.
    """
    kind = model.format.name
    adapter = next(
        (one for one in registry().adapters if one.reads_live and kind in one.sources), None
    )
    if adapter is None:
        yield model.file  # which raises and says what to do
        return
    if inputs and model.declared is None:
        model = dataclasses.replace(model, declared=signature_of_inputs(inputs))
    with tempfile.TemporaryDirectory(prefix="bridge-live-") as folder:
        known = {one.name: one for one in registry().formats}[adapter.target]
        suffix = known.suffixes[0] if known.suffixes else ""
        path = Path(folder) / f"{type(model.live).__name__.lower()}{suffix}"
        adapter.convert(model, path)
        if verify:
            _compare(model, path, inputs, tolerance)
        yield path


def signature_of_inputs(inputs: Sequence[Arrays]) -> Signature:
    """What sets of inputs say of a model: names, dtypes, and which dims are free.

    The first dim of all inputs counts rows, if it is the same throughout each set. Other
    dims are free where they differ between sets, and fixed where they do not.

    Raises:
        OptionError: The sets do not have the same names, dtypes and ranks, or a single one
            does not tell which dim counts rows.
    """
    first = inputs[0]
    arrays = {name: [np.asarray(one.get(name)) for one in inputs] for name in first}
    for name, found in arrays.items():
        if len({(array.dtype, array.ndim) for array in found}) > 1 or any(
            one.keys() != first.keys() for one in inputs
        ):
            raise OptionError(
                f"the sets of inputs differ in more than sizes, as input '{name}' shows.",
                fix="Pass sets with the same names, dtypes and numbers of dims.",
                option="inputs",
                input=name,
            )
    rows = [
        {array.shape[0] for array in map(np.asarray, one.values()) if array.ndim} for one in inputs
    ]
    has_rows = all(len(one) == 1 for one in rows)
    if not has_rows and len(inputs) == 1:
        raise OptionError(
            f"the inputs have {sorted(rows[0])} rows, which does not tell which dims are free.",
            fix="State the signature (signature=bridge.Signature(...)), or pass a second set of "
            "other sizes.",
            option="inputs",
        )

    def dims(shapes: list[tuple[int, ...]]) -> tuple[Dim, ...]:
        return tuple(
            _ROWS if axis == 0 and has_rows else sizes[0] if len(set(sizes)) == 1 else None
            for axis, sizes in enumerate(zip(*shapes, strict=True))
        )

    return Signature(
        tuple(
            TensorSpec(name, DType.of(found[0].dtype), dims([array.shape for array in found]))
            for name, found in arrays.items()
        ),
        (),
    )


def _compare(
    model: ModelRef,
    path: Path,
    inputs: Sequence[Arrays] | None,
    tolerance: tuple[float, float],
) -> None:
    """Runs the file beside the object, both in this process, which holds the runtime anyway."""
    with (
        load(model.live) as right,
        load(path, trust=True) as made,
    ):
        sets = proof.generated(made.signature) if inputs is None else inputs
        wanted = [right.predict(one) for one in sets]
        results = [made.predict(one) for one in sets]
    names = dict(zip(wanted[0], results[0], strict=True)) if sets else {}
    differences = [
        proof.difference(name, other, wanted, results, tolerance) for name, other in names.items()
    ]
    worst = max(differences, key=lambda one: one.excess, default=None)
    if worst is not None and not worst.excess <= 1:
        raise ConversionError(
            f"the exported model computes something else than {model.name}: output "
            f"'{worst.output}' is off by {worst.max_abs:.3g}, {worst.excess:.3g} times what is "
            "allowed.",
            fix="Look for what depends on the module's state, or on Python values of the example.",
            model=model.name,
            differences=[asdict(one) for one in differences],
        )
