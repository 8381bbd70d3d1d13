"""Keeps README.md true: runs its example and renders its table of backends.

``python docs/readme.py`` rewrites the generated parts; ``--check`` only compares, and
exits with 1 if something is stale.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from bridge_conformance.certificate import Certificate
from bridge_conformance.matrix import rows

README = Path(__file__).parents[1] / "README.md"
CERTIFICATES = Path(__file__).parent / "certificates"


def table() -> str:
    """Backends, the formats each loads, and what its certificates say of each kind of device."""
    certificates = [Certificate.read(path) for path in sorted(CERTIFICATES.glob("*.json"))]
    lines = ["| backend | formats | conformance |", "|---|---|---|"]
    for row in rows(certificates):
        said = row.conformance.replace("; ", "<br>")
        lines.append(f"| `{row.backend}` | {', '.join(row.formats)} | {said} |")
    return "\n".join(lines)


def output_of(code: str) -> str:
    """What the example prints, run in an empty folder."""
    printed = io.StringIO()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102
        finally:
            os.chdir(here)
    return printed.getvalue().rstrip()


def regenerated(text: str) -> str:
    """The README with its generated parts made anew."""
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)
    if example is None:
        raise ValueError("README.md has no example between its markers.")
    for marker, content in {
        "output": f"```text\n{output_of(example[1])}\n```",
        "table": table(),
    }.items():
        block = re.compile(rf"(<!-- {marker} -->\n).*?(\n<!-- end {marker} -->)", re.DOTALL)
        text, count = block.subn(lambda m, new=content: f"{m[1]}{new}{m[2]}", text)
        if count != 1:
            raise ValueError(f"README.md has {count} blocks '{marker}', wanted one.")
    return text


def main() -> int:
    """Rewrites or checks README.md; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    given = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = regenerated(old)
    if given.check:
        if new != old:
            print("README.md is stale; run: python docs/readme.py", file=sys.stderr)
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
