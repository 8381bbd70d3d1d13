"""The page for authors of backends shows the example as it is, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bridge_conformance import NotExpressible, Writer, suite_for
from bridge_conformance.networks import NETWORKS

pytestmark = pytest.mark.checkout

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "bridge-tract"


@pytest.fixture
def page() -> str:
    return (DOCS / "write-a-backend.md").read_text(encoding="utf-8")


@pytest.fixture
def shown(page: str) -> list[tuple[str, str]]:
    """Blocks of code that belong to a file of the example: its name, the code."""
    return re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def writer(page: str, shown: list[tuple[str, str]]) -> str:
    """The only other block of code."""
    code = re.findall(r"^```(?:python|toml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (other,) = set(code) - {block for _, block in shown}
    return other


def example(name: str) -> str:
    return (EXAMPLE / name).read_text(encoding="utf-8")


def test_the_example_is_small() -> None:
    lines = [line for path in EXAMPLE.rglob("*.py") for line in path.read_text().splitlines()]
    assert 50 < len(lines) < 120


def test_the_page_shows_the_example_word_for_word(shown: list[tuple[str, str]]) -> None:
    for name, code in shown:
        assert f"\n{code}" in f"\n{example(name)}", f"{name} differs from the page:\n{code}"
    assert {name for name, _ in shown} == {
        "pyproject.toml",
        "bridge_tract/backend.py",
        "bridge_tract/known_failures.toml",
        "bridge_tract/plugin.py",
        "tests/test_conformance.py",
    }


def test_the_page_counts_the_lines(page: str, shown: list[tuple[str, str]]) -> None:
    told = re.findall(r"^\| `([\w./-]+)` \| (\d+) \|", page, re.MULTILINE)
    assert {name for name, _ in told} == {name for name, _ in shown}
    assert {name: int(count) for name, count in told} == {
        name: len(example(name).splitlines()) for name, _ in told
    }


def test_the_tests_that_the_page_names_exist(page: str) -> None:
    classes = suite_for("tract")
    named = set(re.findall(r"(Test[A-Z]\w+)(?:::(test_\w+))?", page))
    assert len(named) > 15
    for cls, test in named:
        assert cls in classes, cls
        assert not test or hasattr(classes[cls], test), f"{cls}::{test}"


def test_the_options_that_the_page_names_exist(page: str, pytestconfig: pytest.Config) -> None:
    named = set(re.findall(r"--bridge-[a-z-]+", page))
    assert "--bridge-backend" in named
    for option in named:
        pytestconfig.getoption(option)  # raises ValueError for one that there is not


def test_the_writer_of_the_page_writes(writer: str, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(writer, space)
    registered: list[Writer] = []
    space["register_conformance_models"](registered.append)
    (made,) = registered
    path = made.write(NETWORKS["affine"], tmp_path)
    assert path.is_relative_to(tmp_path)
    assert "MatMul" in path.read_text()
    with pytest.raises(NotExpressible, match="no Tanh"):
        made.write(NETWORKS["deep"], tmp_path)
