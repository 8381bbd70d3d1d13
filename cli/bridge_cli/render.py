"""Terminal output: tables, JSON, errors and progress.

Names of models and tensors, and texts of errors, may come from untrusted files. They
reach the terminal through ``clean`` only, and never as rich markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from bridge.errors import BridgeError

__all__ = [
    "Progress",
    "clean",
    "facts",
    "print_code",
    "print_error",
    "print_json",
    "print_line",
    "print_table",
    "print_warning",
]

_PIPE_WIDTH = 100_000  # columns; tables take what they need, and lines are never broken

_LONG_WORD = 20  # characters; what is longer may be broken to make a table fit


def clean(text: object) -> str:
    """The text with every character that does not simply print shown as an escape.

    That covers control characters (terminal sequences start with one), direction marks
    that make a text read as another, and bytes that are no character.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii")
        for one in str(text)
    )


def print_line(text: object = "", style: str = "", *, indent: int = 0) -> None:
    """One line of text; on a terminal, words wrap at its width, all lines indented."""
    if not text:
        print()
        return
    from rich.padding import Padding
    from rich.text import Text

    _print(Padding(Text(clean(text), style=style), (0, 0, 0, indent), expand=False))


def print_code(lines: Iterable[str]) -> None:
    """Lines to be copied: never wrapped, whatever the width."""
    for line in lines:
        print(clean(line))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    right: Sequence[str] = (),
    styles: Mapping[str, str] | None = None,
) -> None:
    """A table; long cells fold, nothing is cut off.

    Where the terminal is too narrow for that, each row becomes a block of lines.

    Args:
        columns: Headings; a line break in one is kept.
        rows: Cells, shown through ``clean``.
        title: A line above it.
        right: Headings of the columns that hold numbers.
        styles: The style of cells by their whole text, such as ``{"no": "red"}``.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[clean(cell) for cell in row] for row in rows]
    widths = _widths(columns, cells, right, _console().width)
    print_line()
    if title:
        print_line(title, "bold")
    if widths is None:
        for texts in cells:
            facts(dict(zip((column.replace("\n", " ") for column in columns), texts, strict=True)))
            print_line()
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            Text(column),
            justify="right" if column in right else "left",
            overflow="fold",
            width=width,
        )
    for texts in cells:
        table.add_row(*(Text(text, style=(styles or {}).get(text, "")) for text in texts))
    _print(table)


def facts(pairs: Mapping[str, object]) -> None:
    """Names and values, one pair a line, the values aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(clean(name), style="bold"), Text(clean(value)))
    _print(table)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document, in ASCII, so that no text in it can steer a terminal."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_error(error: BridgeError) -> None:
    """What happened and what to do about it, two lines on standard error."""
    print(f"error: {clean(error.message)}", file=sys.stderr)
    if error.fix:
        print(f"fix: {clean(error.fix)}", file=sys.stderr)


def print_warning(error: BridgeError) -> None:
    """The same for what does not end the program."""
    print(f"warning: {clean(error.message)}", file=sys.stderr)
    if error.fix:
        print(f"fix: {clean(error.fix)}", file=sys.stderr)


class Progress:
    """One line on standard error that is written over; nothing if that is no terminal.

    No thread animates it: it would disturb what is being measured.
    """

    def __enter__(self) -> Callable[[str], None]:
        return self._show if sys.stderr.isatty() else lambda _: None

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            self._write("")

    def _show(self, text: str) -> None:
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:
            width = 80
        self._write(clean(text)[: max(1, width - 1)])

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _widths(
    columns: Sequence[str], cells: list[list[str]], right: Sequence[str], width: int
) -> list[int] | None:
    """Width of each column: what it needs, less where that is too much in all.

    Numbers are never broken, words up to a limit neither; ``None`` if that cannot be had.
    """
    from rich.cells import cell_len

    gaps = 2 * (len(columns) - 1)
    wanted, least = [], []
    for index, column in enumerate(columns):
        texts = [*column.split("\n"), *(row[index] for row in cells)]
        words = [word for text in texts for word in text.split()]
        wanted.append(max(map(cell_len, texts)))
        if column in right:
            least.append(wanted[-1])
        else:
            least.append(max((min(cell_len(word), _LONG_WORD) for word in words), default=1))
    if sum(least) + gaps > width:
        return None
    while sum(wanted) + gaps > width:
        shrinkable = [index for index in range(len(columns)) if wanted[index] > least[index]]
        wanted[max(shrinkable, key=lambda index: wanted[index])] -= 1
    return wanted


def _print(item: RenderableType) -> None:
    console = _console()
    sys.stdout.flush()  # a closed pipe is ours to tell: rich, which flushes too, would exit with 1
    with console.capture() as captured:
        console.print(item)
    text = captured.get()
    if not console.is_terminal:
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    sys.stdout.write(text)


def _console() -> Console:
    from rich.console import Console

    width = None
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = _PIPE_WIDTH
    return Console(width=width, markup=False, highlight=False, emoji=False)
