"""HTML and SVG elements of the page; whatever is put into one is escaped."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping

__all__ = [
    "Element",
    "clean",
    "document",
    "facts",
    "folded",
    "heads",
    "name",
    "scrolled",
    "section",
    "tag",
]

Element = ET.Element

_VOID = frozenset({"meta", "wbr"})  # have no end tag


def tag(name: str, /, *children: Element | str | None, **attributes: object) -> Element:
    """An element; ``class_`` and ``data_area`` become ``class`` and ``data-area``.

    Children and attributes that are ``None`` are left out.
    """
    made = ET.Element(name)
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), clean(str(value)))
    last: Element | None = None
    for child in children:
        if child is None:
            continue
        if isinstance(child, ET.Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + clean(child)
        else:
            last.tail = (last.tail or "") + clean(child)
    return made


def clean(text: str) -> str:
    """The text without what HTML cannot hold, or what makes it read as another text.

    Those are control characters, lone surrogates and marks that turn the direction.
    """
    sound = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(
        r"[^\t\n\r\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", "\ufffd", sound
    )


def document(root: Element) -> str:
    """The text of a whole document; what was put into elements is escaped, in attributes too."""
    pieces = ["<!DOCTYPE html>\n"]
    _write(root, pieces)
    return "".join(pieces) + "\n"


def _write(element: Element, pieces: list[str]) -> None:
    """Appends the text of an element and of what follows it.

    The standard library's writer leaves ``<`` in attributes as it is; that is sound HTML, but
    not for whoever searches a page for tags.
    """
    attributes = "".join(f' {key}="{html.escape(text)}"' for key, text in element.items())
    pieces.append(f"<{element.tag}{attributes}>")
    if element.tag not in _VOID:
        text = element.text or ""
        pieces.append(text if element.tag == "style" else html.escape(text, quote=False))
        for child in element:
            _write(child, pieces)
        pieces.append(f"</{element.tag}>")
    pieces.append(html.escape(element.tail or "", quote=False))


def section(title: str, *parts: Element | str | None, lead: str = "") -> Element:
    """A part of the page with its heading and, below it, what it shows in a sentence."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *parts)


def scrolled(*parts: Element | None, class_: str | None = None) -> Element:
    """A table that scrolls sideways within itself where it is too wide."""
    return tag("div", tag("table", *parts, class_=class_), class_="scrolled", tabindex="0")


def name(text: str) -> Element:
    """A name to be typed, such as an arm's; long ones break between their parts."""
    made = tag("code")
    for index, part in enumerate(re.split(r"(?<=[/,:=_])", text)):
        if index:
            made.append(tag("wbr"))
            made[-1].tail = clean(part)
        else:
            made.text = clean(part)
    return made


def heads(*names: str, numbers: Iterable[str] = ()) -> Element:
    """The head of a table; columns of numbers are set to the right."""
    right = set(numbers)
    cells = (tag("th", name, scope="col", class_="n" if name in right else None) for name in names)
    return tag("thead", tag("tr", *cells))


def folded(summary: str, *parts: Element | None) -> Element:
    """Parts that are shown on demand."""
    return tag("details", tag("summary", summary), *parts)


def facts(told: Mapping[str, str], *, class_: str | None = None) -> Element:
    """A list of names and what they are; what is empty is left out."""
    pairs = (tag("div", tag("dt", key), tag("dd", value)) for key, value in told.items() if value)
    return tag("dl", *pairs, class_=class_)
