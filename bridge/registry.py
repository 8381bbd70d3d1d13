"""Which backends, formats and adapters exist.

Plugins come from entry points. A plugin that cannot be imported is recorded, shown by
``bridge doctor``, and takes nothing down. Two plugins that register one name are an
error, raised when that name is used. Order decides nothing.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from bridge import formats, hookspecs
from bridge.adapter import Adapter
from bridge.backend import Backend
from bridge.errors import BackendNotFound, DuplicateName, PluginError, PluginLoadFailed, nearest
from bridge.model import Format

__all__ = ["Names", "PluginFailure", "Registry", "registry"]

_Item = TypeVar("_Item", Backend, Format, Adapter)
GROUP = "bridge"


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A plugin that does not work: its name, its distribution, the error, the traceback."""

    name: str
    distribution: str
    error: PluginError
    traceback: str

    @classmethod
    def of(cls, name: str, distribution: str, error: BaseException, problem: str) -> PluginFailure:
        """Wraps what a plugin raised; ``problem`` says in which part of it."""
        wrapped = PluginLoadFailed(
            f"{problem}: {type(error).__name__}: {str(error).strip() or 'no text'}.",
            fix="Repair or uninstall that distribution; everything else goes on without it.",
            plugin=name,
            distribution=distribution,
        )
        wrapped.__cause__ = error
        return cls(name, distribution, wrapped, "".join(traceback.format_exception(error)))


class Names(Generic[_Item]):
    """Registered things by name, with the plugin that each came from."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: dict[str, list[tuple[_Item, str]]] = {}

    def __iter__(self) -> Iterator[_Item]:
        """All that are registered once, in name order."""
        return iter([group[0][0] for _, group in sorted(self._found.items()) if len(group) == 1])

    def add(self, item: _Item, source: str) -> None:
        """Adds one; a name used twice is kept, to be reported when it is asked for."""
        self._found.setdefault(item.name, []).append((item, source))

    def get(self, name: str) -> _Item:
        """The one of that name.

        Raises:
            BackendNotFound: There is none; the nearest names are offered.
            DuplicateName: Several plugins register it.
        """
        group = self._found.get(name, [])
        if not group:
            raise BackendNotFound(
                f"there is no {self._kind} '{name}'.",
                fix=nearest(name, self._found),
                name=name,
                valid=sorted(self._found),
            )
        if len(group) > 1:
            raise self._duplicate(name)
        return group[0][0]

    def source(self, name: str) -> str:
        """The distribution and plugin that registered it."""
        return self._found[name][0][1]

    def duplicates(self) -> tuple[DuplicateName, ...]:
        """An error for each name that several plugins register."""
        return tuple(
            self._duplicate(name) for name, group in sorted(self._found.items()) if len(group) > 1
        )

    def _duplicate(self, name: str) -> DuplicateName:
        sources = [source for _, source in self._found[name]]
        return DuplicateName(
            f"{self._kind} '{name}' is registered {len(sources)} times: "
            f"by {' and by '.join(sources)}.",
            fix="Uninstall one, or name the plugins to load in BRIDGE_PLUGINS.",
            name=name,
            sources=sources,
        )


@dataclass
class Registry:
    """Everything that plugins registered.

    Attributes:
        backends: Backends by name.
        formats: Formats by name.
        adapters: Adapters by name.
        plugins: Names of the plugins that loaded, with their distributions.
        failures: Plugins that did not.
    """

    backends: Names[Backend] = field(default_factory=lambda: Names("backend"))
    formats: Names[Format] = field(default_factory=lambda: Names("format"))
    adapters: Names[Adapter] = field(default_factory=lambda: Names("adapter"))
    plugins: dict[str, str] = field(default_factory=dict)
    failures: list[PluginFailure] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(GROUP))

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    def add(self, plugin: ModuleType | object, name: str, distribution: str) -> None:
        """Registers one plugin; whatever it raises is recorded in ``failures``."""
        source = f"{distribution} (plugin '{name}')"
        # Added when all its hooks have run: half a plugin is none.
        found: list[tuple[Names[Any], Any]] = []

        def collect(names: Names[Any], kind: type) -> Callable[[Any], None]:
            def register(item: Any) -> None:
                if not isinstance(item, kind) or not isinstance(getattr(item, "name", None), str):
                    raise TypeError(f"registered {item!r}; wanted an instance of {kind.__name__}")
                found.append((names, item))

            return register

        targets: dict[str, Callable[[Any], None]] = {
            "register_backends": collect(self.backends, Backend),
            "register_formats": collect(self.formats, Format),
            "register_adapters": collect(self.adapters, Adapter),
        }
        unique = name if name not in self.plugins else f"{name} of {distribution}"
        try:
            self.manager.register(plugin, unique)
            self.manager.check_pending()
            for hook, register in targets.items():
                for implementation in getattr(self.manager.hook, hook).get_hookimpls():
                    if implementation.plugin is plugin:
                        implementation.function(register)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - recorded, and shown by doctor
            self.manager.unregister(plugin)
            self._fail(name, distribution, error)
        else:
            for names, item in found:
                names.add(item, source)
            self.plugins[unique] = distribution

    def load_entry_points(self) -> None:
        """Loads the plugins of the entry-point group, limited by ``BRIDGE_PLUGINS``."""
        limit = os.environ.get("BRIDGE_PLUGINS")
        wanted = None if limit is None else {item.strip() for item in limit.split(",")} - {""}
        points = sorted(
            importlib.metadata.entry_points(group=GROUP),
            key=lambda point: (point.name, point.value),
        )
        for point in points:
            if wanted is not None and point.name not in wanted:
                continue
            distribution = point.dist.name if point.dist is not None else "an unknown distribution"
            try:
                plugin = point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - recorded, shown by doctor
                self._fail(point.name, distribution, error)
            else:
                self.add(plugin, point.name, distribution)
        for name in sorted((wanted or set()) - {point.name for point in points}):
            missing = LookupError(f"BRIDGE_PLUGINS names '{name}', which is not installed")
            self._fail(name, "BRIDGE_PLUGINS", missing)

    def _fail(self, name: str, distribution: str, error: BaseException) -> None:
        problem = f"plugin '{name}' of {distribution} does not load"
        self.failures.append(PluginFailure.of(name, distribution, error, problem))


@functools.cache
def registry() -> Registry:
    """The process's registry, filled on first use."""
    made = Registry()
    made.add(formats, "formats", "inference-bridge")
    made.load_entry_points()
    return made
