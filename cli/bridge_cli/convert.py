"""``bridge convert``: the same model in another format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli.arguments import AsJson, Model, Trust
from bridge_cli.profile import SignatureText, read_signature, stated_signature
from bridge_cli.quantities import parse_duration_s

if TYPE_CHECKING:
    from bridge.conversion import Converted
    from bridge.proof import Proof

__all__ = ["convert"]

EPILOG = """
\b
Examples:
  bridge convert saved_model/ --to onnx -o model.onnx
  bridge convert model.pt --to openvino_ir --signature signature.json -o model.xml
  bridge convert model.onnx --to engine -o model.engine
  bridge convert model.onnx --to onnx --adapter onnx-int8-static --samples rows.npz -o int8.onnx

\b
Routes over several adapters are found by search and tried in turn, the shortest first. The
result is run beside its source on made-up inputs before it is written: one that computes
something else is refused. 'bridge routes MODEL' shows the routes. Adapters that reduce
precision are taken only where --adapter names them; their largest error is shown, and
whether it is small enough is for 'bridge select' to say.

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
        typer.Option(metavar="[ADAPTER.]KEY=VALUE", help="Option of an adapter. May be repeated."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Which adapter; repeated, the route. [every route is tried]"
        ),
    ] = None,
    signature: SignatureText = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Recorded rows for an adapter that is calibrated: one array for each input.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Compare the result with its source."),
    ] = True,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Longest time of one conversion, such as 60s or 10min."),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model to another format, and check that it computes the same."""
    from bridge.adapter import require_place
    from bridge.conversion import convert as converted
    from bridge.loading import open_model
    from bridge.routes import require_target
    from bridge_cli import units
    from bridge_cli.render import Progress, facts, print_json

    limit_s = None if timeout is None else parse_duration_s(timeout, "--timeout")
    declared = read_signature(signature)
    require_target(to)
    found = open_model(model, signature=declared, trust=trust)
    _check_adapters(to, adapter or ())
    require_place(out)
    rows = None
    if samples is not None:
        from bridge_bench.samples import Samples

        stated = stated_signature(model, declared, trust=trust)
        rows = dict(Samples.read(samples, stated).arrays)
    with Progress() as tell:
        made = converted(
            model,
            to,
            route=adapter or None,
            options=_options(found, to, adapter or (), option or ()),
            signature=declared,
            trust=trust,
            verify=verify,
            samples=rows,
            timeout_s=limit_s,
            name=out.name,
            tell=tell,
        )
        made.save(out)
    size_bytes = _size_bytes(out)
    told = _facts(made)
    if as_json:
        print_json(
            {
                "model": str(found.file),
                "source": found.format.name,
                "target": made.target,
                "adapter": made.route.rpartition("+")[2],
                "route": made.route.split("+"),
                "path": str(out.absolute()),
                "size_bytes": size_bytes,
                "convert_s": made.convert_s,
                "was_cached": made.is_cached,
                "precision": made.precision,
                "facts": told,
                "failed": [
                    {"route": one.route.split("+"), "error": one.error.message}
                    for one in made.failed
                ],
                "proof": None if made.proof is None else _proof(made.proof),
            }
        )
        return
    tried = {f"failed: {one.route}": one.error.message for one in made.failed}
    facts(
        {
            "model": f"{found.name} ({found.format.name})",
            "adapter": made.route.replace("+", " + "),
            "written": f"{out} ({made.target}, {units.size(size_bytes)})",
            "took": units.duration(made.convert_s) + (", earlier" if made.is_cached else ""),
            "verified": _verdict(made.proof),
            **_precision(made),
            **tried,
            **{key.replace("_", " "): _text(value) or "-" for key, value in told.items()},
        }
    )


def _check_adapters(to: str, names: Sequence[str]) -> None:
    from bridge.errors import OptionError
    from bridge.registry import registry
    from bridge.routes import held_format

    known = [registry().adapters.get(name) for name in names]
    if known and to not in (known[-1].target, held_format(known[-1].target)):
        raise OptionError(
            f"adapter '{names[-1]}' writes {known[-1].target}, not {to}.",
            fix=f"Write --to {known[-1].target}, or leave --adapter out.",
        )


def _options(
    model: Any, to: str, names: Sequence[str], texts: Sequence[str]
) -> dict[str, list[str]]:
    """Options by adapter; a text that names none is for those that have it."""
    from bridge.errors import OptionError, nearest
    from bridge.registry import registry
    from bridge.routes import find_routes

    used = [registry().adapters.get(name) for name in names]
    if not used:
        ways = find_routes(model, to)
        used = list({one.name: one for way in ways for one in way.adapters}.values())
    found: dict[str, list[str]] = {}
    for text in texts:
        key, sign, _ = text.partition("=")
        owner, dot, _ = key.rpartition(".")
        if not sign:
            raise typer.BadParameter(
                f"{text!r} is not of the form KEY=VALUE", param_hint="--option"
            )
        has = [
            one
            for one in used
            if (one.name == owner if dot else key in {f.name for f in one.options_type.describe()})
        ]
        if not has:
            valid = {item.name for one in used for item in one.options_type.describe()}
            raise OptionError(
                f"no adapter that leads to {to} has the option '{key}'.",
                fix=nearest(key, valid),
                option=key,
            )
        for one in has:
            found.setdefault(one.name, []).append(text[len(owner) + 1 :] if dot else text)
    return found


def _facts(made: Converted) -> dict[str, Any]:
    """What the last adapter says; that of those before under their names."""
    *before, last = made.route.split("+")
    told: Mapping[str, Mapping[str, Any]] = made.facts
    return {**{name: dict(told[name]) for name in before}, **told[last]}


def _proof(proof: Proof) -> dict[str, Any]:
    found = proof.to_dict()
    for one in found["differences"]:
        for key in ("max_abs", "excess"):  # JSON has no infinity
            one[key] = one[key] if math.isfinite(one[key]) else None
    return {**found, "backends": list(proof.backends), "changes": list(proof.changes)}


def _verdict(proof: Proof | None) -> str:
    if proof is None:
        return "no: not asked for"
    if proof.is_equal is None:
        return f"no: {proof.reason}"
    worst = max((one.excess for one in proof.differences), default=0.0)
    source, result = proof.backends
    text = f"on {result} against {source}, {proof.calls} calls: {worst:.2g} of what is allowed"
    return text + "".join(f"; {change}" for change in proof.changes)


def _precision(made: Converted) -> dict[str, str]:
    """What a reduced precision costs, and who decides on that."""
    if made.precision is None:
        return {}
    judge = "whether that is good enough, the gate of 'bridge select' decides"
    found = made.proof.differences if made.proof is not None else ()
    if not found:
        return {"precision": f"{made.precision}; not compared: {judge}"}
    worst = max(found, key=lambda one: one.max_abs)
    return {
        "precision": f"{made.precision}; largest error {worst.max_abs:.2g}, of output "
        f"'{worst.output}': {judge}"
    }


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
