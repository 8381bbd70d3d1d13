"""The arms of a selection, those on converted models among them.

A backend that does not take the first model may take it in another format: where a route
leads there, the model is converted before arms are planned, and each arm's id says by
which adapters. The gate compares every arm with the reference on the selection's own
inputs, so that a conversion is not verified a second time here.

Adapters that reduce precision add arms as well, where their tier is admitted: on the
user's model if they read it, else on a converted one. Those that are calibrated use the
profile's samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import monotonic

from bridge.adapter import Adapter, CalibratedAdapter
from bridge.backend import Backend
from bridge.conversion import convert
from bridge.device import CPU
from bridge.errors import BridgeError
from bridge.model import ModelRef
from bridge.registry import registry
from bridge.routes import Route, find_routes, route_of, runners
from bridge_bench.entrant import INTERRUPTED, Entrant
from bridge_bench.places import device_kinds
from bridge_bench.plan import NO_GAIN, TIER, PlannedArm, plan
from bridge_bench.request import Request

__all__ = ["BUDGET", "awaited", "converted", "lineup"]

BUDGET = "prepare-budget"
"""Rule that leaves out what the budget for preparing had no time for."""
CONVERSION = "conversion"
"""Rule that leaves out arms on a model that could not be converted."""
NO_SAMPLES = "no-samples"
"""Rule that leaves out a calibrated precision where there are no samples."""


@dataclass(frozen=True)
class _Source:
    """A model that there is, or will be once it is converted, and by what route."""

    format_name: str
    route: str = ""
    model: ModelRef | None = None


def lineup(request: Request, others: tuple[PlannedArm, ...] = ()) -> list[Entrant]:
    """All arms of a request as planned, and others that are left out already.

    Raises:
        BridgeError: As ``plan``.
    """
    planned = plan(
        request.models,
        routes=request.converted_by,
        backends=request.backends,
        devices=request.devices,
        tier=request.gate.tier,
        options=request.options,
        only=request.only,
        skip=request.skip,
        max_arms=request.max_arms,
    )
    limits = request.limits
    if limits.objective == "memory" or limits.max_memory_bytes is not None:
        # In one process the first arm would pay for what the runtime keeps for all of them.
        planned = tuple(replace(one, process_key=one.id) for one in planned)
    known = {one.id for one in planned}
    more = [one for one in others if one.id not in known]
    return [Entrant.of(one, slot) for slot, one in enumerate([*planned, *more])]


def awaited(request: Request) -> tuple[PlannedArm, ...]:
    """What would be converted, for a plan that nothing comes of."""
    rows: list[PlannedArm] = []
    sources = [_Source(one.format.name) for one in request.models]
    for target, backends in _targets(request):
        for route in find_routes(request.models[0], target)[:1]:
            sources.append(_Source(target, route.name))
            rows += [
                _left_out(backend, route.name, CONVERSION, _described(route), route.fix)
                for backend in backends
            ]
    for adapter, source, backends in _reductions(request, sources):
        name = _joined(source, adapter)
        refused = _unwanted(request, adapter, backends, name)
        reason = f"the model is converted by {name} first, which a plan does not do."
        rows += (
            [refused]
            if refused
            else [_left_out(backend, name, CONVERSION, reason, "") for backend in backends]
        )
    return tuple(rows)


def converted(
    request: Request,
    *,
    deadline: float,
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> tuple[Request, tuple[PlannedArm, ...]]:
    """The request with its first model in every further format that some backend takes.

    Args:
        request: What is selected.
        deadline: When there is no time left for it, as ``monotonic`` tells.
        stop: Asked before each conversion.
        tell: Called with one line of text now and then.

    Returns:
        The request, and the arms that cannot be because a route failed.
    """
    first = request.models[0]
    rows: list[PlannedArm] = []
    for target, backends in _targets(request):

        def leave_out(
            route: str, rule: str, reason: str, fix: str, able: tuple[Backend, ...] = backends
        ) -> None:
            rows.extend(_left_out(backend, route, rule, reason, fix) for backend in able)

        route = find_routes(first, target)[0]
        left_s = deadline - monotonic()
        if stop():
            leave_out(route.name, INTERRUPTED, "it was interrupted before this was converted", "")
            continue
        if left_s <= 0:
            leave_out(route.name, BUDGET, "the budget for preparing arms was used up", "")
            continue
        try:
            made = convert(
                first.file,
                target,
                signature=first.declared or first.signature_key,
                trust=first.trust,
                verify=False,
                timeout_s=left_s,
                tell=tell,
            )
        except BridgeError as error:
            attempts = error.detail.get("attempts") or [
                {"route": route.name, "error": error.message}
            ]
            for attempt in attempts:
                leave_out(attempt["route"], CONVERSION, attempt["error"], error.fix or "")
            continue
        for failed in made.failed:
            leave_out(failed.route, CONVERSION, failed.error.message, failed.error.fix or "")
        request = replace(
            request,
            models=(*request.models, made.open()),
            converted_by=(*request.converted_by, made.route),
        )
    return _with_reduced(request, rows, deadline=deadline, stop=stop, tell=tell)


def _with_reduced(
    request: Request,
    rows: list[PlannedArm],
    *,
    deadline: float,
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> tuple[Request, tuple[PlannedArm, ...]]:
    """The request with its models in the reduced precisions that it admits."""
    routes = [*[""] * (len(request.models) - len(request.converted_by)), *request.converted_by]
    sources = [
        _Source(one.format.name, route, one)
        for one, route in zip(request.models, routes, strict=True)
    ]
    samples = request.profile.samples
    for adapter, source, backends in _reductions(request, sources):
        name = _joined(source, adapter)
        refused = _unwanted(request, adapter, backends, name)
        left_s = deadline - monotonic()
        problem: tuple[str, str, str] | None = None
        if refused is not None:
            rows.append(refused)
            continue
        if stop():
            problem = INTERRUPTED, "it was interrupted before this was converted", ""
        elif left_s <= 0:
            problem = BUDGET, "the budget for preparing arms was used up", ""
        else:
            assert source.model is not None
            is_calibrated = isinstance(adapter, CalibratedAdapter) and samples is not None
            try:
                made = convert(
                    source.model.file,
                    adapter.target,
                    route=[adapter.name],
                    signature=source.model.declared or source.model.signature_key,
                    trust=source.model.trust,
                    verify=False,
                    samples=dict(samples.arrays) if is_calibrated and samples else None,
                    timeout_s=left_s,
                    tell=tell,
                )
            except BridgeError as error:
                problem = CONVERSION, error.message, error.fix or ""
            else:
                request = replace(
                    request,
                    models=(*request.models, made.open()),
                    converted_by=(*request.converted_by, name),
                )
        if problem is not None:
            rows.extend(_left_out(backend, name, *problem) for backend in backends)
    return request, tuple(rows)


def _reductions(
    request: Request, sources: list[_Source]
) -> Iterator[tuple[Adapter, _Source, tuple[Backend, ...]]]:
    """Adapters that reduce precision, with the model each would read and what runs the result."""
    if not _may_convert(request):
        return
    full = [one for one in sources if not one.route or route_of(one.route).precision is None]
    for adapter in registry().adapters:
        source = next((one for one in full if one.format_name in adapter.sources), None)
        if adapter.precision is None or source is None or not adapter.probe().installed:
            continue
        able = [one for one in runners(adapter.target) if _is_able(one, request)]
        if able:
            native = {one.name: one.native_backend for one in registry().formats}[adapter.target]
            yield adapter, source, tuple(sorted(able, key=lambda one: one.name != native))


def _unwanted(
    request: Request, adapter: Adapter, backends: tuple[Backend, ...], route: str
) -> PlannedArm | None:
    """The row that says why a reduced precision is not tried; ``None`` if it is."""
    kinds = frozenset[str]().union(*(device_kinds(one, request.devices) for one in backends))
    row: PlannedArm | None = None
    if not request.gate.admits(adapter.tier):
        row = _left_out(
            backends[0],
            route,
            TIER,
            f"it computes with the precision of tier '{adapter.tier}'; "
            f"'{request.gate.tier}' is the most reduced that is admitted.",
            f"Admit tier '{adapter.tier}'.",
        )
    elif adapter.pays_on is not None and not kinds & adapter.pays_on:
        row = _left_out(
            backends[0],
            route,
            NO_GAIN,
            f"{adapter.precision} of {adapter.name} does not pay on {', '.join(sorted(kinds))}.",
            "",
        )
    elif isinstance(adapter, CalibratedAdapter) and request.profile.samples is None:
        error = adapter.missing_samples()
        row = _left_out(backends[0], route, NO_SAMPLES, error.message, error.fix or "")
    return None if row is None else replace(row, tier=adapter.tier)


def _joined(source: _Source, adapter: Adapter) -> str:
    return f"{source.route}+{adapter.name}" if source.route else adapter.name


def _targets(request: Request) -> Iterator[tuple[str, tuple[Backend, ...]]]:
    """Formats to convert to, each with the backends that take none of the user's files.

    Of the formats that such a backend takes, its native one if a route leads there.
    """
    if not _may_convert(request):
        return
    first, own = request.models[0], {model.format.name for model in request.models}
    within = {route.target for route in find_routes(first)}
    chosen: dict[str, list[Backend]] = {}
    for backend in registry().backends:
        reached = sorted(one for one in within - own if backend in runners(one))
        if not reached or not _is_able(backend, request):
            continue
        if any(backend in runners(one) for one in own):
            continue
        native = {one.name for one in registry().formats if one.native_backend == backend.name}
        best = next((one for one in reached if one in native), reached[0])
        chosen.setdefault(best, []).append(backend)
    yield from ((target, tuple(backends)) for target, backends in chosen.items())


def _may_convert(request: Request) -> bool:
    named_only = request.only and not any(set("<*?[") & {*one} for one in request.only)
    return request.routes and not named_only


def _is_able(backend: Backend, request: Request) -> bool:
    """Whether arms of a backend are wanted and can be."""
    is_wanted = request.backends is None or backend.name in request.backends
    return is_wanted and backend.probe().installed and backend.capabilities(CPU).predicts


def _described(route: Route) -> str:
    if route.status == "possible":
        return f"the model is converted by {route.name} first, which a plan does not do."
    return route.reason


def _left_out(backend: Backend, route: str, rule: str, reason: str, fix: str) -> PlannedArm:
    return PlannedArm(
        id=f"{backend.name}<{route}",
        model=0,
        backend=backend.name,
        device=CPU,
        options=None,
        rule=rule,
        reason=reason,
        fix=fix,
    )
