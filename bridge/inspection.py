"""What a model is and which backends can take it, told without any runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.errors import BridgeError, ModelError
from bridge.loading import open_model
from bridge.message import error_to
from bridge.model import ModelFacts
from bridge.registry import registry

__all__ = ["Candidate", "Inspection", "inspect"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend's answer about one model.

    Attributes:
        backend: Its name.
        is_native: It is the backend used when none is named.
        is_capable: It takes such a model, installed or not.
        is_installed: Its runtime is installed.
        can_run: There is a device here that it can run models on.
        reason: Why not, if one of these is false.
        fix: What to do about it.
    """

    backend: str
    is_native: bool
    is_capable: bool
    is_installed: bool
    can_run: bool
    reason: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that can be told about a model from its bytes.

    Attributes:
        model: The model as the user named it.
        path: Absolute path, ``None`` for bytes and live objects.
        format: Name of the format.
        title: The format as people call it.
        size_bytes: Size of all files that belong to it; ``None`` where one is missing.
        digest: SHA-256 over them; ``None`` for live objects or where one is missing.
        facts: Signatures, operators, versions, notes, vocabularies.
        candidates: Every backend's answer, capable ones first.
        problem: Why the bridge refuses to load it as it is, ``None`` if it does not.
    """

    model: str
    path: str | None
    format: str
    title: str
    size_bytes: int | None
    digest: str | None
    facts: ModelFacts
    candidates: tuple[Candidate, ...]
    problem: BridgeError | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; its schema is ``inspect.schema.json`` of the command-line package."""
        return {
            "model": self.model,
            "path": self.path,
            "format": self.format,
            "title": self.title,
            "size_bytes": self.size_bytes,
            "digest": self.digest,
            "signatures": {key: one.to_dict() for key, one in self.facts.signatures.items()},
            "operators": dict(self.facts.operators),
            "versions": dict(self.facts.versions),
            "notes": list(self.facts.notes),
            "vocabularies": dict(self.facts.vocabularies),
            "candidates": [
                {
                    "backend": one.backend,
                    "is_native": one.is_native,
                    "is_capable": one.is_capable,
                    "is_installed": one.is_installed,
                    "can_run": one.can_run,
                    "reason": one.reason,
                    "fix": one.fix,
                }
                for one in self.candidates
            ],
            "problem": None if self.problem is None else error_to(self.problem),
        }


def inspect(model: object, *, trust: bool = False) -> Inspection:
    """Tells what a model is; see ``bridge.load`` for ``model`` and ``trust``.

    Returns:
        The facts. A model that would be refused on loading (an external file missing,
        code without trust) is described as far as possible, with ``problem`` set.

    Raises:
        ModelNotFound, InvalidModel, UnsupportedModel: There is nothing to describe.
    """
    found = open_model(model, trust=trust)
    problem: BridgeError | None = None
    size_bytes = digest = None
    served = found
    try:
        found.format.check(found)
        served = found.served
        size_bytes, digest = found.size_bytes, found.digest
    except ModelError as error:
        problem = error
    candidates = []
    for backend in registry().backends:
        availability = backend.probe()
        device = backend.default_device(served)
        can_run = availability.installed and backend.capabilities(device).predicts
        refusal = backend.refuse(served, device)
        reason = fix = None
        if refusal is not None:
            reason, fix = refusal.reason, refusal.fix
        elif not availability.installed:
            reason, fix = availability.reason, availability.fix
        elif not can_run:
            missing = backend.missing_device(device)
            reason, fix = missing.message, missing.fix
        candidates.append(
            Candidate(
                backend=backend.name,
                is_native=backend.name == found.format.native_backend,
                is_capable=refusal is None,
                is_installed=availability.installed,
                can_run=can_run,
                reason=reason,
                fix=fix,
            )
        )
    candidates.sort(key=lambda one: (not one.is_capable, not one.is_native, one.backend))
    return Inspection(
        model=found.name,
        path=None if found.path is None else str(found.path),
        format=found.format.name,
        title=found.format.title,
        size_bytes=size_bytes,
        digest=digest,
        facts=found.facts,
        candidates=tuple(candidates),
        problem=problem,
    )
