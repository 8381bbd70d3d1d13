from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.adapter import Adapter
from bridge.errors import ConversionError
from bridge.loading import open_model


class Copy(Adapter):
    name = "tiny-to-tiny"
    sources = frozenset({"tiny"})
    target = "tiny"

    def probe(self) -> bridge.Availability:
        return bridge.Availability(installed=True)

    def _convert(self, model: bridge.ModelRef, target: Path, options: Any) -> Mapping[str, Any]:
        target.write_bytes(model.file.read_bytes())
        return {"copied": True}


def test_the_target_appears_alone(tiny: Any, tiny_model: Path) -> None:
    target = tiny_model.parent / "copy.tiny"
    assert Copy().convert(open_model(tiny_model), target) == {"copied": True}
    assert target.read_bytes() == tiny_model.read_bytes()
    assert sorted(item.name for item in tiny_model.parent.iterdir()) == ["copy.tiny", "model.tiny"]
    with pytest.raises(ConversionError, match="exists already"):
        Copy().convert(open_model(tiny_model), target)


def test_a_folder_that_cannot_be_written_to(
    tiny: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **more: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(ConversionError, match="cannot be written to: Permission denied"):
        Copy().convert(open_model(tiny_model), tiny_model.parent / "copy.tiny")
