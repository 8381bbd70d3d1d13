"""The script that measures what routing adds; its figures are not judged here."""

from __future__ import annotations

import pytest

from bridge_bench import routing


def test_it_measures_each_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = routing.measure(2, blocks=3, calls=5)
    assert set(found) == {"plain", "routed", "renamed"}
    assert found["plain"] > 0
    for added, status in ((1000.0, 0), (1000.1, 1)):
        result = {"plain": 400.0, "routed": added, "renamed": 700.0}
        monkeypatch.setattr(routing, "measure", lambda count, result=result: result)
        assert routing.main() == status
        assert "| 40 inputs | 400 | 1000 | 700 |" in capsys.readouterr().out
