"""All that is asked of one model, in order: the items are chosen first, then it is loaded or served, then asked.

In: params, the model's directory and base's. Out: rows of `records.SAMPLES`, and what to say beside their figures.
Every suite is asked apart from the others, so that none changes another's figures.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anamnesis import benchmarks, evaluation, items, official, records, suites
from anamnesis.cards import Card
from anamnesis.errors import UserError
from anamnesis.evaluation import Lm, Row
from anamnesis.params import Params
from anamnesis.sections import Evaluate

LONGEST = 8192  # tokens of prompt and answer that a server keeps room for, where the model's context is longer


def measure(params: Params, name: str, base_dir: str, model_dir: str) -> tuple[list[Row], dict[str, str]]:
    """Measure the model in `model_dir`; `name` goes before every line of progress. Raises `UserError`."""
    settings = params.evaluate
    suite = evaluation.Suite()
    if "embedded" in settings.suites:
        suite = evaluation.suite(
            records.read("data/domain/test.parquet", records.DOMAIN_TEST),
            records.read("data/heldout.parquet", records.HELDOUT),
            settings,
            params.seed,
        )
    more = evaluation.more_tasks(settings)
    suites.check(settings)
    digests = suites.unchanged(settings, _recorded()) if suites.paths(settings) else {}
    evaluation.be_quiet(offline="leaderboard" not in settings.suites)
    local = local_rows(settings, params.seed)

    label = f"evaluate {name}: "
    trusted = params.models[params.target].trust_remote_code
    tokenizer = evaluation.load_tokenizer(base_dir, trusted)
    samples = []
    with _model(params, name, base_dir, model_dir, tokenizer) as (lm, model):
        samples += evaluation.answer(lm, tokenizer, suite.tasks, settings, label)
        samples += evaluation.answer(lm, tokenizer, more, settings, label)
        samples += official.ask_local(lm, local, label)
        samples += official.ask_leaderboard(lm, settings.chosen("leaderboard"), settings.items, params.seed, label)
        if model is not None:
            samples += _texts(params, name, base_dir, suite, model, tokenizer, label)
    if model is None and suite.texts:  # a server is gone before the weights are loaded a second time
        model = evaluation.load_model(model_dir, trusted)
        samples += _texts(params, name, base_dir, suite, model, tokenizer, label)
    alone = settings.suites == ["embedded"] and not settings.domain_sets and settings.backend == "hf"
    return samples, {} if alone else evaluation.provenance(settings.backend, digests)


def local_rows(settings: Evaluate, seed: int) -> dict[str, list[Row]]:
    """The rows that suite local asks, by measure. Raises `UserError` for a row, or for what its checkers lack."""
    paths = suites.paths(settings)
    local = {
        task: _chosen(benchmarks.load(task, paths[task]), settings.items, seed) for task in settings.chosen("local")
    }
    if checked := {"ifeval", "ifbench"} & local.keys():
        from anamnesis import constraints

        for task in sorted(checked):
            constraints.rehearse(task, local[task])
    return local


def _recorded() -> dict[str, str]:
    try:
        return json.loads(Path(suites.SUITE).read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{suites.SUITE}: not found; run `dvc repro`") from None


def _chosen(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    return items.pick(rows, "item_id", len(rows) if count is None else count, seed)


@contextmanager
def _model(params: Params, name: str, base_dir: str, model_dir: str, tokenizer: Any) -> Iterator[tuple[Lm, Any]]:
    """lm-eval's model, and the loaded one where backend hf has one."""
    from anamnesis import harness, server

    trusted = params.models[params.target].trust_remote_code
    if params.evaluate.backend == "hf":
        model = evaluation.load_model(model_dir, trusted)
        yield harness.from_model(model, tokenizer, params.evaluate.batch_size), model
        return
    length = min(evaluation.context_of(model_dir, trusted) or LONGEST, LONGEST)
    # fp32 unless params say otherwise, as backend hf has it: bf16 changes picks that are nearly tied.
    dtype = "float32" if params.serve.dtype == "auto" else params.serve.dtype
    arguments = [*params.serve.vllm_args, "--tokenizer", base_dir]
    serve = params.serve.model_copy(update={"dtype": dtype, "max_model_len": length, "vllm_args": arguments})
    card = Card(f"evaluate-{name}", "local", identity=name, trust_remote_code=trusted)
    with server.local(Path(model_dir), card, serve, params.requests) as endpoint:
        concurrency, timeout = params.requests.concurrency, params.requests.timeout_s
        yield harness.from_server(endpoint, tokenizer, length, concurrency, timeout), None


def _texts(
    params: Params, name: str, base_dir: str, suite: evaluation.Suite, model: Any, tokenizer: Any, label: str
) -> list[Row]:
    rows = []
    for measure, texts in suite.texts.items():
        reference = None
        if measure == "own_text" and name != "base":
            trusted = params.models[params.target].trust_remote_code
            reference = evaluation.load_model(base_dir, trusted)  # for KL(base || tuned)
        rows += evaluation.read(model, tokenizer, measure, texts, params.evaluate, reference, label)
    return rows
