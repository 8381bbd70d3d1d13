"""Failures that a backend's author knows and explains, in a file beside the backend.

``known_failures.toml`` lists exact test ids with the reason. The list is strict both
ways: a listed test that passes is a failure, and an id that matches no test is one.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FILE_NAME", "KnownFailure", "KnownFailuresError", "read_known_failures"]

FILE_NAME = "known_failures.toml"
_FIELDS = {
    "ids": list,
    "reason": str,
    "devices": list,
    "issue": str,
    "since": str,
    "mode": str,
}
_SHORTEST_REASON = 20  # characters; less is no sentence


class KnownFailuresError(ValueError):
    """A file of known failures breaks its own rules; the text names the entry."""


@dataclass(frozen=True, slots=True)
class KnownFailure:
    """One known failure.

    Attributes:
        id: The test, such as ``TestPredict::test_dtypes[float16]``.
        reason: A full sentence.
        issue: Where it is discussed; empty where nowhere.
        since: Version of the runtime that first showed it; empty if not known.
        is_run: The test is run and has to fail. ``False`` for tests that crash, hang, or fail
            by chance, which are not run at all (``mode = "skip"``).
    """

    id: str
    reason: str
    issue: str = ""
    since: str = ""
    is_run: bool = True


def read_known_failures(path: Path, device: str) -> dict[str, KnownFailure]:
    """The known failures of one file that hold on a device, by test id.

    Args:
        path: The file; one that does not exist lists nothing.
        device: Device under test, such as ``cpu`` or ``cuda:0``.

    Raises:
        KnownFailuresError: The file cannot be read, has an unknown or ill-typed field, a
            reason that is no sentence, or an id twice.
    """
    if not path.is_file():
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KnownFailuresError(f"{path.name} cannot be read: {error}.") from error
    unknown = sorted(data.keys() - {"known"})
    if unknown:
        raise KnownFailuresError(
            f"{path.name} has the entry '{unknown[0]}'; wanted [[known]] tables only."
        )
    found: dict[str, KnownFailure] = {}
    for number, entry in enumerate(data.get("known", []), start=1):
        _check(entry, f"entry {number} of {path.name}")
        kind = device.partition(":")[0]
        if not {kind, device} & set(entry.get("devices", [kind])):
            continue
        for test in entry["ids"]:
            if test in found:
                raise KnownFailuresError(f"{path.name} lists '{test}' twice for {device}.")
            found[test] = KnownFailure(
                test,
                entry["reason"],
                entry.get("issue", ""),
                entry.get("since", ""),
                is_run=entry.get("mode") != "skip",
            )
    return found


def _check(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise KnownFailuresError(f"{where} is no table; wanted [[known]].")
    for name, value in entry.items():
        if name not in _FIELDS:
            valid = ", ".join(_FIELDS)
            raise KnownFailuresError(f"{where} has the field '{name}'; valid are: {valid}.")
        if not isinstance(value, _FIELDS[name]):
            wanted = "a list of texts" if _FIELDS[name] is list else "a text"
            raise KnownFailuresError(f"{where}: '{name}' is {value!r}; wanted {wanted}.")
    for name in ("ids", "devices"):
        items = entry.get(name, ["x"])
        if not items or not all(isinstance(item, str) for item in items):
            raise KnownFailuresError(f"{where}: '{name}' is {items!r}; wanted a list of texts.")
    if "ids" not in entry:
        raise KnownFailuresError(f"{where} has no 'ids'; wanted exact test ids.")
    if len(entry.get("reason", "")) < _SHORTEST_REASON:
        raise KnownFailuresError(f"{where} has no reason; wanted a full sentence that says why.")
    if entry.get("mode", "skip") != "skip":
        raise KnownFailuresError(
            f"{where}: 'mode' is {entry['mode']!r}; the only one is 'skip', for crashes, hangs "
            "and what fails by chance."
        )
