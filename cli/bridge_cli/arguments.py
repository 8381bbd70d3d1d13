"""Arguments and options that several commands share, in the same words everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "Model", "Trust"]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model file or folder.")]
Trust = Annotated[bool, typer.Option("--trust", help="The model may run code of its own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
