"""Quantities as people type them."""

from __future__ import annotations

import math

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from bridge_cli.quantities import parse_duration_s, parse_size_bytes, parse_sla


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        (" 1.5 ms ", 0.0015),
        ("250us", 250e-6),
        ("250\u00b5s", 250e-6),
        ("250\u03bcs", 250e-6),
        ("800ns", 800e-9),
        ("2min", 120),
        (".5h", 1800),
        ("1e3ms", 1.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text, "--duration") == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "30", "s", "0s", "-1s", "1 s s", "5m", "1e999s", "nans", "infs", "1_0s", "5S"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no duration above 0, as in 30s"):
        parse_duration_s(text, "--duration")


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 kib", 1536), ("7B", 7), ("1TB", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["", "2", "GiB", "0B", "0.4B", "-2GiB", "2 gigs", "1e999B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        parse_size_bytes(text, "--max-memory")


@pytest.mark.parametrize(
    ("text", "percentile", "seconds"),
    [("p99=5ms", 0.99, 0.005), ("p99.9=20ms", 0.999, 0.02), ("p50 = 1s", 0.5, 1.0)],
)
def test_promises(text: str, percentile: float, seconds: float) -> None:
    found = parse_sla(text)
    assert found[0] == percentile
    assert found[1] == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "p99", "99=5ms", "p99=", "p99=5", "p0=5ms", "p100=5ms", "p990=1s", "pp=1s"]
)
def test_what_is_no_promise(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_sla(text)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    for parse in (parse_duration_s, parse_size_bytes):
        try:
            value = parse(text, "--option")
        except typer.BadParameter:
            continue
        assert 0 < value < math.inf
