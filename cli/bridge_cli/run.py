"""``bridge run``: one call of a model, its outputs as a summary or a file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli.arguments import AsJson, Model, Trust
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
    read_signature,
)

if TYPE_CHECKING:
    from bridge.check import Arrays
    from bridge.predictor import PredictorInfo
    from bridge.signature import Signature
    from bridge_bench.profile import InputProfile

__all__ = ["run"]

EPILOG = """
\b
Examples:
  bridge run model.onnx --rows 16
  bridge run model.onnx --inputs inputs.npz -o outputs.npz
  bridge run silero_vad.onnx --shape input=1x512 --dim batch=1 --set sr=16000

\b
Exit status: 0, or that of the error (see 'bridge --help').
"""


def run(
    model: Model,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Backend; else the one native to the format.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Such as cpu or cuda:0.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the backend; 'bridge options NAME' lists them. May be repeated.",
        ),
    ] = None,
    signature: SignatureText = None,
    trust: Trust = False,
    inputs: Inputs = None,
    rows: Rows = 1,
    batch_dim: BatchDim = None,
    dim: Dims = None,
    shape: Shapes = None,
    constant: Set = None,
    highest_id: HighestId = 9,
    seed: Seed = 0,
    outputs: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Output to ask for; else all. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT.npz", help="Write the outputs to this file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.npz if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a model, call it once, and show what it says."""
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
    if out is not None:
        _check_target(out, force=force)

    import bridge
    from bridge.errors import PredictError
    from bridge_bench.profile import read_inputs
    from bridge_cli.arrays import summary, write_npz
    from bridge_cli.render import Progress, print_json

    with Progress() as tell:
        tell(f"loading {model}")
        with bridge.load(
            model,
            backend=backend,
            device=device,
            options=option,
            signature=declared,
            trust=trust,
        ) as predictor:
            if inputs is not None:
                given = read_inputs(inputs, predictor.signature)
            else:
                given = _make(profile, predictor.signature)
            tell(f"predicting with {predictor.info.backend}")
            started = perf_counter()
            try:
                results = predictor.predict(given, outputs)
            except PredictError as error:
                if inputs is None:
                    advise(error)
                raise
            call_s = perf_counter() - started
            info = predictor.info
    notes = [] if out is None else write_npz(out, results)
    document = {
        "info": info.to_dict(),
        "call_s": call_s,
        "inputs": [
            {"name": name, "dtype": _dtype(array), "shape": list(array.shape)}
            for name, array in given.items()
        ],
        "outputs": [summary(name, array) for name, array in results.items()],
        "written": None if out is None else str(out),
        "notes": notes,
    }
    if as_json:
        print_json(document)
    else:
        _show(info, document)


def _make(profile: InputProfile, signature: Signature) -> Arrays:
    from bridge.errors import InputError

    try:
        return profile.make(signature)
    except InputError as error:
        if any(spec.dtype is None or spec.shape is None for spec in signature.required):
            error.fix = "State the signature with --signature FILE.json, or pass inputs: --inputs."
        raise


def _check_target(out: Path, *, force: bool) -> None:
    """Refuses a bad target before the model is loaded, which may take minutes."""
    if out.suffix != ".npz":
        raise typer.BadParameter(f"'{out}' does not end in .npz", param_hint="--out")
    if out.is_dir():
        raise typer.BadParameter(f"'{out}' is a folder", param_hint="--out")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder '{out.parent}'", param_hint="--out")
    if out.exists() and not force:
        raise typer.BadParameter(
            f"'{out}' exists already; add --force to replace it", param_hint="--out"
        )


def _dtype(array: Any) -> str:
    return "string" if array.dtype.kind in "OUT" else str(array.dtype)


def _show(info: PredictorInfo, document: dict[str, Any]) -> None:
    from bridge_cli import units
    from bridge_cli.render import facts, print_line, print_table

    shown: dict[str, object] = {
        "model": f"{info.model} ({info.format})",
        "backend": " ".join([info.backend, info.versions.get(info.backend, "")]).strip(),
        "device": f"{info.device}, {info.provider}" if info.provider else info.device,
        "precision": info.precision,
        "threads": "as the runtime decides" if info.threads is None else info.threads,
    }
    if info.resident_bytes is not None:
        shown["memory"] = f"{units.size(info.resident_bytes)} more in use after loading"
    if info.options:
        shown["options"] = " ".join(f"{key}={value}" for key, value in info.options.items())
    if info.stateful:
        shown["state"] = "kept inside: equal inputs may give other outputs"
    shown["call"] = f"{units.duration(document['call_s'])} (one call, not warmed up)"
    facts(shown)
    print_table(
        ("output", "dtype", "shape", "min", "max", "mean", "NaN", "first values"),
        [
            (
                one["name"],
                one["dtype"],
                "x".join(map(str, one["shape"])) or "0-d",
                units.number(one["min"]),
                units.number(one["max"]),
                units.number(one["mean"]),
                one["nan_count"],
                ", ".join(_value(value) for value in one["first"]),
            )
            for one in document["outputs"]
        ],
        right=("min", "max", "mean", "NaN"),
    )
    if document["written"]:
        print_line()
        print_line(f"written to {document['written']}")
    for note in document["notes"]:
        print_line(f"note: {note}")


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
