"""The script that measures what isolation costs, with short blocks."""

from __future__ import annotations

import json

import pytest

from bridge_bench import isolation

pytest.importorskip("onnx")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "BLOCKS", 3)
    monkeypatch.setattr(isolation, "BLOCK_NS", 50_000)
    monkeypatch.setattr(isolation, "KIBIBYTES", (1,))


def test_it_prints_a_row_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert isolation.main(["--backend", "reference", "--json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert list(cases) == ["1 input, 1 output, 1 KiB in all", "40 inputs of one id"]
    for row in cases.values():
        assert min(row["here_us"], row["isolated_us"]) > 0
    assert isolation._table("reference", cases).count("\n") == 5
