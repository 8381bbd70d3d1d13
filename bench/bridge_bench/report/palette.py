"""Which arms are drawn in colour, and in which.

The colours are those of Okabe and Ito, chosen to be told apart with any kind of colour
vision; orange and purple are darker on a light ground, for contrast. Every arm has a
shape and a dash of its own besides, so nothing depends on colour.

Source: Okabe, Ito: "Color Universal Design" (2008); Wong, Nature Methods 8, 441 (2011).
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.record import SelectionRecord
from bridge_bench.report.markup import Element, tag

__all__ = ["LIMIT", "Look", "highlighted", "legend", "marker", "swatch"]

LIMIT = 6
"""Most arms in colour: more cannot be told apart."""

_SHAPES = (
    "M-4.5,0 A4.5,4.5 0 1 0 4.5,0 A4.5,4.5 0 1 0 -4.5,0 Z",  # disc
    "M-4,-4 H4 V4 H-4 Z",  # square
    "M0,-5.2 L5,4 H-5 Z",  # triangle
    "M0,-5.5 L5.5,0 L0,5.5 L-5.5,0 Z",  # diamond
    "M0,5.2 L5,-4 H-5 Z",  # triangle on its tip
    "M-5,-1.7 H-1.7 V-5 H1.7 V-1.7 H5 V1.7 H1.7 V5 H-1.7 V1.7 H-5 Z",  # cross
)
_DASHES = ("5 4", None, None, None, "9 3", "2 3")


@dataclass(frozen=True, slots=True)
class Look:
    """How one arm is drawn, everywhere on the page; index 0 is the default arm's."""

    index: int

    @property
    def class_(self) -> str:
        """Name of the style that holds its colour."""
        return f"c{self.index}"

    @property
    def dash(self) -> str | None:
        """Dashes of its lines; ``None`` for a whole line."""
        return _DASHES[self.index]

    @property
    def shape(self) -> str:
        """SVG path of its marker, around the origin."""
        return _SHAPES[self.index]


def highlighted(record: SelectionRecord) -> dict[str, Look]:
    """The arms in colour: the default, the winners, then the best of each bucket in turn."""
    default = next((arm.id for arm in record.arms if arm.is_default and arm.buckets), None)
    measured = {arm.id for arm in record.arms if arm.buckets}
    verdicts = record.decision.verdicts
    names = [one.winner for one in verdicts]
    longest = max((len(one.ranking) for one in verdicts), default=0)
    names += [
        one.ranking[place] if place < len(one.ranking) else None
        for place in range(longest)
        for one in verdicts
    ]
    names += [arm.id for arm in record.arms]
    chosen = [
        name
        for name in dict.fromkeys(names)
        if name is not None and name in measured and name != default
    ]
    found = {} if default is None else {default: Look(0)}
    for index, name in enumerate(chosen[: LIMIT - 1], 1):
        found[name] = Look(index)
    return found


def marker(look: Look, x: float, y: float, title: str = "") -> Element:
    """Its marker in a plot, at a share of the width and a height in pixels."""
    return tag(
        "svg",
        tag("path", tag("title", title) if title else None, d=look.shape),
        x=f"{100 * x:.2f}%",
        y=f"{y:.1f}",
        class_=f"marker {look.class_}",
    )


def swatch(look: Look) -> Element:
    """A piece of its line with its marker, for a legend."""
    return tag(
        "svg",
        tag("line", x1="0", x2="28", y1="7", y2="7", class_="line", stroke_dasharray=look.dash),
        tag("svg", tag("path", d=look.shape), x="14", y="7", class_="marker"),
        width="28",
        height="14",
        class_=f"swatch {look.class_}",
        aria_hidden="true",
    )


def legend(looks: dict[str, Look], default: str | None, *, others: int = 0) -> Element:
    """Names of the arms in colour, and how many more there are in grey."""
    items = [
        tag("li", swatch(look), " ", tag("code", arm), " (default)" if arm == default else "")
        for arm, look in looks.items()
    ]
    if others:
        line = tag("line", x1="0", x2="28", y1="7", y2="7", class_="line")
        grey = tag("svg", line, width="28", height="14", class_="swatch grey", aria_hidden="true")
        items.append(tag("li", grey, f" {others} other{'' if others == 1 else 's'}"))
    return tag("ul", *items, class_="legend")
