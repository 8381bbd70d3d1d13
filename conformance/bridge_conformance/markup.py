"""HTML elements for the pages of this package; whatever is put into one is escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

__all__ = ["document", "facts", "heads", "link", "scrolled", "tag"]


def tag(name: str, /, *children: ET.Element | str, **attributes: str | None) -> ET.Element:
    """An element; ``class_`` and ``data_area`` become ``class`` and ``data-area``."""
    made = ET.Element(name)
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), _clean(value))
    last: ET.Element | None = None
    for child in children:
        if isinstance(child, ET.Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + _clean(child)
        else:
            last.tail = (last.tail or "") + _clean(child)
    return made


def _clean(text: str) -> str:
    """The text without what HTML cannot hold: control characters, lone surrogates."""
    sound = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[^\t\n\r\x20-\x7e\xa0-\U0010ffff]", "\ufffd", sound)


def document(root: ET.Element) -> str:
    """The text of a whole document."""
    return "<!DOCTYPE html>\n" + ET.tostring(root, encoding="unicode", method="html") + "\n"


def scrolled(*parts: ET.Element, class_: str | None = None) -> ET.Element:
    """A table that scrolls sideways within itself where it is too wide."""
    return tag("div", tag("table", *parts, class_=class_), class_="scrolled", tabindex="0")


def heads(*names: str) -> ET.Element:
    """The head of a table."""
    return tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))


def facts(told: Mapping[str, str]) -> ET.Element:
    """A list of names and what they are; what is empty is left out."""
    pairs = (tag("div", tag("dt", key), tag("dd", value)) for key, value in told.items() if value)
    return tag("dl", *pairs)


def link(address: str, text: str) -> ET.Element | str:
    """A link to an issue; anything but a web address is shown as it stands."""
    if not re.match(r"https?://", address):
        return address
    return tag("a", text, href=address, title=address, rel="noreferrer")
