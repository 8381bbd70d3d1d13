"""The console script ``bridge``."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from bridge_cli import exit_codes

__all__ = ["close_output", "run"]


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; the exit status.

    Args:
        arguments: Words of the command line; ``None`` means those of this process.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        close_output()
        return exit_codes.CLOSED_OUTPUT
    except Exception as error:  # noqa: BLE001 - shown whole; the status says that it is our fault
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            print(f"error: the output cannot be written: {error.strerror}.", file=sys.stderr)
            print("fix: Make room, or write somewhere else.", file=sys.stderr)
            close_output()
            return exit_codes.WORK
        import traceback

        traceback.print_exc()
        print("This is a defect of bridge or of a plugin of it.", file=sys.stderr)
        return exit_codes.DEFECT


def _run(arguments: Sequence[str] | None) -> int:
    # File names may hold bytes, and terminals lack characters, that cannot be printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        import rich  # noqa: F401 - asked for here, so that no command fails half-way
        import typer
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"error: the command line needs '{error.name}', which is not installed.\n"
            "fix: Install it with: pip install 'inference-bridge[cli]'",
            file=sys.stderr,
        )
        return exit_codes.FINDING
    from bridge_cli.program import app

    program = typer.main.get_command(app)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        program.main(args=words, prog_name="bridge")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else exit_codes.FINDING
    else:
        status = exit_codes.OK
    sys.stdout.flush()
    return status


def close_output() -> None:
    """Points the output at nothing, so that the interpreter's last flush cannot fail."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
