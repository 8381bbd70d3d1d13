from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge import Options, option
from bridge.errors import OptionError
from bridge.options import TIERS


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    threads: int | None = option(None, help="Threads.", unit="threads", minimum=1, maximum=64)
    level: str = option("all", help="Level.", choices=("none", "all"))
    arena: bool = option(True, help="Use an arena.")
    share: float = option(0.5, help="Share.", minimum=0, maximum=1)
    folder: Path | None = option(None, help="Folder.", process_wide=True)
    passes: tuple[str, ...] = option((), help="Passes.")

    def check(self) -> None:
        if self.level == "none" and self.passes:
            raise OptionError("passes do nothing at level 'none'.", fix="Leave one out.")


@dataclass(frozen=True, kw_only=True)
class Others(Options):
    pass


def test_texts_become_typed_values() -> None:
    made = Settings.make(
        ["threads=2", "level=none", "arena=off", "share=1", "folder=/tmp/x", "passes="]
    )
    assert made == Settings(threads=2, level="none", arena=False, share=1.0, folder=Path("/tmp/x"))
    assert Settings.make(["threads=none"]).threads is None
    assert Settings.make(["passes=a, b"]).passes == ("a", "b")
    assert Settings.make({"threads": 3}).threads == 3
    assert Settings.make(None) == Settings()
    assert Settings.make(made) is made


def test_what_differs_round_trips() -> None:
    made = Settings(threads=2, folder=Path("/tmp/x"), passes=("a", "b"))
    assert made.to_dict() == {"threads": 2, "folder": "/tmp/x", "passes": "a,b"}
    assert Settings.make(made.to_dict()) == made
    assert str(Settings()) == "default"
    assert str(Settings(threads=2)) == "threads=2"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["thread=2"], "Did you mean 'threads'?"),
        (["threads"], "wanted key=value"),
        (["=2"], "wanted key=value"),
        (["threads=two"], "wants int | none; got 'two'"),
        (["threads=0"], "at least 1"),
        (["threads=65"], "at most 64"),
        (["level=al"], "Did you mean 'all'?"),
        (["arena=maybe"], "wants bool"),
        ({"threads": 1.5}, "wants int"),
        ({"threads": True}, "wants int"),
        ({"passes": "a", "level": "none"}, "passes do nothing"),
        (Others(), "this backend wants Settings"),
    ],
)
def test_wrong_options_are_refused(given: object, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Settings.make(given)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_describe_tells_what_a_reader_needs() -> None:
    first = Settings.describe()[0]
    assert (first.name, first.type, first.default, first.unit) == (
        "threads",
        "int | none",
        None,
        "threads",
    )
    assert Settings.describe()[1].choices == ("none", "all")


@pytest.mark.parametrize("given", [5, [("threads", 1)], {1: 2}, [b"threads=1"]])
def test_options_of_another_kind_are_refused(given: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Settings.make(given)
    assert caught.value.fix


@pytest.mark.parametrize("share", ["nan", float("nan")])
def test_nan_passes_no_bounds(share: Any) -> None:
    with pytest.raises(OptionError, match="'share' wants a number"):
        Settings.make({"share": share})


def test_what_options_say_of_themselves() -> None:
    made = Settings()
    assert (made.tier, made.prepares, made.effective()) == ("strict", False, made)
    assert made.tier in TIERS
    assert made.process_key() == Settings(threads=2).process_key() == ""
    assert Settings(threads=2, folder=Path("/x")).process_key() == "folder=/x"
    assert [field.name for field in Settings.describe() if field.process_wide] == ["folder"]


def test_a_conflict_has_a_rule() -> None:
    with pytest.raises(OptionError) as caught:
        Settings(level="none", passes=("a",))
    assert caught.value.detail["rule"] == "illegal"
    with pytest.raises(OptionError) as caught:
        Settings(threads=0)
    assert "rule" not in caught.value.detail
