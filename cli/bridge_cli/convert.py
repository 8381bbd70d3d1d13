"""``bridge convert``: the same model in another format."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli.arguments import AsJson, Model, Trust

if TYPE_CHECKING:
    from bridge.adapter import Adapter
    from bridge.model import ModelRef

__all__ = ["convert"]

EPILOG = """
\b
Example:
  bridge convert model.onnx --to engine -o model.engine

\b
Exit status: 0; 3 if no adapter reads the model; 4 if there is no such format or adapter,
or its converter is not installed; 7 if it fails; others as in 'bridge --help'.
"""


def convert(
    model: Model,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Name of the format to write.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="PATH", help="Where to; must not exist yet."),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of the adapter. May be repeated."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which adapter, where several could do it."),
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Which of a SavedModel's signatures to convert."),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model to another format."""
    from bridge.loading import open_model
    from bridge_cli import units
    from bridge_cli.render import Progress, facts, print_json

    _check_format(to)
    found = open_model(model, signature=signature, trust=trust)
    chosen = _choose(found, to, adapter)
    with Progress() as tell:
        tell(f"{chosen.name}: converting {found.name}")
        started = perf_counter()
        made = dict(chosen.convert(found, out, options=option))
        convert_s = perf_counter() - started
    size_bytes = _size_bytes(out)
    if as_json:
        print_json(
            {
                "model": str(found.file),
                "source": found.format.name,
                "target": to,
                "adapter": chosen.name,
                "path": str(out.absolute()),
                "size_bytes": size_bytes,
                "convert_s": convert_s,
                "facts": made,
            }
        )
        return
    facts(
        {
            "model": f"{found.name} ({found.format.name})",
            "adapter": chosen.name,
            "written": f"{out} ({to}, {units.size(size_bytes)})",
            "took": units.duration(convert_s),
            **{key.replace("_", " "): _text(value) or "-" for key, value in made.items()},
        }
    )


def _check_format(to: str) -> None:
    from bridge.errors import BackendNotFound, nearest
    from bridge.registry import registry

    targets = {adapter.target for adapter in registry().adapters}
    if to in targets:
        return
    if to in {known.name for known in registry().formats}:
        message = f"no adapter writes format '{to}'."
    else:
        message = f"there is no format '{to}'."
    listed = ", ".join(f"'{name}'" for name in sorted(targets))
    fix = nearest(to, targets)
    if targets and "Valid are" not in fix:
        fix += f" Adapters write: {listed}."
    raise BackendNotFound(message, fix=fix, name=to, valid=sorted(targets))


def _choose(model: ModelRef, to: str, name: str | None) -> Adapter:
    from bridge.errors import OptionError, UnsupportedModel
    from bridge.registry import registry

    known = registry().adapters
    if name is not None:
        named = known.get(name)
        if named.target != to:
            raise OptionError(
                f"adapter '{name}' writes {named.target}, not {to}.",
                fix=f"Write --to {named.target}, or leave --adapter out.",
            )
        return named  # which says itself what it does not read
    able = [one for one in known if one.target == to and model.format.name in one.sources]
    if len(able) == 1:
        return able[0]
    if able:
        raise OptionError(
            f"{len(able)} adapters turn {model.format.name} into {to}: "
            f"{', '.join(one.name for one in able)}.",
            fix=f"Choose one, for example --adapter {able[0].name}.",
        )
    sources = sorted({source for one in known if one.target == to for source in one.sources})
    offered = sorted({one.target for one in known if model.format.name in one.sources})
    raise UnsupportedModel(
        f"no adapter turns {model.format.name} into {to}; {to} is made from {', '.join(sources)}.",
        fix=f"From {model.format.name} there is: {', '.join(offered) or 'nothing'}.",
        model=model.name,
    )


def _size_bytes(path: Path) -> int:
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size


def _text(value: Any, *, is_inner: bool = False) -> str:
    """A fact on one line, whatever JSON type it is of."""
    if isinstance(value, dict) and value.keys() == {"inputs", "outputs"}:
        from bridge.signature import Signature

        return str(Signature.from_dict(value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item, is_inner=True)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        text = ", ".join(_text(item, is_inner=True) for item in value)
        return f"({text})" if is_inner else text
    return f"{value:.4g}" if isinstance(value, float) else str(value)
