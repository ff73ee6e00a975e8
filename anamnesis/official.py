"""Suites local and leaderboard: lm-eval's official tasks asked of a model, one sample row an item.

`local` brings the rows of files on this machine (anamnesis/benchmarks.py), `leaderboard` lets lm-eval fetch them from
the hub. Prompts, few-shot examples (as turns of one conversation), stops and scoring are lm-eval's in both.
Imports lm-eval and datasets where they are used.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anamnesis.benchmarks import LEADERBOARD, LOCAL, OURS, Benchmark, Row
from anamnesis.errors import MODEL_UNAVAILABLE, UserError, hub_errors
from anamnesis.evaluation import Lm
from anamnesis.progress import Progress
from anamnesis.records import digest

OUR_TASKS = Path(__file__).parent / "tasks"
SHUFFLE = 0  # lm-eval's own seed: GPQA's options are shuffled with the global source of randomness


def ask_local(lm: Lm, chosen: Mapping[str, Sequence[Row]], label: str = "") -> list[Row]:
    """Ask the rows that `benchmarks.load` read, by measure."""
    if not chosen:
        return []
    import datasets

    datasets.disable_progress_bars()
    children = [
        {
            "task": LOCAL[measure].tasks[0],
            "custom_dataset": _in_memory({LOCAL[measure].split: datasets.Dataset.from_list(list(rows))}),
            **_other_splits(LOCAL[measure].split),
            **LOCAL[measure].overrides,
        }
        for measure, rows in chosen.items()
    ]
    return _ask(lm, {measure: LOCAL[measure] for measure in chosen}, children, {}, f"{label}local")


def ask_leaderboard(lm: Lm, names: Sequence[str], items: int | None, seed: int, label: str = "") -> list[Row]:
    """Ask the leaderboard's tasks over the hub's data sets, of each the first `items` in seeded order.

    Raises `UserError` (exit code 3) where the hub can't be reached or doesn't hand out a set.
    """
    if not names:
        return []
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()  # a shuffle of an earlier run would come back
    children = [{"task": task} for name in names for task in LEADERBOARD[name].tasks]
    return _ask(
        lm, {name: LEADERBOARD[name] for name in names}, children, {"items": items, "seed": seed}, f"{label}hub"
    )


def _ask(
    lm: Lm, benchmarks: Mapping[str, Benchmark], children: list[dict[str, Any]], part: dict[str, Any], label: str
) -> list[Row]:
    import lm_eval

    tasks = _load(benchmarks, children)
    measure_of = {task: measure for measure, benchmark in benchmarks.items() for task in benchmark.tasks}
    wanted = _part(tasks["tasks"], measure_of, **part) if part.get("items") else None
    if wanted is not None:
        tasks["tasks"] = {name: task for name, task in tasks["tasks"].items() if wanted[name]}
        tasks["groups"] = {}
    with Progress(label, _requests(tasks["tasks"], wanted), "requests") as progress:
        result = lm_eval.evaluate(
            lm=lm(progress.advance),
            task_dict={"tasks": tasks["tasks"], "groups": {}, "group_map": {}},
            samples=wanted,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
            log_samples=True,
        )
    return [
        sample_row(measure_of[task], benchmarks[measure_of[task]], task, sample)
        for task in tasks["tasks"]
        for sample in result["samples"][task]
        if sample["filter"] == benchmarks[measure_of[task]].filter
    ]


def _load(benchmarks: Mapping[str, Benchmark], children: list[dict[str, Any]]) -> dict[str, Any]:
    from lm_eval import tasks as official

    from anamnesis import constraints  # noqa: F401 (first: it keeps IFEval's checkers from trying a download)

    root = Path(official.__file__).parent
    folders = {str(OUR_TASKS if one.folder == OURS else root / one.folder) for one in benchmarks.values()}
    manager = official.TaskManager(include_path=sorted(folders), include_defaults=False)
    for child in children:
        if "gpqa" in child["task"]:
            child["process_docs"] = _same_shuffle
    try:
        return manager.load([{"group": "official", "task": children}])  # in a group, keys override a task's own
    except hub_errors() as error:
        if "custom_dataset" in children[0]:  # nothing of the hub's: a defect
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"evaluate.suite leaderboard: a data set can't be had from the hub: {said}; with a network, check access "
            "(HF_TOKEN for GPQA, which asks for consent); without one, suite local reads files",
            MODEL_UNAVAILABLE,
        ) from None


def _same_shuffle(dataset: Any) -> Any:
    """GPQA's own preparation, with its options in the same order every time: lm-eval calls it more than once."""
    from lm_eval.tasks.leaderboard.gpqa.utils import process_docs

    state = random.getstate()
    random.seed(SHUFFLE)
    try:
        return process_docs(dataset)
    finally:
        random.setstate(state)


def _other_splits(asked: str) -> dict[str, None]:
    """Of the splits only the one that is asked is at hand; lm-eval would look for examples in the others."""
    others = {"test": ("training", "validation", "fewshot"), "validation": ("training", "fewshot"), "train": ()}
    return {f"{split}_split": None for split in others[asked]}


def _in_memory(splits: Mapping[str, Any]) -> Callable[..., Mapping[str, Any]]:
    return lambda **_: splits


def _part(tasks: Mapping[str, Any], measure_of: Mapping[str, str], items: int, seed: int) -> dict[str, list[int]]:
    """For each task the indices to ask: `items` of all that belong to one measure, in seeded order."""
    found: dict[str, list[int]] = {name: [] for name in tasks}
    for measure in dict.fromkeys(measure_of.values()):
        places = [
            (name, i) for name, task in tasks.items() if measure_of[name] == measure for i in range(len(task.eval_docs))
        ]
        for name, i in sorted(places, key=lambda place: digest("item", seed, *place))[:items]:
            found[name].append(i)
    return {name: sorted(indices) for name, indices in found.items()}


def _requests(tasks: Mapping[str, Any], wanted: Mapping[str, Sequence[int]] | None) -> int:
    total = 0
    for name, task in tasks.items():
        docs = task.eval_docs
        docs = docs if wanted is None else docs.select(wanted[name])
        total += (
            sum(len(task.doc_to_choice(doc)) for doc in docs) if task.OUTPUT_TYPE == "multiple_choice" else len(docs)
        )
    return total


def sample_row(measure: str, benchmark: Benchmark, task: str, sample: Row) -> Row:
    """lm-eval's log of one item as a row of `records.SAMPLES`."""
    doc = sample["doc"]
    if len(sample["arguments"]) > 1:  # options: the one that the metric takes
        per_character = benchmark.metric == "acc_norm"
        options = [argument[1] for argument in sample["arguments"]]
        scores = [score for score, _ in sample["filtered_resps"]]
        output = options[_likeliest(scores, [len(option) for option in options] if per_character else None)].strip()
    else:
        output = sample["resps"][0][0]
    return {
        "measure": measure,
        "item_id": doc.get("item_id") or f"{task}-{sample['doc_id']}",
        "value": float(sample[benchmark.metric]),
        "weight": 1.0,
        "output": None if benchmark.hidden else output,
        "category": benchmark.category(doc),
        "question": None if benchmark.hidden else doc[benchmark.question],
    }


def _likeliest(scores: Sequence[float], lengths: Sequence[int] | None) -> int:
    level = scores if lengths is None else [score / size for score, size in zip(scores, lengths, strict=True)]
    return max(range(len(level)), key=level.__getitem__)
