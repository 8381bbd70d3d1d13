"""``bridge routes``: which conversions of a model there are, and which fail and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli.arguments import AsJson, Model, Trust
from bridge_cli.profile import SignatureText, read_signature
from bridge_cli.quantities import parse_duration_s

if TYPE_CHECKING:
    from bridge.routes import Route

__all__ = ["routes"]

EPILOG = """
\b
Examples:
  bridge routes saved_model/
  bridge routes model.pt --signature signature.json --verify
  bridge routes model.onnx --to onnx

\b
Exit status: 0, whatever the routes are; others as in 'bridge --help'.
"""


def routes(
    model: Model,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Only routes to this format.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Convert by every route, and compare with the source."),
    ] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest time of one conversion: 60s, 10min.")
    ] = None,
    signature: SignatureText = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """List the formats that a model can be converted to, by which adapters, and what runs them."""
    from bridge.loading import open_model
    from bridge.options import TIERS
    from bridge.routes import find_routes, require_target, runners
    from bridge_cli.render import Progress, print_json, print_line, print_table

    declared = read_signature(signature)
    limit_s = None if timeout is None else parse_duration_s(timeout, "--timeout")
    if to is not None:
        require_target(to)
    found = open_model(model, signature=declared, trust=trust)
    rows = []
    with Progress() as tell:
        for route in find_routes(found, to, tier=TIERS[-1]):
            row = _row(route, [backend.name for backend in runners(route.target)])
            if verify and route.status == "possible":
                row |= _tried(model, route, declared, trust=trust, timeout_s=limit_s, tell=tell)
            rows.append(row)
    if as_json:
        print_json({"model": str(found.file), "format": found.format.name, "routes": rows})
        return
    if not rows:
        print_line(f"no adapter reads {found.format.title}")
        return
    print_table(
        ("target", "route", "precision", "runs on", "status", "why"),
        [
            (
                row["target"],
                " + ".join(row["adapters"]),
                row["precision"] or "-",
                ", ".join(row["backends"]) or "nothing",
                row["status"],
                f"{row['reason']} {row['fix']}".strip(),
            )
            for row in rows
        ],
        styles={"verified": "green", "failed": "red"},
    )


def _row(route: Route, backends: list[str]) -> dict[str, Any]:
    return {
        "target": route.target,
        "adapters": [adapter.name for adapter in route.adapters],
        "backends": backends,
        "precision": route.precision,
        "status": route.status.replace(" ", "_"),
        "reason": route.reason,
        "fix": route.fix,
        "max_excess": None,
        "convert_s": None,
    }


def _tried(
    model: str, route: Route, signature: Any, *, trust: bool, timeout_s: float | None, tell: Any
) -> dict[str, Any]:
    """What really came of a route."""
    from bridge.conversion import convert
    from bridge.errors import BridgeError

    try:
        made = convert(
            model,
            route.target,
            route=[adapter.name for adapter in route.adapters],
            signature=signature,
            trust=trust,
            timeout_s=timeout_s,
            tell=tell,
        )
    except BridgeError as error:
        return {"status": "failed", "reason": error.message, "fix": error.fix or ""}
    assert made.proof is not None
    if made.proof.is_equal is None:
        reason = f"It converts, but was not compared: {made.proof.reason}."
        return {"status": "converted", "reason": reason, "convert_s": made.convert_s}
    reasons = [f"{text}." for text in made.proof.changes]
    worst = max((one.excess for one in made.proof.differences), default=0.0)
    if made.precision is not None:
        off = max((one.max_abs for one in made.proof.differences), default=0.0)
        reasons.append(f"Its largest error is {off:.2g}; only a gate can say if that will do.")
    return {
        "status": "verified" if made.proof.is_equal else "converted",
        "reason": " ".join(reasons),
        "max_excess": worst if math.isfinite(worst) else None,
        "convert_s": made.convert_s,
    }
