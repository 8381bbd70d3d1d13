"""A selection record becomes a predictor: what changed since, which arms serve, routing."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from bridge import machine, recording
from bridge.device import Device
from bridge.errors import (
    BackendNotFound,
    BackendUnavailable,
    DeviceUnavailable,
    InvalidRecord,
    OptionError,
    RecordWarning,
    StaleRecord,
    nearest,
)
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor
from bridge.record import ArmRecord, Route, SelectionRecord
from bridge.renaming import RenamedPredictor
from bridge.routing import Branch, RoutedPredictor, routed_info
from bridge.signature import Signature

__all__ = ["load_record"]

_MAY_SERVE = frozenset({"won", "tied", "eliminated", "undecided", "infeasible"})


def load_record(
    record: SelectionRecord,
    load: Callable[..., Predictor],
    *,
    backend: str | None = None,
    device: str | Device | None = None,
    options: Options | Mapping[str, Any] | Sequence[str] | None = None,
    trust: bool = False,
    strict: bool = False,
) -> Predictor:
    """The predictor that a record decided for; see ``bridge.load``.

    Args:
        record: A record with a folder.
        load: Loads one arm: ``load(model, backend=..., device=..., options=...)``.
        backend: Serve with the best-ranked arm of that backend.
        device: Serve with the best-ranked arm on that device.
        options: ``{"arm": id}``, or the text ``arm=id``, to serve with that arm.
        trust: The models of the record may run code of their own.
        strict: Refuse where machine, versions or variables differ, instead of warning.

    Raises:
        InvalidRecord: It decided for nothing, or an arm does not have the names it says.
        StaleRecord: The model was changed; with ``strict``, anything else that matters.
        BackendUnavailable, DeviceUnavailable: An arm cannot run here; the message names
            those of the record that can.
        OptionError: There is no such arm, or it may not serve.
    """
    routes = _routes(record, _wanted_arm(options), backend, device)
    arms = {route.arm: record.arm(route.arm) for route in routes}
    for arm in arms.values():
        _require(record, arm)
    needed = sorted({arm.model for arm in arms.values()})  # each is read once, however many arms
    models = {index: recording.model(record, index, trust=trust) for index in needed}
    changes = _changes(record, arms.values())
    if changes:
        text = f"the record in '{record.folder}' was measured under other conditions: " + " ".join(
            changes
        )
        fix = "Select again here, for the choice may be another one."
        if strict:
            raise StaleRecord(text, fix=f"{fix} Without strict=True this is a warning.")
        warnings.warn(f"{text} {fix}", RecordWarning, stacklevel=3)
    about = {"path": str(record.folder), "checksum": recording.checksum(record)}
    with ExitStack() as stack:
        loaded: dict[str, Predictor] = {}
        for name, arm in arms.items():
            loaded[name] = _loaded(record, arm, models[arm.model], load)
            stack.callback(loaded[name].close)
            loaded[name] = _renamed(record, arm, loaded[name])
        predictor = _joined(record, routes, loaded, about)
        stack.pop_all()
    return predictor


def _wanted_arm(options: Options | Mapping[str, Any] | Sequence[str] | None) -> str | None:
    if isinstance(options, str):
        options = (options,)
    if isinstance(options, Sequence):
        options = dict(str(item).partition("=")[::2] for item in options)
    if isinstance(options, Mapping) and set(options) <= {"arm"}:
        return None if options.get("arm") is None else str(options["arm"])
    if options is None:
        return None
    raise OptionError(
        "a record has one option, 'arm'; the options of a runtime are those of the arm.",
        fix="Pass options={'arm': ID} with the id of one of its arms, or load the model itself.",
    )


def _routes(
    record: SelectionRecord, arm: str | None, backend: str | None, device: str | Device | None
) -> tuple[Route, ...]:
    where = None if device is None else str(Device.parse(device))
    if arm is not None:
        chosen = _named(record, arm)
        if backend not in (None, chosen.backend) or where not in (None, chosen.device):
            raise OptionError(
                f"arm '{arm}' runs on {chosen.backend}/{chosen.device}, not on "
                f"{backend or chosen.backend}/{where or chosen.device}.",
                fix="Leave out backend and device where an arm is named.",
            )
        return (Route(to_rows=None, arm=arm),)
    if backend is None and where is None:
        if not record.decision.routes:
            raise InvalidRecord(
                f"the record decided for no arm ({record.decision.status}): "
                f"{record.decision.summary.rstrip('.') or 'it does not say why'}.",
                fix=_offer(_capable(record)) or "Select again, or load the model itself.",
                status=record.decision.status,
            )
        return record.decision.routes
    there = _ranked(record)
    for one in there:
        if backend in (None, one.backend) and where in (None, one.device):
            return (Route(to_rows=None, arm=one.id),)
    shown = ", ".join(f"'{one.id}'" for one in there) or "none"
    kind = DeviceUnavailable if backend is None else BackendNotFound
    raise kind(
        f"no arm of the record that may serve runs on {backend or 'any backend'}"
        f"{'' if where is None else f' on {where}'}; there are: {shown}.",
        fix="Pass options={'arm': ID} for one of these, or load the model itself.",
        backend=backend,
        device=where,
    )


def _named(record: SelectionRecord, name: str) -> ArmRecord:
    try:
        arm = record.arm(name)
    except KeyError:
        raise OptionError(
            f"the record has no arm '{name}'.", fix=nearest(name, (arm.id for arm in record.arms))
        ) from None
    if arm.status not in _MAY_SERVE:
        raise OptionError(
            f"arm '{name}' may not serve, it is {arm.status}: {arm.reason.rstrip('.')}.",
            fix="To run it all the same, load the model with that backend and its options.",
            arm=name,
            status=arm.status,
        )
    return arm


def _ranked(record: SelectionRecord) -> list[ArmRecord]:
    """The arms that may serve and are in the record, by their mean rank over all calls."""
    weights = {bucket.rows: bucket.weight for bucket in record.buckets}
    verdicts = record.decision.verdicts

    def rank(arm: ArmRecord) -> float:
        return sum(
            weights.get(one.rows, 0.0)
            * (one.ranking.index(arm.id) if arm.id in one.ranking else len(record.arms))
            for one in verdicts
        )

    named = {name for verdict in verdicts for name in verdict.ranking}
    there = [
        arm
        for arm in record.arms
        if arm.id in named
        and arm.status in _MAY_SERVE
        and record.models[arm.model].path is not None
    ]
    return sorted(there, key=rank)


def _capable(record: SelectionRecord) -> list[ArmRecord]:
    """Those of ``_ranked`` whose runtime is here."""
    from bridge.loading import backends

    known = backends()
    return [
        arm
        for arm in _ranked(record)
        if arm.backend in known and known[arm.backend].probe().installed
    ]


def _offer(arms: Sequence[ArmRecord]) -> str:
    shown = " or ".join(f"options={{'arm': '{arm.id}'}}" for arm in arms[:3])
    return f"Runner-up that can run here: {shown}." if shown else ""


def _require(record: SelectionRecord, arm: ArmRecord) -> None:
    from bridge.loading import backends

    found = backends().get(arm.backend)
    if found is None:
        error = BackendUnavailable(
            f"backend '{arm.backend}' is not available: no plugin registers it.",
            fix="Install the distribution that provides it.",
            backend=arm.backend,
        )
        raise _with_runners_up(error, record, arm)
    try:
        found.require()
    except BackendUnavailable as error:
        raise _with_runners_up(error, record, arm) from error


def _with_runners_up(
    error: BackendUnavailable | DeviceUnavailable, record: SelectionRecord, arm: ArmRecord
) -> BackendUnavailable | DeviceUnavailable:
    others = [
        one
        for one in _capable(record)
        if one.id != arm.id
        and (one.backend != arm.backend or isinstance(error, DeviceUnavailable))
        and one.device in (arm.device, "cpu")
    ]
    return type(error)(
        f"arm '{arm.id}' of the record cannot run here: {error.message}",
        fix=" ".join(filter(None, (error.fix, _offer(others)))),
        backend=arm.backend,
        model=error.model,
        device=arm.device,
        **{**error.detail, "arm": arm.id, "runners_up": [one.id for one in others]},
    )


def _changes(record: SelectionRecord, arms: Iterable[ArmRecord]) -> list[str]:
    arms = list(arms)
    is_on_cpu = all(arm.device == "cpu" for arm in arms)
    then = {
        key: value
        for key, value in record.machine.items()
        if not (is_on_cpu and key.startswith("gpu"))
    }
    return [
        *machine.differences(then, machine.fingerprint()),
        *machine.changed_versions(record.versions, machine.versions(arm.backend for arm in arms)),
        *machine.changed_variables(record.variables, machine.variables()),
    ]


def _loaded(
    record: SelectionRecord, arm: ArmRecord, model: ModelRef, load: Callable[..., Predictor]
) -> Predictor:
    try:
        return load(model, backend=arm.backend, device=arm.device, options=arm.options)
    except (BackendUnavailable, DeviceUnavailable) as error:
        raise _with_runners_up(error, record, arm) from error


def _renamed(record: SelectionRecord, arm: ArmRecord, predictor: Predictor) -> Predictor:
    signature = Signature.from_dict(record.signature)
    ours = {arm.inputs.get(name, name) for name in predictor.signature.input_names}
    needed = {arm.inputs.get(spec.name, spec.name) for spec in predictor.signature.required}
    outputs = {arm.outputs.get(name, name) for name in signature.output_names}
    if (
        not {*arm.inputs} <= {*predictor.signature.input_names}
        or not {spec.name for spec in signature.required} <= ours
        or not needed <= {*signature.input_names}
        or not outputs <= {*predictor.signature.output_names}
    ):
        raise InvalidRecord(
            f"arm '{arm.id}' has the signature {predictor.signature}, which does not have the "
            "names of the record's.",
            fix="Select again.",
            arm=arm.id,
        )
    has_more = {*predictor.signature.output_names} > {*signature.output_names}
    if not arm.inputs and not arm.outputs and not has_more:
        return predictor
    return RenamedPredictor(predictor, signature, arm.inputs, arm.outputs)


def _joined(
    record: SelectionRecord,
    routes: Sequence[Route],
    loaded: Mapping[str, Predictor],
    about: Mapping[str, Any],
) -> Predictor:
    if len(routes) == 1 and routes[0].split_rows is None:
        predictor = loaded[routes[0].arm]
        details = {**predictor.info.details, "record": {**about, "arm": routes[0].arm}}
        predictor.info = dataclasses.replace(predictor.info, details=details)
        return predictor
    info = routed_info(loaded, [dataclasses.asdict(route) for route in routes])
    info = dataclasses.replace(
        info, model=record.models[0].name, details={**info.details, "record": dict(about)}
    )
    return RoutedPredictor(
        Signature.from_dict(record.signature),
        info,
        [Branch(route.to_rows, loaded[route.arm], route.split_rows) for route in routes],
        batch_axes=record.batch_axes,
        output_axes=record.output_batch_axes,
        warm_rows=[bucket.rows for bucket in record.buckets],
    )
