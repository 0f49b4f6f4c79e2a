"""Figures as SVG inside a page: small, named for those who do not see, coloured by the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from domainbed.reporting.figures import GRID, INK, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES)
}
_LEFT_OUT = {f"{{{_SVG}}}{tag}" for tag in ("metadata", "style")}  # it would style the whole page
_COLOR = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r" *font-family:[^;]*;?")  # the page has its own
_LONG = re.compile(r"(-?\d+\.\d)\d+")
_MOVES = ("x", "y", "d", "transform", "width", "height")


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """An `svg` element for a page.

    Args:
        figure: drawn in `plain_style`.
        name: what its ids begin with; unique on the page.
        title: what it shows.
        description: how it is drawn, and where the numbers stand.

    Returns:
        The element. Colours are the page's variables `--ink`, `--muted`, `--grid`, `--paper` and
        `--series-0` …; coordinates are rounded to a tenth of a point.
    """
    stream = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    # What matplotlib wrote, not a file of anybody's.
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _LEFT_OUT:
                parent.remove(child)
    linked = {link.removeprefix("#") for each in root.iter() for link in _links(each)}
    for element in root.iter():
        _shorten(element, name, linked)
    _share_styles(root)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-text"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        told = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{_SUFFIX[tag]}"})
        told.text = text
        root.insert(place, told)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


_SUFFIX = {"title": "title", "desc": "text"}


def _links(element: ElementTree.Element) -> list[str]:
    """The ids that an element refers to."""
    clips = re.findall(r"url\(#([^)]+)\)", " ".join(element.attrib.values()))
    link = element.get(f"{{{_LINK}}}href")
    return [*clips, *([link] if link else [])]


def _shorten(element: ElementTree.Element, name: str, linked: set[str]) -> None:
    """Keeps the ids that are referred to, made unique; rounds numbers; names colours."""
    own = element.attrib.pop("id", None)
    if own in linked:
        element.set("id", f"{name}-{own}")
    link = element.attrib.pop(f"{{{_LINK}}}href", None)
    if link:
        element.set("href", f"#{name}-{link.removeprefix('#')}")
    for key, value in element.attrib.items():
        if key in _MOVES:
            value = _LONG.sub(r"\1", value)
            element.set(key, re.sub(r"\s*\n\s*", "", value) if key == "d" else value)
        elif key == "style":
            found = _COLOR.sub(lambda match: f"var(--{_VARIABLES[match.group()]})", value)
            element.set(key, _FONT.sub("", found).replace("; ", ";").replace(": ", ":"))
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
    if element.text is not None and not element.text.strip():
        element.text = None
    if element.tail is not None and not element.tail.strip():
        element.tail = None


def _share_styles(root: ElementTree.Element) -> None:
    """Moves the style of points that all look the same to the group that holds them."""
    for group in root.iter(f"{{{_SVG}}}g"):
        points = list(group)
        styles = {point.get("style") for point in points}
        is_shared = len(points) > 1 and len(styles) == 1 and "style" not in group.attrib
        if is_shared and all(point.tag == f"{{{_SVG}}}use" for point in points):
            group.set("style", str(styles.pop()))
            for point in points:
                del point.attrib["style"]
