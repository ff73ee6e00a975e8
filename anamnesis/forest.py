"""A figure of values with their intervals, one a line, against what chance would give."""

from collections.abc import Sequence
from typing import Any

from anamnesis.canvas import INK, MUTED, PAGE, SERIES, WIDTH, Figure, add_axes, figure_of
from anamnesis.trust import Mark

ROW, TOP, BOTTOM = 26.0, 14.0, 52.0  # px
SHAPES = "Ds^"  # of the baselines


def forest(
    name: str, title: str, unit: str, marks: Sequence[Mark], chance: float, baselines: Sequence[str] = ()
) -> Figure:
    """Dots with 95 % intervals on an axis from 0 to 1, a line at `chance`; `baselines` are small marks."""
    top = TOP + (24.0 if baselines else 0.0)
    height = top + ROW * len(marks) + BOTTOM

    def draw(canvas: Any) -> None:
        from matplotlib.lines import Line2D

        left = min(200.0, 16 + 6.6 * max(len(mark.label) for mark in marks))
        axes = add_axes(canvas, height, left=left, right=16, top=top, bottom=BOTTOM)
        axes.axvline(chance, color=MUTED, linewidth=1.2, zorder=1)
        for place, mark in enumerate(marks):
            if mark.low is not None and mark.high is not None:
                axes.plot([mark.low, mark.high], [place, place], color=SERIES[0], linewidth=1.8, zorder=2)
            for i, value in enumerate(mark.baselines):
                # side by side where they agree, so that neither hides the other
                if value is not None:
                    shift = 0.14 * (2 * i - len(baselines) + 1)
                    style = {"markersize": 5, "markerfacecolor": PAGE, "markeredgecolor": SERIES[i + 1]}
                    axes.plot([value], [place + shift], SHAPES[i], zorder=3, **style)
            axes.plot([mark.value], [place], "o", markersize=7, color=SERIES[0], zorder=4)
        axes.set_yticks(range(len(marks)), [mark.label for mark in marks])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(marks) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        x = 6.0
        for i, text in enumerate(["judge", *baselines] if baselines else []):
            face = PAGE if i else SERIES[0]
            marker = SHAPES[i - 1] if i else "o"
            y = 1 - 10 / height
            key = Line2D([x / WIDTH], [y], linestyle="none", marker=marker, markersize=6, color=SERIES[i])
            key.set_markerfacecolor(face)
            canvas.add_artist(key)
            canvas.text((x + 9) / WIDTH, y, text, va="center", color=INK)
            x += 9 + 7.0 * len(text) + 20

    told = "; ".join(
        f"{mark.label} {mark.value:.2f}"
        + ("" if mark.low is None or mark.high is None else f" ({mark.low:.2f} to {mark.high:.2f})")
        + "".join(
            f", {baseline} {'not defined' if value is None else f'{value:.2f}'}"
            for baseline, value in zip(baselines, mark.baselines, strict=False)
        )
        for mark in marks
    )
    return figure_of(name, title, f"Values with 95 % intervals, chance is {chance:g}: {told}.", draw, height)
