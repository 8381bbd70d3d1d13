"""``bridge options``: what can be set on a backend or an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli.arguments import AsJson

if TYPE_CHECKING:
    from bridge.options import OptionField

__all__ = ["default_text", "options", "values_text"]

EPILOG = """
\b
Example:
  bridge options onnxruntime

\b
Exit status: 0; 4 if there is no such backend or adapter.
"""


def options(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A backend, or an adapter of 'bridge convert'.")
    ],
    as_json: AsJson = False,
) -> None:
    """List what --option can set on a backend or adapter."""
    from bridge.registry import registry
    from bridge_cli.render import print_json, print_line, print_table

    adapters = {adapter.name: adapter for adapter in registry().adapters}
    kind = "adapter" if name in adapters else "backend"
    owner = adapters[name] if name in adapters else registry().backends.get(name)
    fields = owner.options_type.describe()
    if as_json:
        print_json({"name": name, "kind": kind, "options": [_document(one) for one in fields]})
        return
    if not fields:
        print_line(f"{kind} {name} has no options")
        return
    print_table(
        ("option", "default", "values", "what it does"),
        [(one.name, default_text(one.default), values_text(one), _effect(one)) for one in fields],
    )


def _document(one: OptionField) -> dict[str, Any]:
    return {
        "name": one.name,
        "type": one.type,
        "default": one.default
        if isinstance(one.default, (bool, int, float, str, type(None)))
        else default_text(one.default),
        "unit": one.unit,
        "choices": None if one.choices is None else list(one.choices),
        "minimum": one.minimum,
        "maximum": one.maximum,
        "help": one.help,
        "when": one.when,
        "devices": None if one.devices is None else list(one.devices),
    }


def _effect(one: OptionField) -> str:
    """What it does, and when another value than the default helps."""
    return f"{one.help} When: {one.when}" if one.when else one.help


def default_text(default: object) -> str:
    """The default as one would type it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "empty"
    return str(default)


def values_text(one: OptionField) -> str:
    """The values that an option takes, such as ``int, at least 1``."""
    if one.choices is not None:
        return " | ".join(one.choices)
    text = f"{one.type} ({one.unit})" if one.unit else one.type
    low, high = one.minimum, one.maximum
    if low is not None and high is not None:
        return f"{text}, {_number(low)} to {_number(high)}"
    if low is not None:
        return f"{text}, at least {_number(low)}"
    return text if high is None else f"{text}, at most {_number(high)}"


def _number(bound: float) -> str:
    return f"{bound:.0f}" if bound == int(bound) else f"{bound:g}"
