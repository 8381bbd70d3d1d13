"""``bridge inspect``: what a model is, and who can run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson, Model, Trust

if TYPE_CHECKING:
    from bridge.inspection import Candidate, Inspection
    from bridge.signature import Signature

__all__ = ["inspect"]

EPILOG = """
\b
Example:
  bridge inspect model.onnx

\b
Exit status: 0; 1 if the bridge would refuse to load the model as it is (it needs
trust, a file of it is missing); 3 if there is nothing to describe.
"""

_OPERATORS_SHOWN = 12
_TENSORS_SHOWN = 60


def inspect(
    model: Model,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model is, and which backends take it.

    Its format, signatures, size, digest and operators are read from its bytes: no
    runtime is loaded, and nothing of the model runs.
    """
    import bridge
    from bridge_cli.render import print_json

    found = bridge.inspect(model, trust=trust)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)
    if found.problem is not None:
        raise typer.Exit(exit_codes.FINDING)


def _show(found: Inspection) -> None:
    from bridge_cli import units
    from bridge_cli.render import facts, print_line, print_table

    described = found.facts
    shown: dict[str, object] = {
        "model": found.model,
        "path": found.path or "-",
        "format": f"{found.title} ({found.format})",
    }
    if found.size_bytes is not None:
        shown["size"] = f"{units.size(found.size_bytes)} ({found.size_bytes:,} bytes)"
    if found.digest is not None:
        shown["sha256"] = found.digest
    if described.versions:
        shown["versions"] = ", ".join(f"{key} {text}" for key, text in described.versions.items())
    if described.operators:
        shown["operators"] = _operators(found)
    facts(shown)
    for key, signature in described.signatures.items():
        _show_signature(key, signature, described.vocabularies)
    if described.notes:
        print_line()
        for note in described.notes:
            print_line(f"note: {note}")
    print_table(
        ("backend", "takes it", "why not, and what to do"),
        [_answer(one) for one in found.candidates],
        styles={"yes": "green", "yes (native)": "green", "not installed": "yellow"},
    )
    if found.problem is not None:
        print_line()
        print_line("The bridge refuses to load this model as it is:", "bold red")
        print_line(found.problem.message, indent=2)
        if found.problem.fix:
            print_line(found.problem.fix, indent=2)


def _operators(found: Inspection) -> str:
    counts = sorted(found.facts.operators.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{name} {count}" for name, count in counts[:_OPERATORS_SHOWN])
    more = len(counts) - _OPERATORS_SHOWN
    kinds = f"{sum(count for _, count in counts)} of {len(counts)} kinds: {text}"
    return f"{kinds} and {more} more kinds" if more > 0 else kinds


def _show_signature(key: str, signature: Signature, vocabularies: Mapping[str, int]) -> None:
    from bridge_cli.render import print_line, print_table

    specs = [("input", spec) for spec in signature.inputs]
    specs += [("output", spec) for spec in signature.outputs]
    columns = ["", "name", "dtype", "shape", "native name"]
    rows = [
        [
            f"{kind}, has default" if spec.has_default else kind,
            spec.name,
            spec.dtype or "any",
            spec.shape_text,
            "" if spec.native_name in (None, spec.name) else spec.native_name,
        ]
        for kind, spec in specs[:_TENSORS_SHOWN]
    ]
    if vocabularies:
        columns.append("indexes")
        for row, (kind, spec) in zip(rows, specs, strict=False):
            count = vocabularies.get(spec.name) if kind == "input" else None
            row.append("" if count is None else f"{count:,} rows")
    print_table(columns, rows, title=f"signature '{key}'" if key else "signature")
    if len(specs) > _TENSORS_SHOWN:
        print_line(f"and {len(specs) - _TENSORS_SHOWN} more; --json shows all")


def _answer(one: Candidate) -> tuple[str, str, str]:
    if not one.is_capable:
        state = "no"
    elif not one.is_installed:
        state = "not installed"
    elif not one.can_run:
        state = "not here"
    else:
        state = "yes (native)" if one.is_native else "yes"
    return one.backend, state, " ".join(text for text in (one.reason, one.fix) if text)
