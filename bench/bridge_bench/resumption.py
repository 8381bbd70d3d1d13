"""Going on from an earlier record of the same request, as if it had not been interrupted."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bridge import machine, message, recording
from bridge.errors import InvalidRecord, StaleRecord
from bridge.record import ArmRecord, Measurement, Protocol, SelectionRecord
from bridge_bench.entrant import ENDED, INTERRUPTED, LATE, Entrant, Trial
from bridge_bench.evidence import CALLS
from bridge_bench.race import Race
from bridge_bench.request import Request
from bridge_bench.tournament import Heat

__all__ = ["check", "recall", "replay"]


def check(earlier: SelectionRecord, request: Request) -> None:
    """Refuses a record of another request, or of another machine.

    Raises:
        StaleRecord: It is one; ``detail["differs"]`` says in what.
    """
    versions = machine.versions({one.backend for one in earlier.arms})
    differs = [
        what
        for what, mine, theirs in (
            (
                "models",
                [one.digest for one in request.models],
                [one.digest for one in earlier.models if not one.route],
            ),
            ("batch sizes", request.buckets, earlier.buckets),
            ("inputs", request.profile.to_dict(), dict(earlier.profile)),
            ("limits", request.limits, earlier.limits),
            ("gate", request.gate.to_record(earlier.gate.reference), earlier.gate),
            ("reference", request.expected is not None, earlier.gate.reference == "arrays"),
            ("seed", request.seed, earlier.seed),
            ("protocol", _timeless(request.protocol), _timeless(earlier.protocol)),
            ("machine", machine.differences(earlier.machine, machine.fingerprint()), []),
            ("versions", machine.changed_versions(earlier.versions, versions), []),
            ("variables", machine.changed_variables(earlier.variables, machine.variables()), []),
        )
        if mine != theirs
    ]
    if differs:
        raise StaleRecord(
            f"the record cannot be resumed: its {' and '.join(differs)} differ from what is asked.",
            fix="Ask for the same as before, or leave --resume out.",
            differs=differs,
        )


def _timeless(protocol: Protocol) -> Protocol:
    """The protocol without what may be longer the second time."""
    return replace(
        protocol, budget_s=0.0, prepare_budget_s=0.0, load_timeout_s=0.0, call_timeout_s=0.0
    )


def recall(earlier: SelectionRecord, entrants: Sequence[Entrant]) -> None:
    """Gives arms that had ended, or were eliminated everywhere, what the record says.

    They need not be loaded again.
    """
    known = {one.id: one for one in earlier.arms}
    for entrant in entrants:
        arm = known.get(entrant.id)
        if arm is None or not entrant.takes_part() or arm.is_reference:
            continue
        has_ended = arm.status in ENDED and arm.rule not in ("prepare-budget", INTERRUPTED, LATE)
        # What was measured of an arm that is over a limit of latency is kept.
        has_ended = has_ended and not (arm.status == "infeasible" and arm.buckets)
        if has_ended or (arm.buckets and all(_is_out(one) for one in arm.buckets)):
            _copy(arm, entrant)
            if has_ended:
                entrant.end(arm.status, arm.reason, arm.rule)
            else:
                entrant.status = "recalled"


def replay(
    earlier: SelectionRecord, request: Request, entrants: Sequence[Entrant], heats: Sequence[Heat]
) -> None:
    """Puts the record's blocks back into arms and races."""
    calls = _calls(earlier)
    default = next((one.id for one in entrants if one.plan.is_default), None)
    for heat in heats:
        before: dict[str, Measurement] = {}
        for arm in earlier.arms:
            found_there = arm.bucket(heat.rows)
            if found_there is not None and any(one is not None for one in found_there.blocks):
                before[arm.id] = found_there
        present = [one for one in entrants if one.id in before and one.takes_part()]
        count = max((len(before[one.id].blocks) for one in present), default=0)
        if not count:
            continue
        blocks: list[dict[str, float]] = [{} for _ in range(count)]
        removed: dict[str, int] = {}
        for entrant in present:
            said = before[entrant.id]
            trial = entrant.trials.setdefault(heat.rows, Trial(heat.rows))
            trial.blocks = list(said.blocks)
            trial.first_call_s = said.first_call_s
            trial.warmup_calls, trial.is_stable = said.warmup_calls, said.is_stable
            times = calls.get(f"{entrant.id}|{heat.rows}")
            if times is not None:
                trial.durations = [times]
                # Callers side by side take less than the sum of their calls.
                rate = said.rows_per_s
                trial.elapsed_ns = int(
                    1e9 * heat.rows * len(times) / rate if rate else int(times.sum())
                )
                trial.cpu_ns = int((said.cpu_s or 0.0) * 1e9 * len(times))
            if said.status in ENDED:
                trial.status, trial.reason = said.status, said.reason
                there = [index for index, time in enumerate(said.blocks) if time is not None]
                removed[entrant.id] = there[-1] + 1
            for index, time in enumerate(said.blocks):
                if time is not None:
                    blocks[index][entrant.id] = time
        ids = [one.id for one in entrants if one.takes_part()]
        heat.race = Race.replay(
            ids,
            blocks,
            default=default if default in ids else None,
            protocol=request.protocol,
            removed=removed,
        )


def _calls(earlier: SelectionRecord) -> dict[str, npt.NDArray[np.int64]]:
    """Nanoseconds of every call by ``"<arm>|<rows>"``; empty where the record has none."""
    data = recording.attachment(earlier, CALLS)
    if data is None:
        return {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return {name: found[name].astype(np.int64).ravel() for name in found.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InvalidRecord(
            f"the attachment '{CALLS}' of the record cannot be read: {error}.",
            fix="Leave --resume out.",
        ) from error


def _is_out(one: Measurement) -> bool:
    return one.status == "eliminated" or one.status in ENDED


def _copy(arm: ArmRecord, entrant: Entrant) -> None:
    entrant.info = arm.info
    entrant.inputs, entrant.outputs = arm.inputs, arm.outputs
    entrant.prepare_s, entrant.load_s = arm.prepare_s, arm.load_s
    entrant.memory_bytes, entrant.peak_memory_bytes = arm.memory_bytes, arm.peak_memory_bytes
    entrant.agreement, entrant.metrics = arm.agreement, arm.metrics
    entrant.error = None if arm.error is None else message.error_from(arm.error)
