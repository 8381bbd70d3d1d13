"""``verify``: is the record still right, here and now? A short duel says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge import machine, recording
from bridge.check import Arrays
from bridge.device import Device
from bridge.errors import InvalidRecord
from bridge.record import ArmRecord, Interval, Route, SelectionRecord
from bridge.registry import registry
from bridge.signature import Signature
from bridge_bench.confirmation import rematch
from bridge_bench.entrant import Entrant
from bridge_bench.plan import PlannedArm
from bridge_bench.profile import InputProfile
from bridge_bench.request import Request
from bridge_bench.stats import duel
from bridge_bench.tournament import Heat

__all__ = ["BLOCKS", "Check", "Verification", "verify"]

BLOCKS = 6
WORSE = 0.05
"""How much worse than recorded the winner may be, relative to the default, before it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One bucket, measured again.

    Attributes:
        rows: The bucket.
        arm: The arm that serves it.
        recorded: Time of the default over the arm's, as recorded; ``None`` if it has none.
        now: The same, now; ``None`` where the arm is the default.
        holds: Whether the arm is at most 5 % worse than recorded, as far as is known.
        reason: One sentence.
    """

    rows: int
    arm: str
    recorded: Interval | None
    now: Interval | None
    holds: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""

        def plain(one: Interval | None) -> dict[str, float] | None:
            return None if one is None else {"value": one.value, "low": one.low, "high": one.high}

        return {
            "rows": self.rows,
            "arm": self.arm,
            "recorded": plain(self.recorded),
            "now": plain(self.now),
            "holds": self.holds,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What came of it.

    Attributes:
        differences: What changed since on the machine, in sentences.
        checks: One per bucket.
    """

    differences: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every bucket's arm is still as good as recorded."""
        return all(one.holds for one in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "holds": self.holds,
            "differences": list(self.differences),
            "checks": [one.to_dict() for one in self.checks],
        }


def verify(
    record: SelectionRecord,
    *,
    trust: bool = False,
    blocks: int = BLOCKS,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Reads every file of a record and lets its winners and the default race again, shortly.

    What serves without anything to compare it with is started and called once.

    Args:
        record: A record with a folder.
        trust: As for ``bridge.load``.
        blocks: Blocks of each duel.
        progress: Called with one line of text now and then.

    Raises:
        InvalidRecord: It decides nothing, or a file of it was changed.
        StaleRecord: A model is not the one that was measured.
        BridgeError: An arm cannot be loaded here any more.
    """
    tell = progress or (lambda _: None)
    if not record.decision.routes:
        raise InvalidRecord(
            "the record decides nothing that could be verified.",
            fix="Select again.",
            status=record.decision.status,
        )
    tell("reading the record's files")
    recording.verify(record)
    default = next((one for one in record.arms if one.is_default), None)
    serving = {bucket.rows: _route(record, bucket.rows) for bucket in record.buckets}
    compared = {
        rows: route
        for rows, route in serving.items()
        if default is not None
        and (route.arm != default.id or route.split_rows is not None)
        and record.models[default.model].path is not None
        and default.bucket(rows) is not None
        and record.limits.objective != "memory"  # whose winners may well be slower
    }
    found = _duels(record, serving, compared, default, trust=trust, blocks=blocks, tell=tell)
    checks = tuple(
        _check(rows, route.arm, _recorded(record, rows, route, default), found.get(rows))
        for rows, route in serving.items()
    )
    return Verification(differences=tuple(_differences(record)), checks=checks)


def _recorded(
    record: SelectionRecord, rows: int, route: Route, default: ArmRecord | None
) -> Interval | None:
    """The default's time over that of what serves, as the record has it."""
    said = next((one for one in record.decision.verdicts if one.rows == rows), None)
    if said is None or said.winner == route.arm or route.split_rows is not None:
        # Pieces are at least as fast as the winner, whose calls were whole.
        return None if said is None else said.default_ratio
    mine = record.arm(route.arm).bucket(rows)
    theirs = None if default is None else default.bucket(rows)
    if mine is None or theirs is None:
        return None
    pairs = [
        (a, b)
        for a, b in zip(theirs.blocks, mine.blocks, strict=False)
        if a is not None and b is not None and min(a, b) > 0
    ]
    return duel([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) > 1 else None


def _differences(record: SelectionRecord) -> list[str]:
    backends = {record.arm(route.arm).backend for route in record.decision.routes}
    made_up = "the inputs: samples are not part of a record, so that made-up ones take their place."
    return [
        *([made_up] if record.profile.get("samples") else []),
        *machine.differences(record.machine, machine.fingerprint()),
        *machine.changed_versions(record.versions, machine.versions(backends)),
        *machine.changed_variables(record.variables, machine.variables()),
    ]


def _duels(
    record: SelectionRecord,
    serving: Mapping[int, Route],
    compared: Mapping[int, Route],
    default: ArmRecord | None,
    *,
    trust: bool,
    blocks: int,
    tell: Callable[[str], None],
) -> dict[int, Interval]:
    """The default's time over that of what serves, by bucket; others are called once."""
    arms = {route.arm: record.arm(route.arm) for route in serving.values()}
    if compared and default is not None:
        arms[default.id] = default
    indices = sorted({one.model for one in arms.values()})
    models = [recording.model(record, index, trust=trust) for index in indices]
    entrants = {
        one.id: Entrant.of(_planned(one, indices.index(one.model)), slot)
        for slot, one in enumerate(arms.values())
    }
    for one in arms.values():
        entrants[one.id].inputs, entrants[one.id].outputs = one.inputs, one.outputs
    request = Request(
        models=tuple(models),
        buckets=record.buckets,
        profile=_profile(record),
        limits=record.limits,
        protocol=record.protocol,
        seed=record.seed,
    )
    signature = Signature.from_dict(record.signature)

    def inputs(rows: int, variants: int) -> list[Arrays]:
        return [request.profile.make(signature, one, rows) for one in range(variants)]

    times: dict[int, tuple[list[float], list[float]]] = {}
    if compared and default is not None:
        pairs = {rows: entrants[route.arm] for rows, route in compared.items()}
        playing = {one.id: one for one in (entrants[default.id], *pairs.values())}
        times = rematch(
            request,
            [Heat(rows, inputs(rows, record.protocol.variants)) for rows in compared],
            pairs,
            entrants[default.id],
            list(playing.values()),
            tell,
            blocks=blocks,
            splits={
                rows: (route.split_rows, record.batch_axes, record.output_batch_axes)
                for rows, route in compared.items()
                if route.split_rows is not None
            },
        )
    alone = {rows: entrants[one.arm] for rows, one in serving.items() if rows not in times}
    with request.crew() as crew:
        for entrant in {one.id: one for one in alone.values()}.values():
            tell(f"starting {entrant.id}")
            crew.load(entrant, timeout_s=record.protocol.prepare_budget_s)
        for rows, entrant in alone.items():
            crew.predict(entrant, inputs(rows, 1)[0])
    return {rows: duel(theirs, mine) for rows, (mine, theirs) in times.items()}


def _profile(record: SelectionRecord) -> InputProfile:
    try:
        return InputProfile.from_dict({**record.profile, "samples": None})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRecord(
            f"profile: it is no profile of inputs: {type(error).__name__}: {error}.",
            fix="Select again.",
            field="profile",
        ) from error


def _planned(arm: ArmRecord, model: int) -> PlannedArm:
    backend = registry().backends.get(arm.backend)
    return PlannedArm(
        id=arm.id,
        model=model,
        backend=arm.backend,
        device=Device.parse(arm.device),
        options=backend.options_type.make(dict(arm.options)),
        tier=arm.tier,
        is_default=arm.is_default,
        process_key=arm.id,
    )


def _route(record: SelectionRecord, rows: int) -> Route:
    for route in record.decision.routes:
        if route.to_rows is None or rows <= route.to_rows:
            return route
    raise InvalidRecord(f"no route of the record takes {rows} rows.", fix="Select again.")


def _check(rows: int, arm: str, before: Interval | None, now: Interval | None) -> Check:
    if now is None:
        reason = "It runs; there is nothing that its speed could be compared with."
        return Check(rows=rows, arm=arm, recorded=before, now=None, holds=True, reason=reason)
    # As long as the better end of the interval is good enough, nothing is proven wrong.
    is_slower = now.high < 1
    is_worse = before is not None and now.high < before.low / (1 + WORSE)
    if is_slower:
        reason = f"It is slower than the default now: {now.value:.2f} times as fast."
    elif is_worse and before is not None:
        reason = (
            f"It was {before.value:.2f} times as fast as the default, and is {now.value:.2f} times "
            f"now ({now.low:.2f} to {now.high:.2f})."
        )
    else:
        reason = (
            f"It is {now.value:.2f} times as fast as the default ({now.low:.2f} to {now.high:.2f})."
        )
    return Check(
        rows=rows,
        arm=arm,
        recorded=before,
        now=now,
        holds=not (is_slower or is_worse),
        reason=reason,
    )
