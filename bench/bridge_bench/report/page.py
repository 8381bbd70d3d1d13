"""The page: a selection record as one HTML document that needs nothing else.

It is a tree of elements, escaped as it is written, so that nothing that a record says is
taken for markup. It holds no script, and its content policy allows none; it refers to
nothing outside itself.
"""

from __future__ import annotations

from pathlib import Path

from bridge.record import SelectionRecord
from bridge_bench.report.batches import batches
from bridge_bench.report.calls import Calls
from bridge_bench.report.ecdf import distributions
from bridge_bench.report.environment import environment, models, protocol
from bridge_bench.report.forest import forest
from bridge_bench.report.markup import Element, document, tag
from bridge_bench.report.palette import highlighted
from bridge_bench.report.scatter import scatter
from bridge_bench.report.tables import arms, details, gate
from bridge_bench.report.timeline import timeline
from bridge_bench.report.verdict import commands, confirmations, header, routes, under_load

__all__ = ["render"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def render(record: SelectionRecord, calls: Calls | None = None) -> str:
    """One HTML page, complete in itself, that shows a record.

    Args:
        record: Any record, also a plan, or one without a winner.
        calls: Times of single calls in nanoseconds, as ``calls.read`` gives them; without them the
            distributions are left out.

    Returns:
        The text of the page.
    """
    looks = highlighted(record)
    parts = (
        routes(record),
        forest(record, looks),
        batches(record, looks),
        distributions(record, calls, looks),
        timeline(record, looks),
        scatter(record, looks),
        confirmations(record),
        under_load(record),
        arms(record),
        gate(record),
        details(record),
        models(record),
        protocol(record),
        environment(record),
        commands(record),
    )
    main = tag("main", header(record), *(part for part in parts if part is not None))
    return document(tag("html", _head(record), tag("body", main), lang="en"))


def _head(record: SelectionRecord) -> Element:
    name = record.models[0].name if record.models else "a model"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Selection for {name}"),
        tag("style", style),  # written as it is
    )
