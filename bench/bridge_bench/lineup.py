"""The arms of a selection, those on converted models among them.

A backend that does not take the first model may take it in another format: where a route
leads there, the model is converted before arms are planned, and each arm's id says by
which adapters. The gate compares every arm with the reference on the selection's own
inputs, so that a conversion is not verified a second time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic

from bridge.backend import Backend
from bridge.conversion import convert
from bridge.device import CPU
from bridge.errors import BridgeError
from bridge.registry import registry
from bridge.routes import Route, find_routes, runners
from bridge_bench.entrant import INTERRUPTED, Entrant
from bridge_bench.plan import PlannedArm, plan
from bridge_bench.request import Request

__all__ = ["BUDGET", "awaited", "converted", "lineup"]

BUDGET = "prepare-budget"
"""Rule that leaves out what the budget for preparing had no time for."""
CONVERSION = "conversion"
"""Rule that leaves out arms on a model that could not be converted."""


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
    return tuple(
        _left_out(backend, route.name, CONVERSION, _described(route), route.fix)
        for target, backends in _targets(request)
        for route in find_routes(request.models[0], target)[:1]
        for backend in backends
    )


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
    return request, tuple(rows)


def _targets(request: Request) -> Iterator[tuple[str, tuple[Backend, ...]]]:
    """Formats to convert to, each with the backends that take none of the user's files.

    Of the formats that such a backend takes, its native one if a route leads there.
    """
    if not request.routes or (request.only and not any(set("<*?[") & {*p} for p in request.only)):
        return
    first, own = request.models[0], {model.format.name for model in request.models}
    within = {route.target for route in find_routes(first)}
    chosen: dict[str, list[Backend]] = {}
    for backend in registry().backends:
        if request.backends is not None and backend.name not in request.backends:
            continue
        reached = sorted(one for one in within - own if backend in runners(one))
        if not reached or not backend.probe().installed or not backend.capabilities(CPU).predicts:
            continue
        if any(backend in runners(one) for one in own):
            continue
        native = {one.name for one in registry().formats if one.native_backend == backend.name}
        best = next((one for one in reached if one in native), reached[0])
        chosen.setdefault(best, []).append(backend)
    yield from ((target, tuple(backends)) for target, backends in chosen.items())


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
