"""Routes: the adapters that lead from one format to another, one after the other.

They are found by search, so that an adapter of any plugin becomes part of them. The
shortest come first, no format comes twice, and what cannot be used is listed with its
reason. Adapters that write the format that they read are used only where they are named,
or where that format itself is asked for; those that reduce precision only where they are
named, or where the caller admits their tier; those that say so only where they are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge import calibration
from bridge.adapter import Adapter, CalibratedAdapter
from bridge.backend import Backend
from bridge.check import Arrays
from bridge.device import Device
from bridge.errors import (
    BackendNotFound,
    BackendUnavailable,
    BridgeError,
    OptionError,
    UnsupportedModel,
    UntrustedModel,
    nearest,
)
from bridge.model import ModelRef
from bridge.options import TIERS
from bridge.registry import registry

__all__ = [
    "MAX_STEPS",
    "Route",
    "find_routes",
    "held_format",
    "impossible",
    "named_route",
    "require_samples",
    "require_target",
    "route_of",
    "runners",
]

MAX_STEPS = 3
"""Most conversions of one route."""


@dataclass(frozen=True)
class Route:
    """One way from a model's format to another.

    Attributes:
        adapters: What converts, in order.
        status: ``possible``, ``not installed`` or ``refused``, as far as is known before
            anything is converted.
        reason: Why not, one sentence; empty if possible.
        fix: What to do about it, one sentence, where that is known.
    """

    adapters: tuple[Adapter, ...]
    status: str = "possible"
    reason: str = ""
    fix: str = ""

    @property
    def name(self) -> str:
        """Names of the adapters, joined by ``+``."""
        return "+".join(adapter.name for adapter in self.adapters)

    @property
    def target(self) -> str:
        """Name of the format that it leads to."""
        return self.adapters[-1].target

    @property
    def makes_code(self) -> bool:
        """Whether the result is native code."""
        return self.adapters[-1].makes_code

    @property
    def tier(self) -> str:
        """Precision tier of what it makes: ``strict``, ``half`` or ``int8``."""
        return self._coarsest.tier

    @property
    def precision(self) -> str | None:
        """What the result computes in where that is less than in the model; else ``None``."""
        return self._coarsest.precision

    def pays_on(self, kind: str) -> bool:
        """Whether its precision may be worth measuring on a kind of device."""
        return all(one.pays_on is None or kind in one.pays_on for one in self.adapters)

    @property
    def _coarsest(self) -> Adapter:
        return max(self.adapters, key=lambda one: TIERS.index(one.tier))


def find_routes(
    model: ModelRef,
    target: str | None = None,
    *,
    max_steps: int = MAX_STEPS,
    tier: str = "strict",
) -> tuple[Route, ...]:
    """All routes from a model, those that are possible first, then by length and names.

    Args:
        model: The model.
        target: Name of the format to reach, or that of the model inside a composite, so that
            a composite is reached as well; ``None`` for every format there is a way to.
        max_steps: Most conversions of one route.
        tier: Most reduced precision that adapters may write, one of ``TIERS``.
    """
    admitted = TIERS[: TIERS.index(tier) + 1]
    adapters = [one for one in registry().adapters if one.tier in admitted and not one.only_named]
    found = [
        _judged(model, chain)
        for chain in _paths(model.format.name, target, max_steps, adapters)
        if target is None or _arrives(chain[-1], target)
    ]
    ranked = sorted(found, key=lambda one: (one.status != "possible", len(one.adapters), one.name))
    return tuple(ranked)


def named_route(model: ModelRef, names: Sequence[str]) -> Route:
    """The route over adapters that are named.

    Raises:
        BackendNotFound: There is no such adapter.
        UnsupportedModel: One does not read what the one before it writes.
    """
    adapters = tuple(registry().adapters.get(name) for name in names)
    source = model.format.name
    for adapter in adapters:
        if source not in adapter.sources:
            raise UnsupportedModel(
                f"adapter '{adapter.name}' reads {', '.join(sorted(adapter.sources))}, "
                f"not {source}.",
                fix="'bridge routes' shows the routes of a model.",
                model=model.name,
            )
        source = adapter.target
    return _judged(model, adapters)


def route_of(name: str) -> Route:
    """The route of a name, as ``Route.name`` makes it; whether it is possible is not asked.

    Raises:
        BackendNotFound: There is no such adapter.
    """
    return Route(tuple(registry().adapters.get(one) for one in name.split("+")))


def require_target(target: str) -> None:
    """Raises ``BackendNotFound`` if no adapter writes a format of this name."""
    targets = {adapter.target for adapter in registry().adapters}
    if target in targets or target in map(held_format, targets):
        return
    if target in {known.name for known in registry().formats}:
        message = f"no adapter writes format '{target}'."
    else:
        message = f"there is no format '{target}'."
    listed = ", ".join(f"'{name}'" for name in sorted(targets))
    fix = nearest(target, targets)
    if targets and "Valid are" not in fix:
        fix += f" Adapters write: {listed}."
    raise BackendNotFound(message, fix=fix, name=target, valid=sorted(targets))


def require_samples(model: ModelRef, routes: Sequence[Route], samples: Arrays | None) -> None:
    """Whether there are samples where routes need some, and whether they fit the model.

    Args:
        model: What is converted.
        routes: The routes that may be tried, at least one.
        samples: Recorded inputs, or ``None``.

    Raises:
        OptionError: The only route needs samples and there are none, or none looks at them.
        InputError: They do not fit; see ``bridge.calibration``.
    """
    eager = [one for way in routes for one in way.adapters if isinstance(one, CalibratedAdapter)]
    if samples is None:
        if eager and len(routes) == 1:
            raise eager[0].missing_samples()
        return
    if not eager:
        raise OptionError(
            f"there are samples, and no adapter of {routes[0].name} looks at any.",
            fix="Leave them out, or name a route with an adapter that is calibrated.",
            option="samples",
        )
    calibration.check(model, samples)


def impossible(model: ModelRef, route: Route) -> BridgeError:
    """The error that says why a route cannot be taken."""
    kind: type[BridgeError] = UnsupportedModel
    if route.status == "not installed":
        kind = BackendUnavailable
    elif "may run code" in route.reason:
        kind = UntrustedModel
    return kind(
        f"the route {route.name} cannot be taken: {route.reason}",
        fix=route.fix or "'bridge routes' shows the others.",
        model=model.name,
    )


def held_format(name: str) -> str:
    """Name of the format that backends get to see: that inside a composite, else itself."""
    holds = {one.name: one.holds for one in registry().formats}
    while (inner := holds.get(name)) is not None:
        name = inner
    return name


def runners(format_name: str) -> tuple[Backend, ...]:
    """Backends that take a format on some kind of device, installed or not; no oracles.

    Of a composite, those that take the model inside.
    """
    within = held_format(format_name)
    return tuple(
        backend
        for backend in registry().backends
        if not backend.is_oracle
        and any(
            within in backend.capabilities(Device(kind)).formats for kind in backend.device_kinds
        )
    )


def _paths(
    source: str, target: str | None, max_steps: int, adapters: Sequence[Adapter]
) -> Iterator[tuple[Adapter, ...]]:
    """Chains of adapters in which no format comes twice, the shortest first."""
    if target == source:  # an optimiser, asked for by its format
        yield from ((one,) for one in adapters if source in one.sources and one.target == source)
        return
    chains: list[tuple[Adapter, ...]] = [()]
    for _ in range(max_steps):
        longer = [
            (*chain, adapter)
            for chain in chains
            for adapter in adapters
            if (chain[-1].target if chain else source) in adapter.sources
            and adapter.target not in {source, *(one.target for one in chain)}
        ]
        yield from longer
        # What has arrived need not go on.
        chains = [one for one in longer if target is None or not _arrives(one[-1], target)]


def _arrives(adapter: Adapter, target: str) -> bool:
    return target in (adapter.target, held_format(adapter.target))


def _judged(model: ModelRef, adapters: tuple[Adapter, ...]) -> Route:
    """The route with what can be told of it without converting."""
    for adapter in adapters:
        found = adapter.probe()
        if not found.installed:
            return Route(
                adapters, "not installed", f"{adapter.name}: {found.reason}.", found.fix or ""
            )
    refusal = adapters[0].refuse(model)
    if refusal is None:
        untrusted = next((one for one in adapters if one.needs_trust), None)
        if untrusted is None or model.trust:
            return Route(adapters)
        return Route(
            adapters,
            "refused",
            f"adapter '{untrusted.name}' may run code that is in the model.",
            "Pass trust=True (--trust) if you know who made the file.",
        )
    return Route(adapters, "refused", refusal.reason, refusal.fix)
