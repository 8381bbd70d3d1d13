"""What importing and starting costs: ``python -m bridge_bench.startup`` prints it.

Each command runs in a fresh process, in turn with the others, several times; the
figures are medians of wall time. ``import bridge`` is given beyond ``import numpy``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from bridge_bench.stats import median

__all__ = ["main"]

ROUNDS = 11
PYTHON = [sys.executable, "-c"]
PROGRAM = str(Path(sys.executable).with_name("bridge"))
COMMANDS = {
    "import numpy": [*PYTHON, "import numpy"],
    "import bridge": [*PYTHON, "import numpy, bridge"],
    "bridge.backends()": [*PYTHON, "import numpy, bridge; bridge.backends()"],
    "bridge --help": [PROGRAM, "--help"],
    "bridge doctor": [PROGRAM, "doctor"],
}


def main() -> int:
    """Prints the table; the exit status."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            started = perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append((perf_counter() - started) * 1e3)
    print("| command | median, ms | beyond numpy, ms |\n|---|---|---|")
    for name, values in times.items():
        beyond = median([b - a for a, b in zip(times["import numpy"], values, strict=True)])
        print(f"| {name} | {median(values):.0f} | {beyond:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
