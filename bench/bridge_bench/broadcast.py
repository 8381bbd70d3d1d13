"""What sending the user once gains: ``python -m bridge_bench.broadcast`` prints a table.

Each model of the zoo, of real size and with seeded weights, is written as ONNX and converted
by ``onnx-broadcast``, with the features of the user as its inputs of one row. Both models
are loaded with the options of the backend native to ONNX as they are, float32, in one
process; the plain one gets the user's row as often as there are candidates. They take turns
in short slices, in random order. The gain is the plain model's time of a call, divided by
that of the converted one: above 1 the converted one is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bridge_zoo
from bridge.check import Arrays
from bridge.conversion import convert
from bridge.errors import MeasureError, OptionError
from bridge.loading import load
from bridge.predictor import Predictor
from bridge.proof import STRICT
from bridge_bench.blocks import FULL, QUICK, VARIANTS, Pace, Side, measure
from bridge_bench.conditions import conditions, heading, sentence
from bridge_bench.stats import duel, median
from bridge_zoo.requests import request, user_inputs

__all__ = ["GOALS", "SLOWEST", "main", "requests", "row"]

ROWS = (1, 16, 128, 512, 2048)
GOAL_ROWS = 512
GOALS = {"dual_tower": 1.3, "mmoe": 1.3, "dlrm": 1.1, "wdl": 1.1}
"""The least gain at ``GOAL_ROWS`` candidates."""
SLOWEST = 1.02
"""How many times as long a call may take, for any model and any number of candidates."""

_ADAPTER = "onnx-broadcast"


def requests(
    description: bridge_zoo.Description, rows: int, count: int = VARIANTS
) -> list[tuple[Arrays, Arrays]]:
    """Requests of one user each: as the plain model takes them, and with the user once."""
    return [
        (
            dict(request(description, rows, seed)),
            dict(request(description, rows, seed, is_broadcast=True)),
        )
        for seed in range(count)
    ]


def row(
    plain: Predictor,
    once: Predictor,
    description: bridge_zoo.Description,
    rows: int,
    pace: Pace,
) -> dict[str, Any]:
    """Measures both models on requests of so many candidates.

    Returns:
        ``rows``, the medians ``plain_us`` and ``once_us`` of a call in microseconds, the
        ``gain`` with its 95 % interval ``low`` to ``high``, and how many ``blocks``.

    Raises:
        MeasureError: The two do not agree.
    """
    asked = requests(description, rows)
    for full, short in asked:
        _require_agreement(plain.predict(full), once.predict(short), description.name)
    sides = {
        "plain": Side(lambda index: asked[index][0], plain.predict),
        "once": Side(lambda index: asked[index][1], once.predict),
    }
    times = measure(sides, pace, seed=rows)
    found = duel(times["plain"], times["once"])
    return {
        "rows": rows,
        "plain_us": median(times["plain"]),
        "once_us": median(times["once"]),
        "gain": found.value,
        "low": found.low,
        "high": found.high,
        "blocks": len(times["plain"]),
    }


def _require_agreement(wanted: Arrays, got: Arrays, name: str) -> None:
    atol, rtol = STRICT
    for output, right in wanted.items():
        if not np.allclose(got[output], right, rtol=rtol, atol=atol):
            raise MeasureError(
                f"model '{name}' gives another '{output}' where the user is sent once.",
                fix="Do not use the converted model; this is a defect of the adapter.",
                output=output,
            )


def _measured(
    name: str, size: str, folder: Path, rows: Sequence[int], pace: Pace
) -> dict[str, Any]:
    description = bridge_zoo.describe(name, size)
    path = folder / size / f"{name}.onnx"
    if not path.exists():
        path = bridge_zoo.build(name, folder=path.parent, size=size, formats=["onnx"])["onnx"]
    users = user_inputs(description)
    made = convert(path, "onnx", route=(_ADAPTER,), options={_ADAPTER: {"inputs": users}})
    facts = made.facts[_ADAPTER]
    with load(path) as plain, load(made.path) as once:
        found = [row(plain, once, description, count, pace) for count in rows]
        backend = f"{plain.info.backend} {plain.info.versions.get(plain.info.backend, '')}".strip()
    return {
        "model": name,
        "backend": backend,
        "once": facts["once"],
        "split": len(facts["split"]),
        "repeated": len(facts["repeated"]),
        "rows": found,
    }


def verdict(name: str, found: Mapping[str, Any]) -> str:
    """Whether one measurement is as good as it has to be."""
    least = 1 / SLOWEST
    if found["rows"] == GOAL_ROWS:
        least = GOALS.get(name, least)
    if found["gain"] >= least:
        return ""
    return "missed" if found["high"] < least else "in doubt"


def _table(about: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    counts = [one["rows"] for one in found[0]["rows"]]
    columns = ("model", *(f"{count} candidates" for count in counts), "layers split")
    lines = [
        sentence(
            about,
            found[0]["backend"],
            "float32, defaults",
            "µs of a call, plain → user once, and the gain with its 95 % interval",
        ),
        "",
        *heading(columns),
    ]
    for one in found:
        cells = [one["model"]]
        for item in one["rows"]:
            text = (
                f"{item['plain_us']:.0f} → {item['once_us']:.0f}: "
                f"{item['gain']:.2f} ({item['low']:.2f} to {item['high']:.2f})"
            )
            said = verdict(one["model"], item)
            cells.append(f"{text} **{said}**" if said else text)
        cells.append(str(one["split"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a measurement misses its goal, else 0."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.broadcast")
    parser.add_argument("models", nargs="*", help="models of the zoo; all are measured if none")
    parser.add_argument("--size", choices=bridge_zoo.SIZES, default="real")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="candidates")
    parser.add_argument("--row-s", type=float, default=FULL.row_s, help="seconds of each cell")
    parser.add_argument("--quick", action="store_true", help="short and rough")
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args(arguments)
    names = asked.models or list(bridge_zoo.MODELS)
    for name in names:
        bridge_zoo.describe(name, asked.size)
    if min(asked.rows) < 1:
        raise OptionError("a request has one candidate or more.", option="rows")
    pace = QUICK if asked.quick else dataclasses.replace(FULL, row_s=asked.row_s)
    about = conditions()
    found = []
    with tempfile.TemporaryDirectory(prefix="bridge-broadcast-") as scratch:
        for name in names:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            found.append(
                _measured(name, asked.size, asked.folder or Path(scratch), asked.rows, pace)
            )
    print(_table(about, found))
    if asked.json is not None:
        asked.json.write_text(json.dumps({"about": about, "models": found}, indent=1), "utf-8")
    is_met = all(verdict(one["model"], item) != "missed" for one in found for item in one["rows"])
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
