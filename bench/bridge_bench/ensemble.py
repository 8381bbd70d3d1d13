"""Do the arms that would serve together get along in one process? A mixed trace says.

Threads of one runtime may take the processors from another: those of onnxruntime spin for
38 ms after a call, which made a routed pair slower than either of its arms alone. The races
cannot see that, since each arm has its turn by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bridge.errors import BridgeError
from bridge.model import ModelRef
from bridge.record import Route, SelectionRecord
from bridge_bench import evidence, summary, trace
from bridge_bench.stats import duel, median

__all__ = ["CALLS", "PASSES", "settled"]

CALLS = 40
"""Calls of the trace, with sizes drawn from the buckets."""
PASSES = 10


def settled(
    record: SelectionRecord, models: Sequence[ModelRef], *, tell: Callable[[str], None]
) -> SelectionRecord:
    """The record, with one arm for all calls where several together are slower.

    Args:
        record: A record whose routes may name several arms.
        models: Its models.
        tell: Called with one line of text.
    """
    arms = list(dict.fromkeys(route.arm for route in record.decision.routes))
    if len(arms) < 2:
        return record
    tell(f"trying {len(arms)} arms together on a mixed trace")
    try:
        with tempfile.TemporaryDirectory() as folder:
            written = evidence.write(record, Path(folder) / "record", models, {})
            assert written.folder is not None
            found = trace.run(
                written.folder,
                calls=CALLS,
                passes=PASSES,
                seed=record.seed,
                trust=any(model.trust for model in models),
            )
    except (BridgeError, OSError) as error:
        return _noted(record, f"the arms could not be tried together: {error}")
    able = [
        name
        for name in found.passes_s
        if all(name in verdict.ranking for verdict in record.decision.verdicts)
    ]
    if not able:
        return record
    alone = min(able, key=lambda name: median(found.passes_s[name]))
    ratio = duel(found.passes_s[trace.ROUTED], found.passes_s[alone])
    shown = (
        f"{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) as long as {alone} alone"
    )
    # Each won its race already; together they only have to be no slower, as best as is known.
    if ratio.value < 1:
        return _noted(record, f"together, on a mixed trace, the arms took {shown}")
    record = _noted(
        record,
        f"together, on a mixed trace, {' and '.join(arms)} took {shown}, which therefore serves "
        "all calls: arms in one process may take the processors from each other",
    )
    decision = replace(record.decision, routes=(Route(to_rows=None, arm=alone),))
    record = replace(record, decision=decision)
    return replace(record, decision=replace(decision, summary=summary.sentence(record)))


def _noted(record: SelectionRecord, note: str) -> SelectionRecord:
    return replace(record, warnings=(*record.warnings, note))
