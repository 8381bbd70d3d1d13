"""The paired block race: which arm is fastest, and how sure that is.

A *block* holds one time of every living arm, measured one after the other, in seconds per
call (or per row: lower is better). Whatever disturbs the machine disturbs a whole block,
so arms are compared by the logarithm of their ratio inside a block, never across blocks.

After two blocks an arm that was slower than the best by ``cut_ratio`` in both is dropped.
At each *look* (6, 9, 14, 20, 30, 45 blocks) the leader is the arm that no other beats on
average. An arm is eliminated where it is slower than the leader by more than ``margin``:
the one-sided lower limit of its trimmed mean log ratio, at the level
``delta / (arms * looks)``, says so. To eliminate the best arm, one of at most that many
limits must be wrong. The race is settled where no survivor can be faster than the leader by
more than ``epsilon``: the probabilities of its limits at ``-epsilon`` add up to at most
``delta / 4`` over all survivors. The same sum gives the stated regret.

What differs from the plain rule, and why:

- The cut asks for the ratio in both blocks instead of on average, so that one slice that
  was interrupted for long cannot end an arm; and it spares the default arm, whose ratio to
  the winner is what people read first and needs more than two blocks.
- Elimination asks for more than ``margin`` (0.5 %): two loads of the same arm differ by
  about as much, which more calls do not show, and on a quiet machine would be "proven".
- A limit at ``delta / (arms * looks)`` for each survivor would also settle the race, but on
  machines with 3 % noise only after more than 45 blocks: of the runs with 24 arms 40 % were
  settled, where 90 % are with the sum, at four fifths of the slices. One wrong limit, that
  of the best arm, makes the claim wrong, so the number of arms needs no further division;
  a quarter of delta pays for the six looks and for a leader chosen by the same blocks. In
  the least favourable case, where all others are just beyond epsilon, it then held in 94 %
  to 100 % of the simulated runs.
- No block counts for more than ``cut_ratio`` against an arm: some arms take once 1.3 times
  and once 100 times as long, and the deviation of such ratios would keep them to the end.
- The leader is found by comparing pairs, not by the least median: medians compare blocks
  with each other, and on a drifting machine choose worse.
- Where neighbouring differences correlate, limits are wider; see ``stats.trimmed_mean``.
- An arm that cannot be faster than the leader by more than ``epsilon``, at its share of
  ``delta / 4``, rests: it is measured no more while that leader leads. Else the noisiest
  arm would keep all others running that are as good as tied.
- An arm that the leader eliminated returns when that leader fails.

``python -m bridge_bench.simulation`` shows how often this is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import MeasureError
from bridge.record import Interval, Protocol, Verdict
from bridge_bench.stats import Mean, factor, least_bound, ratio_interval, trimmed_mean
from bridge_bench.units import count, percent

__all__ = ["Race", "Standing"]

CUT_BLOCKS = 2
"""Blocks after which the ratio cut drops arms."""
LEAST_BLOCKS = 3
"""Fewest blocks for the last look of a race that was ended early."""
_HIGHEST_REGRET = math.log(10)  # a regret of 900 % says nothing; it is given as unknown
_SETTLE_SHARE = 0.25  # of delta, for each look; see the module


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one arm stands.

    Attributes:
        status: ``living``, ``eliminated`` or ``removed``; after a verdict ``won``, ``tied``
            or ``undecided`` instead of ``living``, as in ``bridge.record.Measurement``.
        look: Number of blocks at which it was eliminated, 2 for the cut; or removed.
        by: The arm that led then; ``None`` unless eliminated.
        slower: Its time over the leader's (the winner's, after a verdict), with the
            two-sided 95 % interval; ``None`` for that arm itself and with fewer than two
            blocks in common.
        reason: One sentence.
    """

    status: str
    look: int | None = None
    by: str | None = None
    slower: Interval | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _End:
    """How an arm left: eliminated by another one, or removed by the caller."""

    look: int
    by: str | None
    reason: str


class Race:
    """The race of one bucket, fed with blocks; it measures nothing itself.

    Args:
        arms: Ids, in order of preference where times are equal.
        default: The arm that is kept unless another is measurably faster; ``None`` if it
            does not take part.
        protocol: The numbers.

    Raises:
        ValueError: Two arms have the same id, or the default is none of them.
    """

    def __init__(
        self, arms: Sequence[str], *, default: str | None = None, protocol: Protocol | None = None
    ) -> None:
        if len(set(arms)) != len(arms):
            raise ValueError("two arms of the race have the same id.")
        if default is not None and default not in arms:
            raise ValueError(f"the default arm {default!r} is not in the race.")
        self.arms = tuple(arms)
        self.default = default
        self.protocol = protocol or Protocol()
        self._logs: dict[str, list[float]] = {arm: [] for arm in arms}  # NaN: not in that block
        self._times: dict[str, list[float | None]] = {arm: [] for arm in arms}
        self._ends: dict[str, _End] = {}
        self._resting: set[str] = set()
        self._led: str | None = None  # at the last look
        self._blocks = 0
        self._looked = 0  # blocks at the last look
        self._is_settled = False

    @classmethod
    def replay(
        cls,
        arms: Sequence[str],
        blocks: Iterable[Mapping[str, float]],
        *,
        default: str | None = None,
        protocol: Protocol | None = None,
        removed: Mapping[str, int] | None = None,
    ) -> Race:
        """The race in the state in which these blocks left it.

        Args:
            arms: As for ``Race``, in the same order.
            blocks: What was added, in order.
            default: As for ``Race``.
            protocol: As for ``Race``.
            removed: The number of blocks after which each arm was removed.
        """
        race = cls(arms, default=default, protocol=protocol)
        pending = sorted((removed or {}).items(), key=lambda item: item[1])
        for block in blocks:
            while pending and pending[0][1] <= race.blocks:
                race.remove(pending.pop(0)[0])
            race.add(block)
        for arm, _ in pending:
            race.remove(arm)
        return race

    @property
    def blocks(self) -> int:
        """Blocks so far."""
        return self._blocks

    @property
    def living(self) -> tuple[str, ...]:
        """The arms that were neither eliminated nor removed, in the order of ``arms``."""
        return tuple(arm for arm in self.arms if arm not in self._ends)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The arms that the next block should hold: the living without those at rest."""
        return tuple(arm for arm in self.living if arm not in self._resting)

    @property
    def is_settled(self) -> bool:
        """At the last look no living arm could be faster than the leader by over epsilon."""
        return self._is_settled

    @property
    def is_over(self) -> bool:
        """No further block is wanted: nothing lives, it is settled, or it was the last look."""
        if not self.living:
            return True
        return self._is_settled or self._blocks >= self.protocol.looks[-1]

    @property
    def leader(self) -> str | None:
        """The living arm that no other beats on average; ``None`` if none lives."""
        living = [arm for arm in self.living if not all(map(math.isnan, self._logs[arm]))]
        if not living:
            return next(iter(self.living), None)
        # A close start, so that the one pass of comparisons begins near its end. Medians of
        # arms at rest are of other blocks, so that from the first look on it is the last leader.
        best = str(self._led)
        if best not in living:
            best = min(living, key=lambda arm: float(np.nanmedian(self._logs[arm])))
        for arm in living:
            if arm != best and self._mean(arm, best) < 0:
                best = arm
        return best

    @property
    def removed(self) -> dict[str, int]:
        """The number of blocks after which each removed arm left, for ``replay``."""
        return {arm: end.look for arm, end in self._ends.items() if end.by is None}

    def times(self, arm: str) -> tuple[float | None, ...]:
        """The arm's time in each block, ``None`` where it took no part."""
        return tuple(self._times[arm])

    def add(self, block: Mapping[str, float]) -> None:
        """Takes a block: seconds by arm.

        A living arm may be missing; it is then compared over the blocks that it shares. An
        arm that was eliminated may be there; it adds to its interval only.

        Raises:
            ValueError: An arm is unknown or was removed.
            MeasureError: A time is not a positive finite number; nothing was added.
        """
        for arm, time in block.items():
            if arm not in self._logs or arm in self.removed:
                raise ValueError(f"arm {arm!r} of the block is not in the race.")
            if not 0 < time < math.inf:
                raise MeasureError(
                    f"The time of arm {arm!r} in a block is {time} s, not a positive number.",
                    fix="Use more calls per slice: the clock may be too coarse for one.",
                    arm=arm,
                    time_s=float(time),
                )
        for arm in self.arms:
            time_s = None if arm not in block else float(block[arm])
            self._times[arm].append(time_s)
            self._logs[arm].append(math.nan if time_s is None else math.log(time_s))
        self._blocks += 1
        if self._blocks == CUT_BLOCKS:
            self._cut()
        if self._blocks in self.protocol.looks:
            self._look()

    def remove(self, arm: str, reason: str = "") -> None:
        """Takes an arm out, whose failure or limit the caller knows.

        Arms that it had eliminated live again, since it can no longer be chosen.

        Raises:
            ValueError: The arm is unknown.
        """
        if arm not in self._logs:
            raise ValueError(f"arm {arm!r} is not in the race.")
        if arm in self.removed:
            return
        self._ends = {name: end for name, end in self._ends.items() if end.by != arm}
        self._ends[arm] = _End(self._blocks, None, reason or "It left the race.")
        self._is_settled = False
        self._resting = set()
        if self._looked == self._blocks > 0:
            self._look()  # again, since the leader may have been another

    def standings(self, verdict: Verdict | None = None) -> dict[str, Standing]:
        """Where every arm stands, against the leader; or against the verdict's winner."""
        against = self.leader if verdict is None else verdict.winner
        found = {}
        for arm in self.arms:
            slower = None if against in {None, arm} else self.ratio(arm, str(against))
            end = self._ends.get(arm)
            if end is None or arm == against:  # fresh processes may have decided otherwise
                status, reason = _living(arm, slower, verdict)
                found[arm] = Standing(status=status, slower=slower, reason=reason)
            else:
                status = "removed" if end.by is None else "eliminated"
                found[arm] = Standing(
                    status=status, look=end.look, by=end.by, slower=slower, reason=end.reason
                )
        return found

    def ratio(self, arm: str, other: str) -> Interval | None:
        """The time of one arm over that of another, with the two-sided 95 % interval.

        ``None`` with fewer than two blocks in common.
        """
        return ratio_interval(self._difference(arm, other))

    def regret(self, arm: str) -> float | None:
        """No other arm is faster than this one by more than this share.

        This holds at the confidence ``1 - delta`` for all arms at once: those that were
        eliminated are slower than a living one. ``None`` where nothing useful is known.
        """
        means = [self._compare(other, arm, is_capped=True) for other in self.living if other != arm]
        known = [mean for mean in means if mean is not None]
        if len(known) < len(means):
            return None
        faster = least_bound(known, _SETTLE_SHARE * self.protocol.delta)
        return math.expm1(faster) if faster <= _HIGHEST_REGRET else None

    def verdict(
        self,
        rows: int,
        *,
        preference: Callable[[str], Any] | None = None,
        is_interrupted: bool = False,
    ) -> Verdict:
        """What can be said at the end.

        A race that is not over ends here: it takes its last look now, at the level of one
        that it will not reach. (``replay`` the blocks to go on with it.)

        Args:
            rows: The bucket.
            preference: Key by which one of several arms is chosen that are as fast as far
                as is known, the least first; without it, the leader.
            is_interrupted: The user ended the race.
        """
        if self._looked != self._blocks >= LEAST_BLOCKS:
            self._look()
        leader = self.leader
        if leader is None:
            return Verdict(
                rows=rows, status="none", winner=None, reason="No arm is left in the race."
            )
        is_settled = len(self.living) == 1 or self._can_stop(leader)
        winner, is_kept = self._choose(leader, preference, is_settled=is_settled)
        ties = tuple(arm for arm in self._ranked(winner) if arm in self.living)[1:]
        if not is_settled:
            status = "interrupted" if is_interrupted else "undecided"
        elif not ties:
            status = "proven"
        else:
            status = "default" if is_kept else "tied"
        regret = self.regret(winner)
        default_ratio = None
        if self.default is not None and self.default not in self.removed:
            one = Interval(value=1.0, low=1.0, high=1.0)
            default_ratio = one if winner == self.default else self.ratio(self.default, winner)
        return Verdict(
            rows=rows,
            status=status,
            winner=winner,
            ties=ties,
            regret=regret,
            default_ratio=default_ratio,
            ranking=self._ranked(winner),
            reason=self._sentence(status, winner, leader, ties, regret),
        )

    @property
    def _alpha(self) -> float:
        return self.protocol.delta / (max(len(self.arms), 1) * len(self.protocol.looks))

    def _compare(self, arm: str, other: str, *, is_capped: bool = False) -> Mean | None:
        """The mean log ratio over the blocks that both share; ``None`` without any.

        Capped, no block counts for more than the ratio cut: a lower limit of that mean is
        one of the mean itself.
        """
        difference = self._difference(arm, other)
        if not difference.size:
            return None
        return trimmed_mean(
            np.minimum(difference, math.log(self.protocol.cut_ratio)) if is_capped else difference
        )

    def _mean(self, arm: str, other: str) -> float:
        """The mean log ratio; infinite without a block in common."""
        mean = self._compare(arm, other)
        return math.inf if mean is None else mean.value

    def _difference(self, arm: str, other: str) -> npt.NDArray[np.float64]:
        both: npt.NDArray[np.float64] = np.subtract(self._logs[arm], self._logs[other])
        return both[~np.isnan(both)]

    def _cut(self) -> None:
        means = {
            arm: float(np.mean(self._logs[arm]))
            for arm in self.living
            if not any(map(math.isnan, self._logs[arm]))
        }
        if not means:
            return
        best = min(means, key=means.__getitem__)
        for arm in means:
            least = factor(float(self._difference(arm, best).min()))
            if arm not in {best, self.default} and least >= self.protocol.cut_ratio:
                self._ends[arm] = _End(
                    CUT_BLOCKS,
                    best,
                    f"It took {least:.1f} times as long as {best}, or longer, in each of the "
                    f"first {CUT_BLOCKS} blocks.",
                )

    def _look(self) -> None:
        self._looked = self._blocks
        leader = self._led = self.leader
        if leader is None:
            return
        margin = math.log1p(self.protocol.margin)
        for arm in self.living:
            mean = self._compare(arm, leader, is_capped=True) if arm != leader else None
            if mean is not None and mean.lower(self._alpha) > margin:
                slower = percent(factor(self._mean(arm, leader)) - 1)
                reason = f"It is {slower} slower than {leader}, over {self._blocks} blocks."
                self._ends[arm] = _End(self._blocks, leader, reason)
        self._is_settled = self._can_stop(leader)
        share = _SETTLE_SHARE * self.protocol.delta / max(len(self.living) - 1, 1)
        limit = math.log1p(self.protocol.epsilon)
        self._resting = set()
        for arm in self.living:
            # The default goes on: how much is gained over it is what people read first.
            mean = self._compare(arm, leader, is_capped=True)
            is_free = arm not in {leader, self.default} and self._blocks >= LEAST_BLOCKS
            if is_free and mean is not None and least_bound([mean], share) <= limit:
                self._resting.add(arm)

    def _can_stop(self, leader: str | None) -> bool:
        if leader is None or self._blocks < LEAST_BLOCKS:
            return False
        regret = self.regret(leader)
        return regret is not None and regret <= self.protocol.epsilon

    def _choose(
        self, leader: str, preference: Callable[[str], Any] | None, *, is_settled: bool
    ) -> tuple[str, bool]:
        """The winner, and whether it is the default that is kept for want of a gain."""
        default = self.default
        if default is not None and default in self.living:
            gain = self.ratio(default, leader)
            if default == leader or gain is None or gain.low <= 1:
                return default, True
        if preference is None or not is_settled:
            return leader, False
        close = [leader]
        for arm in self.living:
            regret = self.regret(arm)
            if arm != leader and regret is not None and regret <= self.protocol.epsilon:
                close.append(arm)
        return min(close, key=preference), False  # the leader where preferences are equal

    def _ranked(self, winner: str) -> tuple[str, ...]:
        """The winner, the living, the eliminated; each by their ratio to the winner."""

        def key(arm: str) -> tuple[int, float]:
            group = 0 if arm == winner else 1 if arm not in self._ends else 2
            return group, self._mean(arm, winner)

        return tuple(sorted((arm for arm in self.arms if arm not in self.removed), key=key))

    def _sentence(
        self,
        status: str,
        winner: str,
        leader: str,
        ties: tuple[str, ...],
        regret: float | None,
    ) -> str:
        sure = f"{100 * (1 - self.protocol.delta):g} %"
        bound = (
            f"no other arm is more than {percent(regret)} faster ({sure})"
            if regret is not None
            else "how much faster another arm may be is not known"
        )
        if status == "proven":
            others = sum(1 for arm in self.arms if arm not in self.removed) - 1
            if not others:
                return f"{winner} is the only arm that may serve."
            return f"{winner} is faster than each of the {others} other arms ({sure})."
        if status == "default":
            if winner == leader:
                return f"No arm is measurably faster than the default {winner}; {bound}."
            return f"No measurable gain over the default {winner}, which is kept; {bound}."
        if status == "tied":
            return f"{winner} ties with {_listed(ties)}: {bound}."
        ended = "was interrupted" if status == "interrupted" else "ended"
        kept = ", the default, is kept" if winner == self.default else " is the fastest seen"
        return (
            f"The race {ended} after {count(self._blocks, 'block')}, too early to be sure: "
            f"{winner}{kept}; {bound}."
        )


def _living(arm: str, slower: Interval | None, verdict: Verdict | None) -> tuple[str, str]:
    """Status and reason of an arm that was not eliminated."""
    if verdict is None:
        return "living", ""
    if arm == verdict.winner:
        statuses = {"proven": "won", "tied": "tied", "default": "tied"}
        return statuses.get(verdict.status, "undecided"), verdict.reason
    is_tied = verdict.status in {"tied", "default"}
    seen = "" if slower is None else f": {slower.value:.3f} times its time were seen"
    if is_tied:
        return "tied", f"It may be as fast as {verdict.winner}{seen}."
    return "undecided", f"The race ended before it was told apart from {verdict.winner}{seen}."


def _listed(names: tuple[str, ...]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} others"
    return " and ".join(names)
