"""The report's figures of one run's counts: training loss, instruction lengths, scores by judge."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from anamnesis.canvas import (
    BAR,
    COLOURS,
    DASHES,
    INK,
    MUTED,
    PAGE,
    SERIES,
    WIDTH,
    Figure,
    add_axes,
    figure_of,
    y_title,
)
from anamnesis.labels import spread


def loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Training loss over optimiser steps, one line a variant, labelled at its end."""
    height = max(330.0, 60.0 + 16 * len(curves))  # a line of text each
    longest = max(map(len, curves), default=0)

    def draw(canvas: Any) -> None:
        axes = add_axes(canvas, height, right=12 + 7.2 * longest)
        for i, points in enumerate(curves.values()):
            axes.plot(
                [step for step, _ in points],
                [loss for _, loss in points],
                color=SERIES[i % COLOURS],
                linestyle=DASHES[i // COLOURS % len(DASHES)],
                linewidth=1.8,
                marker="o" if len(points) < 3 else None,
                markersize=4,
            )
        axes.set_xlabel("optimiser step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02, y=0.08)
        y_title(canvas, "training loss, nats per supervised token", height)
        canvas.draw_without_rendering()
        ends = [(i, name, points[-1]) for i, (name, points) in enumerate(curves.items()) if points]
        places = [axes.transData.transform(end) for _, _, end in ends]
        edge = axes.get_window_extent().x1
        for (i, name, _), y in zip(ends, spread([place[1] for place in places], 15, 8, height - 8), strict=True):
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
        y_title(canvas, "instructions", height)

    return figure_of(
        "figure-lengths",
        "Instruction lengths",
        f"Histogram of {len(tokens)} instructions by length: from {min(tokens)} to {max(tokens)} tokens, "
        f"median {middle:g}.",
        draw,
        height,
    )


def score_histograms(scores: Mapping[str, Sequence[float]]) -> Figure:
    """How each judge spread its scores over 1 to 5: one panel a judge, steps of a quarter."""
    panel = 128.0
    height = panel * len(scores) + 24

    def draw(canvas: Any) -> None:
        edges = [0.875 + 0.25 * i for i in range(18)]  # whole scores fall in the middle of a bar
        for i, (judge, found) in enumerate(scores.items()):
            bottom = height - panel * (i + 1) + 14
            axes = canvas.add_axes((52 / WIDTH, bottom / height, (WIDTH - 66) / WIDTH, (panel - 48) / height))
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
