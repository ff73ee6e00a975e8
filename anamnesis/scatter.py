"""The frontier: what each model learnt against what it forgot, with intervals, training seeds and sweeps of alpha."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anamnesis.canvas import COLOURS, INK, MUTED, PAGE, SERIES, TEXT, Figure, add_axes, figure_of, y_title
from anamnesis.labels import Box, place
from anamnesis.results import Frontier, Point
from anamnesis.tables import Model
from anamnesis.wording import signed

NAMED = 5  # points at most that have their names beside them; more have numbers, and a key
LETTER = 7.2  # px, about the width of a bold letter
GROUPS = ("domain alone", "reconstructed", "public or own rows", "another tuning", "interpolation")


@dataclass(frozen=True)
class Mark:
    """One point as figure and key show it; `number` is 0 where its name is beside it."""

    point: Point
    label: str
    number: int
    colour: int  # of `SERIES`, from 0
    group: str


def group_of(model: Model) -> str:
    """Which of `GROUPS` a model belongs to."""
    if model.kind == "interpolation":
        return "interpolation"
    if model.tuning not in ("", "full"):
        return "another tuning"
    return {"none": "domain alone", "reconstructed": "reconstructed"}.get(model.rehearsal or "", "public or own rows")


def marks(drawn: Frontier, models: Mapping[str, Model]) -> list[Mark]:
    """Points with their labels; a colour each where they are few, else one a group."""
    few = len(drawn.points) <= NAMED
    found = []
    for i, point in enumerate(drawn.points):
        model = models.get(point.variant) or Model(point.variant, "variant", point.variant)
        group = group_of(model)
        colour = i % COLOURS if few else GROUPS.index(group)
        found.append(Mark(point, model.label, 0 if few else i + 1, colour, group))
    return found


def _sweeps(drawn: Frontier, models: Mapping[str, Model]) -> dict[str, list[tuple[float, float]]]:
    """By variant, the points from base over its interpolations by alpha to the variant itself."""
    by_name = {point.variant: point for point in drawn.points}
    between: dict[str, list[tuple[float, str]]] = {}
    for model in models.values():
        if model.kind == "interpolation" and model.variant and model.alpha is not None and model.name in by_name:
            between.setdefault(model.variant, []).append((model.alpha, model.name))
    found = {}
    for variant, steps in between.items():
        names = [name for _, name in sorted(steps)] + ([variant] if variant in by_name else [])
        found[variant] = [(0.0, 0.0), *((by_name[name].learnt, by_name[name].forgotten) for name in names)]
    return found


def _shape(colour: int, few: bool) -> str:
    return "o" if few else "osD^v"[colour]


def frontier(drawn: Frontier, models: Mapping[str, Model]) -> Figure:
    """Learning against forgetting with 95 % intervals; base is the origin, small marks are training seeds.

    A dashed line joins base, a variant's interpolations by alpha, and the variant.
    """
    shown = marks(drawn, models)
    few = all(mark.number == 0 for mark in shown)
    used = [group for group in GROUPS if not few and any(mark.group == group for mark in shown)]
    legend = 18.0 * ((len(used) + 1) // 2)
    height = (330.0 if few else 400.0) + legend
    decimals = 3

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height, top=30 + legend)
        axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
        axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
        for points in _sweeps(drawn, models).values():
            axes.plot(*zip(*points, strict=True), color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), zorder=2)
        for mark in shown:
            _point(axes, mark, few)
        axes.plot([0], [0], "o", markersize=7, markerfacecolor=PAGE, markeredgecolor=INK, zorder=6)
        axes.margins(0.12)
        axes.set_xlabel(f"learnt on the domain, {drawn.unit}  →")
        y_title(canvas, f"↑  forgotten elsewhere, {drawn.unit}", height)
        for i, group in enumerate(used):
            x, y = (4 + 200 * (i % 2)) / 420, 1 - (30 + 18 * (i // 2)) / height
            colour = GROUPS.index(group)
            shape = {"marker": _shape(colour, few), "markersize": 7, "color": SERIES[colour]}
            canvas.add_artist(_line([x + 4 / 420], [y - 6 / height], **shape))
            canvas.text(x + 14 / 420, y, group, va="top", color=INK)
        canvas.draw_without_rendering()
        _labels(axes, shown, few)

    told = "; ".join(
        f"{mark.label} learnt {signed(mark.point.learnt, decimals)} ({signed(mark.point.learnt_low, decimals)} to "
        f"{signed(mark.point.learnt_high, decimals)}) and forgot {signed(mark.point.forgotten, decimals)} "
        f"({signed(mark.point.forgotten_low, decimals)} to {signed(mark.point.forgotten_high, decimals)})"
        for mark in shown
    )
    return figure_of(
        f"figure-frontier-{drawn.family}",
        f"Learnt against forgotten, in {drawn.unit}",
        f"Scatter plot, both axes in {drawn.unit} against base, with 95 % intervals: {told}. "
        "Further right is more learnt, further up more forgotten.",
        draw,
        height,
    )


def _line(x: Sequence[float], y: Sequence[float], **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(x, y, linestyle="none", **style)


def _point(axes: Any, mark: Mark, few: bool) -> None:
    point, colour = mark.point, SERIES[mark.colour]
    if point.seeds:
        axes.plot(*zip(*point.seeds, strict=True), "o", markersize=3.5, color=colour, alpha=0.55, zorder=3,
                  markeredgewidth=0)  # fmt: skip
    axes.errorbar(
        [point.learnt],
        [point.forgotten],
        xerr=[[max(0.0, point.learnt - point.learnt_low)], [max(0.0, point.learnt_high - point.learnt)]],
        yerr=[[max(0.0, point.forgotten - point.forgotten_low)], [max(0.0, point.forgotten_high - point.forgotten)]],
        fmt="none",
        ecolor=colour,
        elinewidth=1.6 if few else 0.9,
        alpha=1.0 if few else 0.6,
        zorder=3,
    )
    axes.plot(
        [point.learnt],
        [point.forgotten],
        _shape(mark.colour, few),
        markersize=7,
        color=colour,
        markeredgecolor=PAGE,
        markeredgewidth=0.8,
        zorder=5,
    )


def _labels(axes: Any, shown: Sequence[Mark], few: bool) -> None:
    """Names, or numbers, where they cover neither points nor intervals."""

    def at(x: float, y: float) -> tuple[float, float]:
        return tuple(axes.transData.transform((x, y)))

    texts = ["base", *(mark.label if few else str(mark.number) for mark in shown)]
    places = [at(0, 0), *(at(mark.point.learnt, mark.point.forgotten) for mark in shown)]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for mark in shown:
        point = mark.point
        (left, y), (right, _) = at(point.learnt_low, point.forgotten), at(point.learnt_high, point.forgotten)
        (x, low), (_, high) = at(point.learnt, point.forgotten_low), at(point.learnt, point.forgotten_high)
        taken += [(left, y - 1.5, right, y + 1.5), (x - 1.5, low, x + 1.5, high)]
    window = axes.get_window_extent()
    x0, y0 = places[0]
    taken += [(window.x0, y0 - 0.5, window.x1, y0 + 0.5), (x0 - 0.5, window.y0, x0 + 0.5, window.y1)]  # the zero lines
    frame = (window.x0 - 40, window.y0, window.x1 + 12, window.y1)
    size = TEXT if few else TEXT - 2
    letter = LETTER * size / TEXT
    middles = place(places, [(letter * len(text) + 2, size) for text in texts], taken, frame)
    colours = [INK, *(SERIES[mark.colour] for mark in shown)]
    for text, middle, colour in zip(texts, middles, colours, strict=True):
        axes.annotate(text, middle, xycoords="figure pixels", ha="center", va="center", color=colour, fontsize=size,
                      fontweight="bold", annotation_clip=False, zorder=7)  # fmt: skip
