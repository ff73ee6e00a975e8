"""A figure of values with their intervals, one a line, against what chance would give."""

from collections.abc import Sequence
from typing import Any

from anamnesis.figures import INK, MUTED, PAGE, SERIES, Figure, add_axes, figure_of
from anamnesis.trust import Mark

ROW, TOP, BOTTOM = 26.0, 14.0, 52.0  # px


def forest(name: str, title: str, unit: str, marks: Sequence[Mark], chance: float, baseline: str = "") -> Figure:
    """Dots with 95 % intervals on an axis from 0 to 1, a line at `chance`; small diamonds are the `baseline`s."""
    height = TOP + ROW * len(marks) + BOTTOM

    def draw(canvas: Any) -> None:
        left = min(200.0, 16 + 6.6 * max(len(mark.label) for mark in marks))
        axes = add_axes(canvas, height, left=left, right=16, top=TOP, bottom=BOTTOM)
        axes.axvline(chance, color=MUTED, linewidth=1.2, zorder=1)
        for place, mark in enumerate(marks):
            if mark.low is not None and mark.high is not None:
                axes.plot([mark.low, mark.high], [place, place], color=SERIES[0], linewidth=1.8, zorder=2)
            for value in mark.baselines:
                axes.plot(
                    [value],
                    [place],
                    "D",
                    markersize=5,
                    markerfacecolor=PAGE,
                    markeredgecolor=SERIES[1],
                    zorder=3,
                )
            axes.plot([mark.value], [place], "o", markersize=7, color=SERIES[0], zorder=4)
        axes.set_yticks(range(len(marks)), [mark.label for mark in marks])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(marks) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)

    told = "; ".join(
        f"{mark.label} {mark.value:.2f}"
        + ("" if mark.low is None or mark.high is None else f" ({mark.low:.2f} to {mark.high:.2f})")
        + (f", {baseline} {' and '.join(f'{value:.2f}' for value in mark.baselines)}" if mark.baselines else "")
        for mark in marks
    )
    return figure_of(name, title, f"Values with 95 % intervals, chance is {chance:g}: {told}.", draw, height)
