"""Instruction types of the reconstructed set against other sets: figure 1 of the paper in our numbers."""

from collections.abc import Mapping
from typing import Any

from anamnesis.canvas import BAR, COLOURS, INK, SERIES, TEXT, Figure, add_axes, figure_of
from anamnesis.distribution import Estimate


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
                    fontsize=TEXT - (1 if len(names) == 1 else 2),
                )
            if len(names) > 1:
                place = 1 - (4 + 20 * i) / height
                canvas.text(0, place, f"{name} ({sizes[name]})", color=colour, fontweight="bold", va="top")
        axes.set_yticks([j * group + (len(names) - 1) * bar / 2 for j in range(len(order))], order)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=TEXT)
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


def type_panels(shares: Mapping[str, Mapping[str, Estimate]], sizes: Mapping[str, int]) -> list[Figure]:
    """A panel a type, the sets down: for more sets than `types` can hold side by side.

    The first set's interval is a band through its panel, so that it can be held against every other.
    """
    names = list(shares)
    first = shares[names[0]]
    used = [kind for kind in first if any(of_set[kind].value for of_set in shares.values())]
    order = sorted(used, key=lambda kind: (kind == "other", -first[kind].value, kind))
    reach = max(100 * of_set[kind].high for of_set in shares.values() for kind in order)
    return [_panel(kind, {name: shares[name][kind] for name in names}, sizes, reach) for kind in order]


def _panel(kind: str, found: Mapping[str, Estimate], sizes: Mapping[str, int], reach: float) -> Figure:
    row, top, bottom = 19.0, 8.0, 44.0
    height = top + row * len(found) + bottom

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height, left=150, right=44, top=top, bottom=bottom)
        own = next(iter(found.values()))
        axes.axvspan(100 * own.low, 100 * own.high, color=SERIES[0], alpha=0.14, linewidth=0)
        for place, share in enumerate(found.values()):
            colour = SERIES[0] if place == 0 else BAR
            axes.plot([100 * share.low, 100 * share.high], [place, place], color=colour, linewidth=1.8)
            axes.plot([100 * share.value], [place], "o", markersize=6, color=colour)
            axes.annotate(f"{100 * share.value:.0f} %", (100 * share.high, place), xytext=(5, 0), va="center",
                          textcoords="offset points", fontsize=TEXT - 2)  # fmt: skip
        axes.set_yticks(range(len(found)), list(found))
        axes.tick_params(axis="y", labelcolor=INK, labelsize=TEXT)
        axes.set_xlim(0, reach)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("per cent of the set")

    told = "; ".join(
        f"{name} ({sizes[name]} instructions) {100 * share.value:.0f} % "
        f"({100 * share.low:.0f} to {100 * share.high:.0f})"
        for name, share in found.items()
    )
    slug = kind.replace(" ", "-")
    return figure_of(f"figure-type-{slug}", kind.capitalize(), f"Share of type {kind} by set: {told}.", draw, height)
