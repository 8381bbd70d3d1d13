"""``select``: the fastest arm that computes the right answer, with the evidence.

The steps, each in a module of its own: which arms there are (``plan``), workers that
hold them (``crew``), whether they compute the right thing (``gate``), how fast they are
(``tournament``, ``race``), which few serve all batches (``decision``), and the record
of it all (``evidence``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays
from bridge.errors import (
    BridgeError,
    InputError,
    PredictTimeout,
    UnsupportedModel,
)
from bridge.record import Confirmation, Limits, LoadRecord, Protocol, SelectionRecord
from bridge.signature import Signature
from bridge_bench import ensemble, evidence, resumption
from bridge_bench.confirmation import confirm, under_load
from bridge_bench.crew import Crew
from bridge_bench.entrant import INTERRUPTED, LATE, Entrant, Trial
from bridge_bench.gate import Gate
from bridge_bench.lineup import BUDGET, awaited, converted, lineup
from bridge_bench.profile import InputProfile
from bridge_bench.request import Request, request
from bridge_bench.stats import duel
from bridge_bench.tournament import Heat, Tournament
from bridge_bench.yardstick import Yardstick

__all__ = ["Selection", "select"]

LEAST_RACE_SHARE = 0.25  # of the budget, kept for the races however long starting took
CONFIRM_SHARE = 0.2  # of the budget, kept for fresh processes
DUEL_BLOCKS = 9
ADMIT_SHARE = 0.5  # of the budget, after which no further arm is loaded

Tell = Callable[[str], None]


def select(
    models: str | Path | Sequence[str | Path],
    *,
    out: Path | None = None,
    batches: Sequence[int] | Mapping[int, float] = (1,),
    profile: InputProfile | None = None,
    limits: Limits | None = None,
    gate: Gate | None = None,
    protocol: Protocol | None = None,
    backends: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    max_arms: int = 48,
    routes: bool = True,
    signature: str | Signature | None = None,
    trust: bool = False,
    output_map: Mapping[str, str] | None = None,
    labels: Arrays | None = None,
    expected: Arrays | None = None,
    launches: int = 3,
    under_load_s: float = 0.0,
    seed: int = 0,
    dry_run: bool = False,
    resume: SelectionRecord | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Tell | None = None,
) -> SelectionRecord:
    """Finds the fastest arm among those that compute the right answer.

    Args:
        models: Path of the model, or paths of one network in several formats. The first
            one on its native backend is the default arm and the reference.
        out: Folder to write the record to; see ``bridge.recording``. ``None`` writes nothing.
        batches: Rows per call to decide for, or a histogram from rows to counts.
        profile: How to make inputs; ``None`` infers what it can from the model.
        limits: Objective and limits; see ``bridge.record.Limits``.
        gate: What outputs have to fulfil; ``None`` is the strict one.
        protocol: Numbers of the measurement, the budgets among them.
        backends: Names of backends to try; ``None`` means all that are capable.
        devices: Devices to try; ``None`` means all.
        options: Options by backend that every arm of it must have.
        only: Patterns of the ids of arms to try, as ``fnmatch`` reads them.
        skip: Patterns of those to leave out.
        max_arms: Most arms to measure.
        routes: Convert the first model for backends that take none of the models; see
            ``bridge.routes``. It is done within the protocol's budget for preparing.
        signature: A signature key, or a whole signature for models that hold none.
        trust: The models may run code of their own.
        output_map: Outputs of the first model -> outputs of the others, where names differ.
        labels: Labels of the profile's samples, by output, for metrics that need them.
        expected: The right outputs for the profile's samples, instead of the reference's.
        launches: Fresh processes in which winner and default are measured again; 0 for none.
        under_load_s: Time for which each winner and the default are put under MLPerf LoadGen
            (SingleStream), after all that and outside of the budget; 0 for not at all.
        seed: Seed of inputs, order and bootstrap.
        dry_run: Plan only: nothing is loaded or measured.
        resume: An earlier record of the same request, whose blocks are kept.
        stop: Asked between blocks; true ends the measurement, and decides with what there is.
        progress: Called with one line of text now and then.

    Returns:
        The record, whether or not some arm may serve: ``record.decision`` says.

    Raises:
        ModelError: A model cannot be opened, or no backend takes it.
        InputError: Samples, labels or the profile do not fit the signature.
        OptionError: Something asked for is contradictory or out of range.
        RecordError: ``out`` cannot be written, or ``resume`` is of another request.
    """
    asked = request(
        models,
        batches=batches,
        profile=profile,
        limits=limits,
        gate=gate,
        protocol=protocol,
        backends=backends,
        devices=devices,
        options=options,
        only=only,
        skip=skip,
        max_arms=max_arms,
        routes=routes,
        signature=signature,
        trust=trust,
        output_map=output_map,
        labels=labels,
        expected=expected,
        launches=launches,
        under_load_s=under_load_s,
        seed=seed,
    )
    selection = Selection(asked, stop=stop, tell=progress or (lambda _: None), resume=resume)
    record = selection.plan() if dry_run else selection.run()
    return record if out is None else selection.write(out)


class Selection:
    """One run of ``select``, step by step; for programs that want more than the record.

    Attributes:
        record: The record, once ``plan`` or ``run`` has returned.
        entrants: The arms, in the order of the plan.
        yardstick: What is right, once ``open`` or ``run`` has returned.
    """

    record: SelectionRecord
    yardstick: Yardstick

    def __init__(
        self,
        request: Request,
        *,
        stop: Callable[[], bool] = lambda: False,
        tell: Tell = lambda _: None,
        resume: SelectionRecord | None = None,
    ) -> None:
        self.request = request
        self._stop = stop
        self._tell = tell
        self._resume = resume
        self._notes: list[str] = []
        self.entrants = lineup(request, awaited(request))
        if resume is not None:
            resumption.check(resume, request)
            resumption.recall(resume, self.entrants)
        if not any(one.takes_part() for one in self.entrants):
            raise UnsupportedModel(
                f"no arm is left for {request.models[0].name}: {self.entrants[0].reason}.",
                fix="--dry-run shows every arm with the rule that leaves it out.",
                refusals=[one.reason for one in self.entrants],
            )

    def plan(self) -> SelectionRecord:
        """The record of what would be measured; nothing is loaded."""
        facts = self.request.models[0].facts.signatures
        signature = next(iter(facts.values()), Signature((), ()))
        self.record = evidence.assemble(self.request, self.entrants, signature, notes=())
        return self.record

    def run(self) -> SelectionRecord:
        """Loads, checks, measures and decides; the record.

        Raises:
            InputError: Inputs, samples or labels do not fit the model.
        """
        started = monotonic()
        protocol = self.request.protocol
        self._convert(started + protocol.prepare_budget_s)
        request, converted_s = self.request, monotonic() - started
        with request.crew() as crew:
            floor_s = crew.floor_s()
            heats = self.open(crew).heats
            started_preparing = monotonic()
            left_s = protocol.prepare_budget_s - converted_s
            self._prepare(crew, heats, started_preparing + left_s)
            prepared_s = converted_s + monotonic() - started_preparing
            admitted_until = started + prepared_s + ADMIT_SHARE * protocol.budget_s
            for entrant in self._broad():
                if entrant.is_reference:
                    self.admit(crew, entrant)
                elif entrant.status == "planned" and monotonic() > admitted_until:
                    entrant.end("skipped", "the budget ended before it could be loaded", LATE)
                elif not self._is_stopped():
                    self.admit(crew, entrant)
                elif entrant.status in ("planned", "prepared"):
                    # Nobody knows whether it computes the right thing, so that it may not serve.
                    entrant.end(
                        "skipped", "it was interrupted before this was checked", INTERRUPTED
                    )
            if self._resume is not None:
                resumption.replay(self._resume, request, self.entrants, heats)
            now = monotonic()
            end = started + prepared_s + protocol.budget_s
            kept_s = CONFIRM_SHARE * protocol.budget_s if request.launches else 0.0
            deadline = max(end - kept_s, now + LEAST_RACE_SHARE * protocol.budget_s)
            for heat in heats:
                heat.entrants = {one.id: one for one in self._broad() if one.takes_part()}
            tournament = Tournament(
                crew,
                heats,
                limits=request.limits,
                protocol=protocol,
                default=next((one.id for one in self.entrants if one.plan.is_default), None),
                tolerance={one.id: self._drift_limit(one) for one in self.entrants},
                seed=request.seed,
                deadline=deadline,
                stop=self._stop,
                tell=self._tell,
            )
            tournament.run()
            self._tell("deciding")
            verdicts = evidence.verdicts(
                request,
                heats,
                was_stopped=tournament.was_stopped,
                is_whole=not any(one.rule == INTERRUPTED for one in self.entrants),
                late=sum(one.rule == LATE for one in self.entrants),
            )
            splits = self._split(tournament, heats, verdicts)
        confirmations: tuple[Confirmation, ...] = ()
        # A fresh process tells of speed; an arm that needs less memory need not be faster.
        is_raced = request.limits.objective != "memory"
        if request.launches and is_raced and not tournament.was_stopped:
            verdicts, confirmations, notes = confirm(
                request,
                heats,
                verdicts,
                deadline=max(end, monotonic() + 1),
                stop=self._stop,
                tell=self._tell,
            )
            self._notes += notes
        loads: tuple[LoadRecord, ...] = ()
        if request.under_load_s and not tournament.was_stopped:
            loads, notes = under_load(request, heats, verdicts, stop=self._stop, tell=self._tell)
            self._notes += notes
        self.record = evidence.assemble(
            request,
            self.entrants,
            self.yardstick.signature,
            verdicts=verdicts,
            splits=splits,
            confirmations=confirmations,
            under_load=loads,
            heats=heats,
            canary=tournament.canary,
            floor_s=floor_s,
            elapsed_s=monotonic() - started,
            reference=next((one.id for one in self.entrants if one.is_reference), None),
            was_stopped=tournament.was_stopped,
            notes=[*self.yardstick.remarks(), *self._notes],
        )
        if request.launches and is_raced and not tournament.was_stopped:
            self.record = ensemble.settled(self.record, request.models, tell=self._tell)
        return self.record

    def calls(self) -> dict[str, npt.NDArray[np.int64]]:
        """Nanoseconds of every timed call, by ``"<arm>|<rows>"``."""
        found = {}
        for entrant in self.entrants:
            for rows in entrant.trials:
                durations = entrant.calls_ns(rows)
                if durations.size:
                    found[f"{entrant.id}|{rows}"] = durations
        return found

    def write(self, folder: Path) -> SelectionRecord:
        """Writes the record's folder; the record as it is there.

        Raises:
            RecordError: It cannot be written; nothing half-written is left.
        """
        self.record = evidence.write(self.record, folder, self.request.models, self.calls())
        return self.record

    def open(self, crew: Crew) -> Yardstick:
        """Loads the reference, makes the inputs and computes what is right for them."""
        request = self.request
        for entrant in self.entrants:
            if not entrant.takes_part() or entrant.plan.tier != "strict" or entrant.plan.prepares:
                continue
            self._tell(f"loading {entrant.id}, the reference")
            try:
                signature = crew.load(entrant)
            except BridgeError as error:
                entrant.fail(error, "loading")
                self._notes.append(
                    f"{entrant.id} could not be the reference, because it failed: {error.message}"
                )
                continue
            if (entrant.info or {}).get("stateful"):
                entrant.end("skipped", "its calls change the model, so no call is like another")
                entrant.rule = "stateful"
                crew.drop(entrant)
                continue
            try:
                yardstick = Yardstick.of(crew, entrant, signature, request)
            except InputError:
                raise
            except BridgeError as error:
                entrant.fail(error, "computing the reference")
                crew.drop(entrant)
                self._notes.append(
                    f"{entrant.id} could not be the reference, because it failed: {error.message}"
                )
                continue
            entrant.is_reference = True
            entrant.status = "loaded"
            self.yardstick = yardstick
            return yardstick
        failed = [one for one in self.entrants if one.error is not None]
        if failed and failed[0].error is not None:
            raise failed[0].error
        raise UnsupportedModel(
            f"no arm of {request.models[0].name} can be the reference.",
            fix="--dry-run shows every arm with the rule that leaves it out.",
        )

    def _convert(self, deadline: float) -> None:
        """Converts the model for backends that do not take it, and plans anew."""
        if not self.request.routes:
            return
        self.request, rows = converted(
            self.request, deadline=deadline, stop=self._stop, tell=self._tell
        )
        self.entrants = lineup(self.request, rows)
        if self._resume is not None:
            resumption.recall(self._resume, self.entrants)

    def _prepare(self, crew: Crew, heats: Sequence[Heat], deadline: float) -> None:
        """Loads and first calls of arms that convert, compile or build."""
        for entrant in self.entrants:
            if entrant.status != "planned" or not entrant.plan.prepares:
                continue
            left_s = deadline - monotonic()
            if self._is_stopped():
                entrant.end("skipped", "it was interrupted before this was prepared", INTERRUPTED)
                continue
            if left_s <= 0:
                entrant.end("skipped", "the budget for preparing arms was used up", BUDGET)
                continue
            self._tell(f"preparing {entrant.id}, {left_s:.0f} s left")
            begun = monotonic()
            try:
                crew.load(entrant, timeout_s=left_s)
                self.yardstick.match_inputs(entrant)
                for heat in heats:
                    left_s = max(1.0, deadline - monotonic())
                    _, first_s = crew.predict(entrant, heat.variants[0], timeout_s=left_s)
                    entrant.trials[heat.rows] = Trial(heat.rows, first_call_s=first_s)
                crew.weigh(entrant)
            except BridgeError as error:
                entrant.fail(error, "preparing")
                if isinstance(error, PredictTimeout) and monotonic() >= deadline:
                    entrant.end(
                        "skipped", "preparing it took longer than the budget for that", BUDGET
                    )
                crew.drop(entrant)
                continue
            entrant.prepare_s = monotonic() - begun
            entrant.status = "prepared"

    def admit(self, crew: Crew, entrant: Entrant) -> None:
        """Loads an arm and lets it in if it computes what the reference computes."""
        if not entrant.takes_part() or entrant.status == "recalled":
            return
        try:
            if entrant.status == "planned":
                self._tell(f"loading {entrant.id}")
                crew.load(entrant)
                self.yardstick.match_inputs(entrant)
            if (entrant.info or {}).get("stateful"):
                entrant.end("skipped", "its calls change the model", "stateful")
            else:
                self._tell(f"checking {entrant.id}")
                right = self.yardstick
                results = [crew.predict(entrant, one)[0] for one in right.inputs]
                refusal = right.judge(entrant, results, self.request)
                if refusal is not None:
                    entrant.end("not_conformant", refusal)
                elif entrant.status != "prepared":
                    entrant.status = "loaded"
                if entrant.prepare_s is None:
                    crew.weigh(entrant)
        except BridgeError as error:
            entrant.fail(error, "loading" if entrant.load_s is None else "checking")
        limit, needs = self.request.limits.max_memory_bytes, entrant.memory_bytes
        if entrant.takes_part() and limit is not None and needs is not None and needs > limit:
            entrant.end(
                "infeasible",
                f"it needs {needs / 2**20:.0f} MiB; at most {limit / 2**20:.0f} MiB are allowed",
            )
        if not entrant.takes_part():
            crew.drop(entrant)

    def _broad(self) -> list[Entrant]:
        """The arms in the order of loading: of every backend the first, then the second..."""
        seen: Counter[tuple[int, str]] = Counter()
        ranks = {}
        for index, entrant in enumerate(self.entrants):
            kind = (entrant.plan.model, entrant.plan.backend)
            ranks[entrant.id] = (seen[kind], index)
            seen[kind] += entrant.takes_part()
        return sorted(self.entrants, key=lambda one: ranks[one.id])

    def _drift_limit(self, entrant: Entrant) -> float:
        """Largest change of equal calls' outputs; twice what the gate lets pass."""
        tolerance = self.request.gate.tolerances[entrant.plan.tier]
        return 2 * (tolerance.atol + tolerance.rtol)

    def _split(
        self, tournament: Tournament, heats: Sequence[Heat], verdicts: Sequence[Any]
    ) -> dict[int, tuple[str, int]]:
        """Buckets whose calls are faster in pieces, as measured: the arm and the rows of one."""
        if self._is_stopped():
            return {}
        found: dict[int, tuple[str, int]] = {}
        winners = {one.rows: one.winner for one in verdicts if one.winner is not None}
        axes = evidence.axes(self.yardstick.signature, self.request.profile.batch_dim)
        entrants = {one.id: one for one in self.entrants}
        for heat in heats[1:]:
            whole = entrants.get(winners.get(heat.rows) or "")
            if whole is None or not all(axes):
                continue
            costs = {
                rows: math.ceil(heat.rows / rows) * self._call_s(tournament, entrants[name], rows)
                for rows, name in winners.items()
                if rows < heat.rows
                and entrants[name].takes_part()
                and heat.rows in entrants[name].trials
            }
            rows = min(costs, key=lambda one: costs[one], default=0)
            whole_s = self._call_s(tournament, whole, heat.rows)
            least_gain = 1 + self.request.protocol.epsilon
            if not rows or math.isinf(whole_s) or costs[rows] * least_gain > whole_s:
                continue
            piece = entrants[winners[rows]]
            self._tell(f"cutting {heat.rows} rows into pieces of {rows}")
            try:
                times = tournament.duel(heat, [(whole, None), (piece, (rows, *axes))], DUEL_BLOCKS)
            except BridgeError as error:
                self._notes.append(f"cutting {heat.rows} rows could not be timed: {error.message}")
                continue
            ratio = duel(times[1], times[0])
            if ratio.high < 1:
                found[heat.rows] = (piece.id, rows)
                self._notes.append(
                    f"calls of {heat.rows} rows are cut into pieces of {rows}: that takes "
                    f"{ratio.value:.2f} of the time of a whole call "
                    f"({ratio.low:.2f} to {ratio.high:.2f})"
                )
        return found

    @staticmethod
    def _call_s(tournament: Tournament, entrant: Entrant, rows: int) -> float:
        """Typical time of a whole call; infinite where it was not measured."""
        return evidence.typical(entrant, rows) * (rows if tournament.is_rate else 1)

    def _is_stopped(self) -> bool:
        return self._stop()
