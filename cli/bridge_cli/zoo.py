"""``bridge zoo``: ranking models built here, the same weights in every format."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli.arguments import AsJson

if TYPE_CHECKING:
    from bridge_zoo import Description

__all__ = ["app"]

app = typer.Typer(
    name="zoo",
    help="Build ranking models of any format, trained on a synthetic click log.",
    epilog="""
\b
Example:
  bridge zoo build mmoe --size real -o models
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class _Source(enum.StrEnum):
    TRAINED = "trained"
    SEEDED = "seeded"


@app.command(
    epilog="""
\b
Example:
  bridge zoo ls

\b
Exit status: 0.
"""
)
def ls(as_json: AsJson = False) -> None:
    """List the models, with what goes in and comes out."""
    import bridge_zoo
    from bridge_cli import units
    from bridge_cli.render import print_json, print_table

    found = [
        _document(bridge_zoo.describe(model, size))
        for model in bridge_zoo.MODELS
        for size in bridge_zoo.SIZES
    ]
    if as_json:
        print_json({"models": found, "formats": list(bridge_zoo.FORMATS)})
        return
    print_table(
        ("model", "size", "id features", "lists", "tables", "all weights", "outputs"),
        [
            (
                one["model"],
                one["size"],
                one["id_features"],
                one["lists"],
                units.size(one["table_bytes"]),
                units.size(one["weight_bytes"]),
                ", ".join(one["outputs"]),
            )
            for one in found
        ],
        right=("id features", "lists", "tables", "all weights"),
    )


@app.command(
    epilog="""
\b
Examples:
  bridge zoo build mmoe --size real -o models
  bridge zoo build dlrm --format onnx --weights seeded -o models

\b
The weights are trained by torch where they are not in the cache: seconds for the small size,
a minute or two for the real one. Rows and labels that training did not see are written beside
the model, as 'bridge select --samples FILE --metric auc --labels FILE' takes them.

\b
Exit status: 0; 2 if there is no such model or format, or no folder can be made; 4 if the runtime
that writes a format, or torch for the training, is not installed; others as in 'bridge --help'.
"""
)
def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that 'ls' shows.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the files; made if not there."
        ),
    ],
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="small (for tests) or real (50 MB and more).")
    ] = "small",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="onnx, torchscript, pt2 or saved_model; may be repeated.",
            show_default="all",
        ),
    ] = None,
    weights: Annotated[
        _Source, typer.Option(help="Learned from the click log, or random and at once.")
    ] = _Source.TRAINED,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model in each format, all with the same weights, with rows to judge it by."""
    import bridge_zoo
    from bridge.errors import BackendUnavailable
    from bridge_cli.render import Progress, facts, print_json

    description = bridge_zoo.describe(model, size)
    wanted = bridge_zoo.checked_formats(formats or bridge_zoo.FORMATS)
    _make_folder(output)  # training may take minutes
    aucs: dict[str, float] | None = None
    learned = None
    try:
        with Progress() as tell:
            if weights is _Source.TRAINED:
                tell("weights: from the cache, or training")
                training = bridge_zoo.trained(description, seed)
                learned, aucs = training.weights, training.aucs
            tell("writing")
            paths = bridge_zoo.write(
                description, folder=output, formats=wanted, seed=seed, weights=learned
            )
            samples, labels = bridge_zoo.write_held_out(description, output)
    except ImportError as error:
        raise BackendUnavailable(
            f"building this needs the module '{error.name}', which is not installed.",
            fix="Install it, choose other formats with --format, or take --weights seeded.",
            module=error.name,
        ) from error
    if as_json:
        print_json(
            {
                **_document(description),
                "weights": weights.value,
                "seed": seed,
                "files": {item: str(path) for item, path in paths.items()},
                "samples": str(samples),
                "labels": str(labels),
                "aucs": aucs,
            }
        )
        return
    shown: dict[str, object] = dict(paths)
    shown |= {"samples": samples, "labels": labels}
    for task, value in (aucs or {}).items():
        shown[f"AUC of {task}"] = f"{value:.4f} on the samples"
    facts(shown)


def _make_folder(folder: Path) -> None:
    import os

    from bridge.errors import OptionError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "it is read only"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise OptionError(
            f"the folder '{folder}' cannot be written to: {reason}.",
            fix="Choose another one with --output.",
            option="output",
        )


def _document(description: Description) -> dict[str, Any]:
    import math

    import bridge_zoo

    model = bridge_zoo.model_of(description)
    sizes = {name: 4 * math.prod(shape) for name, shape in bridge_zoo.weight_shapes(model).items()}
    return {
        "model": model.name,
        "size": model.size,
        "id_features": len(model.id_features),
        "lists": sum(one.length > 0 for one in model.id_features),
        "table_bytes": sum(sizes[name] for name in model.tables()),
        "weight_bytes": sum(sizes.values()),
        "inputs": list(model.input_names),
        "outputs": list(model.tasks),
    }
