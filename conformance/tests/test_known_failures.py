"""The list of known failures: what it may say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_conformance.known_failures import KnownFailuresError, read_known_failures

GOOD = """
[[known]]
ids = ["TestA::test_one", "TestA::test_two[x]"]
reason = "The runtime rounds the other way."
issue = "https://example.org/1"
since = "runtime 2.0"

[[known]]
ids = ["TestB::test_three"]
reason = "The runtime ends the process."
devices = ["cuda"]
mode = "skip"
"""


def read(tmp_path: Path, text: str, device: str = "cpu") -> dict[str, object]:
    path = tmp_path / "known_failures.toml"
    path.write_text(text, encoding="utf-8")
    return dict(read_known_failures(path, device))


def test_entries_are_read_by_device(tmp_path: Path) -> None:
    on_cpu = read_known_failures(tmp_path / "none.toml", "cpu")
    assert on_cpu == {}
    read(tmp_path, GOOD)
    path = tmp_path / "known_failures.toml"
    on_cpu = read_known_failures(path, "cpu")
    assert list(on_cpu) == ["TestA::test_one", "TestA::test_two[x]"]
    one = on_cpu["TestA::test_one"]
    assert (one.issue, one.since, one.is_run) == ("https://example.org/1", "runtime 2.0", True)
    on_cuda = read_known_failures(path, "cuda:1")
    assert set(on_cuda) == {*on_cpu, "TestB::test_three"}
    assert not on_cuda["TestB::test_three"].is_run


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[known]", "cannot be read"),
        ("[[unknown]]\nids = ['a']", "entry 'unknown'"),
        ("known = ['a']", "is no table"),
        ("[[known]]\nreason = 'It is a long sentence.'", "has no 'ids'"),
        ("[[known]]\nids = []\nreason = 'It is a long sentence.'", "'ids' is \\[\\]"),
        ("[[known]]\nids = [1]\nreason = 'It is a long sentence.'", "wanted a list of texts"),
        ("[[known]]\nids = 'a'\nreason = 'It is a long sentence.'", "wanted a list of texts"),
        ("[[known]]\nids = ['a']", "has no reason"),
        ("[[known]]\nids = ['a']\nreason = 'short'", "has no reason"),
        ("[[known]]\nids = ['a']\nreason = 'It is a long sentence.'\nwhy = 1", "field 'why'"),
        ("[[known]]\nids = ['a']\nreason = 'It is a long sentence.'\nmode = 'run'", "'mode' is"),
        ("[[known]]\nids = ['a', 'a']\nreason = 'It is a long sentence.'", "lists 'a' twice"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(KnownFailuresError, match=complaint):
        read(tmp_path, text)
