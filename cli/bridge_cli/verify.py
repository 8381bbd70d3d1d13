"""``bridge verify``: is a selection record still right, here and now?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson, Trust

if TYPE_CHECKING:
    from bridge_bench.verification import Verification

__all__ = ["verify"]

EPILOG = """
\b
Example:
  bridge verify record

\b
Every file of the record is compared with its digest. Then the arms that serve and the
default are started again and measured in a few blocks, in turn: the record holds unless
an arm is proven more than 5 % worse than recorded, relative to the default.

\b
Exit status: 0 if it holds, 1 if not; others as in 'bridge --help'.
"""


def verify(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record's folder.")],
    blocks: Annotated[
        int, typer.Option(min=2, metavar="N", help="Blocks of each duel, in which arms take turns.")
    ] = 6,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Check a record's files, and let its winners race the default again, shortly."""
    from bridge import recording
    from bridge_bench import verification
    from bridge_cli.render import Progress, print_json

    with Progress() as tell:
        found = verification.verify(
            recording.read(record), trust=trust, blocks=blocks, progress=tell
        )
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)
    if not found.holds:
        raise typer.Exit(exit_codes.FINDING)


def _show(found: Verification) -> None:
    from bridge_cli.render import print_line, print_table

    def times(one: object) -> str:
        return "-" if one is None else f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"  # type: ignore[attr-defined]

    print_table(
        ("rows", "arm", "speed over\ndefault, recorded", "now", "holds"),
        [
            (one.rows, one.arm, times(one.recorded), times(one.now), "yes" if one.holds else "NO")
            for one in found.checks
        ],
        right=("rows",),
        styles={"yes": "green", "NO": "bold red"},
    )
    for sentence in found.differences:
        print_line(f"changed since: {sentence}", "yellow")
    for one in found.checks:
        if not one.holds:
            print_line(f"{one.rows} rows: {one.reason} Select again.", "red")
    if found.holds:
        print_line("The record holds.", "bold green")
