"""From the verdicts of single buckets to the few arms that serve all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.record import BucketRecord, Route

__all__ = ["Choice", "assign", "bounds", "group", "routes"]

_MOST_ARMS = 4  # in the sets that are searched; beyond it there is that of all winners
_MOST_BUCKETS = 6  # that a histogram of batch sizes is reduced to


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to serve all buckets.

    Attributes:
        arms: Arm by bucket.
        loss: Largest loss of any bucket against its winner, as a share.
        memory_bytes: Memory of all its arms together.
    """

    arms: Mapping[int, str]
    loss: float
    memory_bytes: int


def assign(
    ratios: Mapping[int, Mapping[str, float]],
    weights: Mapping[int, float],
    memory: Mapping[str, int],
    *,
    epsilon: float,
    max_memory_bytes: int | None,
) -> Choice | None:
    """The fewest arms that serve every bucket within epsilon of its winner.

    Among sets of equal size, that with the least weighted loss; where more than four arms
    are needed, the winners themselves. Where memory forbids all such sets, the set within
    memory that loses least, however much that is.

    Args:
        ratios: For each bucket, the time of each arm that may serve it over that of its
            winner, which has 1.
        weights: Share of calls by bucket.
        memory: Bytes by arm.
        epsilon: Largest loss for the sake of fewer arms.
        max_memory_bytes: Bound of the sum; ``None`` for none.

    Returns:
        ``None`` if a bucket has no arm at all, or nothing fits into memory.
    """
    names = sorted({name for one in ratios.values() for name in one})
    if not ratios or not all(ratios.values()):
        return None
    best: tuple[tuple[bool, int, float, int], Choice] | None = None
    sizes = range(1, min(_MOST_ARMS, len(names), len(ratios)) + 1)
    winners = tuple(sorted({min(one, key=lambda name: one[name] != 1) for one in ratios.values()}))
    searches = [itertools.combinations(names, count) for count in sizes]
    for search in (*searches, [winners]):
        for chosen in search:
            count = len(chosen)
            total = sum(memory.get(name, 0) for name in chosen)
            if max_memory_bytes is not None and total > max_memory_bytes:
                continue
            picks: dict[int, str] = {}
            for rows, offered in ratios.items():
                able = [name for name in chosen if name in offered]
                if not able:
                    break
                picks[rows] = min(able, key=lambda name: (offered[name] != 1, offered[name]))
            if len(picks) < len(ratios):
                continue
            # An arm that looks faster than the winner was not proven to be: no gain.
            losses = {rows: max(ratios[rows][name] - 1, 0.0) for rows, name in picks.items()}
            worst = max(losses.values())
            weighted = sum(weights[rows] * math.log1p(loss) for rows, loss in losses.items())
            is_close = worst <= epsilon + 1e-12
            strangers = sum(ratios[rows][name] != 1 for rows, name in picks.items())
            rank = (not is_close, count if is_close else 0, weighted, strangers)
            if best is None or rank < best[0]:
                best = (rank, Choice(arms=picks, loss=worst, memory_bytes=total))
        # Only sets that lose too much are improved by more arms.
        if best is not None and not best[0][0]:
            break
    return None if best is None else best[1]


def routes(
    buckets: Sequence[BucketRecord],
    arms: Mapping[int, str],
    splits: Mapping[int, tuple[str, int]],
) -> tuple[Route, ...]:
    """The arms in order of rows, neighbours with the same arm made one."""
    found: list[Route] = []
    for bucket in buckets:
        arm, split = splits.get(bucket.rows, (arms[bucket.rows], None))
        if found and (found[-1].arm, found[-1].split_rows) == (arm, split):
            found.pop()
        found.append(Route(to_rows=bucket.to_rows, arm=arm, split_rows=split))
    return tuple(found)


def bounds(sizes: Sequence[int]) -> list[BucketRecord]:
    """Buckets around the sizes that are measured, all of the same weight.

    The border between two is their geometric mean: a call costs a fixed part and a part
    for each row, so that on the scale of ratios it is as near to the one as to the other.
    """
    ordered = sorted(set(sizes))
    found = []
    for index, rows in enumerate(ordered):
        is_last = index + 1 == len(ordered)
        found.append(
            BucketRecord(
                rows=rows,
                to_rows=None if is_last else math.floor(math.sqrt(rows * ordered[index + 1])),
                weight=1 / len(ordered),
            )
        )
    return found


def group(counts: Mapping[int, float]) -> list[BucketRecord]:
    """A histogram of batch sizes as few buckets, each measured at a size that occurs.

    Sizes within a factor of two of each other share a bucket (of four or more, where
    that gives too many). Each is measured at the size that half of its rows are in calls
    at most as large as, and reaches up to its largest size.
    """
    base = 2.0
    while True:
        bins: dict[int, dict[int, float]] = {}
        for rows, count in sorted(counts.items()):
            if count > 0:
                bins.setdefault(math.floor(math.log(max(rows, 1), base) + 1e-9), {})[rows] = count
        if len(bins) <= _MOST_BUCKETS:
            break
        base *= 2
    total = sum(counts.values())
    found = []
    for index, members in enumerate(bins.values()):
        found.append(
            BucketRecord(
                rows=_middle(members),
                to_rows=None if index + 1 == len(bins) else max(members),
                weight=sum(members.values()) / total,
            )
        )
    return found


def _middle(members: Mapping[int, float]) -> int:
    half = sum(max(rows, 1) * count for rows, count in members.items()) / 2
    so_far = 0.0
    for rows, count in members.items():
        so_far += max(rows, 1) * count
        if so_far >= half:
            return rows
    return max(members)
