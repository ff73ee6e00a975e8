"""The figures: colours of the page, labels that cover nothing, sweeps and seeds where there are some."""

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from synthetic_run import ROOT

from anamnesis import labels, scatter, trust, type_figures
from anamnesis.distribution import Estimate
from anamnesis.forest import forest
from anamnesis.results import Frontier, Point
from anamnesis.tables import Model


def test_figures_have_the_colours_of_the_page(root: Path) -> None:
    html = (root / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that dark mode can't change"
        assert "font-family" not in drawing
        assert "http" not in drawing
    style = html[html.index("<style>") : html.index("</style>")]
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    light, dark = style.split("prefers-color-scheme: dark")
    assert all(f"{name}:" in light for name in used - {"--series", "--share"})
    assert all(f"{name}:" in dark for name in used - {"--series", "--share"})


@pytest.mark.parametrize("positions", [[5.0, 5.0, 5.0], [0.0, 100.0], [9.0, 3.0, 4.0, 3.5], [1.0]])
def test_labels_are_moved_apart_in_their_order(positions: list[float]) -> None:
    placed = labels.spread(positions, 10)
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    moved = [placed[i] for i in order]
    assert all(b - a >= 10 - 1e-3 for a, b in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(positions))


@pytest.mark.parametrize("positions", [[-50.0, -40.0], [300.0, 301.0, 302.0]])
def test_labels_are_moved_into_the_figure(positions: list[float]) -> None:
    placed = labels.spread(positions, 15, 8, 200)
    assert min(placed) >= 8
    assert max(placed) <= 200


def test_a_label_covers_no_interval_where_there_is_room() -> None:
    bar = (10.0, 98.5, 190.0, 101.5)
    (x, y), *_ = labels.place([(100.0, 100.0)], [(60.0, 12.0)], [bar], (0.0, 0.0, 200.0, 200.0))
    assert abs(y - 100) >= 6 + 1.5
    assert 30 <= x <= 170


def test_two_labels_at_one_place_do_not_cover_each_other() -> None:
    size = (40.0, 12.0)
    one, two = labels.place([(100.0, 100.0), (101.0, 100.0)], [size, size], [], (0.0, 0.0, 200.0, 200.0))
    assert abs(one[0] - two[0]) >= 40 or abs(one[1] - two[1]) >= 12


def sweep(count: int) -> tuple[Frontier, dict[str, Model]]:
    """A variant, the interpolations before it, and further variants up to `count` points."""
    models = {"base": Model("base", "base", "base"), "tuned": Model("tuned", "variant", "Tuned & co", rehearsal="none")}
    models |= {f"mid-{i}": Model(f"mid-{i}", "interpolation", f"mid-{i}", variant="tuned", alpha=i / 4) for i in (3, 1)}
    models |= {f"v{i}": Model(f"v{i}", "variant", f"v{i}", rehearsal="reconstructed") for i in range(count - 3)}
    points = [
        Point(name, 0.1 * i, 0.1 * i - 0.02, 0.1 * i + 0.02, 0.05 * i, 0.05 * i - 0.01, 0.05 * i + 0.01)
        for i, name in enumerate(list(models)[1:], 1)
    ]
    return Frontier("accuracy", "accuracy", "a", "b", points), models


def test_a_sweep_is_joined_by_alpha_from_base_to_its_variant() -> None:
    drawn, models = sweep(4)
    by_name = {point.variant: (point.learnt, point.forgotten) for point in drawn.points}
    (line,) = scatter._sweeps(drawn, models).values()
    assert line == [(0.0, 0.0), by_name["mid-1"], by_name["mid-3"], by_name["tuned"]]


def test_few_points_have_names_and_many_have_numbers() -> None:
    few = scatter.frontier(*sweep(scatter.NAMED))
    assert ">Tuned &amp; co<" in few.svg
    drawn, models = sweep(12)
    many = scatter.frontier(drawn, models)
    assert "Tuned" not in re.sub(r"<desc.*?</desc>", "", many.svg, flags=re.DOTALL)
    assert "Tuned" in many.description
    assert all(f">{i}<" in many.svg for i in range(1, 13))
    assert ">domain alone<" in many.svg
    assert [mark.number for mark in scatter.marks(drawn, models)] == list(range(1, 13))


def test_baselines_of_a_forest_are_told_apart_and_a_missing_one_is_said() -> None:
    marks = [trust.Mark("j: cut", 0.9, 0.8, 0.95, (0.7, None)), trust.Mark("j: negated", 0.6, None, None, (0.5, 0.5))]
    drawn = forest("f", "t", "AUC", marks, 0.5, ["length", "overlap"])
    assert "j: cut 0.90 (0.80 to 0.95), length 0.70, overlap not defined" in drawn.description
    assert ">length<" in drawn.svg
    assert ">overlap<" in drawn.svg


def test_more_sets_than_fit_side_by_side_have_a_panel_a_type() -> None:
    share = Estimate(0.5, 0.4, 0.6)
    none = Estimate(0.0, 0.0, 0.1)
    sets = {
        f"set-{i}": {"code": share, "maths": none if i else share, "writing": none, "other": share} for i in range(6)
    }
    panels = type_figures.type_panels(sets, dict.fromkeys(sets, 100))
    assert [panel.title for panel in panels] == ["Code", "Maths", "Other"]  # no set has any writing
    assert len({panel.name for panel in panels}) == 3
    assert all(">set-5<" in panel.svg for panel in panels)


def fields(part: object) -> set[str]:
    """Every field that a Vega-Lite template reads."""
    if isinstance(part, list):
        return set().union(*map(fields, part))
    if not isinstance(part, dict):
        return set()
    own = {part["field"]} if isinstance(part.get("field"), str) else set()
    own |= set(re.findall(r"datum\.(\w+)", " ".join(str(part.get(key, "")) for key in ("calculate", "filter"))))
    return own.union(*map(fields, part.values()))


def test_templates_of_dvc_plots_read_columns_that_there_are(root: Path) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    plots = {name: setting for entry in stages["report"]["plots"] for name, setting in entry.items()}
    assert [setting["template"] for setting in plots.values()] == ["frontier", "scores", "tasks", "types"]
    for name, setting in plots.items():
        template = json.loads((ROOT / f".dvc/plots/{setting['template']}.json").read_text(encoding="utf-8"))
        with open(root / name, encoding="utf-8", newline="") as file:
            columns = set(csv.DictReader(file).fieldnames or ())
        assert template["data"] == {"values": "<DVC_METRIC_DATA>"}
        assert fields(template) <= columns | {"rev"}, "rev is the revision, which dvc adds"
        assert {setting["x"], setting["y"]} <= columns
