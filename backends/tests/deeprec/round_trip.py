"""What the way to DeepRec's library and back costs, measured with the ABI stub.

``python backends/tests/deeprec/round_trip.py`` prints medians in microseconds: ``process`` of the
stub alone, the predictor in the same process, and the isolated one that users get. The stub's own
arithmetic says nothing about DeepRec; the differences are what the bridge adds.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from conftest import Stub, StubModel, compiled

import bridge
from bridge.loading import open_model
from bridge_deeprec.configuration import model_config
from bridge_deeprec.library import Library, ServedModel
from bridge_deeprec.options import DeeprecOptions
from bridge_deeprec.predictor import ProcessorPredictor
from bridge_deeprec.request import decode_response, encode_request

BLOCKS, CALLS = 41, 40
KEY = "serving_default"
SIDES = ("process", "encode", "decode", "in this process", "isolated")


def measure(stub: Stub, model: StubModel, rows: int) -> dict[str, float]:
    """Median microseconds of each side, and ``added`` by the process of its own."""
    config = model_config(DeeprecOptions(), str(model.folder), KEY)
    served = ServedModel(Library(stub.path), json.dumps(config))
    signature = open_model(model.folder).facts.signatures[KEY]
    here = ProcessorPredictor(served, signature, KEY, "alias", bridge.PredictorInfo())
    inputs, outputs = model.batch(rows), signature.output_names
    request = encode_request(KEY, inputs, outputs)
    answer = served.process(request)
    with stub.load(model, poll_ms=60_000) as isolated:
        calls: tuple[Callable[[], Any], ...] = (
            lambda: served.process(request),
            lambda: encode_request(KEY, inputs, outputs),
            lambda: decode_response(answer),
            lambda: here.predict(inputs),
            lambda: isolated.predict(inputs),
        )
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        order = random.Random(0)
        for block in range(BLOCKS + 1):
            for index in order.sample(range(len(SIDES)), len(SIDES)):
                begun = perf_counter_ns()
                for _ in range(CALLS):
                    calls[index]()
                if block:  # the first one warms up
                    times[SIDES[index]].append((perf_counter_ns() - begun) / CALLS / 1e3)
    pairs = zip(times["isolated"], times["in this process"], strict=True)
    added = statistics.median([theirs - ours for theirs, ours in pairs])
    return {**{name: statistics.median(found) for name, found in times.items()}, "added": added}


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    stub = Stub(compiled(folder / "libserving_processor.so"))
    floats = StubModel(folder / "floats", [("x", "float", (16,))]).write()
    ids = [("user", "long", ()), ("items", "long", (3,)), ("price", "float", (2,))]
    ranker = StubModel(folder / "ranker", ids).write()
    many = [(f"f{index}", "long", ()) for index in range(40)]
    wide = StubModel(folder / "wide", many, [(name, "score") for name in "abc"]).write()
    print("| model | rows |", " | ".join(f"{name}, µs" for name in (*SIDES, "added")), "|")
    print("|---" * (3 + len(SIDES)) + "|")
    for name, model, rows in (
        ("1 input of 16 floats", floats, 16),
        ("3 inputs, ids", ranker, 1),
        ("40 inputs of one id, 3 outputs", wide, 1),
        ("40 inputs of one id, 3 outputs", wide, 512),
    ):
        found = measure(stub, model, rows)
        cells = " | ".join(f"{value:.1f}" for value in found.values())
        print(f"| {name} | {rows} | {cells} |")


if __name__ == "__main__":
    main()
