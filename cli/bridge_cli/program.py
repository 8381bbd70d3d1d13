"""The program: its commands, those of plugins, and what becomes of errors."""

from __future__ import annotations

import importlib.metadata
import os
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bridge_cli import (
    bench,
    cache,
    compare,
    compare_records,
    conform,
    convert,
    doctor,
    exit_codes,
    inspect,
    options,
    report,
    routes,
    run,
    select,
    verify,
    zoo,
)
from bridge_cli.main import close_output

__all__ = ["Program", "app", "own_names"]

_STATUS = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exit_codes.TABLE.items())
_EPILOG = f"""
\b
Example:
  bridge compare saved_model/ model.onnx

\b
Exit status:
{_STATUS}

\b
Environment:
  BRIDGE_CACHE_DIR, BRIDGE_CACHE_SIZE   place and bound of the cache
  BRIDGE_PLUGINS=a,b                    load these plugins only
  BRIDGE_TRACEBACK=1                    show where an error comes from
"""


class Program(TyperGroup):
    """The commands of this package, then those of plugins.

    Plugins are asked only where their answer is needed: for a command that is not ours,
    and for the list of commands if a distribution other than this one has plugins.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; an error of the bridge becomes two lines and a status."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.INTERRUPTED) from None
        except BrokenPipeError:
            close_output()
            raise typer.Exit(exit_codes.CLOSED_OUTPUT) from None
        except Exception as error:
            from bridge.errors import BridgeError

            if not isinstance(error, BridgeError):
                raise
            from bridge_cli.render import print_error

            if os.environ.get("BRIDGE_TRACEBACK") == "1":
                traceback.print_exc()
            print_error(error)
            raise typer.Exit(exit_codes.of(error)) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words before the command; may print help or the version."""
        try:
            return super().parse_args(ctx, args)
        except BrokenPipeError:
            close_output()
            raise typer.Exit(exit_codes.CLOSED_OUTPUT) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, ours first."""
        ours = super().list_commands(ctx)
        if not _has_foreign_plugins():
            return ours
        return [*ours, *sorted(self._added())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, ``None`` if nobody has it."""
        ours = super().get_command(ctx, cmd_name)
        if ours is not None or cmd_name.startswith("-"):
            return ours
        return self._added().get(cmd_name)

    def _added(self) -> dict[str, Any]:
        from bridge_cli.plugins import plugin_commands
        from bridge_cli.render import print_warning

        added = plugin_commands(own_names())
        for failure in added.failures:
            print_warning(failure.error)
        return added.commands


app = typer.Typer(
    name="bridge",
    cls=Program,
    help="One predictor over every inference runtime, and evidence for the choice between them.",
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    # Plain help keeps the examples as they are written, and starts without rich.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(importlib.metadata.version("inference-bridge"))
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


_COMMANDS = (
    doctor,
    inspect,
    run,
    compare,
    select,
    bench,
    verify,
    report,
    compare_records,
    convert,
    routes,
    options,
    conform,
)
for command in _COMMANDS:
    app.command(epilog=command.EPILOG)(getattr(command, command.__name__.rpartition(".")[2]))
app.add_typer(cache.app, name="cache")
app.add_typer(zoo.app, name="zoo")


def own_names() -> tuple[str, ...]:
    """Names of the program's own commands, which no plugin may take."""
    ours = (command.__name__.rpartition(".")[2].replace("_", "-") for command in _COMMANDS)
    return (*ours, "cache", "zoo")


def _has_foreign_plugins() -> bool:
    limit = os.environ.get("BRIDGE_PLUGINS")
    wanted = None if limit is None else {item.strip() for item in limit.split(",")}
    return any(
        point.dist is None or point.dist.name != "inference-bridge"
        for point in importlib.metadata.entry_points(group="bridge")
        if wanted is None or point.name in wanted
    )
