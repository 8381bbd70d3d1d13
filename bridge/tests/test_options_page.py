"""The page of options says what the options say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bridge
from bridge.options import OptionField
from bridge.registry import registry

CHECKOUT = Path(__file__).parents[2]
OPTIONS = [
    (backend, one)
    for backend in registry().backends
    if registry().backends.source(backend.name).startswith("inference-bridge ")
    for one in backend.options_type.describe()
]


@pytest.mark.checkout
def test_the_page_is_true() -> None:
    done = subprocess.run(
        [sys.executable, CHECKOUT / "docs" / "options.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("backend", "one"), OPTIONS, ids=[f"{backend.name}-{one.name}" for backend, one in OPTIONS]
)
def test_every_option_says_what_it_does_and_when_it_helps(
    backend: bridge.Backend, one: OptionField
) -> None:
    for text in (one.help, one.when):
        assert text.endswith("."), f"{backend.name}.{one.name}: {text!r} is no sentence"
        assert "\n" not in text
    assert one.when != one.help
