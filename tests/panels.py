"""Made-up committees for the tests of agreement: tables of scores, and judges with a planted fault."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from anamnesis import records
from anamnesis.agreement import Bootstrap, Scored
from anamnesis.params import Select
from stages import agree

NAN = math.nan
FEW = Bootstrap(100, 17)
MEMBERS = ["a", "b", "c"]

Rows = list[dict[str, Any]]
Judge = Callable[[dict[str, Any], random.Random], float | None]


def scored(judges: str, rows: list[tuple[int, str, int, list[float]]]) -> Scored:
    """Rows of instruction, member, characters and scores, in the order of instructions."""
    instruction, member, characters, scores = zip(*rows, strict=True)
    return Scored(
        np.array(instruction),
        np.array(member),
        np.array(characters, float),
        np.array(scores, float),
        judges.split(),
        [str(i) for i in range(max(instruction) + 1)],
    )


def of_scores(scores: np.ndarray) -> Scored:
    """One response an instruction."""
    names = " ".join(f"j{i}" for i in range(scores.shape[1]))
    return scored(names, [(i, "a", 10, list(row)) for i, row in enumerate(scores)])


def votes_of(judges: dict[str, Judge], instructions: int = 40, seed: int = 1) -> tuple[Rows, Rows]:
    """Responses of three members, three each, with a hidden quality; and every judge's votes on them."""
    rng = random.Random(seed)
    responses, judgments = [], []
    for i in range(instructions):
        for member in MEMBERS:
            for index in range(3):
                length = int(rng.lognormvariate(4, 0.8)) + 1
                row = {
                    "response_id": f"{i:03}{member}{index}",
                    "instruction_id": f"i{i:03}",
                    "member": member,
                    "sample_index": index,
                    "text": "x" * length,
                    "finish_reason": "stop",
                    "tokens": length,
                    "status": "ok",
                    "reason": None,
                }
                responses.append(row)
                hidden = row | {"quality": rng.gauss(0, 1)}
                for name, judge in judges.items():
                    judgments.append(judgment(row["response_id"], name, judge(hidden, rng)))
    return responses, judgments


def judgment(response_id: str, judge: str, score: float | None, parse: str = "logprobs") -> dict[str, Any]:
    return {
        "response_id": response_id,
        "judge": judge,
        "score": score,
        "parse": parse if score is not None else "missing",
        "justification": "",
        "tokens": 1,
        "status": "ok" if score is not None else "failed",
        "reason": None if score is not None else "no readable last line",
    }


def fair(row: dict[str, Any], rng: random.Random) -> float:
    return min(5.0, max(1.0, 3 + 0.7 * row["quality"] + rng.gauss(0, 0.4)))


def noise(row: dict[str, Any], rng: random.Random) -> float:
    return rng.uniform(1, 5)


def rows_of(
    responses: Rows, judgments: Rows, judges: list[str], members: list[str] | None = None, select: Select | None = None
) -> Rows:
    """Every row that the stage writes, but for control pairs."""
    return agree.agree(
        pa.Table.from_pylist(responses, records.RESPONSES),
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
        records.CONTROLS.empty_table(),
        records.INSTRUCTIONS.empty_table(),
        members=MEMBERS if members is None else members,
        judges=judges,
        select=Select(min_votes=1) if select is None else select,
        bootstrap=Bootstrap(200, 17),
    )


def figures(judges: dict[str, Judge], **options: Any) -> dict[str, dict[str, Any]]:
    """Rows by their key as in metrics/judging.json."""
    rows = rows_of(*votes_of(judges, **options), list(judges))
    return {".".join(filter(None, (row[column] for column in agree.KEY))): row for row in rows}
