"""Winner and default again, in fresh processes.

Where a process happens to place its memory changes its speed by some per cent, and more
calls in the same process do not show it. So the arm that would serve is started anew a
few times, with the default beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from bridge.errors import BridgeError
from bridge.record import Confirmation, Interval, LoadRecord, Verdict
from bridge_bench.entrant import Entrant
from bridge_bench.stats import duel, median, ratio_interval
from bridge_bench.tournament import Heat, Split, Tournament
from bridge_bench.units import count

if TYPE_CHECKING:
    from bridge_bench.request import Request

__all__ = ["BLOCKS", "confirm", "rematch", "under_load"]

BLOCKS = 3
"""Blocks in each fresh process."""

Tell = Callable[[str], None]


def confirm(
    request: Request,
    heats: Sequence[Heat],
    verdicts: Sequence[Verdict],
    *,
    deadline: float,
    stop: Callable[[], bool],
    tell: Tell,
) -> tuple[tuple[Verdict, ...], tuple[Confirmation, ...], list[str]]:
    """Measures each bucket's winner and the default in fresh processes.

    Nothing is measured where the default may not serve. An arm that fails when it is
    started again takes no further part.

    Args:
        request: What is selected.
        heats: The buckets, with their arms.
        verdicts: One per bucket.
        deadline: ``time.monotonic()`` after which no further process is started.
        stop: Asked before each of them; true ends it.
        tell: Called with one line of text now and then.

    Returns:
        The verdicts, those changed whose winner was not confirmed to be faster than the
        default; what was measured; and sentences for the record's warnings.
    """
    default = next(
        (one for heat in heats for one in heat.entrants.values() if one.plan.is_default), None
    )
    pairs = {
        heat.rows: heat.entrants[said.winner]
        for heat, said in zip(heats, verdicts, strict=True)
        if said.winner is not None
        and default is not None
        and said.winner != default.id
        and default.id in said.ranking  # else a limit forbids to fall back on it
    }
    if not pairs or default is None or not default.takes_part():
        return tuple(verdicts), (), []
    playing = [heat for heat in heats if heat.rows in pairs]
    arms = {one.id: one for one in (default, *pairs.values())}
    times: dict[int, tuple[list[float], list[float]]] = {rows: ([], []) for rows in pairs}
    launches: dict[int, list[float]] = {rows: [] for rows in pairs}
    done, notes, failed = 0, [], None
    for launch in range(request.launches):
        if stop():
            break
        begun = monotonic()
        tell(f"confirming in fresh processes, {launch + 1} of {request.launches}")
        try:
            found = rematch(request, playing, pairs, default, list(arms.values()), tell)
        except BridgeError as error:
            failed = arms.get(error.detail.get("arm", ""))
            name = "an arm" if failed is None else failed.id
            notes.append(f"{name} failed when it was started again to confirm: {error.message}")
            if failed is not None:
                _end(failed, error)
            break
        for rows, (mine, theirs) in found.items():
            times[rows][0].extend(mine)
            times[rows][1].extend(theirs)
            launches[rows].append(median(mine))
        done += 1
        took = monotonic() - begun
        if monotonic() + took > deadline:
            break
    if done < request.launches and not notes:
        why = "it was interrupted after" if stop() else "the budget allowed"
        notes.append(f"{why} {done} of {request.launches} fresh processes for confirmation")
    changed, confirmations = [], []
    for verdict in verdicts:
        if verdict.rows not in pairs:
            changed.append(verdict)
            continue
        if pairs[verdict.rows] is failed:
            why = f"{verdict.winner} won the race, but failed when it was started again"
            changed.append(_default_kept(verdict, default, None, f"{why}; the default is kept."))
            continue
        if not done:
            changed.append(verdict)
            continue
        ratio = _over_launches(*times[verdict.rows], done)
        confirmations.append(
            Confirmation(
                rows=verdict.rows,
                arm=pairs[verdict.rows].id,
                launches=tuple(launches[verdict.rows]),
                ratio=ratio,
            )
        )
        if ratio.low > 1 or default is failed:
            changed.append(verdict)
            continue
        notes.append(
            f"in fresh processes {pairs[verdict.rows].id} was not measurably faster than the "
            f"default with {count(verdict.rows, 'row')} "
            f"({ratio.low:.2f} to {ratio.high:.2f} times)"
        )
        # Others may be faster than the winner by its regret, and that than the default.
        regret = verdict.regret
        if regret is not None:
            regret = (1 + regret) * max(1.0, ratio.high) - 1
        reason = (
            f"{verdict.winner} won the race, but in {done} fresh processes it was not measurably "
            "faster than the default, which is kept."
        )
        changed.append(_default_kept(verdict, default, regret, reason))
    if failed is not None:
        changed = [_without(one, failed.id) for one in changed]
    return tuple(changed), tuple(confirmations), notes


def _over_launches(mine: Sequence[float], theirs: Sequence[float], launches: int) -> Interval:
    """The default's time over the arm's; as uncertain as its launches differ.

    Blocks of one process resemble each other, so that their number alone says too much: the
    interval is the wider of that over all blocks and that over the means of the launches.
    """
    ratio = duel(theirs, mine)
    logs = np.log(theirs) - np.log(mine)
    between = ratio_interval([float(part.mean()) for part in np.array_split(logs, launches)])
    if between is None:
        return ratio
    return Interval(
        value=ratio.value, low=min(ratio.low, between.low), high=max(ratio.high, between.high)
    )


def _default_kept(verdict: Verdict, default: Entrant, regret: float | None, reason: str) -> Verdict:
    ties = (verdict.winner, *verdict.ties)
    return replace(
        verdict,
        status="undecided" if regret is None or verdict.status == "undecided" else "default",
        winner=default.id,
        ties=tuple(one for one in ties if one is not None and one != default.id),
        regret=regret,
        default_ratio=Interval(value=1.0, low=1.0, high=1.0),
        ranking=(default.id, *(one for one in verdict.ranking if one != default.id)),
        reason=reason,
    )


def _without(verdict: Verdict, arm: str) -> Verdict:
    return replace(
        verdict,
        ties=tuple(one for one in verdict.ties if one != arm),
        ranking=tuple(one for one in verdict.ranking if one != arm),
    )


def _end(entrant: Entrant, error: BridgeError) -> None:
    """An arm that does not start again is one that failed, however fast it was."""
    entrant.fail(error, "started again")
    for trial in entrant.trials.values():
        trial.status, trial.reason = entrant.status, entrant.reason


def under_load(
    request: Request,
    heats: Sequence[Heat],
    verdicts: Sequence[Verdict],
    *,
    stop: Callable[[], bool],
    tell: Tell,
) -> tuple[tuple[LoadRecord, ...], list[str]]:
    """Each bucket's winner and the default under MLPerf LoadGen, one call after another.

    LoadGen where it is installed, else the bridge's own issuer; each run in a process of
    its own, ``Request.under_load_s`` long.

    Returns:
        What was measured, and sentences for the record's warnings.
    """
    from bridge_bench import load

    limits = request.limits
    sla = None
    if limits.sla_s is not None and limits.sla_percentile is not None:
        sla = load.Sla(limits.sla_percentile, limits.sla_s)
    found: list[LoadRecord] = []
    notes: list[str] = []
    for heat, said in zip(heats, verdicts, strict=True):
        names = [said.winner, *(one.id for one in heat.entrants.values() if one.plan.is_default)]
        for name in dict.fromkeys(one for one in names if one is not None):
            entrant = heat.entrants[name]
            if not entrant.takes_part():
                continue
            if stop():
                return tuple(found), [*notes, "it was interrupted before all were put under load"]
            tell(f"{name} under load, {heat.rows} rows")
            model = request.models[entrant.plan.model]
            try:
                result = load.run(
                    model.file,
                    scenario="single_stream",
                    sla=sla,
                    rows=heat.rows,
                    profile=request.profile,
                    duration_s=request.under_load_s,
                    seed=request.seed,
                    backend=entrant.plan.backend,
                    device=str(entrant.plan.device),
                    options=None
                    if entrant.plan.options is None
                    else entrant.plan.options.to_dict(),
                    signature=model.declared or model.signature_key,
                    trust=model.trust,
                )
            except BridgeError as error:
                notes.append(f"{name} could not be put under load: {error.message}")
                continue
            latency = result.latency
            found.append(
                LoadRecord(
                    rows=heat.rows,
                    arm=name,
                    scenario=result.scenario,
                    issuer=result.issuer,
                    status=result.status,
                    queries=result.queries,
                    p50_s=None if latency is None else latency.p50_s,
                    p90_s=None if latency is None else latency.p90_s,
                    p99_s=None if latency is None else latency.p99_s,
                    p99_upper_s=None if latency is None else latency.p99_upper_s,
                    sla=None if result.verdict is None else result.verdict.status,
                    reason=" ".join(result.reasons),
                )
            )
    return tuple(found), notes


def rematch(
    request: Request,
    heats: Sequence[Heat],
    pairs: dict[int, Entrant],
    default: Entrant,
    arms: Sequence[Entrant],
    tell: Tell,
    *,
    blocks: int = BLOCKS,
    splits: Mapping[int, Split] | None = None,
) -> dict[int, tuple[list[float], list[float]]]:
    """One fresh start of some arms: per bucket the times of its arm and of the default.

    Args:
        request: What is selected.
        heats: The buckets with their inputs.
        pairs: The arm to compare with the default, by bucket.
        default: The default.
        arms: All of them.
        tell: Called with one line of text now and then.
        blocks: Blocks in each bucket.
        splits: By bucket, how the arm's calls are cut into pieces; others are whole.

    Raises:
        BridgeError: An arm failed.
    """
    found: dict[int, tuple[list[float], list[float]]] = {}
    copies = {one.id: replace(one, trials={}) for one in arms}
    with request.crew() as crew:
        for one in copies.values():
            crew.load(one, timeout_s=request.protocol.prepare_budget_s)
        fresh = [Heat(heat.rows, heat.variants) for heat in heats]
        for heat in fresh:
            heat.entrants = {
                one: copies[one] for one in dict.fromkeys((pairs[heat.rows].id, default.id))
            }
        tournament = Tournament(
            crew,
            fresh,
            limits=request.limits,
            protocol=request.protocol,
            default=None,
            tolerance={},
            seed=request.seed,
            deadline=float("inf"),
            stop=lambda: False,
            tell=tell,
        )
        for heat in fresh:
            tournament.warm(heat)
            mine, theirs = tournament.duel(
                heat,
                [
                    (copies[pairs[heat.rows].id], (splits or {}).get(heat.rows)),
                    (copies[default.id], None),
                ],
                blocks,
            )
            found[heat.rows] = (mine, theirs)
    return found
