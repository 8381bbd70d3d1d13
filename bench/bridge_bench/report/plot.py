"""A plot of two axes that keeps the size of its text whatever its width.

Places along the width are percentages, heights are pixels, and curves lie in an inner
drawing that is stretched: so the browser sets the width, and no script is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bridge_bench.report.axis import Axis
from bridge_bench.report.markup import Element, tag
from bridge_bench.report.palette import Look

__all__ = ["curve", "frame", "label", "shortened", "spread"]

_STRETCH = 1000  # units of the inner drawing, both ways
_LINE = 15.0  # pixels that a line of text takes


def frame(
    x: Axis,
    y: Axis,
    marks: Iterable[Element],
    *,
    title: str,
    height: int = 300,
    class_: str = "",
) -> Element:
    """Grid, ticks and titles of the axes, and the marks upon them.

    Args:
        x: Axis along the width; y: axis upwards.
        y: Axis along the height.
        marks: What is drawn, in this order.
        title: What the plot shows, for those who cannot see it.
        height: Height of the drawing in pixels, without titles.
        class_: More names of styles.
    """
    grid: list[Element] = []
    for value in y.ticks:
        at = f"{height * (1 - y.place(value)):.1f}"
        grid.append(tag("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        grid.append(tag("text", y.text(value), x="0", y=at, dx="-8", dy=".35em", class_="tick y"))
    for value in x.ticks:
        at = f"{100 * x.place(value):.2f}%"
        grid.append(tag("line", x1=at, x2=at, y1="0", y2=height, class_="grid"))
        grid.append(tag("text", x.text(value), x=at, y=height, dy="1.4em", class_="tick x"))
    return tag(
        "div",
        tag("p", y.title, class_="axis"),
        tag(
            "svg",
            tag("title", title),
            *grid,
            *marks,
            width="100%",
            height=height,
            role="img",
            aria_label=title,
        ),
        tag("p", x.title, class_="axis x"),
        class_=f"plot {class_}".rstrip(),
    )


def curve(
    x: Axis,
    y: Axis,
    points: Sequence[tuple[float, float]],
    look: Look | None,
    *,
    steps: bool = False,
) -> Element:
    """A line through the points; in grey without a look.

    Args:
        x: Axis along the width.
        y: Axis along the height.
        points: Values on both axes, in order.
        look: How it is drawn.
        steps: Goes level to the next point's place, then to its height.
    """
    words = []
    for index, (along, up) in enumerate(points):
        left, top = _STRETCH * x.place(along), _STRETCH * (1 - y.place(up))
        if index == 0:
            words.append(f"M{left:.4g},{top:.4g}")
        elif steps:
            words.append(f"H{left:.4g}V{top:.4g}")
        else:
            words.append(f"L{left:.4g},{top:.4g}")
    path = tag(
        "path",
        d="".join(words),
        class_=f"line {'grey' if look is None else look.class_}",
        stroke_dasharray=None if look is None else look.dash,
        vector_effect="non-scaling-stroke",
    )
    return tag(
        "svg",
        path,
        width="100%",
        height="100%",
        viewBox=f"0 0 {_STRETCH} {_STRETCH}",
        preserveAspectRatio="none",
        class_="stretched",
    )


def label(text: str, y: float, look: Look | None = None) -> Element:
    """A name at the right end of a plot, at a height in pixels."""
    mark = None
    if look is not None:
        mark = tag("path", d=look.shape, transform="translate(18,0)")
    return tag(
        "svg",
        mark,
        tag("text", tag("title", text), shortened(text), x="28", dy=".35em"),
        x="100%",
        y=f"{y:.1f}",
        class_="label marker" if look is None else f"label marker {look.class_}",
    )


def shortened(text: str, limit: int = 36) -> str:
    """The text with an ellipsis for its middle where it is too long."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}\u2026{text[-tail:]}"


def spread(heights: Sequence[float], *, low: float, high: float, gap: float = _LINE) -> list[float]:
    """Heights for texts near the wanted ones, in the same order, that do not overlap.

    Args:
        heights: Wanted heights in pixels, in any order.
        low: Least height.
        high: Greatest height.
        gap: Least distance of two.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    placed: list[float] = []
    for rank, index in enumerate(order):
        least = low if rank == 0 else placed[-1] + gap
        placed.append(max(heights[index], least))
    ceiling = high
    for rank in range(len(placed) - 1, -1, -1):
        placed[rank] = min(placed[rank], ceiling)
        ceiling = placed[rank] - gap
    found = [0.0] * len(order)
    for rank, index in enumerate(order):
        found[index] = placed[rank]
    return found
