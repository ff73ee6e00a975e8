"""Suites local and leaderboard: which of lm-eval's official tasks a measure is, and how a local file becomes its rows.

A local file is brought into the shape that the task's own data set has on the hub, so that prompts, few-shot examples
and scoring stay lm-eval's. Rows stay in memory: no copy on disk, no cache that could return another file's rows, and
GPQA, which its authors hand out in an encrypted zip so that no crawler finds it, is never in plain text anywhere.
docs/evaluation.md has the layout of `evaluate.data_dir`.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anamnesis.domain_sets import LETTERS
from anamnesis.errors import UserError
from anamnesis.records import digest

Row = dict[str, Any]

GPQA_PASSWORD = b"deserted-untie-orchid"  # as GPQA's own README publishes it; it keeps crawlers away, nothing else
OURS = ""  # a task of anamnesis/tasks: lm-eval has no IFBench


@dataclass(frozen=True)
class Benchmark:
    """One measure in lm-eval's terms."""

    tasks: tuple[str, ...]  # lm-eval's names
    folder: str  # of lm_eval/tasks that defines them
    metric: str
    question: str  # the key of a row that says what is asked
    filter: str = "none"
    category: Callable[[Row], str | None] = lambda row: None
    split: str = "test"  # that the task asks
    hidden: bool = False  # items are never shown: question and output are NULL
    overrides: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[Row], Row] = lambda row: row  # a row of a local file to one of the hub's


def _several(row: Row) -> str:
    kinds = {kind.split(":")[0].replace("_", " ") for kind in row["instruction_id_list"]}
    return kinds.pop() if len(kinds) == 1 else "several kinds"


def _right(row: Row) -> int:
    """The index of the right option: `answer` is a letter, an index or the option itself."""
    answer, options = row["answer"], row["options"]
    place = answer if isinstance(answer, int) else LETTERS.find(answer) if len(answer) == 1 else options.index(answer)
    if not 0 <= place < len(options):
        raise ValueError(f"answer {answer!r} is none of {len(options)} options")
    return place


def _gpqa(row: Row) -> Row:
    if "Correct Answer" in row:
        return {
            key: row[key]
            for key in (
                "Question",
                "Correct Answer",
                *(f"Incorrect Answer {n}" for n in (1, 2, 3)),
                "High-level domain",
            )
        }
    right = _right(row)
    wrong = [option for place, option in enumerate(row["options"]) if place != right]
    return {
        "Question": row["question"],
        "Correct Answer": row["options"][right],
        **{f"Incorrect Answer {n}": option for n, option in zip((1, 2, 3), wrong, strict=True)},
        "High-level domain": row.get("domain"),
    }


def _mmlu_pro(row: Row) -> Row:
    return {**_only(row, "question", "options", "category"), "answer": LETTERS[_right(row)]}


def _math(row: Row) -> Row:
    return {"problem": row.get("problem") or row["question"], **_only(row, "solution", "level", "type")}


def _gsm8k(row: Row) -> Row:
    answer = row["answer"] if "####" in row["answer"] else row.get("solution") or f"#### {row['answer']}"
    return {"question": row["question"], "answer": answer}


def _arc(row: Row) -> Row:
    if "choices" in row:
        return _only(row, "question", "choices", "answerKey")
    letters = list(LETTERS[: len(row["options"])])
    choices = {"text": row["options"], "label": letters}
    return {"question": row["question"], "choices": choices, "answerKey": letters[_right(row)]}


def _hellaswag(row: Row) -> Row:
    if "ctx_a" in row:
        return _only(row, "ctx_a", "ctx_b", "activity_label", "endings", "label")
    # A file without the hub's two halves of the context: the second half's capital letter is lost.
    told = {"ctx_a": row["question"], "ctx_b": "", "activity_label": row["activity"]}
    return {**told, "endings": row["options"], "label": str(_right(row))}


def _medqa(row: Row) -> Row:
    if "sent1" in row:
        return _only(row, "sent1", "ending0", "ending1", "ending2", "ending3", "label")
    endings = {f"ending{n}": row["options"][n] for n in range(4)}
    return {"sent1": row["question"], **endings, "label": _right(row)}


def _pubmedqa(row: Row) -> Row:
    if "CONTEXTS" in row:
        return _only(row, "CONTEXTS", "QUESTION", "final_decision")
    if "contexts" in row:
        return {"CONTEXTS": row["contexts"], "QUESTION": row["question"], "final_decision": row["answer"]}
    _, _, rest = row["instruction"].partition("Abstract:\n")
    abstract, _, question = rest.rpartition("\n\nQuestion: ")
    if not abstract:
        raise ValueError("neither contexts nor an instruction with 'Abstract:' and 'Question:'")
    return {"CONTEXTS": abstract.split("\n"), "QUESTION": question, "final_decision": row["label"]}


def _ifeval(row: Row) -> Row:
    return _only(row, "key", "prompt", "instruction_id_list", "kwargs")


def _ifbench(row: Row) -> Row:
    kwargs = [{key: value for key, value in each.items() if value is not None} for each in row["kwargs"]]
    # As text: the columns of a table would give every checker the arguments of all the others.
    return {**_only(row, "prompt", "instruction_id_list"), "arguments": json.dumps(kwargs)}


def _only(row: Row, *keys: str) -> Row:
    return {key: row[key] for key in keys}


_MATH_TASKS = (
    "algebra",
    "counting_and_prob",
    "geometry",
    "intermediate_algebra",
    "num_theory",
    "prealgebra",
    "precalculus",
)
_IFEVAL: dict[str, Any] = {"metric": "prompt_level_strict_acc", "question": "prompt", "category": _several}
_GPQA: dict[str, Any] = {
    "metric": "acc_norm",
    "question": "Question",
    "category": lambda row: row["High-level domain"],
    "hidden": True,
}
_MMLU_PRO: dict[str, Any] = {"metric": "acc", "question": "question", "category": lambda row: row["category"]}
_MATH: dict[str, Any] = {"metric": "exact_match", "question": "problem", "category": lambda row: row["type"]}

LEADERBOARD: dict[str, Benchmark] = {
    "leaderboard_mmlu_pro": Benchmark(("leaderboard_mmlu_pro",), "leaderboard/mmlu_pro", **_MMLU_PRO),
    "leaderboard_gpqa": Benchmark(
        tuple(f"leaderboard_gpqa_{part}" for part in ("diamond", "extended", "main")), "leaderboard/gpqa", **_GPQA
    ),
    "leaderboard_ifeval": Benchmark(("leaderboard_ifeval",), "leaderboard/ifeval", **_IFEVAL),
    "leaderboard_math_hard": Benchmark(
        tuple(f"leaderboard_math_{part}_hard" for part in _MATH_TASKS), "leaderboard/math", **_MATH
    ),
}

_CHECKED = "anamnesis.constraints.process_{}"
LOCAL: dict[str, Benchmark] = {
    "medqa": Benchmark(("medqa_4options",), "medqa", "acc", "sent1", convert=_medqa),
    "pubmedqa": Benchmark(("pubmedqa",), "pubmedqa", "acc", "QUESTION", convert=_pubmedqa),
    "mmlu_pro": Benchmark(
        ("leaderboard_mmlu_pro",),
        "leaderboard/mmlu_pro",
        **_MMLU_PRO,
        convert=_mmlu_pro,
        overrides={"num_fewshot": 0},  # the files have no few-shot split
    ),
    "gpqa_diamond": Benchmark(("leaderboard_gpqa_diamond",), "leaderboard/gpqa", **_GPQA, convert=_gpqa, split="train"),
    "ifeval": Benchmark(("leaderboard_ifeval",), "leaderboard/ifeval", **_IFEVAL, convert=_ifeval, split="train"),
    "math_lvl5": Benchmark(("leaderboard_math_algebra_hard",), "leaderboard/math", **_MATH, convert=_math),
    "gsm8k": Benchmark(("gsm8k_cot",), "gsm8k", "exact_match", "question", "flexible-extract", convert=_gsm8k),
    "arc_challenge": Benchmark(("arc_challenge",), "arc", "acc_norm", "question", convert=_arc),
    "hellaswag": Benchmark(("hellaswag",), "hellaswag", "acc_norm", "query", convert=_hellaswag, split="validation"),
    "ifbench": Benchmark(("ifbench",), OURS, "followed", "prompt", category=_several, convert=_ifbench),
}


def load(name: str, path: Path) -> list[Row]:
    """The rows of a task's file as lm-eval's task wants them, with item_id. Raises `UserError` with file and line."""
    rows = []
    for line, raw in enumerate(read(path), 1):
        try:
            row = LOCAL[name].convert(raw)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            said = "" if LOCAL[name].hidden else f" ({type(error).__name__}: {error})"
            raise UserError(f"{path}: row {line}: not what task {name} wants{said}; see docs/evaluation.md") from None
        given = raw.get("id", raw.get("key"))
        rows.append(
            {**row, "item_id": str(given) if given is not None else digest(name, json.dumps(raw, sort_keys=True))}
        )
    if not rows:
        raise UserError(f"{path}: no rows")
    if len({row["item_id"] for row in rows}) < len(rows):
        raise UserError(f"{path}: two rows have one id; make them differ")
    return rows


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file, or of the one JSONL or CSV file about GPQA diamond in its encrypted zip, in memory.

    Raises `UserError` for a file that is none.
    """
    try:
        if path.suffix != ".zip":
            text, name = path.read_text(encoding="utf-8"), path.name
        else:
            with zipfile.ZipFile(path) as archive:
                names = [each for each in archive.namelist() if each.endswith((".jsonl", ".csv"))]
                name = next((each for each in names if "diamond" in each), names[0] if len(names) == 1 else "")
                if not name:
                    raise UserError(f"{path}: no file with diamond in its name, and not just one file either")
                text = archive.read(name, pwd=GPQA_PASSWORD).decode("utf-8")
        if name.endswith(".csv"):
            return list(csv.DictReader(io.StringIO(text, newline="")))
        return [json.loads(line) for line in text.split("\n") if line.strip()]  # U+2028 ends no line of JSON
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: a wrong password
        said = "" if path.suffix == ".zip" else f" ({error})"
        raise UserError(f"{path}: can't be read as {path.suffix[1:]}{said}") from None
