"""What is to be selected, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge.check import Arrays
from bridge.errors import OptionError
from bridge.loading import open_model
from bridge.model import ModelRef
from bridge.record import BucketRecord, Limits, Protocol
from bridge.signature import Signature
from bridge_bench import decision
from bridge_bench.crew import Crew
from bridge_bench.gate import Gate
from bridge_bench.profile import InputProfile
from bridge_bench.race import LEAST_BLOCKS

__all__ = ["OBJECTIVES", "Request", "request"]

OBJECTIVES = ("p50", "p99", "throughput", "memory", "cost")
"""What an arm may be the best in."""
_LISTED = f"one of {', '.join(OBJECTIVES)}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be selected, and how; see ``select`` for the words.

    Attributes:
        models: The network in one or several formats; the first is the reference's.
        routes: Convert the first model for backends that take none of these.
        converted_by: By which adapters the last of the models were made from the first.
        buckets: Sizes to decide for, in order of rows.
        launches: Fresh processes in which winner and default are measured again.
        under_load_s: Time for which winner and default are put under load; 0 for not at all.
    """

    models: tuple[ModelRef, ...]
    buckets: tuple[BucketRecord, ...]
    profile: InputProfile = field(default_factory=InputProfile)
    limits: Limits = field(default_factory=Limits)
    gate: Gate = field(default_factory=Gate)
    protocol: Protocol = field(default_factory=Protocol)
    backends: Sequence[str] | None = None
    devices: Sequence[str] | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    max_arms: int = 48
    routes: bool = False
    converted_by: tuple[str, ...] = ()
    output_map: Mapping[str, str] = field(default_factory=dict)
    labels: Arrays | None = None
    expected: Arrays | None = None
    launches: int = 3
    under_load_s: float = 0.0
    seed: int = 0
    command: tuple[str, ...] = ()

    def crew(self) -> Crew:
        """Fresh workers for these models, with the protocol's deadlines."""
        return Crew(
            self.models,
            load_timeout_s=self.protocol.load_timeout_s,
            call_timeout_s=self.protocol.call_timeout_s,
        )


def request(
    models: str | Path | Sequence[str | Path],
    *,
    batches: Sequence[int] | Mapping[int, float] = (1,),
    profile: InputProfile | None = None,
    signature: str | Signature | None = None,
    trust: bool = False,
    **words: Any,
) -> Request:
    """The request that these words make; see ``select`` for them and the errors."""
    paths = [models] if isinstance(models, (str, Path)) else list(models)
    key = signature if isinstance(signature, str) else None
    found = [open_model(path, signature=key, trust=trust) for path in paths]
    if isinstance(signature, Signature):
        found = [
            one if one.facts.tells_inputs else open_model(path, signature=signature, trust=trust)
            for one, path in zip(found, paths, strict=True)
        ]
    said = {name: word for name, word in words.items() if word is not None}
    made = Request(
        models=tuple(found),
        buckets=tuple(buckets_of(batches)),
        profile=_informed(profile or InputProfile(seed=said.get("seed", 0)), found),
        **said,
    )
    _check(made)
    return made


def _check(asked: Request) -> None:
    """Refuses what would only turn out to be senseless after the measurement."""
    limits, protocol = asked.limits, asked.protocol
    looks = protocol.looks
    for holds, what, wanted in (
        (limits.objective in OBJECTIVES, f"objective is '{limits.objective}'", _LISTED),
        (
            (limits.sla_s is None) == (limits.sla_percentile is None)
            and (limits.sla_s or 1) > 0
            and 0 < (limits.sla_percentile or 0.5) < 1,
            f"the limit of latency is {limits.sla_s} s at {limits.sla_percentile}",
            "a time above 0 and a percentile between 0 and 1, or neither",
        ),
        (limits.concurrency >= 1, f"concurrency is {limits.concurrency}", "at least 1"),
        (
            (limits.objective == "cost") == (limits.price_per_hour is not None),
            f"objective is '{limits.objective}' and price_per_hour {limits.price_per_hour}",
            "a price for the objective 'cost', and only for that",
        ),
        (
            bool(looks) and list(looks) == sorted(set(looks)) and looks[0] >= LEAST_BLOCKS,
            f"looks are {looks}",
            f"rising numbers of blocks, {LEAST_BLOCKS} at least",
        ),
        (
            min(protocol.variants, protocol.min_calls, protocol.max_calls) >= 1,
            "variants or calls of a slice are below 1",
            "at least 1",
        ),
    ):
        if not holds:
            raise OptionError(f"{what}; wanted {wanted}.", fix="Give other limits or numbers.")


def _informed(profile: InputProfile, models: Sequence[ModelRef]) -> InputProfile:
    """The profile with what all formats of the network tell of its tables."""
    known: dict[str, int] = {}
    for model in reversed(models):  # the first model has the last word
        known |= model.facts.vocabularies
    return replace(profile, vocabularies=known)


def buckets_of(batches: Sequence[int] | Mapping[int, float]) -> list[BucketRecord]:
    """Buckets for sizes, or for a histogram of sizes.

    Raises:
        OptionError: There is no size, or one below 1; or no call of any size.
    """
    sizes = list(batches)
    counts = list(batches.values()) if isinstance(batches, Mapping) else []
    if counts and not (min(counts) >= 0 and 0 < sum(counts) < math.inf):
        raise OptionError(
            f"the counts of the batch sizes are {counts}; wanted numbers from 0 on, not all 0.",
            fix="Give for example {16: 900, 128: 100}.",
        )
    if not sizes or min(sizes) < 1:
        raise OptionError(
            f"batch sizes are {sizes}; wanted at least one, of 1 row or more.",
            fix="Give for example 1,16,128.",
        )
    return decision.group(batches) if isinstance(batches, Mapping) else decision.bounds(sizes)
