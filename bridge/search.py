"""What is worth measuring of a backend's options, and what is not, with the rule.

A backend lists values; ``combine`` makes options of them. What is illegal is found by
the options' own ``check``, so that there is one list of rules, and what means the same
as something before is left out by ``Options.effective``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.errors import OptionError
from bridge.options import Options

__all__ = ["Pruned", "combine"]


@dataclass(frozen=True, slots=True)
class Pruned:
    """Options that are not worth measuring, or not legal.

    Attributes:
        values: The options that differ from their defaults.
        rule: Name of the rule, a few words with ``-`` between them.
        reason: One sentence.
    """

    values: Mapping[str, Any]
    rule: str
    reason: str


def combine(
    options_type: type[Options], candidates: Iterable[Mapping[str, Any] | Pruned]
) -> tuple[Options | Pruned, ...]:
    """Options of a list of values, those that are left out included.

    Args:
        options_type: Class of the options.
        candidates: Values that differ from the defaults, in the order in which they are
            worth trying; what the caller has pruned itself passes through.

    Returns:
        One item for each candidate: its options, or ``Pruned`` by the rule that ``check``
        named, by ``same-as-default`` or by ``same-as-another``.

    Raises:
        OptionError: A candidate has an unknown option, or a value that is illegal alone.
    """
    default = options_type()
    seen: dict[Options, Options] = {}
    found: list[Options | Pruned] = []
    for values in candidates:
        if isinstance(values, Pruned):
            found.append(values)
            continue
        try:
            options = options_type.make(values)
        except OptionError as error:
            if "rule" not in error.detail:  # not from check, so a slip in the list
                raise
            found.append(Pruned(values, error.detail["rule"], error.message))
            continue
        same = seen.setdefault(options.effective(), options)
        if same is options:
            found.append(options)
        elif same == default:
            reason = f"{_text(values)} means the same as the defaults here."
            found.append(Pruned(values, "same-as-default", reason))
        else:
            reason = f"{_text(values)} means the same as {same} here."
            found.append(Pruned(values, "same-as-another", reason))
    return tuple(found)


def _text(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "nothing"
