"""Suites local and leaderboard and domain sets: files, rows, prompts and scores, without a model."""

import contextlib
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from anamnesis import benchmarks, domain_sets, evaluation, foresight, measures, official, sections, suites
from anamnesis.errors import BAD_INPUT, MODEL_UNAVAILABLE, UserError
from anamnesis.params import Params
from anamnesis.sections import Evaluate

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "eval").is_dir(), reason="no folder SHARED_DATA with real evaluation sets")

# One row of every file as docs/evaluation.md describes it, and the prompt that lm-eval's own task makes of it.
CHOICE = {"id": "x1", "question": "Which one barks?", "options": ["cat", "dog", "cow", "hen"], "answer": "B"}
FILES: dict[str, tuple[Row, str]] = {
    "medqa": (CHOICE, "Question: Which one barks?\nA. cat\nB. dog\nC. cow\nD. hen\nAnswer:"),
    "pubmedqa": (
        {"id": "x1", "instruction": "Answer.\n\nAbstract:\nAIM: a\nEND: b\n\nQuestion: Is it?", "label": "maybe"},
        "Abstract: AIM: a\nEND: b\nQuestion: Is it?\nAnswer:",
    ),
    "mmlu_pro": (
        {**CHOICE, "category": "computer science"},
        "Which one barks?\nA. cat\nB. dog\nC. cow\nD. hen\nAnswer:",
    ),
    "ifeval": (
        {"key": 7, "prompt": "Use no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        "Use no commas.",
    ),
    "math_lvl5": (
        {
            "id": "x1",
            "question": "1+1?",
            "answer": "2",
            "solution": "It is $\\boxed{2}$.",
            "level": "Level 5",
            "type": "Algebra",
        },
        "Problem:\n1+1?\n\nSolution:",
    ),
    "gsm8k": ({"id": "x1", "question": "2+2?", "answer": "4", "solution": "So.\n#### 4"}, "Q: 2+2?\nA:"),
    "arc_challenge": (CHOICE, "Question: Which one barks?\nAnswer:"),
    "hellaswag": (
        {**CHOICE, "question": "A dog comes. it", "activity": "Walking the dog"},
        "Walking the dog: A dog comes. it",
    ),
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder with a file of one row for each task in FILES, and GPQA's as a zip."""
    for name, (row, _) in FILES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "gpqa_diamond").mkdir()
    rows = [{**CHOICE, "id": f"g{i}", "question": f"secret {i}", "domain": "Physics"} for i in range(6)]
    with zipfile.ZipFile(tmp_path / "gpqa_diamond/dataset.zip", "w") as archive:
        archive.writestr("gpqa_diamond.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        archive.writestr("gpqa_main.csv", "Question\nno\n")
    return tmp_path


class Stub:
    """In place of lm-eval's model: prefers the first option, always writes the same, remembers what it was asked."""

    def __init__(self, answer: str = "The answer is 4."):
        self.answer, self.asked = answer, []  # type: ignore[var-annotated]

    def __call__(self, advance: Callable[[], None]) -> Any:
        from lm_eval.api.model import LM

        stub = self

        class Model(LM):
            tokenizer_name = "stub"

            def apply_chat_template(
                self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
            ) -> str:
                return json.dumps(chat_history)

            def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
                stub.asked += [request.args for request in requests]
                return [(-float(request.idx), False) for request in requests]

            def generate_until(self, requests: list[Any]) -> list[str]:
                stub.asked += [request.args for request in requests]
                return [stub.answer for _ in requests]

            def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
                raise NotImplementedError

        return Model()


@pytest.fixture(autouse=True)
def quiet() -> None:
    evaluation.be_quiet()


# --- params and files -------------------------------------------------------------------------------------------------

MISTAKES = [
    ({"suite": "local"}, "suite local needs data_dir"),
    ({"suite": "locale"}, "Input should be 'embedded'"),
    ({"suite": []}, "at least 1 item"),
    ({"suite": ["safety", "safety"]}, "suite names one twice"),
    ({"tasks": ["gsm8k"]}, "'gsm8k' is none of suite local or leaderboard"),
    ({"suite": "local", "data_dir": "x", "tasks": ["gsm9k"]}, "'gsm9k' is none of medqa, pubmedqa"),
    ({"suite": ["local", "leaderboard"], "data_dir": "x", "tasks": ["gsm8k"]}, "tasks names none of suite leaderboard"),
    ({"domain_sets": {"a.b": "x.jsonl"}}, "domain_sets.a.b: a key is lower-case letters"),
    ({"backend": "tgi"}, "Input should be 'hf' or 'vllm'"),
    ({"items": 0}, "greater than or equal to 1"),
]


@pytest.mark.parametrize(("settings", "said"), MISTAKES)
def test_a_mistake_in_params(settings: Row, said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace(".", "[.]")):
        Evaluate(**settings)


def test_the_names_in_params_are_measures() -> None:
    assert {suite: list(names) for suite, names in sections.TASKS.items()} == {
        suite: measures.of_suite(suite) for suite in sections.TASKS
    }
    assert list(benchmarks.LOCAL) == list(sections.TASKS["local"])
    assert list(benchmarks.LEADERBOARD) == list(sections.TASKS["leaderboard"])
    for name in [*benchmarks.LOCAL, *benchmarks.LEADERBOARD]:
        assert measures.spec(name).binary


def test_a_suite_is_one_name_or_several() -> None:
    assert Evaluate().suites == ["embedded"]
    both = Evaluate(suite=["safety", "local"], data_dir="x", tasks=["gsm8k", "medqa"])
    assert both.suites == ["safety", "local"]
    assert both.chosen("local") == ["medqa", "gsm8k"]
    assert both.chosen("leaderboard") == []


@pytest.mark.parametrize("below", ["", "eval", "domain"])
def test_a_file_is_found_in_its_folder(tmp_path: Path, below: str) -> None:
    folder = tmp_path / below / "hellaswag"
    folder.mkdir(parents=True)
    (folder / "val_subset.jsonl").touch()
    (folder / "train.jsonl").touch()
    assert suites.find(tmp_path, "hellaswag") == folder / "val_subset.jsonl"


def early(settings: Row, default_params: Row, folder: Path) -> str:
    default_params["evaluate"] |= settings
    params = Params.model_validate(default_params)
    with contextlib.chdir(folder), pytest.raises(UserError) as raised:
        foresight.check(params)
    assert raised.value.code == BAD_INPUT
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_missing_is_told_before_any_work(default_params: Row, data_dir: Path, monkeypatch: Any) -> None:
    def said(**settings: Any) -> str:
        return early(settings, yaml.safe_load(yaml.safe_dump(default_params)), data_dir)

    local = {"suite": "local", "data_dir": "."}
    assert said(suite="local", data_dir="nowhere").startswith("evaluate.data_dir: nowhere: no such folder")
    assert said(**local).startswith("evaluate.data_dir: .: no file for ifbench; put each in a folder of its name")
    assert said(domain_sets={"mine": "mine.jsonl"}).startswith("evaluate.domain_sets.mine: mine.jsonl: no such file")
    (data_dir / "mine.jsonl").write_text('{"question": "?"}\n', encoding="utf-8")
    assert said(domain_sets={"mine": "mine.jsonl"}).startswith(
        "evaluate.domain_sets.mine: mine.jsonl: line 1: field answer: missing or empty"
    )
    (data_dir / "ifbench").mkdir()
    (data_dir / "ifbench/test.jsonl").touch()
    monkeypatch.setattr(suites, "find_spec", lambda name: None)
    assert said(**local, tasks=["ifbench"]).startswith("evaluate.tasks: ifbench needs the package if-verifiable")


def test_leaderboards_ifeval_needs_nltk_data_before_any_work(
    default_params: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sentence counts would otherwise fail after the last answer: the checkers' own download is switched off."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    suites.check(Evaluate(suite="leaderboard", tasks=["leaderboard_gpqa"]))
    with pytest.raises(UserError, match=r"leaderboard_ifeval needs NLTK's punkt_tab; `python -m nltk.downloader"):
        suites.check(Evaluate(suite="leaderboard"))
    (tmp_path / "tokenizers/punkt_tab").mkdir(parents=True)
    suites.check(Evaluate(suite="leaderboard"))


def test_stage_suite_names_the_files_that_dvc_does_not_watch(
    data_dir: Path, default_params: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import suite

    (data_dir / "data/own").mkdir(parents=True)
    (data_dir / "data/own/mine.jsonl").write_text('{"question": "?", "answer": "x"}\n', encoding="utf-8")
    default_params["evaluate"] |= {"suite": "local", "data_dir": ".", "tasks": ["gsm8k"]}
    default_params["evaluate"]["domain_sets"] = {"mine": "data/own/mine.jsonl"}
    (data_dir / "params.yaml").write_text(yaml.safe_dump(default_params, sort_keys=False), encoding="utf-8")
    monkeypatch.chdir(data_dir)
    suite.main()
    said = capsys.readouterr().err
    assert said.startswith(
        "note: gsm8k/test.jsonl is outside data/own/, so a change in it reruns nothing; after one: `dvc repro -sf suite"
    )
    assert "mine" not in said
    assert list(json.loads(Path("data/suite.json").read_text(encoding="utf-8"))) == ["domain-mine", "gsm8k"]


def test_a_file_that_changed_since_stage_suite_is_not_measured(data_dir: Path) -> None:
    settings = Evaluate(suite="local", data_dir=str(data_dir), tasks=["gsm8k", "medqa"])
    recorded = suites.digests(settings)
    assert list(recorded) == ["gsm8k", "medqa"]
    assert suites.unchanged(settings, recorded) == recorded
    (data_dir / "gsm8k/test.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"gsm8k: the file is not the one that data/suite.json names"):
        suites.unchanged(settings, recorded)


# --- rows and prompts of suite local ----------------------------------------------------------------------------------


def test_of_math_only_level_5_is_asked_whatever_the_file_has(tmp_path: Path) -> None:
    """lm-eval's task leaves the others out: picked before, they would make the measure smaller than `items`."""
    path = tmp_path / "test.jsonl"
    hard = FILES["math_lvl5"][0]
    rows = [{**hard, "id": f"x{level}", "level": f"Level {level}"} for level in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["item_id"] for row in benchmarks.load("math_lvl5", path)] == ["x5"]
    path.write_text(json.dumps({**hard, "level": 5}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="no rows that task math_lvl5 takes"):
        benchmarks.load("math_lvl5", path)


@pytest.mark.parametrize("name", FILES)
def test_lm_evals_own_task_asks_the_row_of_a_file(name: str, data_dir: Path) -> None:
    _, prompt = FILES[name]
    stub = Stub()
    (row,) = official.ask_local(stub, {name: benchmarks.load(name, data_dir / name / "test.jsonl")})
    turns = json.loads(stub.asked[0][0])
    assert turns[-1] == {"role": "user", "content": prompt}
    shots = {"math_lvl5": 4, "gsm8k": 8}.get(name, 0)  # the examples that are part of the task, as turns
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * shots + ["user"]
    assert row["measure"] == name
    assert row["item_id"] == ("7" if name == "ifeval" else "x1")
    assert row["weight"] == 1.0
    assert row["question"]
    assert row["category"] == {
        "mmlu_pro": "computer science",
        "math_lvl5": "Algebra",
        "ifeval": "punctuation",
    }.get(name)


def test_answers_are_scored(data_dir: Path) -> None:
    def score(name: str, answer: str) -> tuple[float, str | None]:
        rows = benchmarks.load(name, data_dir / name / "test.jsonl")
        (row,) = official.ask_local(Stub(answer), {name: rows})
        return row["value"], row["output"]

    assert score("gsm8k", "First 2, then 4") == (1.0, "First 2, then 4")
    assert score("gsm8k", "First 4, then 2") == (0.0, "First 4, then 2")
    assert score("math_lvl5", "Final Answer: The final answer is $2$. I hope it is correct.")[0] == 1.0
    assert score("ifeval", "fine") == (1.0, "fine")
    assert score("ifeval", "one, two")[0] == 0.0
    assert score("medqa", "") == (0.0, "A")  # the stub prefers the first option
    assert score("arc_challenge", "") == (0.0, "cat")


def test_gpqa_is_read_from_its_zip_and_never_shown(data_dir: Path) -> None:
    rows = benchmarks.load("gpqa_diamond", data_dir / "gpqa_diamond/dataset.zip")
    stub = Stub()
    samples = official.ask_local(stub, {"gpqa_diamond": rows})
    assert "secret 0" in stub.asked[0][0]
    assert len(samples) == 6
    assert {(row["question"], row["output"], row["category"]) for row in samples} == {(None, None, "Physics")}
    assert len({json.loads(prompt)[0]["content"].partition("Choices")[2] for prompt, _ in stub.asked}) > 1  # shuffled
    again = Stub()
    random.seed(99)
    assert official.ask_local(again, {"gpqa_diamond": rows}) == samples
    assert again.asked == stub.asked


def test_the_right_option_stays_right_when_gpqa_shuffles(data_dir: Path) -> None:
    rows = benchmarks.load("gpqa_diamond", data_dir / "gpqa_diamond/dataset.zip")
    stub = Stub()
    samples = official.ask_local(stub, {"gpqa_diamond": rows})
    first = {prompt.partition("secret ")[2][0]: "(A) dog" in prompt for prompt, _ in stub.asked}
    assert {row["item_id"][1]: bool(row["value"]) for row in samples} == first


def test_a_row_that_is_none_is_one_line_and_gpqas_rows_are_not_told(data_dir: Path) -> None:
    path = data_dir / "medqa/test.jsonl"
    path.write_text(json.dumps({**CHOICE, "answer": "G"}) + "\n")
    with pytest.raises(UserError, match=r"row 1: not what task medqa wants .*answer 'G' is none of 4 options"):
        benchmarks.load("medqa", path)
    path.write_text("not json\n")
    with pytest.raises(UserError, match="can't be read as jsonl"):
        benchmarks.load("medqa", path)
    path.write_text("")
    with pytest.raises(UserError, match="no rows"):
        benchmarks.load("medqa", path)
    path.write_text(json.dumps({**CHOICE, "options": [*CHOICE["options"], "emu"], "answer": "E"}) + "\n")
    with pytest.raises(UserError, match=r"row 1: not what task medqa wants \(ValueError: 5 options and not 4\)"):
        benchmarks.load("medqa", path)
    path.write_text(json.dumps({**FILES["pubmedqa"][0], "label": "Yes"}) + "\n")
    with pytest.raises(UserError, match="answer 'Yes' is none of yes, no, maybe"):
        benchmarks.load("pubmedqa", path)
    gpqa = data_dir / "gpqa_diamond/test.jsonl"
    gpqa.write_text(json.dumps({**CHOICE, "question": "secret", "answer": "dog!"}) + "\n")
    with pytest.raises(UserError) as raised:
        benchmarks.load("gpqa_diamond", gpqa)
    assert "secret" not in str(raised.value)
    assert "dog" not in str(raised.value)


def test_what_a_checker_needs_must_be_here_before_a_model_is_asked(monkeypatch: Any) -> None:
    from anamnesis import constraints

    sentences = {"prompt": "?", "kwargs": [{"num_sentences": 2, "relation": "at least"}]}
    rows = [{**sentences, "instruction_id_list": ["length_constraints:number_sentences"]}]
    import nltk

    def nowhere(*_: Any, **__: Any) -> None:
        raise LookupError("\n  Resource punkt_tab not found.\n  >>> nltk.download('punkt_tab')\n")

    monkeypatch.setattr(nltk.data, "load", nowhere)
    constraints._forget()
    with pytest.raises(UserError, match=r"ifeval needs NLTK's punkt_tab \(for 1 of 1 items\)"):
        constraints.rehearse("ifeval", rows)
    constraints.rehearse("ifeval", [{**rows[0], "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}])
    for kind, arguments in (("punctuation:no_comas", {}), ("punctuation:no_comma", {"lines": 3})):
        wrong = {"item_id": "i7", "prompt": "?", "instruction_id_list": [kind], "kwargs": [arguments]}
        with pytest.raises(UserError, match="ifeval: item i7 has constraints that the checkers don't take") as raised:
            constraints.rehearse("ifeval", [wrong])
        assert "\n" not in str(raised.value)


def test_make_repro_reads_local_rows_before_any_work(
    data_dir: Path, default_params: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import check

    default_params["evaluate"] |= {"suite": "local", "data_dir": ".", "tasks": ["gsm8k", "ifeval", "medqa"]}
    (data_dir / "params.yaml").write_text(yaml.safe_dump(default_params, sort_keys=False), encoding="utf-8")
    monkeypatch.chdir(data_dir)
    check.main()
    (data_dir / "medqa/test.jsonl").write_text(json.dumps({**CHOICE, "answer": "G"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"medqa/test.jsonl: row 1: not what task medqa wants"):
        check.main()


def test_an_ifbench_checker_that_stumbles_over_an_answer_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from anamnesis import constraints

    class Checker:
        def __init__(self, kind: str):
            self.kind = kind

        def build_description(self, **arguments: Any) -> None:
            self.arguments = arguments

        def get_instruction_args(self) -> Row:
            return self.arguments

        def check_following(self, answer: str) -> bool:
            if answer == "lost":
                raise LookupError("Resource punkt_tab not found.")
            return answer.strip("0123456789")[-1] == self.arguments["end"]

    monkeypatch.setattr(constraints, "ifbench_checkers", lambda: {"a": Checker, "b": Checker})
    doc = {"prompt": "?", "instruction_id_list": ["a", "b"], "arguments": '[{"end": "!"}, {"end": "!"}]'}
    other = {**doc, "arguments": '[{"end": "!"}, {"end": "?"}]'}
    answers = {"Yes!": 1, "Yes.": 0, " ": 0, "": 0, "2026": 0}  # the last one has no sign left to look at
    assert {answer: constraints.process_ifbench(doc, [answer])["followed"] for answer in answers} == answers
    assert constraints.process_ifbench(other, ["Yes!"]) == {"followed": 0}
    with pytest.raises(LookupError, match="punkt_tab"):
        constraints.process_ifbench(doc, ["lost"])


@needs_data
def test_real_files_through_every_task() -> None:
    """All that need no optional package or data; IFEval's items that count sentences are left to the run itself."""
    names = [name for name in benchmarks.LOCAL if name not in ("ifbench",)]
    paths = suites.files(DATA, names)
    chosen = {name: benchmarks.load(name, path)[:3] for name, path in paths.items()}
    counts = {name: len(benchmarks.load(name, path)) for name, path in paths.items()}
    assert counts["ifeval"] == 541
    assert counts["gpqa_diamond"] == 198
    assert counts["math_lvl5"] == 1324
    stub = Stub("I will not say.")
    rows = official.ask_local(stub, chosen)
    assert {name: sum(row["measure"] == name for row in rows) for name in names} == dict.fromkeys(names, 3)
    assert all((row["question"] is None) == (row["measure"] == "gpqa_diamond") for row in rows)


# --- suite leaderboard ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub in memory with rows in the form of the four real sets; returns what was asked of it."""
    import datasets

    asked: list[tuple[str, str | None]] = []
    mmlu = [{"question": f"q{i}", "options": ["a", "b"], "answer": "B", "category": "law"} for i in range(8)]
    gpqa = [
        {
            "Question": f"q{i}",
            "Correct Answer": "right",
            **{f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)},
            "High-level domain": "Physics",
        }
        for i in range(4)
    ]
    ifeval = [
        {"key": i, "prompt": f"p{i}", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": None}]}
        for i in range(5)
    ]
    math = [
        {"problem": f"p{i}", "solution": "It is $\\boxed{4}$.", "level": f"Level {5 - i % 2}", "type": "Algebra"}
        for i in range(6)
    ]
    sets = {
        "TIGER-Lab/MMLU-Pro": {"test": mmlu, "validation": mmlu[:5]},
        "Idavidrein/gpqa": {"train": gpqa},
        "wis-k/instruction-following-eval": {"train": ifeval},
        "DigitalLearningGmbH/MATH-lighteval": {"train": math, "test": math},
    }

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        asked.append((path, name))
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in sets[path].items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_leaderboards_four_as_lm_eval_defines_them(hub: list[tuple[str, str | None]]) -> None:
    stub = Stub("The final answer is $4$. I hope it is correct.")
    rows = official.ask_leaderboard(stub, sections.TASKS["leaderboard"], None, 17)
    assert ("TIGER-Lab/MMLU-Pro", None) in hub
    assert {name for path, name in hub if path == "Idavidrein/gpqa"} == {"gpqa_diamond", "gpqa_extended", "gpqa_main"}
    assert len({name for path, name in hub if path.startswith("Digital")}) == 7
    count = {name: sum(row["measure"] == name for row in rows) for name in sections.TASKS["leaderboard"]}
    assert list(count.values()) == [8, 12, 5, 21]
    assert len({(row["measure"], row["item_id"]) for row in rows}) == len(rows)
    shots = {}
    for prompt, _ in stub.asked:
        turns = json.loads(prompt)
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        last = turns[-1]["content"]
        kind = next(key for key in ("Problem:", "What is the correct", "Answer:", "p") if key in last)
        shots.setdefault(kind, set()).add(len(turns) // 2)
    assert shots == {"Problem:": {4}, "What is the correct": {0}, "Answer:": {5}, "p": {0}}
    assert {row["value"] for row in rows if row["measure"] == "leaderboard_math_hard"} == {1.0}
    assert {row["category"] for row in rows} == {"law", "Physics", "punctuation", "Algebra"}
    assert {row["question"] for row in rows if row["measure"] == "leaderboard_gpqa"} == {None}


def test_a_part_of_the_leaderboard_is_chosen_by_the_seed_and_smaller_ones_are_parts_of_it(hub: Any) -> None:
    def items(count: int, seed: int) -> dict[str, set[str]]:
        rows = official.ask_leaderboard(Stub(), sections.TASKS["leaderboard"], count, seed)
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row["measure"], set()).add(row["item_id"])
        return found

    three, two = items(3, 17), items(2, 17)
    assert {len(ids) for ids in three.values()} == {3}
    assert all(two[name] < three[name] for name in three)
    assert items(3, 18) != three
    assert items(3, 17) == three


def test_a_hub_out_of_reach_is_one_line_and_its_exit_code() -> None:
    with pytest.raises(
        UserError, match=r"suite leaderboard: a data set can't be had from the hub: .*MMLU-Pro"
    ) as raised:
        official.ask_leaderboard(Stub(), ["leaderboard_mmlu_pro"], None, 17)
    assert raised.value.code == MODEL_UNAVAILABLE
    assert "\n" not in str(raised.value)


# --- domain sets ------------------------------------------------------------------------------------------------------

BAD_SETS = [
    ("", "no questions"),
    ("[1]", "line 1: not an object"),
    ("{", "line 1: "),
    ('{"question": " ", "answer": "x"}', "line 1: field question: missing or empty"),
    ('{"question": "?", "answer": ""}', "line 1: field answer: missing or empty"),
    ('{"question": "?", "options": ["a"], "answer": "A"}', "line 1: field options: a list of two or more"),
    ('{"question": "?", "options": ["a", "a"], "answer": "A"}', "line 1: field options: one comes twice"),
    ('{"question": "?", "options": ["a", "b"], "answer": "C"}', "line 1: field answer: 'C' is no letter"),
    (
        '{"question": "?", "answer": "x"}\n{"question": "!", "options": ["a", "b"], "answer": 0}',
        "some rows have options",
    ),
]


@pytest.mark.parametrize(("text", "said"), BAD_SETS)
def test_a_file_that_is_no_domain_set(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        domain_sets.read("mine", path)
    assert str(raised.value).startswith(f"evaluate.domain_sets.mine: {path}: {said}")


def test_line_breaks_of_other_kinds_end_no_row(tmp_path: Path) -> None:
    """PubMedQA's training rows have one."""
    path = tmp_path / "x.jsonl"
    row = {"id": "1", "question": "one\u2028two\x85three?", "options": ["a", "b", "c", "d"], "answer": "B"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [item["question"] for item in domain_sets.read("mine", path)] == [row["question"]]
    assert [item["sent1"] for item in benchmarks.load("medqa", path)] == [row["question"]]


def test_an_answer_is_a_letter_an_index_or_the_option(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [
        {"question": f"q{i}", "choices": ["no", "yes"], "answer": answer} for i, answer in enumerate(["B", 1, "yes"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["gold"] for row in domain_sets.read("mine", path)] == [1, 1, 1]


def test_domain_sets_are_measures_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "?", "options": ["x", "y"], "answer": "A"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"question": "2+2?", "answer": 4}\n', encoding="utf-8")
    settings = Evaluate(domain_sets={"a": str(tmp_path / "a.jsonl"), "b-2": str(tmp_path / "b.jsonl")})
    tasks = evaluation.more_tasks(settings)
    words = lambda text: type("Ids", (), {"input_ids": text.split()})  # noqa: E731
    rows = evaluation.answer(Stub("4."), words, tasks, settings)
    assert [(row["measure"], row["value"], row["question"]) for row in rows] == [
        ("domain-a", 1.0, "?"),
        ("domain-b-2", 1.0, "2+2?"),
    ]
    assert measures.ordered(["arithmetic", "domain-b-2", "domain-a"]) == ["domain-a", "domain-b-2", "arithmetic"]
    assert measures.spec("domain-a").side == "learnt"
    assert measures.spec("domain-a").binary


def test_answers_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    """The datasets library's reader of JSON files makes points in time of them."""
    rows = [{"question": f"Day {n} of June?", "answer": f"2020-06-0{n}"} for n in (1, 2)]
    chosen = [{**row, "options": ["2020-06-01", "2020-06-02"]} for row in rows]
    for name, written in (("short", rows), ("choice", chosen)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    settings = Evaluate(domain_sets={name: str(tmp_path / f"{name}.jsonl") for name in ("short", "choice")})
    words = lambda text: type("Ids", (), {"input_ids": text.split()})  # noqa: E731
    found = evaluation.answer(Stub("2020-06-02"), words, evaluation.more_tasks(settings), settings)
    assert [(row["measure"], row["value"], row["output"]) for row in found] == [
        ("domain-short", 0.0, "2020-06-02"),
        ("domain-short", 1.0, "2020-06-02"),
        ("domain-choice", 1.0, "2020-06-01"),  # the stub prefers the first option
        ("domain-choice", 0.0, "2020-06-01"),
    ]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_categories_have_figures_of_their_own_and_provenance_has_no_time() -> None:
    def row(measure: str, value: float, category: str | None) -> Row:
        return {"measure": measure, "item_id": "", "value": value, "weight": 1.0, "category": category}

    rows = [row("mmlu_pro", 1.0, "computer science"), row("mmlu_pro", 0.0, "law"), row("arithmetic", 1.0, None)]
    assert evaluation.summary(rows) == {
        "arithmetic": 1.0,
        "arithmetic.n": 1,
        "mmlu_pro": 0.5,
        "mmlu_pro.n": 2,
        "mmlu_pro.computer-science": 1.0,
        "mmlu_pro.computer-science.n": 1,
        "mmlu_pro.law": 0.0,
        "mmlu_pro.law.n": 1,
    }
    assert evaluation.slug("Counting & Probability") == "counting-probability"
    said = evaluation.provenance("hf", {"gsm8k": "abc"})
    assert list(said) == ["harness.version", "backend", "sha256.gsm8k"]
