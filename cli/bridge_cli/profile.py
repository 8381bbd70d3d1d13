"""Command-line options that say what inputs a model gets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bridge.errors import BridgeError
    from bridge.signature import Signature
    from bridge_bench.profile import InputProfile

__all__ = [
    "BatchDim",
    "Dims",
    "HighestId",
    "Inputs",
    "Rows",
    "Seed",
    "Set",
    "Shapes",
    "SignatureText",
    "advise",
    "make_profile",
    "pairs",
    "read_signature",
]

_PANEL = "Inputs"

Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Real inputs: .npz (one array per input), .npy, or .json. Without it, inputs are "
        "made up.",
    ),
]
Rows = Annotated[
    int, typer.Option(min=0, metavar="N", help="Rows per call: size of the batch dim.")
]
BatchDim = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the batch dim, where it is not dim 0."),
]
Dims = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="Size of another named dim. May be repeated."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="INPUT=1x512",
        help="Whole shape of one input; nothing after '=' is a single number. May be repeated.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="INPUT=VALUE", help="Fill one input with a number. May be repeated."
    ),
]
HighestId = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Largest integer in made-up inputs; they may be row numbers."
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of made-up inputs.")]
SignatureText = Annotated[
    str | None,
    typer.Option(
        "--signature",
        metavar="KEY|FILE.json",
        help="Which of a SavedModel's signatures to use; or a file that states the signature of "
        "a model that holds none (TorchScript), in the form that 'bridge inspect --json' prints.",
    ),
]


def make_profile(
    *,
    rows: int,
    batch_dim: str | None,
    dims: Sequence[str] | None,
    shapes: Sequence[str] | None,
    constants: Sequence[str] | None,
    highest_id: int,
    seed: int,
) -> InputProfile:
    """The profile that these options ask for; bad ones raise ``typer.BadParameter``."""
    from bridge_bench.profile import InputProfile

    return InputProfile(
        rows=rows,
        batch_dim=batch_dim,
        dims={name: _size(text, "--dim") for name, text in pairs(dims, "--dim", "T=50").items()},
        shapes={
            name: tuple(_size(piece, "--shape") for piece in text.split("x")) if text else ()
            for name, text in pairs(shapes, "--shape", "input=1x512").items()
        },
        constants={
            name: _value(text) for name, text in pairs(constants, "--set", "sr=16000").items()
        },
        highest_id=highest_id,
        seed=seed,
    )


def advise(error: BridgeError) -> None:
    """Gives an error of a call with made-up inputs a fix, if it has none of its own."""
    from bridge.errors import WHOLE_TEXT, PredictError

    if isinstance(error, PredictError) and error.fix in (None, WHOLE_TEXT):
        error.fix = (
            "The inputs were made up: if the model wants others, such as smaller ids, say so "
            "with --highest-id, --shape, --dim or --set, or pass real ones with --inputs."
        )


def pairs(texts: Sequence[str] | None, option: str, example: str) -> dict[str, str]:
    """Texts ``name=value`` as a dict; the last ``=`` divides, since names may hold some.

    Raises:
        typer.BadParameter: A text has no ``=`` or no name, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, sign, value = text.rpartition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{text!r} is not of the form {example}", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value.strip()
    return found


def read_signature(text: str | None) -> str | Signature | None:
    """A signature key as it is; the signature that a ``.json`` file states.

    Raises:
        typer.BadParameter: The file is not there or states no signature.
    """
    if text is None or not text.endswith(".json"):
        return text
    from bridge.signature import Signature

    try:
        return Signature.from_dict(json.loads(Path(text).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = '{"inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3]}], "outputs": []}'
        raise typer.BadParameter(
            f"{text!r} states no signature ({type(error).__name__}: {error}); wanted {wanted}",
            param_hint="--signature",
        ) from error


def _size(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        example = "input=1x512" if option == "--shape" else "T=50"
        raise typer.BadParameter(
            f"{text!r} is not a size; wanted a whole number, as in {example}", param_hint=option
        )
    return int(text)


def _value(text: str) -> float:
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(
            f"{text!r} is not a finite number, as in sr=16000", param_hint="--set"
        )
    return value
