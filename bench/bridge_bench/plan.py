"""Which arms a selection would measure, and why it leaves out the others.

An arm is one model file on one backend, device and set of options. The plan is made
from metadata and the models' bytes: no runtime is imported, unless there is a device
besides the CPU to ask about, and nothing is loaded.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.backend import Backend, Refusal
from bridge.device import CPU, Device
from bridge.errors import (
    BackendUnavailable,
    DeviceUnavailable,
    OptionError,
    UnsupportedModel,
    nearest,
)
from bridge.model import ModelRef
from bridge.options import TIERS, Options
from bridge.registry import registry
from bridge.routes import route_of
from bridge.search import Pruned, combine
from bridge_bench.places import find_places

__all__ = ["NO_GAIN", "TIER", "PlannedArm", "plan"]

NO_GAIN = "no-gain"
"""Rule that leaves out a reduced precision on devices that compute in it no faster."""
TIER = "precision-tier"
"""Rule that leaves out what is more reduced than was asked for."""

# Option sets that are measured of a model of reduced precision, for each backend and device.
_REDUCED_VARIANTS = 3
_NO_BACKEND = ("format", "dtype", "dynamic-dims")


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """One arm as planned; those that are left out have a rule.

    Attributes:
        id: Unique in the plan and made to be typed: ``backend/key=value,key=value`` or
            ``backend`` for the defaults, ``@device`` after it unless that is the CPU, and
            ``model:`` before it where there are several models, or ``<route`` after it for
            one that was converted.
        model: Index into the models.
        backend, device: Names.
        options: ``None`` where there are none because the arm is left out.
        tier: Precision tier of the options, or of the model where that is more reduced.
        is_default: The native backend of the first model with default options.
        process_key: Arms of one key may live in one process.
        prepares: Loading or the first calls convert, compile or build for long.
        rule: Name of the rule that left it out; ``None`` if it takes part.
        reason: Why, in one sentence; empty if it takes part.
        fix: What would bring it in, in one sentence, where that is known.
    """

    id: str
    model: int
    backend: str
    device: Device
    options: Options | None
    tier: str = "strict"
    is_default: bool = False
    process_key: str = ""
    prepares: bool = False
    rule: str | None = None
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for; see ``plan``."""

    named: frozenset[str]
    devices: tuple[Device, ...] | None
    tier: str
    options: Mapping[str, Mapping[str, Any]]
    only: tuple[str, ...]
    skip: tuple[str, ...]


def plan(
    models: Sequence[ModelRef],
    *,
    routes: Sequence[str] = (),
    backends: Sequence[str] | None = None,
    devices: Sequence[str | Device] | None = None,
    tier: str = "strict",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    max_arms: int = 48,
) -> tuple[PlannedArm, ...]:
    """All arms of some models: those to measure, and those left out by a rule.

    Args:
        models: Files of one model; the first is the user's, whose native backend with its
            default options is the default arm.
        routes: By which adapters the last of the models were made from the first.
        backends: Names of the backends to try; ``None`` means all but the oracles. The
            default arm is planned in any case, because others are compared with it.
        devices: Devices to try; ``None`` means all that a backend can use here.
        tier: Most reduced precision to admit, one of ``TIERS``.
        options: Options that are settled, by backend: only variants that keep them are tried.
        only: Patterns (``*`` and ``?``) of ids: other arms than these and the default are
            left out.
        skip: Patterns of ids that are left out, the default among them.
        max_arms: Most arms to measure: the defaults of all backends first, then the
            others, one of each backend in turn.

    Returns:
        The arms, the default first, then by model, backend and device in the order of
        each search space.

    Raises:
        BackendNotFound: A backend is unknown.
        OptionError: A settled option, the tier or ``max_arms`` is wrong, or all arms are
            excluded by ``only``, ``skip`` or the tier.
        DeviceUnavailable: A device is no device, or no backend can use those asked for.
        BackendUnavailable: No backend that takes the model is installed.
        UnsupportedModel: No backend takes the model; ``detail["refusals"]`` says why.
    """
    if not models:
        raise OptionError("there is no model to plan for.", fix="Pass one or more models.")
    if tier not in TIERS:
        raise OptionError(
            f"tier is '{tier}'; wanted one of {', '.join(TIERS)}.", fix=nearest(tier, TIERS)
        )
    if max_arms < 1:
        raise OptionError(f"max_arms is {max_arms}; wanted at least 1.", fix="Leave it at 48.")
    wanted = _Wanted(
        frozenset(backends or ()),
        None if devices is None else tuple(Device.parse(item) for item in devices),
        tier,
        {
            name: registry().backends.get(name).options_type.make(given).to_dict()
            for name, given in (options or {}).items()
        },
        tuple(only),
        tuple(skip),
    )
    own = models[: len(models) - len(routes)]
    prefixes, suffixes = _prefixes(own), ["" for _ in own]
    prefixes += ["" for _ in routes]
    suffixes += [f"<{route}" for route in routes]
    arms: list[PlannedArm] = []
    for index, model in enumerate(models):
        native = model.format.native_backend
        for backend in _ordered(native, backends, keep_native=index == 0):
            found = _arms(backend, index, model.served, wanted)
            if suffixes[index]:
                found = _reduced(found, suffixes[index][1:])
            for bare in found:
                if suffixes[index] and bare.rule == "format":
                    continue  # it was not converted for this one
                is_default = (
                    index == 0
                    and backend.name == native
                    and bare.options is not None
                    and not any(other.is_default for other in arms)
                )
                whole = prefixes[index] + bare.id + suffixes[index]
                arm = dataclasses.replace(bare, id=whole, is_default=is_default)
                arms.append(_excluded(arm, wanted))
    _require_some(arms, models[0])
    return tuple(_within(_unique(arms), max_arms))


def _reduced(arms: Iterator[PlannedArm], route: str) -> Iterator[PlannedArm]:
    """The arms on a converted model, which may compute in less than the arms themselves."""
    way = route_of(route)
    if way.precision is None:
        yield from arms
        return
    counts: dict[Device, int] = {}
    for arm in arms:
        if arm.options is None:
            continue  # it is told of the model that it was made from
        tier = max(arm.tier, way.tier, key=TIERS.index)
        counts[arm.device] = count = counts.get(arm.device, 0) + 1
        if not way.pays_on(arm.device.kind):
            if count == 1:
                reason = f"{way.precision} of {route} does not pay on {arm.device}."
                yield dataclasses.replace(arm, tier=tier, rule=NO_GAIN, reason=reason)
        elif count <= _REDUCED_VARIANTS:
            yield dataclasses.replace(arm, tier=tier)


def _ordered(native: str, names: Sequence[str] | None, *, keep_native: bool) -> Iterator[Backend]:
    """The native backend, then the others by name or as they were named."""
    chosen = list(registry().backends)
    if names is not None:
        chosen = [registry().backends.get(name) for name in dict.fromkeys(names)]
        if keep_native and native not in names:
            chosen += [item for item in registry().backends if item.name == native]
    return iter(sorted(chosen, key=lambda item: item.name != native))


def _arms(backend: Backend, index: int, model: ModelRef, wanted: _Wanted) -> Iterator[PlannedArm]:
    place = backend.default_device(model)
    blank = PlannedArm(
        id=_id(backend, {}, place), model=index, backend=backend.name, device=place, options=None
    )

    def left_out(rule: str, reason: str, fix: str | None = "") -> PlannedArm:
        return dataclasses.replace(blank, rule=rule, reason=reason, fix=fix or "")

    refusal = backend.refuse(model, place)
    if refusal is not None:
        yield left_out(_rule(refusal), refusal.reason, refusal.fix)
        return
    if backend.is_oracle and backend.name not in wanted.named:
        yield left_out(
            "oracle",
            f"{backend.name} is there to say what is right, not to be fast.",
            f"Name it to measure it all the same: backends=['{backend.name}'].",
        )
        return
    found = backend.probe()
    if not found.installed:
        yield left_out("not-installed", f"{found.reason}.", found.fix)
        return
    devices, missing = find_places(backend, model, wanted.devices)
    for device, error in missing:
        builds = backend.capabilities(device)
        rule = "builder-only" if builds.formats and not builds.predicts else "no-device"
        yield dataclasses.replace(
            left_out(rule, error.message, error.fix), id=_id(backend, {}, device), device=device
        )
    for device in devices:
        claims = backend.capabilities(device)
        refusal = backend.refuse(model, device)
        at = dataclasses.replace(blank, id=_id(backend, {}, device), device=device)
        if refusal is not None:
            yield dataclasses.replace(
                at, rule=_rule(refusal), reason=refusal.reason, fix=refusal.fix
            )
        elif not claims.predicts:
            reason = f"{backend.name} can build for {device}, but cannot run models here."
            fix = backend.missing_device(device).fix or ""
            yield dataclasses.replace(at, rule="builder-only", reason=reason, fix=fix)
        else:
            yield from _variants(backend, model, at, wanted)


def _variants(
    backend: Backend, model: ModelRef, blank: PlannedArm, wanted: _Wanted
) -> Iterator[PlannedArm]:
    """The arms of one backend on one device."""
    try:
        space = backend.search_space(model, blank.device)
    except Exception as error:  # noqa: BLE001 - a backend of others must not end the plan
        reason = f"{backend.name} could not say what is worth measuring: {error}"
        yield dataclasses.replace(blank, rule="search-space", reason=reason)
        return
    settled = wanted.options.get(backend.name, {})
    for item in _settled(backend.options_type, space, settled) if settled else space:
        if isinstance(item, Pruned):
            yield dataclasses.replace(
                blank,
                id=_id(backend, item.values, blank.device),
                rule=item.rule,
                reason=item.reason,
            )
            continue
        key = _id(backend, item.to_dict(), blank.device)
        process = f"{backend.name}@{blank.device}"
        if item.process_key():
            process += f"/{item.process_key()}"
        if item.prepares:  # a compiler that dies takes nothing else with it
            process += f"/{blank.model}:{key}"
        yield dataclasses.replace(
            blank,
            id=key,
            options=item,
            tier=item.tier,
            process_key=process,
            prepares=item.prepares,
        )


def _settled(
    kind: type[Options], space: Sequence[Options | Pruned], settled: Mapping[str, Any]
) -> tuple[Options | Pruned, ...]:
    """A search space with some options settled by the caller."""
    candidates: list[Mapping[str, Any] | Pruned] = []
    for item in space:
        if isinstance(item, Pruned):
            candidates.append(item)
            continue
        values = item.to_dict()
        other = [name for name in settled if values.get(name, settled[name]) != settled[name]]
        if other:
            reason = f"{other[0]} is settled as {settled[other[0]]}."
            candidates.append(Pruned(values, "settled", reason))
        else:
            candidates.append({**values, **settled})
    return combine(kind, candidates)


def _excluded(arm: PlannedArm, wanted: _Wanted) -> PlannedArm:
    """The arm, left out if the caller does not want it."""
    if arm.rule is not None:
        return arm
    pattern = next((item for item in wanted.skip if fnmatch.fnmatchcase(arm.id, item)), None)
    if pattern is not None:
        return _without(arm, "excluded", f"it fits '{pattern}', which is to be skipped.")
    if TIERS.index(arm.tier) > TIERS.index(wanted.tier):
        return _without(
            arm,
            TIER,
            f"it computes with the precision of tier '{arm.tier}'; "
            f"'{wanted.tier}' is the most reduced that is admitted.",
            f"Admit tier '{arm.tier}'.",
        )
    if arm.is_default:
        return arm
    if wanted.only and not any(fnmatch.fnmatchcase(arm.id, item) for item in wanted.only):
        shown = ", ".join(f"'{item}'" for item in wanted.only)
        return _without(arm, "excluded", f"only {shown} is to be measured.")
    if wanted.named and arm.backend not in wanted.named:
        shown = ", ".join(sorted(wanted.named))
        return _without(arm, "excluded", f"only backends {shown} are to be measured.")
    return arm


def _within(arms: list[PlannedArm], max_arms: int) -> Iterator[PlannedArm]:
    """The arms, the last in rank left out beyond a number."""
    groups: dict[tuple[int, str, Device], list[PlannedArm]] = {}
    for arm in arms:
        if arm.rule is None:
            groups.setdefault((arm.model, arm.backend, arm.device), []).append(arm)
    turns = itertools.zip_longest(*groups.values())
    ranked = [arm.id for turn in turns for arm in turn if arm is not None]
    kept = set(ranked[:max_arms])
    for arm in arms:
        if arm.rule is None and arm.id not in kept:
            reason = f"only {max_arms} arms are measured, and {len(ranked)} were worth it."
            yield _without(arm, "max-arms", reason, f"Measure up to {len(ranked)} arms.")
        else:
            yield arm


def _require_some(arms: Sequence[PlannedArm], model: ModelRef) -> None:
    """Raises where nothing is left to measure."""
    if any(arm.rule is None for arm in arms):
        return
    refusals = {arm.id: arm.reason for arm in arms}
    rules = {arm.rule for arm in arms}
    facts: dict[str, Any] = {"model": model.name, "refusals": refusals}
    if rules <= {*_NO_BACKEND, "oracle"}:
        raise UnsupportedModel(
            f"no backend takes {model.name} ({model.format.title}).",
            fix="Convert it: 'bridge inspect' shows who takes what.",
            **facts,
        )
    for rule, kind in (
        ("not-installed", BackendUnavailable),
        ("no-device", DeviceUnavailable),
        ("builder-only", DeviceUnavailable),
    ):
        first = next((arm for arm in arms if arm.rule == rule), None)
        if first is not None and rules <= {*_NO_BACKEND, "oracle", *_UNUSABLE}:
            raise kind(
                f"no backend that takes {model.name} can run here: {first.reason}",
                fix=first.fix or "'bridge doctor' shows what is installed.",
                **facts,
            )
    raise OptionError(
        f"all {len(arms)} arms are left out, by the rules {', '.join(sorted(map(str, rules)))}.",
        fix="Ask for less: a dry run shows the rule of each arm.",
        **facts,
    )


_UNUSABLE = ("not-installed", "no-device", "builder-only")


def _rule(refusal: Refusal) -> str:
    for fact, rule in (("dtype", "dtype"), ("shape", "dynamic-dims")):
        if fact in refusal.detail:
            return rule
    return "format"


def _without(arm: PlannedArm, rule: str, reason: str, fix: str = "") -> PlannedArm:
    return dataclasses.replace(arm, rule=rule, reason=reason, fix=fix)


def _prefixes(models: Sequence[ModelRef]) -> list[str]:
    if len(models) == 1:
        return [""]
    names = [_plain(model.name) for model in models]
    if len(set(names)) < len(names):
        names = [str(index) for index in range(len(models))]
    return [f"{name}:" for name in names]


def _id(backend: Backend, values: Mapping[str, Any], device: Device) -> str:
    text = ",".join(f"{name}={_plain(_shown(value))}" for name, value in values.items())
    where = "" if device == CPU else f"@{device}"
    return f"{backend.name}/{text}{where}" if text else f"{backend.name}{where}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _plain(text: str) -> str:
    """Without what a shell, a pattern or an id gives a meaning to."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "model"


def _unique(arms: list[PlannedArm]) -> list[PlannedArm]:
    seen: dict[str, int] = {}
    found = []
    for arm in arms:
        count = seen[arm.id] = seen.get(arm.id, 0) + 1
        found.append(arm if count == 1 else dataclasses.replace(arm, id=f"{arm.id}~{count}"))
    return found
