"""``bridge compare-records``: is what serves slower than it was, for CI."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson

if TYPE_CHECKING:
    from bridge_bench.regression import Change, RecordComparison

__all__ = ["compare_records"]

EPILOG = """
\b
Example:
  bridge compare-records main record --fail median:5%,p99:10%

\b
The rule: a regression is proven where the lower end of the 95 % interval of the ratio,
AFTER over BEFORE, is above the limit. What serves each number of rows decides; arms that
lost are only shown. The interval is from a bootstrap over the blocks of each record.

\b
Exit status: 0 if no regression is proven, 1 if one is or if what was served is served no
more, 8 if the numbers cannot be compared: the machines differ, or too little was
measured; others as in 'bridge --help'.
"""


def compare_records(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The record to compare with.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The record in question.")],
    fail: Annotated[
        list[str] | None,
        typer.Option(
            "--fail",
            metavar="METRIC:PERCENT",
            help="Largest growth of median or p99, such as median:5%. May be repeated.",
        ),
    ] = None,
    any_machine: Annotated[
        bool,
        typer.Option("--any-machine", help="Judge also where machines or objectives differ."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two selection records: is what serves slower than it was?"""
    from bridge import recording
    from bridge_bench import regression
    from bridge_bench.report import calls
    from bridge_cli.render import print_json

    limits = regression.parse_limits(fail or ())
    records = [recording.read(path) for path in (before, after)]
    wants_calls = "p99" in limits
    times = [calls.read(one) if wants_calls else None for one in records]
    found = regression.compare_records(
        records[0], records[1], limits=limits, before_calls=times[0], after_calls=times[1]
    )
    judged = found.is_telling and (found.is_comparable or any_machine)
    if as_json:
        print_json({**found.to_dict(), "judged": judged})
    else:
        _show(found, judged=judged)
    if not judged:
        raise typer.Exit(exit_codes.NOTHING_RAN)
    if found.regressions:
        raise typer.Exit(exit_codes.FINDING)


_ARMS_SHOWN = 12
_STYLES = {
    "regression": "bold red",
    "lost": "bold red",
    "slower": "yellow",
    "faster": "green",
    "unknown": "dim",
}


def _show(found: RecordComparison, *, judged: bool) -> None:
    from bridge_cli import units
    from bridge_cli.render import print_line, print_table

    for text in found.obstacles:
        print_line(text, "yellow")
    for text in found.notes:
        print_line(text)
    columns = ("rows", "metric", "served before", "served after", "before", "after")
    print_table(
        (*columns, "ratio (95 %)", "limit", "verdict"),
        [
            (
                one.rows,
                one.metric,
                one.before or "-",
                "same" if one.after == one.before else one.after or "-",
                units.duration(one.before_s),
                units.duration(one.after_s),
                _ratio(one),
                "-" if one.limit is None else f"{1 + one.limit:.3g}x",
                one.verdict,
            )
            for one in found.serving
        ],
        title="What serves",
        right=("rows", "before", "after", "ratio (95 %)", "limit"),
        styles=_STYLES,
    )
    for one in found.serving:
        if one.reason:
            print_line(f"{one.rows} rows, {one.metric}: {one.reason}", indent=2)
    _show_arms(found)
    print_line()
    if not found.is_telling:
        print_line("Too little was measured to prove anything.", "bold yellow")
    elif not judged:
        print_line(
            "The numbers cannot be compared, so nothing is proven. --any-machine judges anyway.",
            "bold yellow",
        )
    elif found.regressions:
        rows = ", ".join(map(str, dict.fromkeys(one.rows for one in found.regressions)))
        print_line(f"Regression proven at {rows} rows.", "bold red")
    elif not found.limits:
        print_line("No limit was given with --fail, so nothing was judged.")
    else:
        print_line("No regression is proven.", "bold green")


def _show_arms(found: RecordComparison) -> None:
    """The arms that changed, most first."""
    from bridge_cli import units
    from bridge_cli.render import print_line, print_table

    changed = sorted(
        (
            one
            for one in found.arms
            if one.ratio is not None and one.verdict in {"slower", "faster"}
        ),
        key=lambda one: -abs(math.log(one.ratio.value)) if one.ratio is not None else 0.0,
    )
    if not changed:
        return
    print_table(
        ("arm", "rows", "metric", "before", "after", "ratio (95 %)", "verdict"),
        [
            (
                one.before,
                one.rows,
                one.metric,
                units.duration(one.before_s),
                units.duration(one.after_s),
                _ratio(one),
                one.verdict,
            )
            for one in changed[:_ARMS_SHOWN]
        ],
        title="Arms that changed, whether they serve or not",
        right=("rows", "before", "after", "ratio (95 %)"),
        styles=_STYLES,
    )
    if len(changed) > _ARMS_SHOWN:
        print_line(f"and {len(changed) - _ARMS_SHOWN} more that changed less", "dim")


def _ratio(one: Change) -> str:
    if one.ratio is None:
        return "-"
    return f"{one.ratio.value:.3f} ({one.ratio.low:.3f} to {one.ratio.high:.3f})"
