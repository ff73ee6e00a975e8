"""The measures of every suite: what each tells, in which unit, which way is better, and which suite it is of.

`side` says what a change means: `learnt` measures the domain, `kept` measures everything else, `safety` whether a
request is refused. Forgetting is a change for the worse on a `kept` measure. `spec` and `ordered` also know the
measures of domain sets, which are named in params.yaml; so nobody looks into `MEASURES` by hand.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DOMAIN_SET = "domain-"  # and the name in evaluate.domain_sets: no other measure has a hyphen


@dataclass(frozen=True)
class Measure:
    label: str
    side: Literal["learnt", "kept", "safety"]
    unit: str
    higher_is_better: bool
    binary: bool = False  # per item 0 or 1: McNemar's test applies
    suite: str = "embedded"  # a name of evaluate.suite, or "domain" for a domain set
    paper: str | None = None  # the paper's column that this is, or is the nearest to
    chance: float | None = None  # what a blind guess scores, where every item has as many options


def _accuracy(
    label: str, suite: str, paper: str | None = None, chance: float | None = None, learnt: bool = False
) -> Measure:
    return Measure(label, "learnt" if learnt else "kept", "accuracy", True, True, suite, paper, chance)


MEASURES: dict[str, Measure] = {
    "domain_choice": Measure("domain, multiple choice", "learnt", "accuracy", True, binary=True),
    "domain_exact": Measure("domain, exact match", "learnt", "accuracy", True, binary=True),
    "domain_text": Measure("domain, held-out answers", "learnt", "bits per byte", False),
    "instructions_followed": Measure("verifiable instructions", "kept", "accuracy", True, binary=True),
    "arithmetic": Measure("arithmetic", "kept", "accuracy", True, binary=True, chance=0.25),
    "general_text": Measure("general questions and answers", "kept", "bits per byte", False),
    "own_text": Measure("its own answers to held-out instructions", "kept", "bits per byte", False),
    "own_kl": Measure("KL(base || tuned) on them", "kept", "nats per token", False),
    # The paper's four as the Open LLM Leaderboard asks them.
    "leaderboard_mmlu_pro": _accuracy("MMLU-Pro", "leaderboard", "MMLU-Pro"),
    "leaderboard_gpqa": _accuracy("GPQA", "leaderboard", "GPQA", 0.25),
    "leaderboard_ifeval": _accuracy("IFEval", "leaderboard", "IFEval"),
    "leaderboard_math_hard": _accuracy("MATH Lvl 5", "leaderboard", "MATH"),
    # The same benchmarks and a few more from local files.
    "medqa": _accuracy("MedQA", "local", chance=0.25, learnt=True),
    "pubmedqa": _accuracy("PubMedQA", "local", chance=1 / 3, learnt=True),
    "mmlu_pro": _accuracy("MMLU-Pro, 0-shot", "local", "MMLU-Pro"),
    "gpqa_diamond": _accuracy("GPQA diamond", "local", "GPQA", 0.25),
    "ifeval": _accuracy("IFEval, local file", "local", "IFEval"),
    "math_lvl5": _accuracy("MATH Lvl 5, local file", "local", "MATH"),
    "gsm8k": _accuracy("GSM8K", "local"),
    "arc_challenge": _accuracy("ARC-Challenge", "local", chance=0.25),
    "hellaswag": _accuracy("HellaSwag", "local", chance=0.25),
    "ifbench": _accuracy("IFBench", "local"),
    "refused_harmful": Measure("refused, harmful prompts", "safety", "rate", True, True, "safety"),
    "refused_harmless": Measure("refused, harmless prompts", "safety", "rate", False, True, "safety"),
}


def spec(name: str) -> Measure:
    """What the measure `name` is. Raises `KeyError` for one that no suite has."""
    if name.startswith(DOMAIN_SET):
        return _accuracy(f"domain set {name.removeprefix(DOMAIN_SET)}", "domain", learnt=True)
    return MEASURES[name]


def ordered(names: Iterable[str]) -> list[str]:
    """`names`, each once, as every table shows them: domain sets by name, then the order of `MEASURES`."""
    found = set(names)
    return [
        *sorted(name for name in found if name.startswith(DOMAIN_SET)),
        *(name for name in MEASURES if name in found),
    ]


def of_suite(suite: str) -> list[str]:
    """The measures of one suite."""
    return [name for name, measure in MEASURES.items() if measure.suite == suite]
