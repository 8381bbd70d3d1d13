"""Commands that plugins add with the hook ``register_commands``."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import typer

from bridge.errors import DuplicateName, PluginError
from bridge.registry import PluginFailure, registry

__all__ = ["PluginCommands", "plugin_commands"]


@dataclass
class PluginCommands:
    """What plugins added.

    Attributes:
        commands: Command by name.
        failures: Plugins whose commands are left out, and why.
    """

    commands: dict[str, Any] = field(default_factory=dict)
    failures: list[PluginFailure] = field(default_factory=list)


@functools.cache
def plugin_commands(taken: tuple[str, ...]) -> PluginCommands:
    """Asks every plugin for its commands; one that fails is recorded and left out.

    A name that is taken stays with the first; order among plugins is that of their
    names.

    Args:
        taken: Names of the program's own commands.
    """
    found = PluginCommands()
    plugins = registry()
    owners = dict.fromkeys(taken, "inference-bridge")
    for hook in plugins.manager.hook.register_commands.get_hookimpls():
        name = str(hook.plugin_name)
        distribution = plugins.plugins.get(name, "an unknown distribution")
        added: dict[str, Any] = {}
        try:
            hook.function(_collector(added))
            for command in added:
                if command in owners:
                    raise DuplicateName(
                        f"command '{command}' is registered by {owners[command]} "
                        f"and by {distribution}.",
                        fix="Uninstall one, or name the plugins to load in BRIDGE_PLUGINS.",
                        name=command,
                    )
        except Exception as error:  # noqa: BLE001 - recorded, shown by doctor and on use
            found.failures.append(_failure(name, distribution, error))
        else:
            found.commands.update(added)
            owners.update(dict.fromkeys(added, distribution))
    return found


def _collector(added: dict[str, Any]) -> Callable[[Any], None]:
    def register(item: Any) -> None:
        """Takes a ``typer.Typer``, or a function with typer's annotations."""
        if isinstance(item, typer.Typer):
            made = item
        elif callable(item):
            made = typer.Typer(add_completion=False, rich_markup_mode=None)
            made.command()(item)
        else:
            raise TypeError(f"a command is a typer.Typer or a function, not {item!r}")
        command = typer.main.get_command(made)
        if not command.name:
            raise ValueError("a typer.Typer with several commands needs a name")
        if command.name in added:
            raise ValueError(f"command '{command.name}' is registered twice")
        added[command.name] = command

    return register


def _failure(name: str, distribution: str, error: Exception) -> PluginFailure:
    if isinstance(error, PluginError):
        trace = "".join(traceback.format_exception(error))
        return PluginFailure(name, distribution, error, trace)
    problem = f"the commands of plugin '{name}' of {distribution} do not load"
    return PluginFailure.of(name, distribution, error, problem)
