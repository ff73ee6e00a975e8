"""The report's figures: matplotlib drawings as SVG to be inlined in a page, with its fonts and its colours.

Every colour is drawn as a stand-in and becomes a CSS variable of the page, so that light and dark need one drawing;
text stays text. Ids are prefixed, or left out where nothing refers to them, so that figures share a page. Equal numbers
give equal bytes.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from anamnesis.distribution import Estimate
from anamnesis.results import Point
from anamnesis.wording import signed

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
_DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5))]
_WIDTH = 420.0  # px at scale 1; the page stretches a figure to its column
_TEXT = 12.0
_LETTER = 7.0  # width of a bold letter at that size, about


@dataclass(frozen=True)
class Figure:
    """One drawing: `name` is its id on the page, `title` and `description` are what a screen reader says."""

    name: str
    title: str
    description: str
    svg: str


def _spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved apart to at least `gap`, in their order, their middle kept."""
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    placed = [positions[i] for i in order]
    for _ in range(100):
        moved = False
        for a, b in pairwise(range(len(placed))):
            if (overlap := gap - (placed[b] - placed[a])) > 1e-6:
                placed[a], placed[b] = placed[a] - overlap / 2, placed[b] + overlap / 2
                moved = True
        if not moved:
            break
    return [value for _, value in sorted(zip(order, placed, strict=True))]


def _style(style: str) -> str:
    """One style attribute with the page's colours and without a font family."""
    kept = []
    for part in filter(None, (piece.strip() for piece in style.split(";"))):
        key, _, value = part.partition(":")
        key, value = key.strip(), value.strip()
        if key == "font":
            size = re.search(r"[\d.]+px", value)
            key, value = "font-size", size.group() if size else f"{_TEXT:g}px"
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
        "font.size": _TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.labelsize": _TEXT,
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
        "xtick.labelsize": _TEXT - 1,
        "ytick.labelsize": _TEXT - 1,
        "ytick.left": False,
        "text.color": INK,
        "figure.dpi": 72,
        "savefig.dpi": 72,
        "savefig.transparent": True,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(_WIDTH / 72, height / 72))
        draw(canvas)
        out = io.BytesIO()
        canvas.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Figure(name, title, description, _inline(out.getvalue(), name, title, description))


def add_axes(
    canvas: Any, height: float, *, left: float = 52, right: float = 14, top: float = 30, bottom: float = 48
) -> Any:
    """Axes with margins in px."""
    return canvas.add_axes(
        (left / _WIDTH, bottom / height, (_WIDTH - left - right) / _WIDTH, (height - top - bottom) / height)
    )


def _y_title(canvas: Any, text: str, height: float) -> None:
    """The vertical axis named above it, in reading direction."""
    canvas.text(0, 1 - 6 / height, text, ha="left", va="top", color=MUTED, fontsize=_TEXT)


def frontier(points: Sequence[Point]) -> Figure:
    """Learning against forgetting, with 95 % intervals; base is the origin."""
    height = 330.0

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height)
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
        axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
        for i, point in enumerate(points):
            axes.errorbar(
                [point.learnt],
                [point.forgotten],
                xerr=[[max(0.0, point.learnt - point.learnt_low)], [max(0.0, point.learnt_high - point.learnt)]],
                yerr=[
                    [max(0.0, point.forgotten - point.forgotten_low)],
                    [max(0.0, point.forgotten_high - point.forgotten)],
                ],
                fmt="o",
                markersize=7,
                color=SERIES[i % COLOURS],
                elinewidth=1.6,
                zorder=3,
            )
        axes.plot([0], [0], "o", markersize=7, markerfacecolor=PAGE, markeredgecolor=INK, zorder=4)
        axes.margins(0.12)
        axes.set_xlabel("learnt: bits per byte saved on held-out domain answers  →")
        _y_title(canvas, "↑  forgotten: bits per byte lost on its own answers", height)
        canvas.draw_without_rendering()
        names = ["base", *(point.variant for point in points)]
        places = axes.transData.transform([(0, 0), *((point.learnt, point.forgotten) for point in points)])
        box = axes.get_window_extent()
        heights = _spread([place[1] + 9 for place in places], 14)

        def points_under(i: int, leftwards: bool) -> int:
            """How many points the label of point i would cover on that side."""
            reach = 8 + _LETTER * len(names[i])
            start, end = (-reach, -4) if leftwards else (4, reach)
            return sum(start < other[0] - places[i][0] < end and abs(other[1] - heights[i]) < 10 for other in places)

        for i, (label, place, y) in enumerate(zip(names, places, heights, strict=True)):
            leftwards = bool(place[0] > box.x0 + 0.62 * box.width)
            if points_under(i, leftwards) > points_under(i, not leftwards):
                leftwards = not leftwards
            axes.annotate(
                label,
                (place[0] + (-8 if leftwards else 8), y),
                xycoords="figure pixels",
                ha="right" if leftwards else "left",
                va="center",
                color=INK if i == 0 else SERIES[(i - 1) % COLOURS],
                fontweight="bold",
                annotation_clip=False,
                zorder=5,
            )

    told = "; ".join(
        f"{point.variant} learnt {signed(point.learnt, 3)} ({signed(point.learnt_low, 3)} to "
        f"{signed(point.learnt_high, 3)}) and forgot {signed(point.forgotten, 3)} "
        f"({signed(point.forgotten_low, 3)} to {signed(point.forgotten_high, 3)})"
        for point in points
    )
    return figure_of(
        "figure-frontier",
        "Learnt against forgotten",
        f"Scatter plot, both axes in bits per byte against base, with 95 % intervals: {told}. "
        "Further right is more learnt, further up more forgotten.",
        draw,
        height,
    )


def loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Training loss over optimiser steps, one line a variant, labelled at its end."""
    height = 330.0
    longest = max(map(len, curves), default=0)

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height, right=12 + 7.2 * longest)
        for i, points in enumerate(curves.values()):
            axes.plot(
                [step for step, _ in points],
                [loss for _, loss in points],
                color=SERIES[i % COLOURS],
                linestyle=_DASHES[i // COLOURS % len(_DASHES)],
                linewidth=1.8,
                marker="o" if len(points) < 3 else None,
                markersize=4,
            )
        axes.set_xlabel("optimiser step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02, y=0.08)
        _y_title(canvas, "training loss, nats per supervised token", height)
        canvas.draw_without_rendering()
        ends = [(i, name, points[-1]) for i, (name, points) in enumerate(curves.items()) if points]
        places = [axes.transData.transform(end) for _, _, end in ends]
        edge = axes.get_window_extent().x1
        for (i, name, _), y in zip(ends, _spread([place[1] for place in places], 15), strict=True):
            axes.annotate(
                name,
                (edge + 5, y),
                xycoords="figure pixels",
                va="center",
                color=SERIES[i % COLOURS],
                fontweight="bold",
                annotation_clip=False,
            )

    told = "; ".join(
        f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f} in {len(points)} steps"
        for name, points in curves.items()
        if points
    )
    return figure_of("figure-loss", "Training loss", f"Line chart of the training loss by step: {told}.", draw, height)


def lengths(tokens: Sequence[int]) -> Figure:
    """Histogram of instruction lengths in tokens, with the median."""
    height = 290.0
    middle = median(tokens)
    bins = min(30, max(8, round(len(tokens) ** 0.5) * 2))

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height, top=44)
        axes.hist(tokens, bins=bins, color=BAR, edgecolor=PAGE, linewidth=1)
        axes.axvline(middle, color=INK, linewidth=1.2)
        axes.annotate(
            f"median {middle:g}",
            (middle, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5, 2),
            textcoords="offset points",
            ha="left",
            va="bottom",
        )
        axes.set_xlabel("tokens an instruction")
        axes.grid(axis="x", visible=False)
        axes.yaxis.get_major_locator().set_params(integer=True)
        _y_title(canvas, "instructions", height)

    return figure_of(
        "figure-lengths",
        "Instruction lengths",
        f"Histogram of {len(tokens)} instructions by length: from {min(tokens)} to {max(tokens)} tokens, "
        f"median {middle:g}.",
        draw,
        height,
    )


def types(shares: Mapping[str, Mapping[str, Estimate]], sizes: Mapping[str, int]) -> Figure:
    """Instruction types of each set as bars with 95 % intervals: the first set's most frequent first, `other` last.

    `shares` by set and type; `sizes` are the instructions behind them. A type that no set has is left out.
    """
    names = list(shares)
    first = shares[names[0]]
    used = [kind for kind in first if any(of_set[kind].value for of_set in shares.values())]
    order = sorted(used, key=lambda kind: (kind == "other", -first[kind].value, kind))
    bar = 20.0 if len(names) == 1 else 13.0
    gap = 8.0 if len(names) == 1 else 14.0
    group = bar * len(names) + gap
    legend = 20.0 * len(names) if len(names) > 1 else 0.0
    height = group * len(order) + legend + 60

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height, left=150, right=44, top=8 + legend, bottom=48)
        for i, name in enumerate(names):
            found = [shares[name][kind] for kind in order]
            places = [j * group + i * bar for j in range(len(order))]
            colour = BAR if len(names) == 1 else SERIES[i % COLOURS]
            widths = [100 * share.value for share in found]
            axes.barh(places, widths, height=0.86 * bar, color=colour)
            reach = [
                [100 * max(0.0, share.value - share.low) for share in found],
                [100 * max(0.0, share.high - share.value) for share in found],
            ]
            axes.errorbar(widths, places, xerr=reach, fmt="none", ecolor=INK, elinewidth=1)
            for place, share in zip(places, found, strict=True):
                axes.annotate(
                    f"{100 * share.value:.0f} %",
                    (100 * share.high, place),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=_TEXT - (1 if len(names) == 1 else 3),
                )
            if len(names) > 1:
                place = 1 - (4 + 20 * i) / height
                canvas.text(0, place, f"{name} ({sizes[name]})", color=colour, fontweight="bold", va="top")
        axes.set_yticks([j * group + (len(names) - 1) * bar / 2 for j in range(len(order))], order)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=_TEXT)
        axes.set_xlim(left=0)
        axes.set_ylim(len(order) * group - gap / 2 - bar / 2, -bar / 2 - gap / 2)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("per cent of the set")

    told = "; ".join(
        f"{name} ({sizes[name]} instructions): "
        + ", ".join(f"{kind} {100 * shares[name][kind].value:.0f} %" for kind in order)
        for name in names
    )
    description = f"Bar chart of instruction types with intervals. {told}."
    return figure_of("figure-types", "Instruction types", description, draw, height)


def score_histograms(scores: Mapping[str, Sequence[float]]) -> Figure:
    """How each judge spread its scores over 1 to 5: one panel a judge, steps of a quarter."""
    panel = 128.0
    height = panel * len(scores) + 24

    def draw(canvas: Any) -> None:
        edges = [0.875 + 0.25 * i for i in range(18)]  # whole scores fall in the middle of a bar
        for i, (judge, found) in enumerate(scores.items()):
            bottom = height - panel * (i + 1) + 14
            axes = canvas.add_axes((52 / _WIDTH, bottom / height, (_WIDTH - 66) / _WIDTH, (panel - 48) / height))
            axes.hist(found, bins=edges, color=BAR, edgecolor=PAGE, linewidth=1)
            axes.set_xlim(0.8, 5.2)
            axes.set_xticks(range(1, 6))
            axes.grid(axis="x", visible=False)
            axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
            label = f"  {len(found)} scores"
            if found:
                label += f", mean {fmean(found):.2f}"
                axes.axvline(fmean(found), color=INK, linewidth=1.2)
            name = canvas.text(0, (bottom + panel - 26) / height, judge, fontweight="bold", va="top")
            axes.annotate(label, (1, 1), xycoords=name, va="top", color=MUTED)
        axes.set_xlabel("score")

    told = "; ".join(
        f"{judge}: {len(found)} scores"
        + (f" from {min(found):.2f} to {max(found):.2f}, mean {fmean(found):.2f}" if found else "")
        for judge, found in scores.items()
    )
    return figure_of("figure-scores", "Scores by judge", f"Histograms of scores from 1 to 5. {told}.", draw, height)
