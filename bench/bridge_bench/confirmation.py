"""Winner and default again, in fresh processes.

Where a process happens to place its memory changes its speed by some per cent, and more
calls in the same process do not show it. So the arm that would serve is started anew a
few times, with the default beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from bridge.errors import BridgeError
from bridge.record import Confirmation, LoadRecord, Verdict
from bridge_bench.entrant import Entrant
from bridge_bench.stats import duel, median
from bridge_bench.tournament import Heat, Tournament

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
    tell: Tell,
) -> tuple[tuple[Verdict, ...], tuple[Confirmation, ...], list[str]]:
    """Measures each bucket's winner and the default in fresh processes.

    Args:
        request: What is selected.
        heats: The buckets, with their arms.
        verdicts: One per bucket.
        deadline: ``time.monotonic()`` after which no further process is started.
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
        if said.winner is not None and default is not None and said.winner != default.id
    }
    if not pairs or default is None or not default.takes_part():
        return tuple(verdicts), (), []
    playing = [heat for heat in heats if heat.rows in pairs]
    arms = {one.id: one for one in (default, *pairs.values())}
    times: dict[int, tuple[list[float], list[float]]] = {rows: ([], []) for rows in pairs}
    launches: dict[int, list[float]] = {rows: [] for rows in pairs}
    done = 0
    for launch in range(request.launches):
        begun = monotonic()
        tell(f"confirming in fresh processes, {launch + 1} of {request.launches}")
        try:
            found = rematch(request, playing, pairs, default, list(arms.values()), tell)
        except BridgeError as error:
            note = f"an arm failed when it was started again to confirm it: {error.message}"
            return tuple(verdicts), (), [note]
        for rows, (mine, theirs) in found.items():
            times[rows][0].extend(mine)
            times[rows][1].extend(theirs)
            launches[rows].append(median(mine))
        done += 1
        took = monotonic() - begun
        if monotonic() + took > deadline:
            break
    notes = []
    if done < request.launches:
        notes.append(
            f"the budget allowed {done} of {request.launches} fresh processes for confirmation"
        )
    changed, confirmations = [], []
    for verdict in verdicts:
        if verdict.rows not in pairs:
            changed.append(verdict)
            continue
        mine, theirs = times[verdict.rows]
        ratio = duel(theirs, mine)
        confirmations.append(
            Confirmation(
                rows=verdict.rows,
                arm=pairs[verdict.rows].id,
                launches=tuple(launches[verdict.rows]),
                ratio=ratio,
            )
        )
        if ratio.low > 1:
            changed.append(verdict)
            continue
        notes.append(
            f"in fresh processes {pairs[verdict.rows].id} was not measurably faster than the "
            f"default with {verdict.rows} rows ({ratio.low:.2f} to {ratio.high:.2f} times)"
        )
        changed.append(
            replace(
                verdict,
                status="undecided" if verdict.status == "undecided" else "default",
                winner=default.id,
                ties=(str(verdict.winner), *(one for one in verdict.ties if one != default.id)),
                regret=max(0.0, ratio.high - 1),
                default_ratio=None,
                ranking=(default.id, *(one for one in verdict.ranking if one != default.id)),
                reason=f"{verdict.winner} won the race, but in {done} fresh processes it was "
                "not measurably faster than the default, which is kept.",
            )
        )
    return tuple(changed), tuple(confirmations), notes


def under_load(
    request: Request, heats: Sequence[Heat], verdicts: Sequence[Verdict], *, tell: Tell
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
    found, notes = [], []
    for heat, said in zip(heats, verdicts, strict=True):
        names = [said.winner, *(one.id for one in heat.entrants.values() if one.plan.is_default)]
        for name in dict.fromkeys(one for one in names if one is not None):
            entrant = heat.entrants[name]
            if not entrant.takes_part():
                continue
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
) -> dict[int, tuple[list[float], list[float]]]:
    """One fresh start of some arms: per bucket the times of its arm and of the default.

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
                [(copies[pairs[heat.rows].id], None), (copies[default.id], None)],
                blocks,
            )
            found[heat.rows] = (mine, theirs)
    return found
