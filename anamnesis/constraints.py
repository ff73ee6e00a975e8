"""Does an answer obey its prompt? IFEval's own checkers, imported without their attempt to download data.

tasks/instructions_followed.yaml names `process_results`. Imports lm-eval, so import it only where a model is asked.
"""

from typing import Any
from unittest import mock

with mock.patch("nltk.data.find"):  # importing them downloads punkt_tab where it is missing; no kind we use needs it
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

import langdetect

langdetect.DetectorFactory.seed = 0  # the case checkers detect the language, at random without this


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """1 where the answer obeys every constraint of the prompt (IFEval's prompt-level strict accuracy), else 0."""
    example = InputExample(0, doc["instruction_id_list"], doc["prompt"], doc["kwargs"])
    return {"followed": int(test_instruction_following_strict(example, results[0]).follow_all_instructions)}
