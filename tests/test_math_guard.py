"""How MATH answers are scored, on answers whose equality is known: under the antlr that is pinned, not another.

DVC needs antlr 4.9 and `lm-eval[math]` 4.11. math-verify works under both; lm-eval's second metric,
exact_match_original, silently scores nothing under 4.9, so it is never reported.
"""

from importlib.metadata import version

import pytest

from anamnesis import evaluation
from anamnesis.benchmarks import LEADERBOARD, LOCAL

EQUAL = [
    (r"1/2", r"\frac{1}{2}"),
    (r"\frac{1}{2}", r"\frac{1}{2}"),
    (r"0.5", r"\frac{1}{2}"),
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"x^2+1", r"1+x^2"),
    (r"(x+1)^2", r"x^2+2x+1"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,2,3\}", r"\{3,1,2\}"),
    (r"[0,1)", r"[0,1)"),
    (r"(-\infty,2]", r"(-\infty, 2]"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"-\frac{2}{3}", r"-2/3"),
    (r"(2,5)", r"(2,5)"),
    (r"1000", r"1,\!000"),
]
UNEQUAL = [
    (r"2", r"3"),
    (r"1/3", r"\frac{1}{2}"),
    (r"0.55", r"\frac{1}{2}"),
    (r"x^2-1", r"x^2+1"),
    (r"\{1,2\}", r"\{1,3\}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"[0,1]", r"[0,1)"),
    (r"(0,1)", r"[0,1)"),
    (r"(-\infty,2)", r"(-\infty,3)"),
    (r"2\sqrt{3}", r"\sqrt{11}"),
    (r"-\frac{2}{3}", r"\frac{2}{3}"),
    (r"(2,5)", r"(5,2)"),
]


def scores(answer: str, gold: str) -> dict[str, int]:
    evaluation.be_quiet()
    from lm_eval.tasks.leaderboard.math.utils import process_results

    doc = {"problem": "?", "solution": rf"So it is $\boxed{{{gold}}}$.", "answer": gold}
    return process_results(doc, [f"Final Answer: The final answer is ${answer}$. I hope it is correct."])


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer: str, gold: str) -> None:
    assert scores(answer, gold)["exact_match"] == 1


@pytest.mark.parametrize(("answer", "gold"), UNEQUAL)
def test_unequal(answer: str, gold: str) -> None:
    assert scores(answer, gold)["exact_match"] == 0


def test_antlr_is_the_one_that_dvc_needs() -> None:
    assert version("antlr4-python3-runtime").startswith("4.9.")


def test_what_is_reported_is_the_metric_that_works_under_it() -> None:
    assert LOCAL["math_lvl5"].metric == LEADERBOARD["leaderboard_math_hard"].metric == "exact_match"
    assert scores("1/2", "0.5") == {"exact_match": 1, "exact_match_original": 0}  # 1 under antlr 4.11
