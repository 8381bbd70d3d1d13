"""From arms and races to the selection record, and back to races for ``resume``."""

from __future__ import annotations

import datetime as dt
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import bridge
from bridge import machine, recording
from bridge.model import ModelRef
from bridge.record import (
    SCHEMA,
    ArmRecord,
    Canary,
    Confirmation,
    Decision,
    LoadRecord,
    Measurement,
    ModelRecord,
    Route,
    SelectionRecord,
    Verdict,
)
from bridge.signature import Signature
from bridge_bench import decision, summary
from bridge_bench.canary import CanaryBird
from bridge_bench.entrant import LATE, Entrant
from bridge_bench.stats import (
    MIN_P99_SAMPLES,
    bootstrap_median,
    median,
    outliers,
    percentile,
    percentile_upper,
)
from bridge_bench.tournament import Heat
from bridge_bench.units import count

if TYPE_CHECKING:
    from bridge_bench.request import Request

__all__ = ["CALLS", "assemble", "axes", "typical", "verdicts", "write"]

CALLS = "calls.npz"
"""Attachment of a record that holds the time of every call."""
_FEW_P90 = 10  # calls for which the 90th percentile is not simply the maximum
_BEST_FIRST = ("won", "tied", "undecided", "eliminated", "infeasible")


def axes(signature: Signature, batch_dim: str | None) -> tuple[dict[str, int], dict[str, int]]:
    """The axes that count rows, of inputs and of outputs.

    Of an output: the axis named as the inputs' one, or else a dynamic dim 0.
    """
    inputs = signature.batch_axes(batch_dim)
    labels = {(signature.input(name).shape or ())[axis] for name, axis in inputs.items()}
    outputs = {}
    for spec in signature.outputs:
        named = [axis for axis, dim in enumerate(spec.shape or ()) if dim and dim in labels]
        if named:
            outputs[spec.name] = named[0]
        elif inputs and spec.shape and not isinstance(spec.shape[0], int):
            outputs[spec.name] = 0
    return inputs, outputs


def typical(entrant: Entrant, rows: int) -> float:
    """Median over blocks of an arm's statistic in a bucket; infinite without blocks."""
    trial = entrant.trials.get(rows)
    times = [time for time in trial.blocks if time is not None] if trial is not None else []
    return median(times) if times else float("inf")


def verdicts(
    request: Request,
    heats: Sequence[Heat],
    *,
    was_stopped: bool,
    is_whole: bool = True,
    late: int = 0,
) -> tuple[Verdict, ...]:
    """What each race says, or the memory of its arms where that is the objective.

    Args:
        request: What is selected.
        heats: The buckets.
        was_stopped: The user ended the measurement.
        is_whole: All arms came to be checked before that.
        late: How many arms the budget did not suffice to load.
    """
    found = []
    for heat in heats:
        if heat.race is None:
            found.append(
                Verdict(
                    rows=heat.rows,
                    status="interrupted" if was_stopped else "none",
                    winner=None,
                    reason="It was interrupted before anything was measured."
                    if was_stopped
                    else "No arm was left to measure.",
                )
            )
        elif request.limits.objective == "memory":
            found.append(_by_memory(request, heat))
        else:
            found.append(
                heat.race.verdict(
                    heat.rows,
                    preference=lambda arm, heat=heat: _preference(heat, arm),  # type: ignore[misc]
                    is_interrupted=was_stopped,
                )
            )
    if is_whole and not late:
        return tuple(found)
    if is_whole:
        # The bound stays, for the arms that were measured; the sentence says so.
        more = f" T{_late(late)[1:]}."
        return tuple(
            replace(
                one,
                status="undecided" if one.winner is not None else one.status,
                reason=one.reason + more,
            )
            for one in found
        )
    why = "It was interrupted before all arms were checked; how fast the others are is not known."
    return tuple(replace(one, status="interrupted", regret=None, reason=why) for one in found)


def assemble(
    request: Request,
    entrants: Sequence[Entrant],
    signature: Signature,
    *,
    verdicts: Sequence[Verdict] = (),
    splits: Mapping[int, tuple[str, int]] | None = None,
    confirmations: Sequence[Confirmation] = (),
    under_load: Sequence[LoadRecord] = (),
    heats: Sequence[Heat] = (),
    canary: CanaryBird | None = None,
    floor_s: float | None = None,
    elapsed_s: float | None = None,
    reference: str | None = None,
    was_stopped: bool = False,
    notes: Sequence[str] = (),
) -> SelectionRecord:
    """The whole record, with no file in it yet; see ``write``."""
    warnings = list(notes)
    routes, more = _routes(request, entrants, heats, verdicts, splits or {})
    warnings += more
    warnings += _unproven(request, entrants, routes)
    if canary is not None and canary.is_noisy:
        warnings.append(
            "the machine was disturbed: a fixed piece of work varied by more than "
            f"{100 * request.protocol.canary_tolerance:g} % in more blocks than could be redone"
        )
    arms = tuple(_arm(request, one, heats, verdicts) for one in entrants)
    own = request.models[: len(request.models) - len(request.converted_by)]
    if len({one.name for one in own}) < len(own):
        warnings.append("two models have the same file name; arm ids tell them apart by number")
    inputs, outputs = axes(signature, request.profile.batch_dim)
    best = [a for a in arms if a.buckets and a.bucket(request.buckets[0].rows)]
    fastest = min(
        (m.median_s for a in best for m in a.buckets if m.median_s is not None), default=None
    )
    if floor_s is not None and fastest is not None and floor_s > 0.02 * fastest:
        warnings.append(
            f"the loop that times calls takes {floor_s * 1e6:.2f} µs of the fastest arm's "
            f"{fastest * 1e6:.1f} µs"
        )
    backends = sorted({one.plan.backend for one in entrants})
    record = SelectionRecord(
        schema=SCHEMA,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        bridge_version=bridge.__version__,
        command=request.command,
        seed=request.seed,
        models=_models(request),
        signature=signature.to_dict(),
        batch_axes=inputs,
        output_batch_axes=outputs,
        profile=request.profile.to_dict(),
        limits=request.limits,
        gate=request.gate.to_record("arrays" if request.expected is not None else reference or ""),
        protocol=request.protocol,
        machine=machine.fingerprint(),
        versions=machine.versions(backends),
        variables=machine.variables(),
        buckets=request.buckets,
        arms=arms,
        decision=Decision(status="planned", summary="Nothing was measured."),
        canary=None
        if canary is None or not canary.times_s
        else Canary(
            median_s=median(canary.times_s),
            times_s=tuple(canary.times_s),
            redone=canary.redone,
            is_noisy=canary.is_noisy,
        ),
        floor_s=floor_s,
        elapsed_s=elapsed_s,
        warnings=tuple(warnings),
    )
    if not verdicts:
        return record
    late = sum(one.rule == LATE for one in entrants)
    if late:
        record = replace(record, warnings=(*record.warnings, _late(late)))
    status = "decided"
    if not routes:
        status = "none"
    elif was_stopped:
        status = "interrupted"
    elif any(one.status in ("undecided", "none") for one in verdicts):
        status = "undecided"
    decided = Decision(
        status=status,
        summary="",
        verdicts=tuple(verdicts),
        routes=routes,
        confirmations=tuple(confirmations),
        under_load=tuple(under_load),
    )
    record = replace(record, decision=decided)
    return replace(record, decision=replace(decided, summary=summary.sentence(record)))


def write(
    record: SelectionRecord,
    folder: Path,
    models: Sequence[ModelRef],
    calls: Mapping[str, npt.NDArray[np.int64]],
) -> SelectionRecord:
    """Writes the folder; copies every model that an arm which may serve needs."""
    serving = {name for one in record.decision.verdicts for name in one.ranking}
    needed = {record.arm(name).model for name in serving}
    files: dict[str, Path | bytes] = {}
    paths: dict[int, str] = {}
    for index in sorted(needed):
        paths[index], contents = recording.model_files(models[index], index)
        files |= contents
    record = replace(
        record,
        models=tuple(
            replace(one, path=paths.get(index)) for index, one in enumerate(record.models)
        ),
    )
    attachments = {}
    if calls:
        stream = io.BytesIO()
        np.savez_compressed(stream, **calls)  # type: ignore[arg-type]
        attachments[CALLS] = stream.getvalue()
    recording.write(record, folder, files=files, attachments=attachments)
    return recording.read(folder)


def _by_memory(request: Request, heat: Heat) -> Verdict:
    able = {
        name: one.memory_bytes
        for name, one in heat.entrants.items()
        if one.takes_part() and one.memory_bytes is not None and _may_serve(one, heat.rows)
    }
    if not able:
        return Verdict(rows=heat.rows, status="none", winner=None, reason="No arm may serve.")
    order = sorted(able, key=lambda name: (able[name], typical(heat.entrants[name], heat.rows)))
    least = able[order[0]] or 1
    close = [name for name in order if able[name] <= least * (1 + request.protocol.epsilon)]
    # As in a race: the default stays unless something is measurably better.
    default = next((name for name in close if heat.entrants[name].plan.is_default), None)
    winner = default or order[0]
    order.sort(key=lambda name: name != winner)
    return Verdict(
        rows=heat.rows,
        status="proven" if len(close) < 2 else "tied" if default is None else "default",
        winner=winner,
        ties=tuple(name for name in close if name != winner),
        ranking=tuple(order),
        reason=f"{winner} needs {'the least' if len(close) < 2 else 'as little as any'} memory, "
        f"{(able[winner] or 0) / 2**20:.0f} MiB.",
    )


def _may_serve(entrant: Entrant, rows: int) -> bool:
    trial = entrant.trials.get(rows)
    return trial is not None and trial.status == "undecided"


def _preference(heat: Heat, arm: str) -> tuple[Any, ...]:
    """Of arms equally fast: full precision, less memory, fewer options, quicker to load."""
    one = heat.entrants[arm]
    options = one.plan.options
    return (
        ("strict", "half", "int8").index(one.plan.tier),
        round((one.memory_bytes or 0) / 2**24),  # steps of 16 MiB: less is noise
        0 if options is None else len(options.to_dict()),
        one.load_s or 0.0,
    )


def _routes(
    request: Request,
    entrants: Sequence[Entrant],
    heats: Sequence[Heat],
    verdicts: Sequence[Verdict],
    splits: Mapping[int, tuple[str, int]],
) -> tuple[tuple[Route, ...], list[str]]:
    """The few arms that serve, and what is to be said about that."""
    won = {one.rows: one for one in verdicts if one.winner is not None}
    if len(won) < len(request.buckets):
        return (), []
    by_id = {one.id: one for one in entrants}
    ratios: dict[int, dict[str, float]] = {}
    for heat in heats:
        winner = won[heat.rows].winner
        assert winner is not None
        base = typical(by_id[winner], heat.rows)
        ratios[heat.rows] = {winner: 1.0}
        for name in won[heat.rows].ranking:
            one = by_id[name]
            if name != winner and one.takes_part() and _may_serve(one, heat.rows):
                found = heat.race.ratio(name, winner) if heat.race is not None else None
                about = typical(one, heat.rows) / base if found is None else found.value
                if 0 < about < math.inf:  # else one of the two was never measured
                    ratios[heat.rows][name] = about
        if request.limits.objective == "memory":
            ratios[heat.rows] = {winner: 1.0}
    choice = decision.assign(
        ratios,
        {one.rows: one.weight for one in request.buckets},
        {one.id: one.memory_bytes or 0 for one in entrants},
        epsilon=request.protocol.epsilon,
        max_memory_bytes=request.limits.max_memory_bytes,
    )
    if choice is None:
        return (), ["no set of arms serves all batch sizes within the memory allowed"]
    notes = []
    if choice.loss > request.protocol.epsilon:
        notes.append(
            "to stay within the memory allowed, calls of one size are served "
            f"{100 * choice.loss:.0f} % slower than by their winner"
        )
    kept = {rows: split for rows, split in splits.items() if split[0] in choice.arms.values()}
    return decision.routes(request.buckets, choice.arms, kept), notes


def _late(number: int) -> str:
    return f"the budget ended before {count(number, 'arm')} could be loaded and measured"


def _unproven(request: Request, entrants: Sequence[Entrant], routes: Sequence[Route]) -> list[str]:
    """Where an arm that serves was not shown to keep the latency that was asked for."""
    limit, fraction = request.limits.sla_s, request.limits.sla_percentile
    if limit is None or fraction is None or not routes:
        return []
    by_id = {one.id: one for one in entrants}
    found = []
    for rows in (one.rows for one in request.buckets):
        route = next(one for one in routes if one.to_rows is None or rows <= one.to_rows)
        calls = by_id[route.arm].calls_ns(rows) / 1e9
        upper = percentile_upper(calls, fraction) if calls.size else None
        if route.split_rows is not None:
            why = "its calls in pieces were compared with whole ones only"
        elif upper is None:
            why = f"{len(calls)} calls are too few to tell"
        elif upper > limit:
            why = f"it is at most {upper * 1e3:.3g} ms (95 %)"
        else:
            continue
        found.append(
            f"{route.arm} was not shown to keep p{100 * fraction:g} within {limit * 1e3:g} ms with "
            f"{count(rows, 'row')}: {why}; 'bridge bench' measures that"
        )
    return found


def _models(request: Request) -> tuple[ModelRecord, ...]:
    own = len(request.models) - len(request.converted_by)
    routes = [*[""] * own, *request.converted_by]
    return tuple(_model(*pair) for pair in zip(request.models, routes, strict=True))


def _model(model: ModelRef, route: str) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        format=model.format.name,
        path=None,
        digest=model.digest or "",
        size_bytes=model.size_bytes,
        signature_key=model.signature_key,
        declared=None if model.declared is None else model.declared.to_dict(),
        trust=model.trust,
        route=route,
    )


def _arm(
    request: Request, entrant: Entrant, heats: Sequence[Heat], verdicts: Sequence[Verdict]
) -> ArmRecord:
    said = {one.rows: one for one in verdicts}
    measured = tuple(
        _measurement(request, entrant, heat, said.get(heat.rows))
        for heat in heats
        if heat.rows in entrant.trials
    )
    status, reason = entrant.status, entrant.reason
    if entrant.takes_part() and measured:
        best = min(
            measured,
            key=lambda one: _BEST_FIRST.index(one.status) if one.status in _BEST_FIRST else 9,
        )
        status, reason = best.status, best.reason
    elif entrant.takes_part() and heats:
        status, reason = "undecided", "the time ended before it was measured"
    return entrant.to_record(status, reason, measured)


def _measurement(
    request: Request, entrant: Entrant, heat: Heat, verdict: Verdict | None
) -> Measurement:
    trial, rows = entrant.trials[heat.rows], heat.rows
    calls = entrant.calls_ns(rows) / 1e9
    times = [time for time in trial.blocks if time is not None]
    status, reason, look, slower = trial.status, trial.reason, None, None
    if verdict is not None and heat.race is not None and entrant.id in heat.race.arms:
        standing = heat.race.standings(verdict)[entrant.id]
        slower, look = standing.slower, standing.look
        if status == "undecided":
            status = standing.status if standing.status != "removed" else "undecided"
            reason = standing.reason
        if request.limits.objective == "memory" and status != "infeasible":
            status = _memory_status(entrant, verdict) if entrant.takes_part() else status
    middle = None
    if times and request.limits.objective in ("p50", "memory"):  # else blocks hold something else
        middle = bootstrap_median(times, resamples=request.protocol.bootstrap, seed=request.seed)
    mild, severe = outliers(calls)
    return Measurement(
        rows=rows,
        status=status,
        reason=reason,
        look=look if status == "eliminated" else None,
        slower=slower,
        median_s=middle.value if middle is not None else median(calls) if calls.size else None,
        median_low_s=None if middle is None else middle.low,
        median_high_s=None if middle is None else middle.high,
        p90_s=percentile(calls, 0.9) if calls.size >= _FEW_P90 else None,
        p99_s=percentile(calls, 0.99) if calls.size >= MIN_P99_SAMPLES else None,
        p99_upper_s=percentile_upper(calls, 0.99) if calls.size else None,
        rows_per_s=rows * calls.size / (trial.elapsed_ns / 1e9) if trial.elapsed_ns else None,
        cpu_s=trial.cpu_ns / 1e9 / calls.size if trial.elapsed_ns and calls.size else None,
        calls=int(calls.size),
        blocks=tuple(trial.blocks),
        mild_outliers=mild,
        severe_outliers=severe,
        first_call_s=trial.first_call_s,
        warmup_calls=trial.warmup_calls,
        is_stable=trial.is_stable,
    )


def _memory_status(entrant: Entrant, verdict: Verdict) -> str:
    if entrant.id == verdict.winner:
        return "won" if verdict.status == "proven" else "tied"
    return "tied" if entrant.id in verdict.ties else "eliminated"
