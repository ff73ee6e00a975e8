"""The model card of a trained model, in the hub's form: what it was made of and how, and later what it scored.

In: what training.json says, model.json of the base model, the rows of `records.MIXED`; for the second part the numbers
of metrics/summary.json. Out: texts. Nothing in them depends on time, machine or folder, so equal runs give equal bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from anamnesis.cards import Card
from anamnesis.hubcard import Rows, hub_licences, licence_list, sources, table
from anamnesis.sections import FOLDER_URI, HUB_URI
from anamnesis.shares import DOMAIN

FILE = "README.md"
METHODS = {
    "full": "All weights were trained.",
    "lora": "Low-rank adapters beside frozen weights were trained (LoRA), and are merged: these are ordinary weights.",
    "l2-sp": "All weights were trained, each pulled towards its start (L2-SP).",
    "kl": "All weights were trained, with the divergence from the base model in the loss (KL).",
}
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
said = [{"role": "user", "content": "What can you tell me about herons?"}]
inputs = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

or, as a server with OpenAI's protocol:

```
vllm serve .
```"""


def text(report: Mapping[str, Any], base: Card, mixed: Rows) -> str:
    """The card that a model has from the end of its training; `report` is what training.json holds."""
    from huggingface_hub import ModelCardData

    hub = HUB_URI.fullmatch(base.uri) if isinstance(base.uri, str) else None
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=hub[1] if hub else None,
        base_model_relation="finetune" if hub else None,
        **hub_licences([base.licence, *(row["licence"] for row in mixed)]),
        tags=["anamnesis", "conversational", "instruction-tuning", report["tuning"]["method"]],
    )
    change = report["change"]
    blocks = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {base.name}, fine-tuned: {report['variant']}",
        f"A chat model: {base.name}, fine-tuned on {len(mixed)} conversations by anamnesis as its variant "
        f"`{report['variant']}`, with seed {report['seed']}. {METHODS[report['tuning']['method']]}",
        "## Base model",
        _base(base, report["base"]),
        "## Data",
        _data(mixed),
        table(("source", "written by", "licence", "rows", "tokens"), sources(mixed)),
        "Licences, by rows:",
        licence_list(mixed),
        "`license` above has the base model's and the rows'. Whether a row's licence, or the terms of a model that "
        "wrote one, bind a model that is trained on it is for you to check.",
        "## Training",
        _training(report),
        f"```yaml\n{_settings(report)}```",
        "## How far the weights moved",
        f"The files hold fp32 weights. The largest change is {change['max_abs_change']:g}; "
        f"{change['changed_share']:.1%} of the weights changed, and {change['bf16_share']:.1%} of these still differ "
        "from what they were once both are rounded to bf16, as many servers do.",
        "## Use",
        USE,
        "## Limits",
        "It can be wrong, as the model it is made of can, and may have forgotten some of what that knew. Fine-tuning "
        "on a domain adds no safety; what the base model refuses may be answered here. Where rehearsal rows are in the "
        "data, models wrote them: they can be wrong too, and recalled instructions are likely under the base model, "
        "not shown to have been in its training set.",
        "## How it was made",
        f"By anamnesis (`python -m stages.train {report['variant']}`), with the settings above and seed "
        f"{report['seed']}. `training.json` beside this file has every count, and a few rows as they were trained on. "
        "The same rows, settings and libraries on the same machine give the same bytes.",
    ]
    return "\n\n".join(blocks) + "\n"


def _base(base: Card, began: str) -> str:
    """Where the base model is from, what pins it, and whose terms it is under."""
    uris = [base.uri] if isinstance(base.uri, str) else list(base.uri or [])
    shown = [f"`{uri}`" for uri in uris if not FOLDER_URI.fullmatch(uri)] or ["weights from a folder of its maker's"]
    hub = HUB_URI.fullmatch(uris[0]) if len(uris) == 1 else None
    pins = [("source", ", ".join(shown))]
    pins += [("revision", f"`{hub[2]}`")] if hub else []
    pins += [("sha256 of the source", f"`{base.sha256}`")] if base.sha256 else []
    pins += [("weights and tokenizer", f"`{base.weights}`")]
    lines = [("model", base.name), *pins, ("licence", base.licence)]
    listed = "\n".join(f"- {name}: {value}" for name, value in lines)
    if began != base.weights:
        listed += f"\n- training began at weights that had been tuned from it before: `{began}`"
    return listed


def _data(mixed: Rows) -> str:
    """How many rows and tokens, and the domain's share of both."""
    domain = [row for row in mixed if row["source"].partition(":")[0] == DOMAIN]
    tokens, of_domain = (sum(row["tokens"] or 0 for row in rows) for rows in (mixed, domain))
    said = f"{len(mixed)} rows, {tokens} tokens as the base model's tokenizer counts them. "
    said += f"Domain rows: {len(domain)} ({len(domain) / len(mixed):.1%} of the rows"
    said += f", {of_domain / tokens:.1%} of the tokens)" if tokens else ")"
    return said + "; the others are rehearsal, against forgetting." if len(domain) < len(mixed) else said + "."


def _training(report: Mapping[str, Any]) -> str:
    """What was done, in numbers."""
    audit = report["audit"]
    return (
        f"{report['steps']} optimiser steps over {report['tokens']} tokens; the loss is the mean over the tokens that "
        f"are trained on, {report['supervised_tokens']} in all: what assistants say and the end of their turn. "
        f"It was {report['first_loss']:g} at the first step and {report['last_loss']:g} at the last. "
        f"{audit['truncated_rows']} rows ({audit['truncated_share']:.1%}) were cut at "
        f"{report['settings']['sequence_length']} tokens."
    )


def _settings(report: Mapping[str, Any]) -> str:
    shown = {"seed": report["seed"], "train": report["settings"], "tuning": report["tuning"]}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


# ------------------------------------------------------------------------------------------------- what it scored


def with_evaluation(card: str, name: str, results: Sequence[Mapping[str, Any]], languages: Sequence[str] = ()) -> str:
    """The card of variant `name` with what was measured: as the hub's model-index, and as a table.

    `results`: a mapping a measure with `measure`, `label`, `unit`, `higher_is_better`, `base`, `tuned` and `n`, and
    where they are known `diff`, `low` and `high`, the difference to the base model and its 95 % interval.
    """
    from huggingface_hub import EvalResult, ModelCard

    loaded = ModelCard(card)
    data = loaded.data
    data.model_name = name
    data.language = list(languages) or None
    data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=one["measure"],
            dataset_name=one["label"],
            metric_type=one["unit"].replace(" ", "_"),
            metric_name=one["unit"],
            metric_value=one["tuned"],
            metric_args={key: one[key] for key in ("n", "base", "diff", "low", "high") if one.get(key) is not None},
        )
        for one in results
    ]
    lines = [
        (
            one["label"],
            f"{one['unit']}, {'higher' if one['higher_is_better'] else 'lower'} is better",
            _number(one.get("base")),
            _number(one["tuned"]),
            _number(one.get("diff"), "+"),
            f"{_number(one['low'], '+')} to {_number(one['high'], '+')}" if one.get("low") is not None else "–",
            str(one["n"]),
        )
        for one in results
    ]
    blocks = [
        f"---\n{data.to_yaml()}\n---",
        loaded.text.strip(),
        "## Evaluation",
        "Base model and this one on the same items, in one run each. The interval is one of 95 % for the difference, "
        "paired by item.",
        table(("measure", "unit", "base", "this model", "difference", "95 % interval", "items"), lines),
    ]
    return "\n\n".join(blocks) + "\n"


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"
