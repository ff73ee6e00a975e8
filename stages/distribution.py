"""Distribution: how alike the reconstructed instructions are to those of other sets. Selects and drops nothing.

In: data/instructions.parquet, data/rehearsal/<source>.parquet of the sources that variants name, the files that
distribution.compare names, models/pretrained/<target>.
Out: data/distribution.parquet (each instruction with its type, language, length and bits), metrics/distribution.json.
Run: python -m stages.distribution
"""

from collections import Counter
from pathlib import Path
from typing import Any

from anamnesis import distribution, formats, likelihood, likeness, records, stats, template
from anamnesis import params as settings
from anamnesis.chat import Encoded, tokenizer_of
from anamnesis.embedding import READ_CHARACTERS, embed
from anamnesis.errors import UserError, run
from anamnesis.instruction_types import TYPES, instruction_types
from anamnesis.params import Params
from anamnesis.progress import Progress

BATCH = 8  # texts a forward pass, at most


def texts_of(params: Params) -> dict[str, dict[str, str]]:
    """A seeded sample of each set's different instructions by id, the reconstructed set first.

    Raises `UserError` where a file is missing or not in a known form.
    """
    probed = records.read("data/instructions.parquet", records.INSTRUCTIONS)
    found = {likeness.RECONSTRUCTED: {row["instruction_id"]: row["text"] for row in probed if row["status"] == "ok"}}
    for name, path in params.distribution.compare.items():
        key = f"distribution.compare.{name}"
        if Path(path).suffix not in (".jsonl", ".parquet"):
            raise UserError(f"{key}: {path!r}: expected a file *.jsonl or *.parquet")
        if not Path(path).is_file():
            raise UserError(f"{key}: {path}: no such file; paths start at the project's root, {Path.cwd()}")
        found[name] = {records.digest("instruction", prompt): prompt for prompt in formats.prompts(path, key)}
    for name in params.rehearsal_sources():
        rows = records.read(f"data/rehearsal/{name}.parquet", records.REHEARSAL)
        conversations = [row["messages"] for row in rows if row["status"] == "ok"]
        firsts = [next(turn["content"] for turn in turns if turn["role"] == "user") for turns in conversations]
        found[name] = {records.digest("instruction", text): text for text in firsts}
    return {name: distribution.sample(texts, params.distribution.sample, params.seed) for name, texts in found.items()}


def bits_of(model: Any, prefix: list[int], ids: list[list[int]]) -> list[float]:
    """Bits that the target takes to write each text as a user's turn; the turn's end is not counted."""
    encoded = [Encoded(prefix + own, [False] * len(prefix) + [True] * len(own)) for own in ids]
    with Progress("distribution: bits per byte", len(encoded), "texts") as progress:
        return [found.bits for found in likelihood.measure(model, encoded, BATCH, advance=progress.advance)]


def describe(name: str, texts: dict[str, str], model: Any, tokenizer: Any, params: Params) -> list[dict[str, Any]]:
    """Rows of `records.DISTRIBUTION` for one set; bits for the first `distribution.likelihood` of it."""
    prefix = template.pre_query(tokenizer, params.probe.system, params.probe.prefix).ids
    rows: list[dict[str, Any]] = [
        {
            "source": name,
            "instruction_id": key,
            "type": kind,
            "language": distribution.language(text),
            "tokens": len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            "bits": None,
            "bytes": None,
        }
        for (key, text), kind in zip(texts.items(), instruction_types(list(texts.values())), strict=True)
    ]
    shown = [text[:READ_CHARACTERS] for text in texts.values()][: params.distribution.likelihood]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in shown]
    for row, text, bits in zip(rows, shown, bits_of(model, prefix, ids), strict=False):
        row |= {"bits": round(bits, 3), "bytes": len(text.encode("utf-8", "replace"))}
    return rows


def portrait(rows: list[dict[str, Any]], resamples: int, seed: int) -> likeness.Portrait:
    """Counts and shares of one set's rows."""
    import numpy as np

    languages = Counter(row["language"] for row in rows)
    quartiles = np.quantile([row["tokens"] for row in rows], [0.25, 0.5, 0.75]) if rows else []
    sized = [row for row in rows if row["bytes"]]
    bits = None
    if len(sized) >= distribution.MIN_INSTRUCTIONS:
        weights = np.array([row["bytes"] for row in sized], float)
        values = np.array([row["bits"] for row in sized]) / weights
        low, high = stats.bootstrap_interval(values, weights, resamples, seed)
        if low is not None and high is not None:
            bits = distribution.Estimate(float(stats.weighted_mean(values, weights)), low, high)
    return likeness.Portrait(
        len(rows),
        distribution.shares([row["type"] for row in rows], TYPES),
        {code: count / len(rows) for code, count in sorted(languages.items(), key=lambda item: (-item[1], item[0]))},
        dict(zip(("low", "median", "high"), map(float, quartiles), strict=False)),
        bits,
        len(sized),
    )


def main() -> None:
    params = settings.load()
    wanted = params.distribution
    sets = texts_of(params)  # every file is looked at before anything that takes time

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path("models/pretrained") / params.target
    trusted = params.models[params.target].trust_remote_code
    tokenizer = tokenizer_of(folder, trusted)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trusted).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    rows = {name: describe(name, texts, model, tokenizer, params) for name, texts in sets.items()}
    whole = {
        name: distribution.Collection(list(texts), [row["type"] for row in rows[name]], embed(list(texts.values())))
        for name, texts in sets.items()
    }
    own = whole.pop(likeness.RECONSTRUCTED)

    def seed(name: str) -> int:
        return records.seed_of("distribution", params.seed, name)

    found = likeness.Likeness(
        {name: portrait(rows[name], wanted.resamples, seed(name)) for name in sets},
        {name: distribution.distance(own, other, wanted.resamples, seed(name)) for name, other in whole.items()},
        distribution.floor(own, params.seed),
    )
    all_rows = [row for of_set in rows.values() for row in of_set]
    records.write("data/distribution.parquet", all_rows, records.DISTRIBUTION, ["source", "instruction_id"])
    records.write_metrics("metrics/distribution.json", likeness.flat(found))
    print("\n".join(likeness.sentences(found)))


if __name__ == "__main__":
    run(main)
