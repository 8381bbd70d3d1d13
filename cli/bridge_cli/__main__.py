"""``python -m bridge_cli``: the ``bridge`` program, whatever else has that name."""

from __future__ import annotations

import sys

from bridge_cli.main import run

if __name__ == "__main__":
    sys.exit(run())
