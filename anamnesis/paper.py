"""The paper's two tables: which rows they have, and those of their numbers that are known here.

Ding & Wang 2025, "Improved Supervised Fine-Tuning for Large Language Models to Mitigate Catastrophic Forgetting",
https://arxiv.org/abs/2506.09428. The numbers are second-hand, from a write-up of it, and were not held against the
paper's own pages. The write-up, in the revision that was read:
https://github.com/vishalsingha/replay-dataset-pipeline/blob/0ee78cec34aa7583127e6369ca4a3ff16037fa26/blog/replay-dataset-pipeline.md
"""

from dataclasses import dataclass, field

from anamnesis.sections import PUBLIC_SETS

AVERAGE = "average"
SOURCES = (
    "second-hand: from the write-up blog/replay-dataset-pipeline.md in github.com/vishalsingha/replay-dataset-pipeline "
    "(commit 0ee78ce), not checked against the paper itself (arXiv 2506.09428)"
)


@dataclass(frozen=True)
class PaperRow:
    """A row of a table; `numbers` are in per cent by column, only those that are known."""

    label: str
    numbers: dict[str, float] = field(default_factory=dict)
    doubtful: bool = False  # the write-up that has it contradicts itself


ROWS: dict[str, PaperRow] = {
    "base": PaperRow("Llama-3-70B-Instruct", {"MMLU-Pro": 46.74, "MATH": 23.34, AVERAGE: 39.00}),
    "sharegpt": PaperRow("ShareGPT", {"MMLU-Pro": 46.14, "MATH": 20.24, AVERAGE: 38.00}),
    "evol-instruct": PaperRow("Evol-Instruct", {AVERAGE: 38.81}, doubtful=True),
    "genqa": PaperRow("GenQA", {"MMLU-Pro": 43.33, "MATH": 15.41, AVERAGE: 35.91}),
    "openhermes-1": PaperRow("OpenHermes 1"),
    "openhermes-2-5": PaperRow("OpenHermes 2.5"),
    "tulu-v2-mix": PaperRow("Tulu V2 Mix"),
    "wildchat": PaperRow("WildChat", {AVERAGE: 38.35}, doubtful=True),
    "ultrachat-200k": PaperRow("UltraChat"),
    "ours": PaperRow(
        "ours: three models, many responses, filtered", {"MMLU-Pro": 46.73, "MATH": 23.29, AVERAGE: 39.21}
    ),
    "single-model-single-response": PaperRow("single model, single response", {AVERAGE: 38.81}),
    "single-model-multi-response-filtered": PaperRow("single model, many responses, filtered", {AVERAGE: 39.06}),
}
TABLE_1 = ("base", *PUBLIC_SETS, "ours")
TABLE_2 = ("base", "single-model-single-response", "single-model-multi-response-filtered", "ours")
