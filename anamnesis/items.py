"""The general items of the embedded suite: shipped files, and arithmetic made by a generator.

All are written for this project, from no benchmark: instructions.jsonl (prompts with constraints a program can check),
general.jsonl (questions with answers of 40 to 75 words), and the templates below. A selection depends on the seed and
the item only, never on a model, and a smaller one is a part of a larger one.
"""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anamnesis.errors import UserError
from anamnesis.records import digest, seed_of

FOLDER = Path(__file__).parent / "shipped"


def shipped(name: str) -> list[dict[str, Any]]:
    """The rows of anamnesis/shipped/<name>.jsonl, in file order."""
    with open(FOLDER / f"{name}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def pick(rows: Sequence[dict[str, Any]], key: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The first `count` rows (all, where there are fewer) in seeded hash order of `row[key]`."""
    return sorted(rows, key=lambda row: digest("item", seed, row[key]))[:count]


# Arithmetic: how a question is made from a seeded random source. Each gives the question, the answer as an assistant
# would write it with a gap for the number, and the right number.
Made = tuple[str, str, int]


def _sum(draw: random.Random) -> Made:
    x, y = draw.randint(2, 9), draw.randint(2, 9)
    return f"What is {x} + {y}?", f"{x} + {y} = {{}}", x + y


def _long_sum(draw: random.Random) -> Made:
    x, y = draw.randint(11, 59), draw.randint(11, 39)
    return f"What is {x} + {y}?", f"{x} + {y} = {{}}", x + y


def _difference(draw: random.Random) -> Made:
    x, y = draw.randint(12, 20), draw.randint(2, 9)
    return f"What is {x} - {y}?", f"{x} - {y} = {{}}", x - y


def _long_difference(draw: random.Random) -> Made:
    x, y = draw.randint(51, 99), draw.randint(11, 39)
    return f"What is {x} - {y}?", f"{x} - {y} = {{}}", x - y


def _product(draw: random.Random) -> Made:
    x, y = draw.randint(3, 9), draw.randint(11, 15)
    return f"What is {x} x {y}?", f"{x} x {y} = {{}}", x * y


def _quotient(draw: random.Random) -> Made:
    x, y = draw.randint(2, 9), draw.randint(2, 9)
    return f"What is {x * y} / {y}?", f"{x * y} / {y} = {{}}", x


def _half(draw: random.Random) -> Made:
    x = draw.randint(3, 30)
    return f"What is half of {2 * x}?", f"Half of {2 * x} is {{}}.", x


def _double(draw: random.Random) -> Made:
    x = draw.randint(6, 49)
    return f"What is {x} doubled?", f"{x} doubled is {{}}.", 2 * x


def _sequence(draw: random.Random) -> Made:
    x, step = draw.randint(3, 40), draw.choice((3, 4, 6, 7, 8, 9, 11, 12))
    shown = ", ".join(str(x + step * place) for place in range(4))
    return f"Continue the sequence: {shown}", f"{shown}, {{}}", x + 4 * step


def _gain(draw: random.Random) -> Made:
    x, y = draw.randint(3, 15), draw.randint(2, 9)
    question = f"Nora has {x} apples and gets {y} more. How many apples does she have now?"
    return question, "Nora now has {} apples.", x + y


def _loss(draw: random.Random) -> Made:
    x, y = draw.randint(9, 20), draw.randint(2, 6)
    question = f"There are {x} birds on a roof and {y} of them fly away. How many birds are left?"
    return question, "There are {} birds left.", x - y


def _boxes(draw: random.Random) -> Made:
    x, y = draw.randint(3, 6), draw.randint(2, 6)
    return f"A box holds {x} eggs. How many eggs are in {y} boxes?", f"There are {{}} eggs in {y} boxes.", x * y


ARITHMETIC: tuple[Callable[[random.Random], Made], ...] = (
    _sum,
    _long_sum,
    _difference,
    _long_difference,
    _product,
    _quotient,
    _half,
    _double,
    _sequence,
    _gain,
    _loss,
    _boxes,
)
CHOICES = 4
MOST_ARITHMETIC = 2000  # the templates give about 3,600 different questions; the last ones take long to hit upon


def arithmetic(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different multiple-choice questions: item_id, question, choices (whole answers), gold (the right index).

    The kinds take turns. Wrong numbers are near the right one and have as many digits: a likelihood prefers fewer.
    Raises `UserError` above `MOST_ARITHMETIC`.
    """
    if count > MOST_ARITHMETIC:
        raise UserError(f"evaluate.arithmetic: {count} asked for, and there are no more than {MOST_ARITHMETIC}")
    made: dict[str, dict[str, Any]] = {}
    for attempt in itertools.count():
        if len(made) == count:
            break
        draw = random.Random(seed_of("arithmetic", seed, attempt))
        question, answer, right = ARITHMETIC[attempt % len(ARITHMETIC)](draw)
        if question in made:
            continue
        numbers = [right, *_near(right, draw)]
        draw.shuffle(numbers)
        made[question] = {
            "item_id": digest("arithmetic", question, *numbers),
            "question": question,
            "choices": [answer.format(number) for number in numbers],
            "gold": numbers.index(right),
        }
    return list(made.values())


def _near(right: int, draw: random.Random) -> list[int]:
    """Three wrong numbers with as many digits as `right`: two slips of one, two or ten, then one further off."""
    slips = [right + step for step in (-10, -2, -1, 1, 2, 10)]
    wider = [right + step for step in (-9, -8, -7, -6, -5, -4, -3, 3, 4, 5, 6, 7, 8, 9)]
    level = [[n for n in group if n > 1 and len(str(n)) == len(str(right))] for group in (slips, wider)]
    for group in level:
        draw.shuffle(group)
    return (level[0][:2] + level[1] + level[0][2:])[: CHOICES - 1]
