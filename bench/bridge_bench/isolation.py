"""What it costs to keep a predictor in a process of its own.

``python -m bridge_bench.isolation`` prints, for one backend that takes ONNX models, the
time of ``predict`` in this process, that over an isolated process, and the difference.
The arithmetic is next to nothing (one addition per element), so that the difference is
that of passing tensors back and forth. Both sides take turns in short blocks, in random
order; figures are medians over blocks, the difference within a block.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bridge.backend import Backend
from bridge.check import Arrays
from bridge.cpus import usable_cpus
from bridge.device import CPU, driver_devices
from bridge.loading import backends, load
from bridge.predictor import Predictor
from bridge.signature import Signature
from bridge_bench.overhead import MANY_IDS, ONE_FLOAT, onnx_model
from bridge_bench.stats import median

__all__ = ["main", "measure"]

BLOCKS = 41
BLOCK_NS = 5_000_000
KIBIBYTES = (1, 64, 1024)  # of inputs and outputs together


def measure(backend: str, signature: Signature, inputs: Arrays) -> dict[str, float]:
    """Medians in microseconds: ``here_us``, ``isolated_us`` and ``added_us``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx_model(signature))
        with (
            load(path, backend=backend) as here,
            load(path, backend=backend, isolated=True) as isolated,
        ):
            _check_agreement(here, isolated, inputs)
            sides = {"here": here, "isolated": isolated}
            repeats = {
                name: max(3, round(BLOCK_NS / min(_block(side, inputs, 10) for _ in range(5))))
                for name, side in sides.items()
            }
            blocks: dict[str, list[float]] = {name: [] for name in sides}
            order = random.Random(0)  # noqa: S311 - an order, no secret
            for _ in range(BLOCKS):
                for name in order.sample(list(sides), len(sides)):
                    blocks[name].append(_block(sides[name], inputs, repeats[name]) / 1e3)
    pairs = zip(blocks["isolated"], blocks["here"], strict=True)
    return {
        "here_us": median(blocks["here"]),
        "isolated_us": median(blocks["isolated"]),
        "added_us": median([theirs - ours for theirs, ours in pairs]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.isolation", description=__doc__)
    parser.add_argument("--backend", help="one that takes ONNX models; the first found otherwise")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(arguments)
    name = given.backend or next((one.name for one in backends().values() if _fits(one)), None)
    if name is None:
        print("no installed backend takes ONNX models", file=sys.stderr)
        return 1
    cases: dict[str, tuple[Signature, Arrays]] = {
        f"1 input, 1 output, {size} KiB in all": (ONE_FLOAT, _floats(size * 1024 // 2))
        for size in KIBIBYTES
    }
    cases[f"{len(MANY_IDS.inputs)} inputs of one id"] = (MANY_IDS, MANY_IDS.zeros(1))
    rows = {case: measure(name, *what) for case, what in cases.items()}
    label = f"{name} {backends()[name].probe().version}"
    if given.json:
        print(json.dumps({"backend": label, "cases": rows}, indent=2))
    else:
        print(_table(label, rows))
    return 0


def _fits(backend: Backend) -> bool:
    claims = backend.capabilities(CPU)
    return backend.probe().installed and claims.predicts and "onnx" in claims.formats


def _floats(size_bytes: int) -> Arrays:
    values = np.random.default_rng(0).standard_normal(size_bytes // 4, np.float32)
    return {"x": values.reshape(-1, 16)}


def _check_agreement(here: Predictor, isolated: Predictor, inputs: Arrays) -> None:
    wanted, got = here.predict(inputs), isolated.predict(inputs)
    if list(got) != list(wanted) or any(not np.array_equal(got[k], wanted[k]) for k in wanted):
        raise AssertionError(f"the isolated predictor gave {got}, the other {wanted}.")


def _block(predictor: Predictor, inputs: Arrays, repeats: int) -> float:
    started = perf_counter_ns()
    for _ in range(repeats):
        predictor.predict(inputs)
    return (perf_counter_ns() - started) / repeats


def _table(label: str, rows: dict[str, Any]) -> str:
    (_, processor), *_ = driver_devices()
    about = [
        f"{processor}, {usable_cpus()} CPUs, {platform.machine()}; Linux {platform.release()}",
        f"Python {platform.python_version()}, numpy {np.__version__}, {label}",
        f"medians of {BLOCKS} alternating blocks",
    ]
    lines = [
        "; ".join(about),
        "",
        "| tensors | in this process, µs | isolated, µs | added, µs |",
        "|---|---|---|---|",
    ]
    for case, row in rows.items():
        lines.append(
            f"| {case} | {row['here_us']:.1f} | {row['isolated_us']:.1f} | {row['added_us']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
