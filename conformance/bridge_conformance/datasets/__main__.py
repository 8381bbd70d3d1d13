"""``python -m bridge_conformance.datasets``: builds the sets that take minutes, once."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from bridge.errors import BridgeError
from bridge_conformance.datasets.applications import APPLICATIONS
from bridge_conformance.datasets.operators import OPERATORS

__all__ = ["main"]

_SETS = {cases.builder: cases for cases in (OPERATORS, APPLICATIONS)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds every set that the cache does not have, and says where it is.

    Where no set is named, one whose library is not installed is left out.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bridge_conformance.datasets",
        description="Build the test sets of the conformance suite that take minutes.",
    )
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help=f"{' or '.join(_SETS)}; default: all"
    )
    named = parser.parse_args(arguments).sets
    wanted = named or list(_SETS)
    for name in wanted:
        if name not in _SETS:
            parser.error(f"there is no set '{name}'; there are: {', '.join(_SETS)}")
    failed = 0
    for cases in (_SETS[name] for name in wanted):
        missing = cases.missing()
        if missing is not None and not named:
            print(f"{cases.name}: left out, for module '{missing}' is not installed.")  # noqa: T201
            continue
        started = time.monotonic()
        try:
            stored = cases.build()
        except BridgeError as error:
            print(f"{cases.name}: {error}", file=sys.stderr)  # noqa: T201
            failed += 1
            continue
        took_s = time.monotonic() - started
        print(  # noqa: T201
            f"{cases.name}: {len(stored.names)} cases, {len(stored.left_out)} left out, "
            f"in {took_s:.0f} s: {stored.folder}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
