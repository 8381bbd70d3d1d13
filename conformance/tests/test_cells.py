"""The matrix of the workflows and the one of tox have the same cells: all CPU backends."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import bridge
from bridge.registry import registry

CHECKOUT = Path(__file__).parents[2]


def listed(key: str) -> list[str]:
    """A list of the matrix in the workflow file, of which only this much YAML is read."""
    text = (CHECKOUT / ".github" / "workflows" / "backends.yml").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^ +{key}: \[(.*)\]$", text, re.MULTILINE)
    return re.findall(r"[\w.]+", found)


@pytest.mark.checkout
def test_the_local_matrix_is_that_of_the_workflows() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    ((pythons, backends),) = (item["product"] for item in project["tool"]["tox"]["env_list"])
    assert pythons == listed("python")
    assert backends["backend"] == listed("backend")
    told = [line.rpartition(" ")[2] for line in project["project"]["classifiers"]]
    assert set(pythons) == {version for version in told if re.fullmatch(r"3\.\d+", version)}


@pytest.mark.checkout
def test_every_cpu_backend_is_a_cell() -> None:
    sources = registry().backends
    ours = {
        name
        for name, one in bridge.backends().items()
        if sources.source(name).startswith("inference-bridge ")
        and "cpu" in one.device_kinds
        and one.is_public  # a cell installs its runtime
    }
    assert ours == set(listed("backend"))
