"""``bridge doctor``: what is installed, what is missing, what is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson

if TYPE_CHECKING:
    from bridge.diagnosis import BackendReport, Diagnosis

__all__ = ["doctor"]

EPILOG = """
\b
Example:
  bridge doctor --deep

\b
Exit status: 0 if nothing is broken (a runtime that is merely absent is not), 1 otherwise.
"""


def doctor(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Import every runtime and ask it for its devices; seconds."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what is missing, and what to type."""
    from bridge_cli.render import Progress, print_json

    with Progress() as tell:
        if deep:
            tell("asking every runtime for its devices")
        found = _diagnose(deep=deep)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found, deep=deep)
    if not found.is_healthy:
        raise typer.Exit(exit_codes.FINDING)


def _diagnose(*, deep: bool) -> Diagnosis:
    """What the core finds, and the plugins whose commands do not load."""
    import dataclasses

    import bridge
    from bridge_cli.plugins import plugin_commands
    from bridge_cli.program import own_names

    found = bridge.doctor(deep=deep)
    failures = plugin_commands(own_names()).failures
    return dataclasses.replace(found, failures=(*found.failures, *failures))


def _show(found: Diagnosis, *, deep: bool) -> None:
    import bridge
    from bridge_cli.render import facts, print_line, print_table

    facts(
        {
            "inference-bridge": found.version,
            "Python": found.python,
            "platform": found.platform,
            "usable CPUs": found.usable_cpus,
            **{f"device {device}": name for device, name in found.devices},
        }
    )
    known = bridge.backends()
    rows = []
    for one in found.backends:
        if one.devices is not None:
            devices = ", ".join(one.devices) or "none"
        elif deep or not one.availability.installed:
            devices = "-"
        else:
            kinds = known[one.name].device_kinds
            devices = ", ".join(name for name, _ in found.devices if name.split(":")[0] in kinds)
        rows.append((one.name, one.availability.version or "-", devices or "none", _state(one)))
    print_table(
        ("backend", "version", "devices" if deep else "devices by driver", "state"),
        rows,
        styles={"ok": "green"},
    )
    missing = [one for one in found.backends if not one.availability.installed]
    if missing:
        print_line()
        print_line("To add what is missing:", "bold")
        for one in missing:
            print_line(f"{one.name}: {one.availability.fix or one.availability.reason}", indent=2)
    troubles = [(one.error.message, one.error.fix) for one in found.failures]
    troubles += [(one.message, one.fix) for one in found.duplicates]
    troubles += [
        (f"{one.name}: {text}", None)
        for one in found.backends
        for text in (*one.availability.warnings, *([one.problem] if one.problem else []))
    ]
    if troubles:
        print_line()
        print_line("Broken:", "bold red")
    for message, fix in troubles:
        print_line(message, indent=2)
        if fix:
            print_line(fix, indent=4)
    if not deep:
        print_line()
        print_line("'bridge doctor --deep' imports every runtime and asks it for its devices.")


def _state(one: BackendReport) -> str:
    if not one.availability.installed:
        return one.availability.reason or "not installed"
    if one.problem or one.availability.warnings:
        return "broken, see below"
    return "ok"
