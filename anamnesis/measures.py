"""The measures of the embedded suite: what each tells, in which unit, and which way is better.

`side` says what a change means: `learnt` measures the domain, `kept` measures everything else. Forgetting is a change
for the worse on a `kept` measure.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    label: str
    side: Literal["learnt", "kept"]
    unit: str
    higher_is_better: bool
    binary: bool = False  # per item 0 or 1: McNemar's test applies


MEASURES: dict[str, Measure] = {
    "domain_choice": Measure("domain, multiple choice", "learnt", "accuracy", True, binary=True),
    "domain_exact": Measure("domain, exact match", "learnt", "accuracy", True, binary=True),
    "domain_text": Measure("domain, held-out answers", "learnt", "bits per byte", False),
    "instructions_followed": Measure("verifiable instructions", "kept", "accuracy", True, binary=True),
    "arithmetic": Measure("arithmetic", "kept", "accuracy", True, binary=True),
    "general_text": Measure("general questions and answers", "kept", "bits per byte", False),
    "own_text": Measure("its own answers to held-out instructions", "kept", "bits per byte", False),
    "own_kl": Measure("KL(base || tuned) on them", "kept", "nats per token", False),
}
