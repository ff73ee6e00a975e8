"""The paper's eight public sets: where each lies on the hub, which columns hold its conversations, and its licence.

A commit in `revision` pins a set. Where none is known it is `main`, which can move: the run says which commit it read.
What was checked, and how, stands in docs/rehearsal.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """One set on the hub. `form` is one of anamnesis.drawing's, `column` holds the turns where the form has any.

    `licence` has several names, joined by `; `, where parts of the set are under other licences, or sources differ;
    `unknown` where the set's page names none.
    """

    repo: str
    revision: str
    form: str
    licence: str
    column: str | None = None
    config: str | None = None
    splits: tuple[str, ...] = ("train",)
    files: str | None = None  # where the repository has other files of the same kind
    flags: tuple[str, ...] = ()  # columns that are true for rows to be left out: the name is the reason


PUBLIC_SETS = {
    "sharegpt": PublicSet(
        repo="anon8231489123/ShareGPT_Vicuna_unfiltered",
        revision="192ab2185289094fc556ec8ce5ce1e8e587154ca",
        form="sharegpt",
        column="conversations",
        files="ShareGPT_V3_unfiltered_cleaned_split.json",
        licence="Apache-2.0",
    ),
    "evol-instruct": PublicSet(
        repo="WizardLMTeam/WizardLM_evol_instruct_V2_196k",
        revision="8a7d15a83028b5c93915677704f492839e2675f6",
        form="sharegpt",
        column="conversations",
        files="WizardLM_evol_instruct_V2_143k.json",
        licence="MIT",
    ),
    "genqa": PublicSet(
        repo="tomg-group-umd/GenQA",
        revision="c7b7fe4740f7dc793fb0dd9924d3440b07090eca",
        form="messages",
        column="text",
        splits=("academic", "code", "dialog", "general", "math", "mmlu", "multiple_choice", "task", "writing"),
        licence="unknown; CC-BY-NC-4.0",  # its page names none, one list of data sets this
    ),
    "openhermes-1": PublicSet(
        repo="teknium/openhermes",
        revision="main",
        form="alpaca",
        licence="unknown",
    ),
    "openhermes-2-5": PublicSet(
        repo="teknium/OpenHermes-2.5",
        revision="b82037821055c377bed0d495e72e46de3bc72e84",
        form="sharegpt",
        column="conversations",
        files="openhermes2_5.json",
        licence="unknown",
    ),
    "tulu-v2-mix": PublicSet(
        repo="allenai/tulu-v2-sft-mixture",
        revision="6248b175d2ccb5ec7c4aeb22e6d8ee3b21b2c752",
        form="messages",
        column="messages",
        licence="ODC-BY-1.0; CC-BY-NC-4.0; CC-BY-NC-SA-4.0",
    ),
    "wildchat": PublicSet(
        repo="allenai/WildChat-1M",
        revision="7d6490e462285cf85d91eabea0f9a954fbddcd1f",
        form="messages",
        column="conversation",
        flags=("toxic", "redacted"),
        licence="ODC-BY-1.0",
    ),
    "ultrachat-200k": PublicSet(
        repo="HuggingFaceH4/ultrachat_200k",
        revision="8049631c405ae6576f93f445c6b8166f76f5505a",
        form="messages",
        column="messages",
        splits=("train_sft",),
        licence="MIT",
    ),
}
