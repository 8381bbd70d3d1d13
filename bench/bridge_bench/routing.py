"""What a routed predictor adds to a call: ``python -m bridge_bench.routing`` prints it.

The same call is timed on a predictor whose arithmetic is nothing, on a routed one over
it, and on one whose inputs are all called something else, in short blocks that alternate
in random order. A figure is the median over blocks of the difference inside a block, so
that drift cancels. The limit is 1 µs for routing.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from bridge.capabilities import Capabilities, ThreadSafety
from bridge.check import Arrays
from bridge.dtypes import DType
from bridge.predictor import Predictor, PredictorInfo
from bridge.renaming import RenamedPredictor
from bridge.routing import Branch, RoutedPredictor
from bridge.signature import Signature, TensorSpec
from bridge_bench.stats import median

__all__ = ["main", "measure"]

BLOCKS = 201
CALLS = 2000
LIMIT_NS = 1000.0
ROWS = 16
CASES = {"1 input": 1, "40 inputs": 40}


class Nothing(Predictor):
    """Answers with the same array each time."""

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature, PredictorInfo(backend="nothing", model="nothing"))
        self._answer = {"y": np.zeros(1, np.float32)}
        self._attach(self.info, Capabilities(thread_safety=ThreadSafety.SHARED), (), None)

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return self._answer

    def _close(self) -> None:
        """There is nothing to close."""


def measure(count: int, *, blocks: int = BLOCKS, calls: int = CALLS) -> dict[str, float]:
    """Nanoseconds per call: ``plain``, and what ``routed`` and ``renamed`` add to it.

    Args:
        count: Number of inputs.
        blocks: Blocks of calls of each kind.
        calls: Calls in a block.
    """
    names = [f"id_{index:02}" for index in range(count)]
    signature = _signature(names)
    plain = Nothing(signature)
    routed = RoutedPredictor(
        signature,
        plain.info,
        [Branch(1, plain), Branch(ROWS, plain), Branch(128, plain), Branch(None, plain)],
        batch_axes=dict.fromkeys(names, 0),
        output_axes={"y": 0},
    )
    theirs = {f"t_{name}": name for name in names}
    renamed = RenamedPredictor(Nothing(_signature(list(theirs))), signature, theirs, {})
    inputs = {name: np.zeros(ROWS, np.int64) for name in names}
    kinds = {"plain": plain.predict, "routed": routed.predict, "renamed": renamed.predict}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    order = list(kinds)
    chance = random.Random(0)  # noqa: S311 - an order, no secret
    for _ in range(blocks):
        chance.shuffle(order)
        for name in order:
            times[name].append(_block(kinds[name], inputs, calls))
    found = {"plain": median(times["plain"])}
    for name in ("routed", "renamed"):
        added = [b - a for a, b in zip(times["plain"], times[name], strict=True)]
        found[name] = median(added)
    return found


def main() -> int:
    """Prints the table; the exit status, 1 where routing adds more than 1 µs."""
    print("| model | call, ns | routing adds, ns | renaming adds, ns |\n|---|---|---|---|")
    is_within = True
    for title, count in CASES.items():
        found = measure(count)
        is_within &= found["routed"] <= LIMIT_NS
        print(
            f"| {title} | {found['plain']:.0f} | {found['routed']:.0f} | {found['renamed']:.0f} |"
        )
    return 0 if is_within else 1


def _signature(names: Sequence[str]) -> Signature:
    return Signature(
        tuple(TensorSpec(name, DType.INT64, ("rows",)) for name in names),
        (TensorSpec("y", DType.FLOAT32, (1,)),),
    )


def _block(call: Callable[[Arrays], Arrays], inputs: Arrays, calls: int) -> float:
    started = perf_counter_ns()
    for _ in range(calls):
        call(inputs)
    return (perf_counter_ns() - started) / calls


if __name__ == "__main__":
    sys.exit(main())
