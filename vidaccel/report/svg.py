"""Figures of matplotlib as SVG inside a page: in the page's colours, with parts that keys and screen readers reach."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1c2733", "quiet": "#56616d", "line": "#d6dade", "paper": "#fbfbfa",
    "sparse": "#1d4f7c", "cached": "#b3541e", "both": "#7a3b8f", "other": "#6b5d00",
    "reused": "#c9bfa8", "predicted": "#e39a4c", "mixed": "#a06cb4",
}  # fmt: skip
"""By name in the style sheet, where each has a dark twin; figures are drawn in these."""
PNG_COLOURS = 64
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
STYLE = {"svg.fonttype": "none", "font.size": 11, "axes.edgecolor": COLOURS["quiet"], "axes.spines.top": False,
         "axes.spines.right": False, "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"],
         "xtick.color": COLOURS["quiet"], "ytick.color": COLOURS["quiet"], "xtick.labelcolor": COLOURS["ink"],
         "ytick.labelcolor": COLOURS["ink"], "figure.facecolor": "none", "axes.facecolor": "none",
         "legend.frameon": False}  # fmt: skip
"""Settings of matplotlib."""


def style(**more: Any) -> AbstractContextManager[None]:
    """To draw and save in: `STYLE`, and nothing changed for other users of matplotlib."""
    from matplotlib import rc_context

    settings: Any = {**STYLE, **more}
    return rc_context(settings)


def inline_svg(figure: Figure, name: str, label: str, parts: Mapping[str, str] | None = None) -> Markup:
    """A figure as an ``svg`` element.

    Args:
        name: a word that no other figure of the page has.
        label: what it shows, for those who do not see it.
        parts: by the ids that artists were given (``gid``), what each is: they get the class ``point``.
    """
    buffer = io.BytesIO()
    with style(**{"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root)
    for element in root.iter():
        text = (parts or {}).get(element.get("id", ""))
        if text is not None:
            _tell(element, text)
        _rename(element, name)
    box = root.get("viewBox", "0 0 0 0").split()
    root.attrib.update({"width": box[2], "height": box[3], "role": "group" if parts else "img", "aria-label": label})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return Markup(_coloured(ElementTree.tostring(root, encoding="unicode")))


def small_png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a picture on white, of few colours so that it is small."""
    from PIL import Image

    drawn, buffer = io.BytesIO(), io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(PNG_COLOURS).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _clean(root: ElementTree.Element) -> None:
    """Without its metadata and its style sheet, which would count for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)


def _tell(element: ElementTree.Element, text: str) -> None:
    title = ElementTree.Element(f"{{{SVG}}}title")
    title.text = text
    element.insert(0, title)
    element.attrib.update({"class": "point", "role": "img", "tabindex": "0"})


def _rename(element: ElementTree.Element, name: str) -> None:
    """Give ids, and references to them, a start that is the figure's own."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{XLINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _coloured(text: str) -> str:
    names = {colour: name for name, colour in COLOURS.items()}
    return re.sub("|".join(names), lambda found: f"var(--{names[found[0]]}, {found[0]})", text)
