"""``bridge compare``: who agrees, how fast is each, and how to load the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson
from bridge_cli.profile import (
    BatchDim,
    Dims,
    HighestId,
    Inputs,
    Rows,
    Seed,
    Set,
    Shapes,
    SignatureText,
    advise,
    make_profile,
    pairs,
    read_signature,
    stated_signature,
)

if TYPE_CHECKING:
    from bridge.check import Arrays
    from bridge.options import Options
    from bridge.signature import Signature

__all__ = ["compare"]

EPILOG = """
\b
Examples:
  bridge compare saved_model/ model.onnx
  bridge compare model.onnx --backend onnxruntime --backend openvino --rows 128

\b
The reference is the first model on its native backend, or else the first arm that
runs; the others' outputs are compared with its. An arm that fails does not end the
comparison, but a model that runs on no backend counts as one that does not agree.

\b
Exit status: 0 if every arm that ran agrees and each model ran, 1 if not, 8 if no
arm ran; others as in 'bridge --help'.
"""


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="The same network, in one or several formats."),
    ],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Backend to try; else all that are capable. May be repeated."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="BACKEND.KEY=VALUE", help="Option of a backend. May be repeated."),
    ] = None,
    signature: SignatureText = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="The models may run code of their own.")
    ] = False,
    inputs: Inputs = None,
    rows: Rows = 1,
    batch_dim: BatchDim = None,
    dim: Dims = None,
    shape: Shapes = None,
    constant: Set = None,
    highest_id: HighestId = 9,
    seed: Seed = 0,
    output_map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="OUTPUT=OTHER",
            help="An output of the reference, and its name elsewhere. May be repeated.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="T",
            help="Outputs agree where |a - b| <= t + t * |b| holds for this t everywhere.",
        ),
    ] = 1e-3,
    rounds: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Rounds of measurement; 0 compares outputs only."),
    ] = 15,
    as_json: AsJson = False,
) -> None:
    """Compare backends and formats: do they agree, how fast?

    Each arm, one model on one backend, has a process of its own. They take turns, in
    random order, so that the machine's ups and downs fall on all alike.
    """
    profile = make_profile(
        rows=rows,
        batch_dim=batch_dim,
        dims=dim,
        shapes=shape,
        constants=constant,
        highest_id=highest_id,
        seed=seed,
    )
    declared = read_signature(signature)
    names = pairs(output_map, "--map", "output=other")
    options = _options(option, backend)

    from bridge_bench import comparison
    from bridge_cli.render import Progress, print_json
    from bridge_cli.verdict import show

    samples = None if inputs is None else _samples(inputs, models[0], declared, trust=trust)
    with Progress() as tell:
        found = comparison.compare(
            models,
            backends=backend or None,
            profile=profile,
            samples=samples,
            signature=declared,
            options=options,
            output_map=names,
            trust=trust,
            tolerance=tolerance,
            rounds=rounds,
            seed=seed,
            progress=tell,
        )
    for arm in found.arms:
        if inputs is None and arm.error is not None:
            advise(arm.error)
    if as_json:
        print_json(found.to_dict())
    else:
        source = f"{rows} row{'' if rows == 1 else 's'} of made-up inputs, seed {seed}"
        show(
            found,
            inputs=source if inputs is None else f"inputs from {inputs}",
            signature=declared,
            trust=trust,
        )
    if not found.all_agree:
        ran = any(arm.error is None for arm in found.arms)
        raise typer.Exit(exit_codes.FINDING if ran else exit_codes.NOTHING_RAN)


def _options(texts: Sequence[str] | None, backends: Sequence[str] | None) -> Mapping[str, Options]:
    """Options by backend, checked before any model is loaded."""
    from bridge.registry import registry

    by_backend: dict[str, list[str]] = {}
    for text in texts or ():
        name, dot, rest = text.partition(".")
        if not dot or not name or "=" not in rest:
            raise typer.BadParameter(
                f"{text!r} is not of the form onnxruntime.threads=2", param_hint="--option"
            )
        if backends and name not in backends:
            raise typer.BadParameter(
                f"{text!r} is for a backend that --backend leaves out", param_hint="--option"
            )
        by_backend.setdefault(name, []).append(rest)
    known = registry().backends
    return {name: known.get(name).options_type.make(rest) for name, rest in by_backend.items()}


def _samples(path: Path, model: str, declared: str | Signature | None, *, trust: bool) -> Arrays:
    """Real inputs, read by the signature that the first model states."""
    from bridge_bench.profile import read_inputs

    return read_inputs(path, stated_signature(model, declared, trust=trust))
