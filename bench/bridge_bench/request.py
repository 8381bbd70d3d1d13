"""What is to be selected, and how."""

from __future__ import annotations

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

__all__ = ["Request", "request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be selected, and how; see ``select`` for the words.

    Attributes:
        models: The network in one or several formats; the first is the reference's.
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
    return Request(
        models=tuple(found),
        buckets=tuple(buckets_of(batches)),
        profile=_informed(profile or InputProfile(seed=said.get("seed", 0)), found),
        **said,
    )


def _informed(profile: InputProfile, models: Sequence[ModelRef]) -> InputProfile:
    """The profile with what all formats of the network tell of its tables."""
    known: dict[str, int] = {}
    for model in reversed(models):  # the first model has the last word
        known |= model.facts.vocabularies
    return replace(profile, vocabularies=known)


def buckets_of(batches: Sequence[int] | Mapping[int, float]) -> list[BucketRecord]:
    """Buckets for sizes, or for a histogram of sizes.

    Raises:
        OptionError: There is no size, or one below 1.
    """
    sizes = list(batches)
    if not sizes or min(sizes) < 1:
        raise OptionError(
            f"batch sizes are {sizes}; wanted at least one, of 1 row or more.",
            fix="Give for example 1,16,128.",
        )
    return decision.group(batches) if isinstance(batches, Mapping) else decision.bounds(sizes)
