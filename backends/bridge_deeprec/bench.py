"""What tables cost: ``python -m bridge_deeprec.bench``.

It writes a checkpoint of random ids and rows with TensorFlow, in a process of its own, and
measures in a fresh process each: loading it, look-ups, a delta, and opening the saved form. All
rows are compared with numpy's. Every figure is of one process on one core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import MeasureError
from bridge_deeprec.checkpoint import Checkpoint
from bridge_deeprec.location import INCREMENTAL
from bridge_deeprec.table import Floats
from bridge_deeprec.tables import Snapshot, Tables

__all__ = ["main"]

_NAME = "emb"
_BATCH = 512 * 40
_BATCHES = 100
_ROUNDS = 5


def main(arguments: list[str] | None = None) -> None:
    """Write the checkpoint, measure, and print a line for each figure.

    Args:
        arguments: Of the command line; ``None`` is this process's.

    Raises:
        MeasureError: A row is not what was written.
    """
    parser = argparse.ArgumentParser(prog="python -m bridge_deeprec.bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="ids with a row")
    parser.add_argument("--dim", type=int, default=16, help="numbers in a row")
    parser.add_argument("--delta", type=int, default=100_000, help="rows of the delta")
    parser.add_argument("--folder", type=Path, help="where to write; none means a temporary one")
    parser.add_argument("--step", choices=sorted(_STEPS), help="one step, in this process")
    given = parser.parse_args(arguments)
    if given.step:
        _STEPS[given.step](given)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for step in ("write", "load", "open"):
            command = [sys.executable, "-m", "bridge_deeprec.bench", "--step", step]
            for name in ("rows", "dim", "delta"):
                command += [f"--{name}", str(getattr(given, name))]
            subprocess.run(
                [*command, "--folder", folder],
                check=True,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
            )


def _ids(count: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids all over 64 bits, in no order, all different, as the factor is odd."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return (numbers * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def _rows(count: int, dim: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


def _delta_ids(given: argparse.Namespace) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Half of them are in the table."""
    return _ids(given.delta, given.rows - given.delta // 2)


def _write(given: argparse.Namespace) -> None:
    import tensorflow as tf

    for prefix, middle, ids, seed in (
        (given.folder / "model.ckpt-1", "", _ids(given.rows), 1),
        (given.folder / INCREMENTAL / "model.ckpt-2", "sparse_incr_", _delta_ids(given), 2),
    ):
        prefix.parent.mkdir(exist_ok=True)
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=[f"{_NAME}-{middle}keys", f"{_NAME}-{middle}values"],
            shape_and_slices=["", ""],
            tensors=[ids, _rows(len(ids), given.dim, seed)],
        )


def _load(given: argparse.Namespace) -> None:
    import pandas as pd  # noqa: F401 (its import is not what is measured)

    data_bytes = given.rows * (8 + 4 * given.dim)
    before = _resident_bytes()
    began = time.perf_counter()
    checkpoint = Checkpoint.open(given.folder)
    tables = Tables.build(checkpoint)
    _say(f"load {given.rows} x {given.dim}", f"{time.perf_counter() - began:.2f} s")
    ratio = (_resident_bytes() - before) / data_bytes
    _say(
        "resident / (keys + values)", f"{ratio:.2f}, at most {_peak_bytes(before) / data_bytes:.2f}"
    )
    _measure_lookups(given, tables.current, "")
    _require_same(tables.current, _ids(given.rows), _rows(given.rows, given.dim, 1))
    (delta,) = checkpoint.deltas()
    began = time.perf_counter()
    tables.apply(Checkpoint.open(delta))
    _say(f"delta of {given.delta} rows", f"{time.perf_counter() - began:.3f} s")
    _measure_lookups(given, tables.current, ", a delta in front")
    _require_same(tables.current, _delta_ids(given), _rows(given.delta, given.dim, 2))
    began = time.perf_counter()
    tables.save(given.folder / "saved")
    _say("save", f"{time.perf_counter() - began:.2f} s")


def _open(given: argparse.Namespace) -> None:
    import pandas as pd  # noqa: F401

    before = _resident_bytes()
    for verify in (True, False):
        began = time.perf_counter()
        tables = Tables.open(given.folder / "saved", verify=verify)
        took = time.perf_counter() - began
        _say(f"open saved, {'' if verify else 'not '}verified", f"{took:.2f} s")
    count = len(tables.current[_NAME])
    ratio = (_resident_bytes() - before) / (count * (8 + 4 * given.dim))
    _say("resident / (keys + values), mapped", f"{ratio:.2f}")
    _require_same(tables.current, _delta_ids(given), _rows(given.delta, given.dim, 2))


def _measure_lookups(given: argparse.Namespace, snapshot: Snapshot, about: str) -> None:
    random = np.random.default_rng(3)
    known = _ids(given.rows)
    hits = [known[random.integers(0, given.rows, _BATCH)] for _ in range(_BATCHES)]
    other = _ids(_BATCH * _BATCHES, 2 * given.rows).reshape(_BATCHES, _BATCH)
    mixed = [np.where(random.random(_BATCH) < 0.5, *pair) for pair in zip(hits, other, strict=True)]
    out = np.empty((_BATCH, given.dim), np.float32)
    table = snapshot[_NAME]
    for what, batches in (("all known", hits), ("half known", mixed)):
        _say(f"ids to rows, {what}{about}", _rate(table.lookup, batches))
    _say(f"ids to values{about}", _rate(lambda ids: table.gather(ids, out), hits))


def _rate(call: Callable[[Any], object], batches: list[Any]) -> str:
    """Ids in a second, and in a second of the CPU, which others on the machine take less from."""
    walls, cpus = [], []
    for _ in range(_ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        for ids in batches:
            call(ids)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    wall_rate, cpu_rate = (
        _BATCH * len(batches) / float(np.median(took)) / 1e6 for took in (walls, cpus)
    )
    return f"{wall_rate:.1f} million/s, {cpu_rate:.1f} in a second of CPU"


def _require_same(snapshot: Snapshot, ids: Any, rows: Floats) -> None:
    step = 1_000_000
    for at in range(0, len(ids), step):
        found = snapshot.gather(_NAME, ids[at : at + step])
        if not np.array_equal(found, rows[at : at + step]):
            raise MeasureError(
                f"rows from {at} on are not those that were written.",
                fix="Report it; nothing measured here can be trusted.",
            )


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(before: int) -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _say(what: str, value: str) -> None:
    sys.stdout.write(f"{what:<48} {value}\n")
    sys.stdout.flush()


_STEPS = {"write": _write, "load": _load, "open": _open}

if __name__ == "__main__":
    main()
