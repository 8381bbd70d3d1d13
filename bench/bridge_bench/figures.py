"""A short benchmark of one backend on a GPU: ``python -m bridge_bench.figures BACKEND``.

The ranker of the zoo, loaded on ``cuda:0`` and, where the backend has one, on the CPU:
``predict`` and bound calls in blocks that alternate in random order, on inputs that
differ from call to call. It prints one line of JSON, for ``bridge_bench.hardware``.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.backend import Backend
from bridge.device import CPU, Device
from bridge.loading import backends, load
from bridge.predictor import Predictor
from bridge_bench.stats import median

__all__ = ["main", "measure"]

GPU = Device("cuda", 0)
ROWS = (1, 16, 128)
BLOCKS = 21
BLOCK_NS = 20_000_000  # long against the clock's resolution and the start of a block
BATCHES = 8

Batch = Mapping[str, npt.NDArray[Any]]


def measure(
    backend: Backend,
    folder: Path,
    *,
    device: Device = GPU,
    size: str = "real",
    rows: Sequence[int] = ROWS,
    blocks: int = BLOCKS,
) -> list[dict[str, Any]]:
    """Figures of a backend on a device, one row for each size of batch.

    Args:
        backend: The backend.
        folder: Where the model is written.
        device: Where it runs.
        size: One of the zoo's sizes.
        rows: Sizes of batches.
        blocks: Blocks of calls of each kind.

    Returns:
        ``format`` and ``rows``; ``predict_us``, ``bound_us`` and ``cpu_us``, medians of a
        call in microseconds, the last ``None`` for a backend without a CPU;
        ``difference``, the largest from the model computed in float64.
    """
    from bridge_zoo.batches import inputs
    from bridge_zoo.description import describe
    from bridge_zoo.formats import FORMATS, build
    from bridge_zoo.oracle import forward
    from bridge_zoo.weights import seeded_weights

    ranker = describe("ranker", size)
    weights = seeded_weights(ranker)
    able = backend.capabilities(device).formats
    name = next(one for one in FORMATS if one in able)
    (path,) = build("ranker", folder=folder, size=size, formats=[name]).values()
    found = []
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(load(path, backend=backend.name, device=device))
        here = None
        if CPU.kind in backend.device_kinds and device != CPU:
            here = stack.enter_context(load(path, backend=backend.name, device=CPU))
        for count in rows:
            batches: list[Batch] = [inputs(ranker, count, seed) for seed in range(BATCHES)]
            right = forward(ranker, weights, batches[0])
            got = there.predict(batches[0])
            difference = max(float(np.abs(got[one] - right[one]).max()) for one in right)
            times = _times(there, here, batches, blocks)
            found.append({"format": name, "rows": count, **times, "difference": difference})
    return found


def _times(
    there: Predictor, here: Predictor | None, batches: Sequence[Batch], blocks: int
) -> dict[str, float | None]:
    bound = there.bind({name: array.shape for name, array in batches[0].items()})

    def bound_call(batch: Batch) -> None:
        for name, array in batch.items():
            bound.inputs[name][...] = array
        bound.predict()

    calls: dict[str, Callable[[Batch], object]] = {
        "predict_us": there.predict,
        "bound_us": bound_call,
    }
    if here is not None:
        calls["cpu_us"] = here.predict
    repeats = {name: _calibrated(call, batches) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)  # noqa: S311 - an order, no secret
    for _ in range(blocks):
        for name in order.sample(list(calls), len(calls)):
            times[name].append(_block(calls[name], batches, repeats[name]) / 1e3)
    found: dict[str, float | None] = {name: median(values) for name, values in times.items()}
    return {"cpu_us": None, **found}


def _calibrated(call: Callable[[Batch], object], batches: Sequence[Batch]) -> int:
    _block(call, batches, 2 * len(batches))  # warm-up: kernels are compiled, clocks rise
    return max(3, round(BLOCK_NS / _block(call, batches, len(batches))))


def _block(call: Callable[[Batch], object], batches: Sequence[Batch], repeats: int) -> float:
    started = perf_counter_ns()
    for turn in range(repeats):
        call(batches[turn % len(batches)])
    return (perf_counter_ns() - started) / repeats


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures of the backend named; the exit status."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        rows = measure(backends()[name], Path(folder))
    print(json.dumps({"problem": None, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
