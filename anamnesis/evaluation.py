"""Measure one model on items of ours: lm-eval for what is right or wrong, our own passes for text.

In: a causal language model, its tokenizer, the domain test items and the held-out conversations. Out: one row an item
(`records.SAMPLES`), from which every figure is computed. `suite` and `more_tasks` choose the items from the seed alone,
so that base and every variant answer the same ones; `answer` and `read` then ask a model. The official benchmarks are
asked by anamnesis/official.py. docs/evaluation.md explains every measure.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from anamnesis import chat, domain_sets, items, likelihood
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.measures import DOMAIN_SET
from anamnesis.progress import Progress
from anamnesis.sections import Evaluate
from anamnesis.stats import measures_in, weighted_mean

TASKS = Path(__file__).parent / "tasks"
SPARE_TOKENS = 8  # an exact answer may be this much longer than the longest right one before it is cut off
DIGITS = 6

Row = dict[str, Any]
Lm = Callable[[Callable[[], None]], Any]  # lm-eval's model, given what it calls after each request (harness.py)


@dataclass(frozen=True)
class Suite:
    """The items of every measure that has any, chosen without looking at a model."""

    tasks: dict[str, list[Row]] = field(default_factory=dict)  # for lm-eval, as the YAML files in tasks/ want them
    texts: dict[str, list[Row]] = field(default_factory=dict)  # item_id and messages


def suite(domain_test: Sequence[Row], heldout: Sequence[Row], settings: Evaluate, seed: int) -> Suite:
    """Choose the items: `settings` says how many of each, `seed` which.

    `domain_test` are rows of `records.DOMAIN_TEST`, `heldout` of `records.HELDOUT`. A measure without items is left
    out. Raises `UserError` where a multiple-choice or exact item is more than one user turn.
    """

    def domain(kind: str, count: int) -> list[Row]:
        return items.pick([row for row in domain_test if row["kind"] == kind], "row_id", count, seed)

    tasks = {
        "domain_choice": [
            {"item_id": row["row_id"], "question": _question(row), "choices": row["choices"], "gold": row["gold"]}
            for row in domain("choice", settings.domain_choice)
        ],
        "domain_exact": [
            {"item_id": row["row_id"], "question": _question(row), "answer": row["answer"]}
            for row in domain("exact", settings.domain_exact)
        ],
        "instructions_followed": items.pick(
            items.shipped("instructions"), "item_id", settings.instructions_followed, seed
        ),
        "arithmetic": items.arithmetic(settings.arithmetic, seed),
    }
    texts = {
        "domain_text": _texts(domain("text", settings.text_items), "row_id"),
        "general_text": _texts(items.pick(items.shipped("general"), "item_id", settings.text_items, seed), "item_id"),
        "own_text": _texts(items.pick(heldout, "instruction_id", settings.text_items, seed), "instruction_id"),
    }
    return Suite(
        {measure: rows for measure, rows in tasks.items() if rows},
        {measure: rows for measure, rows in texts.items() if rows},
    )


def more_tasks(settings: Evaluate) -> dict[str, list[Row]]:
    """The items of suite safety and of the domain sets, by measure, all of them.

    They are asked apart from the embedded suite, whose figures so don't depend on them. Raises `UserError` for a file
    that is no domain set.
    """
    found = {}
    if "safety" in settings.suites:
        for kind in ("harmful", "harmless"):
            rows = [row for row in items.shipped("safety") if row["kind"] == kind]
            found[f"refused_{kind}"] = [{key: row[key] for key in ("item_id", "prompt", "category")} for row in rows]
    return found | {DOMAIN_SET + name: domain_sets.read(name, path) for name, path in settings.domain_sets.items()}


def _question(row: Row) -> str:
    if [message["role"] for message in row["messages"]] != ["user"]:
        raise UserError(
            f"data/domain/test.parquet: row {row['row_id']}: a {row['kind']} item is one user turn, found "
            f"{', '.join(message['role'] for message in row['messages']) or 'none'}; make it a text item or shorten it"
        )
    return row["messages"][0]["content"]


def _texts(rows: Sequence[Row], key: str) -> list[Row]:
    return [{"item_id": row[key], "messages": row["messages"]} for row in rows]


def be_quiet(offline: bool = True) -> None:
    """Keep lm-eval and what it imports offline and off the terminal; call it before they are imported."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ("lm_eval", "datasets", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def load_tokenizer(directory: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a model directory. Raises `UserError` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: no usable tokenizer: {_first_line(error)}", MODEL_UNAVAILABLE) from None


def context_of(directory: str | Path, trust_remote_code: bool = False) -> int | None:
    """The tokens that a model in a directory has room for, where its configuration says. Raises `UserError`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: can't be loaded: {_first_line(error)}", MODEL_UNAVAILABLE) from None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_model(directory: str | Path, trust_remote_code: bool = False) -> Any:
    """The model in a directory, in fp32 on the GPU where there is one, ready to be asked.

    fp32 whatever the file holds: rounding to bf16 would undo part of a short fine-tuning, and on a CPU without
    bf16 instructions it is slower as well. Raises `UserError` where it can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: can't be loaded: {_first_line(error)}", MODEL_UNAVAILABLE) from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def answer(lm: Lm, tokenizer: Any, tasks: dict[str, list[Row]], settings: Evaluate, label: str = "") -> list[Row]:
    """Let lm-eval ask a model the items of `tasks` (by measure) through its chat template; one sample row an item.

    Answers are greedy. A multiple-choice pick is the option with the highest log-likelihood as the assistant's answer.
    """
    if not tasks:
        return []
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    from anamnesis import constraints, refusals  # noqa: F401 (named by tasks: imported here, their data never asked for)

    datasets.disable_progress_bars()
    requests = sum(len(row.get("choices", [None])) for rows in tasks.values() for row in rows)
    with Progress(f"{label}questions", requests, "requests") as progress, tempfile.TemporaryDirectory() as folder:
        configured = [_configured(measure, rows, tokenizer, settings, Path(folder)) for measure, rows in tasks.items()]
        manager = TaskManager(include_path=[str(TASKS), folder], include_defaults=False)
        # In a group, keys override a task's YAML. `evaluate`, and not `simple_evaluate` around it: that one also runs
        # git and pip to describe the machine, in figures that must not depend on it.
        result = lm_eval.evaluate(
            lm=lm(progress.advance),
            task_dict=manager.load([{"group": "embedded", "task": configured}]),
            apply_chat_template=True,
            bootstrap_iters=0,
            log_samples=True,
        )
    return [_sample(measure, sample) for measure in tasks for sample in result["samples"][measure]]


def _configured(measure: str, rows: list[Row], tokenizer: Any, settings: Evaluate, folder: Path) -> dict[str, Any]:
    """A task of tasks/ with its items and, where the model writes, the number of tokens it may write.

    The items go in memory. From a file the datasets library would guess types: answers that are dates would come back
    as times of day, and no answer would equal them.
    """
    import datasets

    table = datasets.Dataset.from_list(rows)
    configured: dict[str, Any] = {"task": measure, "custom_dataset": lambda **_: {"test": table}}
    limits = dict.fromkeys(("instructions_followed", "refused_harmful", "refused_harmless"), settings.max_tokens)
    if measure.startswith(DOMAIN_SET):
        kind = "domain_choice" if "choices" in rows[0] else "domain_exact"
        (folder / f"{measure}.yaml").write_text(
            f'include: {json.dumps(str(TASKS / kind))[:-1]}.yaml"\ntask: {measure}\n'
        )
    if "answer" in rows[0]:
        limits[measure] = max(len(tokenizer(row["answer"]).input_ids) for row in rows) + SPARE_TOKENS
    if measure in limits:
        configured["generation_kwargs"] = {"until": [], "do_sample": False, "max_gen_toks": limits[measure]}
    return configured


def _sample(measure: str, sample: Row) -> Row:
    """lm-eval's log of one item as a row of `records.SAMPLES`."""
    (metric,) = sample["metrics"]
    if "choices" in sample["doc"]:
        scores = [score for score, _ in sample["filtered_resps"]]
        output = sample["doc"]["choices"][int(np.argmax(scores))]
    else:
        output = sample["resps"][0][0]
    return {
        "measure": measure,
        "item_id": sample["doc"]["item_id"],
        "value": float(sample[metric]),
        "weight": 1.0,
        "output": output,
        "category": sample["doc"].get("category"),
        "question": sample["doc"].get("question") or sample["doc"]["prompt"],
    }


def read(
    model: Any,
    tokenizer: Any,
    measure: str,
    texts: list[Row],
    settings: Evaluate,
    reference: Any = None,
    label: str = "",
) -> list[Row]:
    """Bits per byte of the assistant's turns in `texts`; for `own_text` the rows of KL(reference || model) as well.

    A value is an item's bits over its bytes, its weight the bytes; for `own_kl` nats a token and tokens, 0 without a
    reference: base against itself takes no pass. Empty items and items longer than the model's context are left out
    and counted on stderr.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    encoded = [(row, chat.encode(tokenizer, row["messages"])) for row in texts]
    usable = [
        (row, tokens)
        for row, tokens in encoded
        if len(tokens.ids) <= context and any(tokens.supervised) and likelihood.content_bytes(row["messages"])
    ]
    if left_out := len(encoded) - len(usable):
        print(f"{label}{measure}: left out {left_out} items: empty or over {context} tokens", file=sys.stderr)
    with Progress(f"{label}{measure}", len(usable), "texts") as progress:
        found = likelihood.measure(
            model, [tokens for _, tokens in usable], settings.batch_size, reference, progress.advance
        )
    rows = []
    for (row, _), scored in zip(usable, found, strict=True):
        size = likelihood.content_bytes(row["messages"])
        rows.append(_text_row(measure, row["item_id"], scored.bits / size, size))
        if measure == "own_text":
            rows.append(_text_row("own_kl", row["item_id"], (scored.kl or 0.0) / scored.tokens, scored.tokens))
    return rows


def _text_row(measure: str, item_id: str, value: float, weight: int) -> Row:
    return {"measure": measure, "item_id": item_id, "value": value, "weight": float(weight)}  # the other columns: NULL


def summary(samples: Sequence[Row]) -> dict[str, float | int]:
    """Flat metrics: `<measure>` is the weighted mean over its items, `<measure>.n` their number.

    Where items have categories, `<measure>.<category>` and `<measure>.<category>.n` say the same of each.
    """
    found: dict[str, float | int] = {}
    for measure in measures_in(samples):
        rows = [row for row in samples if row["measure"] == measure]
        _tell(found, measure, rows)
        for category in sorted({row["category"] for row in rows if row.get("category")}):
            of_it = [row for row in rows if row["category"] == category]
            _tell(found, f"{measure}.{slug(category)}", of_it)
    return found


def _tell(found: dict[str, float | int], key: str, rows: Sequence[Row]) -> None:
    values, weights = (np.array([row[column] for row in rows], float) for column in ("value", "weight"))
    found[key] = round(float(weighted_mean(values, weights)), DIGITS)
    found[f"{key}.n"] = len(rows)


def slug(category: str) -> str:
    """A category as a part of a key: lower case, hyphens for anything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", category.lower()).strip("-")


def provenance(backend: str, digests: Mapping[str, str]) -> dict[str, str]:
    """Flat metrics beside the figures of a suite other than embedded: who measured, and which files were read."""
    return {
        "harness.version": version("lm_eval"),
        "backend": backend,
        **{f"sha256.{name}": digest for name, digest in sorted(digests.items())},
    }
