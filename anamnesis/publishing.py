"""A mixed training set in the forms that other trainers read, with a card that says where each row is from.

In: rows of `records.MIXED`, params, the model cards. Out: texts by file name, for one folder a variant:

    messages.jsonl       one conversation a line, with row_id, source, member and licence
    dataset_info.json    LLaMA-Factory's description of that file (its OpenAI form)
    axolotl.yaml         the `datasets` section for axolotl (type chat_template)
    params.yaml          the parameters that made the set; addresses without user name, password and query
    README.md            a dataset card of the hub: metadata, models with revisions, licences, counts
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from anamnesis.cards import Card
from anamnesis.hubcard import Rows, hub_licences, licence_list, plain_address, sources, table
from anamnesis.params import Params
from anamnesis.shares import DOMAIN

DATA = "messages.jsonl"
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def files(name: str, mixed: Rows, params: Params, cards: Mapping[str, Card]) -> dict[str, str]:
    """The files of one variant's folder, by name; `cards` has the models that were materialised."""
    return {
        DATA: messages(mixed),
        "dataset_info.json": json.dumps({f"anamnesis-{name}": llama_factory()}, indent=2) + "\n",
        "axolotl.yaml": axolotl(),
        "params.yaml": attached(params),
        "README.md": card(name, mixed, params, cards),
    }


def messages(mixed: Rows) -> str:
    """One JSON object a line, in the order of the row ids."""
    keys = ("row_id", "messages", "source", "member", "licence")
    rows = sorted(mixed, key=lambda row: (row["row_id"], row["source"]))
    return "".join(json.dumps({key: row[key] for key in keys}, ensure_ascii=False) + "\n" for row in rows)


def llama_factory() -> dict[str, Any]:
    """The description of messages.jsonl in LLaMA-Factory's dataset_info.json: its sharegpt form with OpenAI's names."""
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {f"{role}_tag": role for role in ("user", "assistant", "system")}
    return {"file_name": DATA, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}


def axolotl() -> str:
    """The `datasets` section for axolotl, to be pasted into a configuration: assistant turns are trained on."""
    dataset = {
        "path": DATA,
        "ds_type": "json",
        "type": "chat_template",
        "chat_template": "tokenizer_default",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    lead = "# Put this into an axolotl configuration; `path` starts where axolotl is run.\n"
    return lead + yaml.safe_dump({"datasets": [dataset]}, sort_keys=False)


def attached(params: Params) -> str:
    """The parameters as YAML, for reading and for another run; nothing secret of a server's address stays in."""
    raw = params.model_dump(mode="json")
    for model in raw["models"].values():
        if model["base_url"] is not None:
            listed = [model["base_url"]] if isinstance(model["base_url"], str) else model["base_url"]
            plain = [plain_address(url) for url in listed]
            model["base_url"] = plain[0] if isinstance(model["base_url"], str) else plain
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


# ----------------------------------------------------------------------------------------------------------- the card


def card(name: str, mixed: Rows, params: Params, cards: Mapping[str, Card]) -> str:
    """A dataset card: the hub's metadata, then what the set is, its sources, models, licences and parameters."""
    metadata: dict[str, Any] = {
        **hub_licences(row["licence"] for row in mixed),
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "synthetic", "anamnesis"],
        "size_categories": [next((label for size, label in SIZES if len(mixed) < size), "1M<n<10M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": DATA}]}],
    }
    variant, mix = params.tuned_variants()[name], params.mix
    fractions = params.fractions_of(name)
    main = next(iter(fractions)).removeprefix(f"{DOMAIN}:")
    domain = params.domain.source if main == DOMAIN else mix.domains[main].source
    authors = [key for key in variant.members if key in params.members()]
    judges = [key for key in variant.judges if key in params.enabled_judges()]
    used = list(dict.fromkeys([params.target, *authors, *judges]))
    front = yaml.safe_dump(metadata, sort_keys=False)
    rehearsal = f"rehearsal: {variant.rehearsal}"
    rehearsal += f", instructions of {variant.borrowed}" if variant.borrowed else ""
    if authors:
        rehearsal += f", answered by {', '.join(authors)}, rule {variant.rule}"
        rehearsal += f", judged by {', '.join(judges)}" if judges else ""
    blocks = [
        f"---\n{front}---",
        f"# The training set of variant {name}",
        f"{len(mixed)} conversations, {sum(row['tokens'] or 0 for row in mixed)} tokens as {params.target} counts "
        f"them: domain rows ({domain}) and rehearsal rows, made by anamnesis with seed {params.seed}. "
        f"{rehearsal[0].upper()}{rehearsal[1:]}. Size: {mix.total} {mix.unit}, "
        f"{sum(fractions.values()):g} of it domain where there is rehearsal.",
        "Recalled instructions are samples from a model: likely under what it was trained on, not shown to have been "
        "in it. Responses were written by models and can be wrong.",
        "## Rows by source",
        table(("source", "written by", "licence", "rows", "tokens"), sources(mixed)),
        "## Models",
        table(("model", "role", "source", "revision or sha256", "licence"), _models(used, params, cards)),
        "## Licences",
        licence_list(mixed),
        "A row's licence is in its field `licence`: that of its source, or those of all who wrote a turn of it. "
        "What the terms of a model say about training others on its output is for you to check.",
        "## Parameters",
        "`params.yaml` beside this file: all of them, as they were.",
        f"```yaml\n{_excerpt(name, params)}```",
    ]
    return "\n\n".join(blocks) + "\n"


def _models(used: Iterable[str], params: Params, cards: Mapping[str, Card]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for key in used:
        model = params.models[key]
        roles = [("target", key == params.target), ("member", key in params.members())]
        roles += [("judge", key in params.enabled_judges())]
        where = [model.uri] if isinstance(model.uri, str) else list(model.uri or [])
        where = where or [f"{model.model} at {plain_address(url)}" for url in model.base_urls]
        known = cards.get(key)
        lines.append(
            (
                key,
                ", ".join(role for role, is_one in roles if is_one),
                ", ".join(where),
                model.sha256 or (known and known.weights) or "not pinned",
                model.licence,
            )
        )
    return lines


def _excerpt(name: str, params: Params) -> str:
    raw = yaml.safe_load(attached(params))
    section = params.key_of(name).partition(".")[0]
    shown = {"seed": raw["seed"], "target": raw["target"], "domain": raw["domain"]}
    shown |= {section: {name: raw[section][name]}, "mix": raw["mix"]}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
