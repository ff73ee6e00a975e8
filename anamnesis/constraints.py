"""Does an answer obey its prompt? IFEval's and IFBench's own checkers, imported without their attempt to download data.

tasks/instructions_followed.yaml and tasks/ifbench.yaml name functions of this module. Imports lm-eval, so import it
only where a model is asked.
"""

import json
from collections.abc import Sequence
from typing import Any
from unittest import mock

from anamnesis.errors import UserError

with mock.patch("nltk.data.find"):  # importing them downloads punkt_tab where it is missing; few kinds need it
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

import langdetect

langdetect.DetectorFactory.seed = 0  # the case checkers detect the language, at random without this

# What IFBench's checkers raise on some answers, like one of digits and signs only. Missing NLTK data is none of these.
STUMBLES = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)
NEUTRAL = "This is the first sentence. Here is a second one, and nothing follows it."


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """1 where the answer obeys every constraint of the prompt (IFEval's prompt-level strict accuracy), else 0."""
    example = InputExample(0, doc["instruction_id_list"], doc["prompt"], doc["kwargs"])
    return {"followed": int(test_instruction_following_strict(example, results[0]).follow_all_instructions)}


def ifbench_checkers() -> Any:
    """IFBench's checkers by kind. Raises `UserError` where the optional package that has them is not installed."""
    try:
        with mock.patch("nltk.data.find"), mock.patch("nltk.download"):
            from if_verifiable.ifbench import INSTRUCTION_DICT
    except ImportError as error:
        raise UserError(
            f"evaluate.tasks: ifbench needs the package if-verifiable, and {error.name or error} is not installed; "
            "`pip install --no-deps if-verifiable==0.1.2 emoji==2.15.0 syllapy==0.8.0` in .venv, or leave ifbench out"
        ) from None
    return INSTRUCTION_DICT


def process_ifbench(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """1 where the answer obeys every constraint of an IFBench prompt, as it stands, else 0.

    An answer that a checker stumbles over is not what was asked for: 0, and the run goes on.
    """
    checkers, answer = ifbench_checkers(), results[0]
    followed = bool(answer.strip())
    for kind, arguments in zip(doc["instruction_id_list"], json.loads(doc["arguments"]), strict=True):
        if not followed:
            break
        checker = checkers[kind](kind)
        checker.build_description(**arguments)
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=doc["prompt"])
        try:
            followed = bool(checker.check_following(answer))
        except STUMBLES:
            followed = False
    return {"followed": int(followed)}


def _forget() -> None:
    """IFEval's checkers remember their sentence splitter; forget it (tests)."""
    from lm_eval.tasks.ifeval import instructions_util

    instructions_util._get_sentence_tokenizer.cache_clear()


def rehearse(measure: str, rows: Sequence[dict[str, Any]]) -> None:
    """Run every item's checkers on a neutral text, before a model is asked: what they need must be here.

    Raises `UserError` that names NLTK's missing data; without this the run would end after the last answer.
    """
    check = process_ifbench if measure == "ifbench" else process_results
    missing: dict[str, int] = {}
    for row in rows:
        try:
            check(row, [NEUTRAL])
        except LookupError as error:
            resource = _resource(error)
            missing[resource] = missing.get(resource, 0) + 1
    if missing:
        named = " and ".join(f"{resource} (for {count} of {len(rows)} items)" for resource, count in missing.items())
        raise UserError(
            f"evaluate.tasks: {measure} needs NLTK's {named}; `python -m nltk.downloader {' '.join(missing)}`, or "
            "unzip it into a folder that NLTK_DATA names (docs/evaluation.md)"
        )


def _resource(error: LookupError) -> str:
    """The name of NLTK's data set in its long message: what stands behind nltk.download(."""
    _, found, rest = str(error).partition("nltk.download('")
    if not found:
        raise error
    return rest.partition("'")[0]
