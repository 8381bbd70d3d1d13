"""Search spaces: what is legal, and why the rest is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import pytest

from bridge import Options, option
from bridge.errors import OptionError
from bridge.search import Pruned, combine


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    threads: int | None = option(None, help="Threads; none means 4.", minimum=1)
    streams: int | None = option(None, help="Streams.", minimum=1)
    pinned: bool = option(False, help="Pin.")

    def check(self) -> None:
        if self.streams and not self.threads:
            raise OptionError("streams need threads.", rule="streams-without-threads")
        if self.pinned and self.streams:
            raise OptionError("pinned and streams do not go together.")

    def effective(self) -> Self:
        return replace(self, threads=None if self.threads == 4 else self.threads)


@dataclass(frozen=True, kw_only=True)
class Plain(Options):
    size: int = option(1, help="Size.", minimum=1)


def test_illegal_combinations_are_found_by_the_check_of_the_options() -> None:
    found = combine(Settings, [{}, {"streams": 2}, {"threads": 2, "streams": 2, "pinned": True}])
    assert found == (
        Settings(),
        Pruned({"streams": 2}, "streams-without-threads", "streams need threads."),
        Pruned(
            {"threads": 2, "streams": 2, "pinned": True},
            "illegal",
            "pinned and streams do not go together.",
        ),
    )


def test_nothing_is_there_twice() -> None:
    found = combine(Plain, [{}, {"size": 2}, {"size": 1}, {"size": "2"}])
    assert found[:2] == (Plain(), Plain(size=2))
    same, other = found[2:]
    assert isinstance(same, Pruned)
    assert (same.rule, same.reason) == (
        "same-as-default",
        "size=1 means the same as the defaults here.",
    )
    assert isinstance(other, Pruned)
    assert (other.rule, other.reason) == (
        "same-as-another",
        "size=2 means the same as size=2 here.",
    )
    assert isinstance(combine(Settings, [{}, {"threads": 4}])[1], Pruned)


def test_what_the_caller_has_pruned_passes_through() -> None:
    left_out = Pruned({"any": True}, "why-not", "it does nothing.")
    assert combine(Plain, [left_out, {}]) == (left_out, Plain())


@pytest.mark.parametrize("values", [{"sizes": 2}, {"size": 0}, {"size": "many"}])
def test_a_slip_in_the_list_is_no_rule(values: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        combine(Plain, [{}, values])
