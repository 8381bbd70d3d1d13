"""Command-line options that say what inputs a model gets."""

from __future__ import annotations

import dataclasses
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
    from bridge_bench.values import Values

__all__ = [
    "BatchDim",
    "Dims",
    "HighestId",
    "InputSpecs",
    "Inputs",
    "Rows",
    "Samples",
    "Seed",
    "Set",
    "Shapes",
    "SignatureText",
    "advise",
    "make_profile",
    "pairs",
    "read_samples",
    "read_signature",
    "stated_signature",
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
InputSpecs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SPEC",
        help="What values an input gets: normal, uniform:low=0,high=1, zipf:vocab=200000, "
        "ids:vocab=1000, constant:value=1, choice:a|b|c, bernoulli:p=0.1; 'broadcast' (alone, or "
        "after a comma) repeats one row. NAME may be a pattern such as user_*. May be repeated; "
        "a later one overrides.",
    ),
]
Samples = Annotated[
    Path | None,
    typer.Option(
        "--samples",
        metavar="FILE.npz",
        help="Recorded rows (.npz with one array per input, .npy or .json), drawn in random "
        "order; inputs that it lacks are made up if another option says how.",
    ),
]
HighestId = Annotated[
    int | None,
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
    highest_id: int | None,
    seed: int,
    inputs: Sequence[str] | None = None,
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
        values=_values(inputs),
        highest_id=highest_id,
        seed=seed,
    )


def read_samples(path: Path | None, profile: InputProfile, signature: Signature) -> InputProfile:
    """The profile with the samples of a file, if there is one.

    Raises:
        ModelNotFound: There is no such file.
        InputError: It is broken or does not fit the signature.
    """
    if path is None:
        return profile
    from bridge_bench.samples import Samples

    samples = Samples.read(path, signature, profile.batch_dim)
    return dataclasses.replace(profile, samples=samples)


def stated_signature(model: str, declared: str | Signature | None, *, trust: bool) -> Signature:
    """The signature that a model states, told without its runtime; or the one declared.

    Raises:
        InputError: The model does not state its inputs.
        OptionError: It has several signatures, and none of the key given.
    """
    from bridge.errors import InputError, OptionError, nearest
    from bridge.loading import open_model
    from bridge.signature import Signature

    if isinstance(declared, Signature):
        return declared
    found = open_model(model, signature=declared, trust=trust)
    stated = found.facts.signatures
    key = declared or ("serving_default" if "serving_default" in stated else None)
    if len(stated) == 1:
        key = key if key in stated else next(iter(stated))
    if not stated:
        raise InputError(
            f"model {found.name} does not state its inputs, so none can be read for it.",
            fix="Name a model first that does, or state them with --signature FILE.json.",
            model=found.name,
        )
    if key is None or key not in stated:
        raise OptionError(
            f"model {found.name} has {len(stated)} signatures; "
            f"{'none was chosen' if key is None else f'none is called {key!r}'}.",
            fix=f"Choose with --signature. {nearest(key or '', stated)}",
        )
    return stated[key]


def _values(texts: Sequence[str] | None) -> list[tuple[str, Values]]:
    """Pairs of name and values; the first ``=`` that leaves both sound divides."""
    from bridge.errors import InputError
    from bridge_bench.values import Values

    found = []
    for text in texts or ():
        places = [place for place, sign in enumerate(text) if sign == "=" and place]
        problem: InputError | None = None
        for place in places:  # names and values may both hold some
            try:
                found.append((text[:place].strip(), Values.parse(text[place + 1 :])))
                break
            except InputError as error:
                problem = problem or error
        else:
            raise typer.BadParameter(
                f"{text!r} is not of the form ids=zipf:vocab=200000"
                + (f": {problem}" if problem is not None else ""),
                param_hint="--input",
            )
    return found


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
