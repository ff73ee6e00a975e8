"""Drawing for the page: a matplotlib figure as SVG to be inlined, with the page's fonts and colours.

Every colour is drawn as a stand-in and becomes a CSS variable of the page, so that light and dark need one drawing;
text stays text. Ids are prefixed, or left out where nothing refers to them, so that figures share a page. Equal numbers
give equal bytes.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COLOURS = 6  # --c1 .. --c6 of the page; further series repeat them with other dashes
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
INK, MUTED, LINE, PAGE, BAR = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = [f"#0501{i:02x}" for i in range(1, COLOURS + 1)]
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAGE: "var(--page)",
    BAR: "var(--bar)",  # counts that belong to no member or variant
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES, 1)},
}
DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5))]
WIDTH = 420.0  # px at scale 1; the page stretches a figure to its column
TEXT = 12.0
LETTER = 7.0  # width of a bold letter at that size, about


@dataclass(frozen=True)
class Figure:
    """One drawing: `name` is its id on the page, `title` and `description` are what a screen reader says."""

    name: str
    title: str
    description: str
    svg: str


def _style(style: str) -> str:
    """One style attribute with the page's colours and without a font family."""
    kept = []
    for part in filter(None, (piece.strip() for piece in style.split(";"))):
        key, _, value = part.partition(":")
        key, value = key.strip(), value.strip()
        if key == "font":
            size = re.search(r"[\d.]+px", value)
            key, value = "font-size", size.group() if size else f"{TEXT:g}px"
        if key != "font-family":
            kept.append(f"{key}: {_VARIABLES.get(value, value)}")
    return "; ".join(kept)


def _inline(svg: bytes, name: str, title: str, description: str) -> str:
    """A matplotlib SVG as an element of a page: no metadata, no style sheet, no namespaces, ids of its own."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.tag == f"{SVG}style":
                parent.remove(child)
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", ET.tostring(root, "unicode")))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "style":
                element.set("style", _style(value))
            elif key == f"{XLINK}href":
                element.set("href", f"#{name}-{value.removeprefix('#')}")
            elif key == "clip-path":
                element.set("clip-path", value.replace("url(#", f"url(#{name}-"))
            elif key == "id":
                if value in referred:
                    element.set("id", f"{name}-{value}")
            elif not key.startswith("{"):
                element.set(key, _VARIABLES.get(value, value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    for tag, text in (("desc", description), ("title", title)):
        label = ET.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        label.text = text
        root.insert(0, label)
    return ET.tostring(root, "unicode")


def figure_of(name: str, title: str, description: str, draw: Callable[[Any], None], height: float) -> Figure:
    """Run `draw` on a new matplotlib figure `height` px high and inline it."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",
        "font.size": TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.labelsize": TEXT,
        "axes.labelpad": 6,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.8,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": TEXT - 1,
        "ytick.labelsize": TEXT - 1,
        "ytick.left": False,
        "text.color": INK,
        "figure.dpi": 72,
        "savefig.dpi": 72,
        "savefig.transparent": True,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(WIDTH / 72, height / 72))
        draw(canvas)
        out = io.BytesIO()
        canvas.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Figure(name, title, description, _inline(out.getvalue(), name, title, description))


def add_axes(
    canvas: Any, height: float, *, left: float = 52, right: float = 14, top: float = 30, bottom: float = 48
) -> Any:
    """Axes with margins in px."""
    return canvas.add_axes(
        (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    )


def y_title(canvas: Any, text: str, height: float) -> None:
    """The vertical axis named above it, in reading direction."""
    canvas.text(0, 1 - 6 / height, text, ha="left", va="top", color=MUTED, fontsize=TEXT)
