"""``bridge report``: a selection record for people, on the terminal or as an HTML page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bridge_cli.arguments import AsJson

__all__ = ["report"]

EPILOG = """
\b
Examples:
  bridge report record -o report.html
  bridge report record

\b
The page is one file that needs nothing else: no scripts, nothing from the network.
Without -o the verdict and its tables go to the terminal.

\b
Exit status: as in 'bridge --help'.
"""


def report(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="A record's folder, or its record.json.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write an HTML page."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a selection record: what was chosen, how sure that is, and why."""
    from bridge import recording
    from bridge_cli.render import print_json, print_line
    from bridge_cli.selection_view import show

    found = recording.read(record)
    if out is not None:
        from bridge_bench.report import calls, render

        _check(out, force=force)
        _write(out, render(found, calls.read(found)))
    if as_json:
        print_json(recording.to_document(found))
    elif out is None:
        show(found, record)
    else:
        print_line(f"report: {out}")


def _check(out: Path, *, force: bool) -> None:
    from bridge.errors import OptionError

    if not out.absolute().parent.is_dir():
        raise OptionError(
            f"there is no folder '{out.parent}' for the report.", fix="Make it, or choose another."
        )
    if out.is_dir():
        raise OptionError(f"'{out}' is a folder.", fix="Name a file, such as report.html.")
    if out.exists() and not force:
        raise OptionError(f"'{out}' is there already.", fix="Pass --force to replace it.")


def _write(out: Path, text: str) -> None:
    """Writes the page as a whole: a full disk leaves neither half a page nor the old one lost."""
    import tempfile

    from bridge.errors import RecordNotWritten

    made: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=out.absolute().parent, prefix=f".{out.name}.", delete=False
        ) as file:
            made = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o666 & ~mask)
        made.replace(out)
    except OSError as error:
        if made is not None:
            made.unlink(missing_ok=True)
        raise RecordNotWritten(
            f"the report '{out}' cannot be written: {error.strerror}.",
            fix="Free some space, or choose another path.",
            path=str(out),
        ) from error
