"""Options of the reference backend."""

from __future__ import annotations

from dataclasses import dataclass

from bridge import Options

__all__ = ["ReferenceOptions"]


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(Options):
    """None: the standard leaves nothing to choose."""
