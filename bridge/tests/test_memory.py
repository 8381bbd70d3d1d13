"""Resident memory, and what a predictor tells of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import memory
from bridge.routing import routed_info

GROWTH = 64 << 20


def test_it_grows_with_what_is_touched() -> None:
    before = memory.resident_bytes()
    assert before is not None
    held = np.ones(GROWTH, np.uint8)
    after = memory.resident_bytes()
    assert after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.1)


@pytest.mark.parametrize("text", [None, "", "12", "12 many 3"])
def test_a_system_that_does_not_tell(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "statm"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(memory, "_STATM", file)
    assert memory.resident_bytes() is None


def test_a_predictor_tells_what_loading_it_took(
    tiny: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = type(tiny)._load

    def heavy(self: Any, *given: Any) -> Any:
        predictor = load(self, *given)
        predictor.weights = np.ones(GROWTH, np.uint8)
        return predictor

    monkeypatch.setattr(type(tiny), "_load", heavy)
    with bridge.load(tiny_model) as predictor:
        assert predictor.info.resident_bytes == pytest.approx(GROWTH, rel=0.1)
        assert predictor.info.to_dict()["resident_bytes"] == predictor.info.resident_bytes


def test_nothing_is_told_where_the_system_does_not(
    tiny: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.backend.resident_bytes", lambda: None)
    with bridge.load(tiny_model) as predictor:
        assert predictor.info.resident_bytes is None
        assert routed_info({"a": predictor}, []).resident_bytes is None


def test_freed_memory_counts_as_none(
    tiny: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([5000, 4000])
    monkeypatch.setattr("bridge.backend.resident_bytes", lambda: next(seen))
    with bridge.load(tiny_model) as predictor:
        assert predictor.info.resident_bytes == 0


def test_arms_of_a_routed_predictor_add_up(
    tiny: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([0, 1000, 0, 500])
    monkeypatch.setattr("bridge.backend.resident_bytes", lambda: next(seen))
    with bridge.load(tiny_model) as first, bridge.load(tiny_model) as second:
        assert routed_info({"a": first, "b": second}, []).resident_bytes == 1500
