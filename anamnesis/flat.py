"""The numbers of a `Results` as flat metrics and as the CSV files behind `dvc plots`."""

from collections.abc import Sequence
from typing import Any

from anamnesis.findings import label_of
from anamnesis.results import Results, frontiers
from anamnesis.scatter import group_of
from anamnesis.scores import Average, Score, Scores
from anamnesis.stats import Comparison, Seeds
from anamnesis.tables import SUFFIX
from anamnesis.wording import rounded


def summary(found: Results) -> dict[str, float | int]:
    """The flat numbers of metrics/summary.json that come from comparisons, rounded: docs/statistics.md lists the keys.

    What is not there (an interval where no item changed, a unit nobody measured) has no key.
    """
    flat: dict[str, float | int | None] = {}
    for row in found.rows:
        flat[f"base.{row.measure}"] = row.base
        flat |= {f"base.{row.measure}.n": cell.n for cell in row.cells.values()}  # the same items for all
        for variant, cell in row.cells.items():
            key = f"{variant}.{row.measure}"
            flat[key] = cell.tuned
            flat |= _ends(key, cell)
            flat[f"{key}.n"] = cell.n
            flat |= {f"{key}.p": cell.p_value, f"{key}.holm": cell.holm}
            flat |= {f"{key}.gained": cell.gained, f"{key}.lost": cell.lost}
            flat |= _seeds(key, cell.seeds)
    for other, rows in [(found.reference, found.against_reference), *found.against_init.items()]:
        for row in rows:
            for variant, cell in row.cells.items():
                flat |= _ends(f"{variant}.{row.measure}.against.{other}", cell)
    for family, by_model in found.scores.items():
        for one in by_model.values():
            flat |= _scores(one, SUFFIX[family])
    return rounded({key: value for key, value in flat.items() if value is not None})


def _ends(key: str, cell: Comparison) -> dict[str, float | None]:
    return {f"{key}.diff": cell.difference, f"{key}.low": cell.low, f"{key}.high": cell.high}


def _seeds(key: str, seeds: Seeds | None) -> dict[str, float | int | None]:
    """Mean and spread over training seeds, the interval over seeds, and the standard error that is due to the items."""
    if seeds is None:
        return {}
    return {
        f"{key}.seeds.mean": seeds.mean,
        f"{key}.seeds.sd": seeds.sd,
        f"{key}.seeds.low": seeds.low,
        f"{key}.seeds.high": seeds.high,
        f"{key}.seeds.crossed_low": seeds.crossed_low,
        f"{key}.seeds.crossed_high": seeds.crossed_high,
        f"{key}.seeds.item_error": seeds.item_error,
        f"{key}.seeds.n": seeds.n,
    }


def _scores(one: Scores, suffix: str) -> dict[str, float | int | None]:
    """A model's averages, learning, forgetting, net, and what it avoided."""
    flat: dict[str, float | int | None] = {}
    averages = {f"learnt{suffix}": one.learnt, f"kept{suffix}": one.kept, "paper": one.paper}
    for name, average in averages.items():
        if average:
            flat |= _average(one.model, name, average)
    named = {"learning": one.learning, "forgetting": one.forgetting, "net": one.net}
    if one.avoided:
        named["avoided"] = one.avoided.difference
    for name, score in named.items():
        if score:
            flat |= _score(f"{one.model}.{name}{suffix}", score)
    if one.avoided:
        key = f"{one.model}.avoided{suffix}.share"
        flat |= {key: one.avoided.share, f"{key}.low": one.avoided.share_low, f"{key}.high": one.avoided.share_high}
    return flat


def _average(model: str, name: str, average: Average) -> dict[str, float | int | None]:
    key = f"{model}.average.{name}"
    return {
        f"base.average.{name}": average.base,
        f"base.average.{name}.n": average.n,
        key: average.tuned,
        f"{key}.diff": average.difference,
        f"{key}.low": average.low,
        f"{key}.high": average.high,
        f"{key}.n": average.n,
    }


def _score(key: str, score: Score) -> dict[str, float | int | None]:
    flat: dict[str, float | int | None] = {
        key: score.value,
        f"{key}.low": score.low,
        f"{key}.high": score.high,
        f"{key}.p": score.p_value,
        f"{key}.n": score.n,
    }
    return flat | _seeds(key, score.seeds)


Line = dict[str, Any]
FRONTIER = ("variant", "learnt", "forgotten", "learnt_low", "learnt_high", "forgotten_low", "forgotten_high", "label",
            "unit", "group", "sweep", "alpha")  # fmt: skip
SCORES = ("model", "label", "unit", "score", "value", "low", "high", "n")
TASKS = ("model", "label", "measure", "task", "side", "suite", "unit", "base", "value", "difference", "low", "high",
         "n", "p", "holm", "verdict")  # fmt: skip


def frontier_lines(found: Results) -> list[Line]:
    """The points of the first frontier, base as its origin, which is there also where nothing else is."""
    drawn = frontiers(found)
    unit = drawn[0].unit if drawn else "accuracy"
    lines: list[Line] = [{"variant": "base"} | dict.fromkeys(FRONTIER[1:7], 0.0)]
    for point in drawn[0].points if drawn else []:
        lines.append({name: getattr(point, name) for name in FRONTIER[:7]})
    told = {"unit": unit}
    return [
        line | told | {"label": label_of(found, line["variant"])} | _sweep(found, line["variant"]) for line in lines
    ]


def _sweep(found: Results, name: str) -> Line:
    """What a model belongs to, and its place between base and the variant that interpolations lie before."""
    model = found.models.get(name)
    if model is None or model.kind == "base":
        return {"group": "base", "sweep": "", "alpha": ""}
    swept = any(other.variant == name for other in found.models.values() if other.kind == "interpolation")
    alpha: float | str = model.alpha if model.alpha is not None else 1.0 if swept else ""
    return {"group": group_of(model), "sweep": model.variant or (name if swept else ""), "alpha": alpha}


def score_lines(found: Results) -> list[Line]:
    """Learning, forgetting and net of every model in every unit; base with zeros, so that there is always a line."""
    lines: list[Line] = []
    for by_model in found.scores.values():
        for one in by_model.values():
            named = {"learning": one.learning, "forgetting": one.forgetting, "net": one.net}
            lines += [_score_line(found, one, name, score) for name, score in named.items() if score]
    base = {"model": "base", "label": label_of(found, "base"), "unit": "accuracy", "n": 0}
    return lines or [base | {"score": "net", "value": 0.0, "low": 0.0, "high": 0.0}]


def _score_line(found: Results, one: Scores, name: str, score: Score) -> Line:
    ends = _ends_or(score.value, score.low, score.high)
    return {
        "model": one.model,
        "label": label_of(found, one.model),
        "unit": one.unit,
        "score": name,
        "n": score.n,
    } | ends


def _ends_or(value: float, low: float | None, high: float | None) -> dict[str, float]:
    """An interval that is not there is the point itself: a figure needs ends."""
    return rounded({"value": value, "low": value if low is None else low, "high": value if high is None else high})


def task_lines(found: Results) -> list[Line]:
    """Every model's difference to base on every measure, as measured; base with zeros where nothing was compared."""
    lines: list[Line] = []
    for row in found.rows:
        told = {"measure": row.measure, "task": row.label, "side": row.spec.side, "suite": row.spec.suite,
                "unit": row.spec.unit, "n": row.n}  # fmt: skip
        for model, cell in row.cells.items():
            ends = _ends_or(cell.difference, cell.low, cell.high)
            numbers = rounded({"base": cell.base, "p": cell.p_value, "holm": cell.holm})
            lines.append(
                told
                | {"model": model, "label": label_of(found, model), "verdict": row.verdict(model)}
                | {"difference": ends["value"], "low": ends["low"], "high": ends["high"]}
                | numbers
                | rounded({"value": cell.tuned})
            )
    nothing: Line = dict.fromkeys(TASKS, "") | {"model": "base", "label": label_of(found, "base"), "n": 0}
    return lines or [nothing | dict.fromkeys(("base", "value", "difference", "low", "high"), 0.0)]


def csv_text(columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Lines as CSV, the header first."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
