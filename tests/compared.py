"""Rows of a few items, and the results of base and one variant made from them."""

from typing import Any

from anamnesis import results


def samples(measure: str, values: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "measure": measure,
            "item_id": str(i),
            "value": value,
            "weight": 1.0,
            "output": None,
            "category": None,
            "question": None,
        }
        for i, value in enumerate(values)
    ]


def compared(**values: tuple[list[float], list[float]]) -> results.Results:
    """Base and one variant, from their values by measure."""
    base = [row for measure, (before, _) in values.items() for row in samples(measure, before)]
    tuned = [row for measure, (_, after) in values.items() for row in samples(measure, after)]
    return results.results({"base": base, "tuned": tuned}, None, 500, 1)
