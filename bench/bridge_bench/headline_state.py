"""What the headline measurement has finished, as JSON on disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.errors import MeasureError
from bridge_bench.conditions import conditions
from bridge_bench.subject import cpu_backends

__all__ = ["State"]

_SCHEMA = 1


class State:
    """What has been measured so far, as JSON on disk.

    Attributes:
        data: The document.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data: dict[str, Any] = {}
        if path.is_file():
            try:
                self.data = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise MeasureError(
                    f"'{path}' is no JSON: {error}.", fix="Remove it, or name another --state."
                ) from error

    def begin(self, settings: Mapping[str, Any], *, is_fresh: bool) -> None:
        """Keeps what is there if it was measured alike: same settings, machine and versions."""
        now = {**conditions(), "versions": _versions()}
        said = {"schema": _SCHEMA, **settings}
        same = [name for name in now if name != "load_before"]
        before = self.data.get("conditions", {})
        is_alike = all(self.data.get(name) == value for name, value in said.items()) and all(
            before.get(name) == now[name] for name in same
        )
        if is_fresh or not is_alike:
            if self.data and not is_fresh:
                print("machine, versions or settings changed: measuring anew", file=sys.stderr)
            self.data = {**said, "conditions": now, "models": {}}
            self.save()

    def save(self) -> None:
        """Writes it; what was there before stays until that is done."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staged = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        staged.write_text(json.dumps(self.data, indent=1), encoding="utf-8")
        staged.replace(self._path)


def _versions() -> dict[str, str]:
    found = {one.name: one.probe().version for one in cpu_backends()}
    return {name: version or "" for name, version in found.items()}
