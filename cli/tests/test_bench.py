"""``bridge bench``, on the acting plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_bench.load import floor, loadgen, session
from bridge_bench.load.result import Floor

QUICK = ("--duration", "100ms", "--issuer", "own")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = Floor(issuer="own", scenario="server", p50_s=1e-7, p99_s=2e-7, calls=100)
    monkeypatch.setattr(session, "WARMUP_S", 0.01)
    monkeypatch.setattr(floor, "server_floor", lambda *_: cheap)
    monkeypatch.setattr(floor, "single_stream_floor", lambda *_: cheap)


def test_a_table_for_people(bridge: Any, model: Callable[..., Path]) -> None:
    found = bridge("bench", model(), *QUICK, "--rows", 4, "--sla", "p50=1s")
    assert found.code == 0, found.out
    assert "single_stream, 4 rows per call" in found.out
    assert "exact on cpu" in found.out
    assert "one call" in found.out
    assert "met: p50 of at most 1 s" in found.out
    assert found.err == ""


def test_a_server_run_as_json(bridge: Any, model: Callable[..., Path]) -> None:
    words = ("--scenario", "server", "--qps", 300, "--sla", "p50=1s", "--concurrency", 2)
    found = bridge("bench", model(), *QUICK, *words, "--seed", 4, "--json")
    assert found.code == 0
    document = found.document("bench")
    assert document["peak"] is None
    assert document["result"]["qps"] == 300
    assert document["result"]["concurrency"] == 2
    assert document["result"]["verdict"]["status"] == "met"
    assert document["result"]["sla"] == {"percentile": 0.5, "latency_s": 1.0}
    assert document["result"]["info"]["backend"] == "exact"


def test_a_promise_that_is_not_kept_is_a_finding(bridge: Any, model: Callable[..., Path]) -> None:
    found = bridge("bench", model(), *QUICK, "--sla", "p50=1ns")
    assert found.code == 1
    assert "not met: p50 of at most" in found.out
    undecided = bridge(
        "bench", model(), *QUICK, "--scenario", "server", "--qps", 100, "--sla", "p99=1s"
    )
    assert undecided.code == 1
    assert "undecided: p99 of at most 1 s" in undecided.out
    assert "more queries, none of them late" in " ".join(undecided.out.split())


def test_calls_that_fail_are_errors(bridge: Any, model: Callable[..., Path]) -> None:
    found = bridge("bench", model(), *QUICK, "--backend", "fails")
    assert found.code == 7
    assert "it forgot its lines" in found.err
    hints = bridge("bench", model(), *QUICK, "--backend", "stumbles")
    assert "The inputs were made up" in hints.err


def test_the_highest_rate(bridge: Any, model: Callable[..., Path]) -> None:
    words = ("--sla", "p50=1s", "--find-max-qps", "--budget", "300ms", "--issuer", "own")
    found = bridge("bench", model(), *words)
    assert "Rates tried" in found.out
    assert "undecided" in found.out
    document = bridge("bench", model(), *words, "--json").document("bench")
    assert document["peak"]["status"] == "undecided"
    assert document["peak"]["probes"]
    assert document["peak"]["sla"] == document["result"]["sla"]


@pytest.mark.skipif(not loadgen.is_installed(), reason="mlcommons-loadgen is not installed")
def test_loadgen_by_default(bridge: Any, model: Callable[..., Path]) -> None:
    document = bridge("bench", model(), "--duration", "50ms", "--json").document("bench")
    assert document["result"]["issuer"] == "loadgen"
    assert document["result"]["loadgen"]["version"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--scenario", "server"), "server wants a rate"),
        (("--qps", 5), "single_stream has no rate"),
        (("--find-max-qps",), "the promise to keep is missing"),
        (("--find-max-qps", "--sla", "p99=5ms", "--qps", 5), "it is what --find-max-qps looks for"),
        (("--find-max-qps", "--sla", "p99=5ms", "--scenario", "offline"), "only server has a rate"),
        (("--sla", "5ms"), "is not of the form p99=5ms"),
        (("--duration", "10"), "is no duration above 0"),
        (("--scenario", "sever", "--duration", "1s"), "there is no scenario 'sever'"),
        (("--issuer", "mine"), "there is no issuer 'mine'"),
    ],
)
def test_words_that_make_no_sense(
    bridge: Any, model: Callable[..., Path], words: tuple[str, ...], text: str
) -> None:
    found = bridge("bench", model(), *words)
    assert found.code == 2
    assert text in " ".join(found.err.replace("│", " ").split())


def test_a_model_that_is_not_there(bridge: Any, tmp_path: Path) -> None:
    assert bridge("bench", tmp_path / "none.act", *QUICK).code == 3
