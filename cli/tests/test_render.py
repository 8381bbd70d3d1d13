"""Terminal output: untrusted text, widths, numbers."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

from bridge_cli import units
from bridge_cli.render import clean, print_code, print_json, print_line, print_table

EVIL = "[bold red]y[/]\x1b[2J\u202e\x07\n\udc80"
SAFE = r"[bold red]y[/]\x1b[2J\u202e\x07\n\udc80"


def test_clean_shows_what_does_not_print() -> None:
    assert clean(EVIL) == SAFE
    assert clean("straße 推荐 a b") == "straße 推荐 a b"
    assert clean("\x9b31m\x85\u2066\u200b\ufeff") == r"\x9b31m\x85\u2066\u200b\ufeff"


def test_tables_and_lines_show_hostile_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(EVIL, "bold")
    print_table(("name",), [(EVIL,)], title=EVIL)
    print_code([EVIL])
    text = capsys.readouterr().out
    assert text.count(SAFE) == 4
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udc80]", text)


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": EVIL + "推"})
    assert capsys.readouterr().out.isascii()
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"value": float("nan")})


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_a_table_fits_and_loses_nothing(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name, note = "serving_default_input_number_1:0", "one two three four five six seven " * 3
    print_table(("name", "size", "note"), [(name, "123456.78 MiB", note)], right=("size",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    shown = "".join(lines).replace(" ", "")
    letters = set(name + note.replace(" ", ""))
    assert "123456.78MiB" in shown
    for character in letters:
        assert shown.count(character) >= (name + note).count(character)


def test_nothing_is_folded_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("name", "note"), [("a" * 300, "b " * 300)])
    print_line("c " * 300)
    text = capsys.readouterr().out
    assert "a" * 300 in text
    assert ("b " * 300).strip() in text
    assert ("c " * 300).strip() in text


def test_hostile_names_of_a_model_reach_no_terminal(bridge: Any, model: Any) -> None:
    path = model("evil")
    shown = [
        bridge("inspect", path),
        bridge("run", path),
        bridge("compare", path, "--rounds", 1, "--backend", "exact", "--backend", "off"),
        bridge("run", path, "--backend", "refuses"),
        bridge("compare", path, "--rounds", 1, "--backend", "refuses"),
        bridge("run", "\x1b[2Jnot[red]here"),
    ]
    assert [one.code for one in shown] == [0, 0, 1, 3, 8, 3]
    for one in shown:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", one.out + one.err)
        assert r"\x1b[2J" in one.out + one.err
    assert "[bold red]y[/]" in shown[0].out
    assert "[bold red]y[/]" in shown[3].err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (units.size(None), "-"),
        (units.size(0), "0 B"),
        (units.size(230_444), "225 KiB"),
        (units.size(1_308_243), "1.25 MiB"),
        (units.size(1023), "1023 B"),
        (units.size(1024**2 - 1), "1 MiB"),
        (units.size(3 * 2**40), "3 TiB"),
        (units.size(5000 * 2**40), "5000 TiB"),
        (units.duration(None), "-"),
        (units.duration(2.9e-6), "2.9 µs"),
        (units.duration(0.0123), "12.3 ms"),
        (units.duration(0.9999), "1 s"),
        (units.duration(83.2), "83.2 s"),
        (units.age(5), "moments"),
        (units.age(60), "1 minute"),
        (units.age(3 * 86400), "3 days"),
        (units.number(1.6e-6), "1.6e-06"),
        (units.ratio(1.0), "1.00x"),
        (units.ratio(46.67), "46.7x"),
        (units.ratio(466.7), "467x"),
    ],
)
def test_units(given: str, text: str) -> None:
    assert given == text


def on_terminal(words: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Runs the program with standard error on a terminal; status, output, terminal text."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "bridge_cli", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # EIO: the other side is closed
                return
            if not data:
                return
            seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    out, _ = child.communicate(timeout=120)
    reader.join()
    os.close(ours)
    return child.returncode, out, b"".join(seen).decode()


def test_progress_is_shown_on_a_terminal_only(
    environment: dict[str, str], process: Any, model: Any
) -> None:
    words = ["compare", str(model()), "--rounds", "2", "--backend", "exact", "--json"]
    code, out, shown = on_terminal(words, environment)
    assert code == 0
    assert out.startswith("{")
    assert "\r\x1b[Kround 2/2" in shown
    assert shown.endswith("\r\x1b[K")  # nothing is left behind
    piped = process(*words)
    assert (piped.code, piped.err) == (0, "")
