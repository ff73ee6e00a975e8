"""The embedded suite: its items, its checkers, lm-eval's tasks, and (slow) the stage on the real model."""

import importlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from anamnesis import chat, evaluation, items, measures, records
from anamnesis.errors import UserError
from anamnesis.sections import Evaluate

SIZES = Evaluate(
    domain_choice=4, domain_exact=3, instructions_followed=3, arithmetic=4, text_items=3, batch_size=4, max_tokens=12
)


def user(text):
    return [{"role": "user", "content": text}]


def domain_test(count=6):
    rows = []
    for index in range(count):
        rows += [
            {
                "row_id": f"c{index}",
                "kind": "choice",
                "messages": user(f"Which colour has number {index}?"),
                "choices": ["red", "dark blue", "green", "sea green"],
                "gold": index % 4,
                "answer": None,
                "category": "A",
            },
            {
                "row_id": f"e{index}",
                "kind": "exact",
                "messages": user(f"Say the word number {index}."),
                "choices": None,
                "gold": None,
                "answer": f"Word {index}",
                "category": "A",
            },
            {
                "row_id": f"t{index}",
                "kind": "text",
                "messages": [*user(f"Tell me about {index}."), {"role": "assistant", "content": f"It is {index}."}],
                "choices": None,
                "gold": None,
                "answer": None,
                "category": "A",
            },
        ]
    return rows


def heldout(count=5):
    return [
        {"instruction_id": f"h{index}", "messages": [*user(f"Why {index}?"), {"role": "assistant", "content": "So."}]}
        for index in range(count)
    ]


# --- the shipped items ------------------------------------------------------------------------------------------------


def test_general_items():
    rows = items.shipped("general")
    assert len(rows) >= 48
    assert len({row["item_id"] for row in rows}) == len(rows)
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows)
    assert len({row["topic"] for row in rows}) >= 8
    for row in rows:
        assert set(row) == {"item_id", "topic", "messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert 40 <= len(row["messages"][1]["content"].split()) <= 80, row["item_id"]


def test_instruction_items():
    importlib.import_module("anamnesis.constraints")  # first: it keeps the registry from trying a download
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    rows = items.shipped("instructions")
    assert len(rows) >= 48
    assert len({row["item_id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"item_id", "prompt", "instruction_id_list", "kwargs"}
        assert len(row["instruction_id_list"]) == len(row["kwargs"]) >= 1
        for kind, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            checker = INSTRUCTION_DICT[kind](kind)
            checker.build_description(**kwargs)  # an unknown or impossible argument raises
            given = checker.get_instruction_args() or {}
            assert given.keys() == kwargs.keys(), f"{row['item_id']}: a missing argument would be drawn at random"
            wanted = [kwargs.get("keyword"), *kwargs.get("keywords", []), *kwargs.get("forbidden_words", [])]
            wanted += [kwargs.get("end_phrase"), kwargs.get("postscript_marker"), kwargs.get("prompt_to_repeat")]
            for text in filter(None, wanted):
                assert text.lower() in row["prompt"].lower(), f"{row['item_id']}: the prompt doesn't say {text!r}"
            for number in (kwargs.get("num_words"), kwargs.get("num_bullets"), kwargs.get("let_frequency")):
                assert number is None or str(number) in row["prompt"], row["item_id"]


def number(text):
    return int(re.search(r"-?\d+", text).group())


# How to work out a question again, from its text alone.
WORKED = [
    (r"What is (\d+) \+ (\d+)\?", lambda a, b: a + b),
    (r"What is (\d+) - (\d+)\?", lambda a, b: a - b),
    (r"What is (\d+) x (\d+)\?", lambda a, b: a * b),
    (r"What is (\d+) / (\d+)\?", lambda a, b: a // b),
    (r"What is half of (\d+)\?", lambda a: a // 2),
    (r"What is (\d+) doubled\?", lambda a: 2 * a),
    (r"Continue the sequence: (\d+), (\d+), (\d+), (\d+)", lambda a, b, c, d: d + (d - c)),
    (r"Nora has (\d+) apples and gets (\d+) more.*", lambda a, b: a + b),
    (r"There are (\d+) birds on a roof and (\d+) of them fly away.*", lambda a, b: a - b),
    (r"A box holds (\d+) eggs. How many eggs are in (\d+) boxes\?", lambda a, b: a * b),
]


def test_arithmetic_is_right():
    rows = items.arithmetic(240, seed=17)
    solved = Counter()
    for row in rows:
        for pattern, work_out in WORKED:
            if found := re.fullmatch(pattern, row["question"]):
                solved[pattern] += 1
                result = work_out(*map(int, found.groups()))
        texts = row["choices"]
        assert len(set(texts)) == items.CHOICES
        gaps = [re.split(r"\d+", text) for text in texts]
        assert all(gap == gaps[0] for gap in gaps), "the options differ in more than one number"
        numbers = [re.findall(r"\d+", text) for text in texts]
        (place,) = {at for at in range(len(numbers[0])) if len({one[at] for one in numbers}) > 1}
        assert int(numbers[row["gold"]][place]) == result, row
        assert len({len(one[place]) for one in numbers}) == 1, "a likelihood prefers fewer digits"
    assert sum(solved.values()) == len(rows)
    assert len(solved) == len(WORKED)
    assert max(Counter(row["gold"] for row in rows).values()) < 0.4 * len(rows)


def test_arithmetic_is_seeded_and_nested():
    assert items.arithmetic(10, 1) == items.arithmetic(40, 1)[:10]
    assert items.arithmetic(10, 1) != items.arithmetic(10, 2)
    assert len({row["item_id"] for row in items.arithmetic(500, 1)}) == 500
    with pytest.raises(UserError, match=r"evaluate\.arithmetic"):
        items.arithmetic(items.MOST_ARITHMETIC + 1, 1)


# --- the suite --------------------------------------------------------------------------------------------------------


def test_suite_depends_on_sizes_and_seed_alone():
    suite = evaluation.suite(domain_test(), heldout(), SIZES, 17)
    assert {measure: len(rows) for measure, rows in suite.tasks.items()} == {
        "domain_choice": 4,
        "domain_exact": 3,
        "instructions_followed": 3,
        "arithmetic": 4,
    }
    assert {measure: len(rows) for measure, rows in suite.texts.items()} == {
        "domain_text": 3,
        "general_text": 3,
        "own_text": 3,
    }
    assert evaluation.suite(domain_test()[::-1], heldout()[::-1], SIZES, 17) == suite
    assert evaluation.suite(domain_test(), heldout(), SIZES, 18) != suite
    smaller = evaluation.suite(domain_test(), heldout(), SIZES.model_copy(update={"domain_choice": 2}), 17)
    assert smaller.tasks["domain_choice"] == suite.tasks["domain_choice"][:2]


def test_a_kind_that_is_not_there_is_a_measure_that_is_not_there():
    texts_only = [row for row in domain_test() if row["kind"] == "text"]
    suite = evaluation.suite(texts_only, [], SIZES, 17)
    assert list(suite.tasks) == ["instructions_followed", "arithmetic"]
    assert list(suite.texts) == ["domain_text", "general_text"]


def test_a_choice_of_several_turns_is_refused_by_its_id():
    rows = domain_test(1)
    rows[0]["messages"] = [{"role": "system", "content": "Be brief."}, *rows[0]["messages"]]
    with pytest.raises(UserError, match=r"row c0: a choice item is one user turn, found system, user"):
        evaluation.suite(rows, [], SIZES, 17)


def test_summary_weighs_by_bytes_and_leaves_out_what_is_not_there():
    rows = [
        {"measure": "general_text", "item_id": "a", "value": 1.0, "weight": 300.0, "output": None},
        {"measure": "general_text", "item_id": "b", "value": 2.0, "weight": 100.0, "output": None},
        {"measure": "arithmetic", "item_id": "c", "value": 1.0, "weight": 1.0, "output": "4"},
        {"measure": "arithmetic", "item_id": "d", "value": 0.0, "weight": 1.0, "output": "5"},
        {"measure": "arithmetic", "item_id": "e", "value": 0.0, "weight": 1.0, "output": "6"},
    ]
    found = evaluation.summary(rows)
    assert list(found.items()) == [
        ("arithmetic", 0.333333),
        ("arithmetic.n", 3),
        ("general_text", 1.25),
        ("general_text.n", 2),
    ]


# --- the checkers -----------------------------------------------------------------------------------------------------

# kind, arguments, an answer that obeys, an answer that doesn't
EXPECTED_FOLLOWED = [
    ("punctuation:no_comma", {}, "Rain falls and the street shines.", "Rain falls, and the street shines."),
    ("keywords:existence", {"keywords": ["cheese", "umbrella"]}, "Cheese under an umbrella.", "Cheese in the rain."),
    (
        "keywords:frequency",
        {"keyword": "tree", "frequency": 2, "relation": "at least"},
        "A tree is a tree.",
        "A tree is a plant.",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["dog"]}, "A dogma is no animal.", "My Dog sleeps."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eels seem odd.",
        "An eel is odd.",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        "Only three words",
        "Now four words here",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        "Now four words here",
        "Only three words",
    ),
    ("detectable_format:title", {}, "<<The moon>>\nIt is round.", "<The moon>\nIt is round."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "Look *here* now.", "Look here now."),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No, it is not."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "All the best!\nP.S. Call me.", "All the best!"),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "Dear [name], see you on [day].",
        "Dear [name].",
    ),
    ("change_case:english_lowercase", {}, "the cat sleeps on the warm sofa.", "The cat sleeps on the warm sofa."),
    ("change_case:english_capital", {}, "MIND THE WET FLOOR HERE.", "MIND THE WET floor HERE."),
    ("startend:quotation", {}, '"It sounds like a long breath."', 'It sounds like "a long breath".'),
    ("startend:end_checker", {"end_phrase": "Sleep well."}, "Good night. Sleep well.", "Sleep well. Good night."),
]


@pytest.mark.parametrize(
    ("kind", "kwargs", "good", "bad"),
    EXPECTED_FOLLOWED,
    ids=[f"{kind}-{len(good)}" for kind, _, good, _ in EXPECTED_FOLLOWED],
)
def test_checkers_tell_obeyed_from_broken(kind, kwargs, good, bad):
    from anamnesis.constraints import process_results

    doc = {"prompt": "?", "instruction_id_list": [kind], "kwargs": [kwargs]}
    assert process_results(doc, [good]) == {"followed": 1}
    assert process_results(doc, [bad]) == {"followed": 0}
    assert process_results(doc, ["  \n"]) == {"followed": 0}, "an empty answer follows nothing"


def test_every_kind_of_constraint_is_in_the_table():
    used = {kind for row in items.shipped("instructions") for kind in row["instruction_id_list"]}
    assert used == {kind for kind, *_ in EXPECTED_FOLLOWED}


def test_two_constraints_must_both_hold():
    from anamnesis.constraints import process_results

    doc = {
        "prompt": "?",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        # as the datasets library hands it over: every argument in every row, None where it isn't used
        "kwargs": [{"keywords": None, "num_words": None}, {"keywords": ["lake"], "num_words": None}],
    }
    answers = {"A lake at night.": 1, "A lake, at night.": 0, "A pond at night.": 0, "A pond, at night.": 0}
    assert {text: process_results(doc, [text])["followed"] for text in answers} == answers


def test_importing_the_checkers_neither_downloads_nor_prints(tmp_path):
    code = (
        "import socket, nltk\n"
        "def refuse(*args, **kwargs): raise SystemExit('tried the network')\n"
        "socket.socket.connect = nltk.download = refuse\n"
        "import anamnesis.constraints\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"NLTK_DATA": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# gold, answer, equal: what math-verify must say with the antlr runtime that dvc needs (4.9.3). lm-eval's own
# `exact_match_original` goes silently wrong under it, which is why only math-verify's verdict is ever reported.
EXPECTED_MATH = [
    ("$\\frac{1}{2}$", "$0.5$", True),
    ("$1/2$", "$0.5$", True),
    ("$x^2+1$", "$1+x^2$", True),
    ("$\\{1, 2, 3\\}$", "$\\{3, 1, 2\\}$", True),
    ("$2$", "$3$", False),
    ("$\\frac{1}{2}$", "$\\frac{1}{3}$", False),
    ("$x^2+1$", "$x^2-1$", False),
    ("$\\{1, 2\\}$", "$\\{1, 3\\}$", False),
]


@pytest.mark.parametrize(("gold", "answer", "equal"), EXPECTED_MATH)
def test_math_verify_works_with_the_installed_antlr(gold, answer, equal):
    from importlib.metadata import version

    from math_verify import parse, verify

    assert version("antlr4-python3-runtime") == "4.9.3"
    assert verify(parse(gold), parse(answer)) is equal


# --- lm-eval ----------------------------------------------------------------------------------------------------------


def test_task_files_are_measures(tmp_path):
    from lm_eval.tasks import TaskManager

    evaluation.be_quiet()
    suite = evaluation.suite(domain_test(), [], SIZES, 17)
    configured = [
        evaluation._configured(
            measure, rows, lambda text: type("Ids", (), {"input_ids": text.split()}), SIZES, tmp_path
        )
        for measure, rows in suite.tasks.items()
    ]
    manager = TaskManager(include_path=str(evaluation.TASKS), include_defaults=False)
    others = ["ifbench", "refused_harmful", "refused_harmless"]
    assert sorted(manager.all_tasks) == sorted([*suite.tasks, *others])
    loaded = manager.load([{"group": "embedded", "task": configured}])["tasks"]
    assert set(loaded) == set(suite.tasks) <= set(measures.of_suite("embedded"))
    for measure, task in loaded.items():
        assert [doc["item_id"] for doc in task.test_docs()] == [row["item_id"] for row in suite.tasks[measure]]
    assert loaded["domain_exact"].config.generation_kwargs["max_gen_toks"] == 2 + evaluation.SPARE_TOKENS
    assert loaded["instructions_followed"].config.generation_kwargs["max_gen_toks"] == SIZES.max_tokens


EXPECTED_EXACT = [
    ("Diseases of the ear", "diseases of the EAR.", 1),
    ("Diseases of the ear", " Diseases  of the\near", 1),
    ("K08.13", "k0813", 1),
    ("Diseases of the ear", "Diseases of the eye", 0),
    ("Diseases of the ear", "Diseases of the ear and more", 0),
    ("Diseases of the ear", "", 0),
]


@pytest.mark.parametrize(("gold", "answer", "score"), EXPECTED_EXACT)
def test_exact_match_forgives_case_punctuation_and_space_only(tmp_path, gold, answer, score):
    from lm_eval.tasks import TaskManager

    rows = [{"item_id": "e", "question": "?", "answer": gold}]
    configured = evaluation._configured(
        "domain_exact", rows, lambda text: type("Ids", (), {"input_ids": text.split()}), SIZES, tmp_path
    )
    manager = TaskManager(include_path=str(evaluation.TASKS), include_defaults=False)
    task = manager.load([{"group": "embedded", "task": [configured]}])["tasks"]["domain_exact"]
    assert task.process_results({"item_id": "e", "question": "?", "answer": gold}, [answer])["exact_match"] == score


@pytest.mark.slow
def test_shared_contexts_score_as_lm_eval_does(smollm2_dir, smollm2_tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from anamnesis.harness import SharedContextLM

    model = evaluation.load_model(smollm2_dir)
    rows = items.arithmetic(5, 17)
    asked = [
        (chat.render(smollm2_tokenizer, user(row["question"]), generate=True), choice)
        for row in rows
        for choice in row["choices"]
    ]
    asked.append((asked[0][0], "9"))  # an option of one token, five options to one context

    def requests():
        return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(asked)]

    counted = []
    ours = SharedContextLM(
        pretrained=model, tokenizer=smollm2_tokenizer, batch_size=3, advance=lambda: counted.append(1)
    )
    theirs = HFLM(pretrained=model, tokenizer=smollm2_tokenizer, batch_size=3)
    mine, expected = ours.loglikelihood(requests()), theirs.loglikelihood(requests(), disable_tqdm=True)
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in expected]
    assert len(counted) == len(asked)


@pytest.mark.slow
def test_lm_eval_asks_through_the_chat_template(smollm2_dir, smollm2_tokenizer, monkeypatch):
    from anamnesis import harness

    model = evaluation.load_model(smollm2_dir)
    seen = []
    real = harness.SharedContextLM.loglikelihood

    def spy(self, requests, disable_tqdm=True):
        seen.extend(request.args for request in requests)
        return real(self, requests, disable_tqdm)

    monkeypatch.setattr(harness.SharedContextLM, "loglikelihood", spy)
    suite = evaluation.suite(domain_test(), [], SIZES, 17)
    lm = harness.from_model(model, smollm2_tokenizer, SIZES.batch_size)
    rows = evaluation.answer(lm, smollm2_tokenizer, {"domain_choice": suite.tasks["domain_choice"]}, SIZES)
    assert seen == [
        (chat.render(smollm2_tokenizer, user(row["question"]), generate=True), choice)
        for row in suite.tasks["domain_choice"]
        for choice in row["choices"]
    ]
    by_id = {row["item_id"]: row for row in suite.tasks["domain_choice"]}
    assert len(rows) == len(by_id)
    for row in rows:
        item = by_id[row["item_id"]]
        assert row["value"] == float(row["output"] == item["choices"][item["gold"]])


# --- the stage --------------------------------------------------------------------------------------------------------


def stage(folder, variant):
    return subprocess.run(
        [sys.executable, "-m", "stages.evaluate", variant], cwd=folder, capture_output=True, text=True, check=False
    )


def test_an_unknown_variant_is_one_line(project, default_params):
    done = stage(project(default_params), "nobody")
    assert done.returncode == 2
    assert done.stderr.startswith("error: usage: python -m stages.evaluate <name> [seed]; names: base, ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_stage_twice_gives_the_same_bytes_and_the_same_weights_differ_nowhere(project, default_params, smollm2_dir):
    default_params["evaluate"] = SIZES.model_dump()
    folder = project(default_params, smollm2=smollm2_dir)
    variant = next(iter(default_params["variants"]))
    (folder / "models" / "tuned").mkdir()
    (folder / "models" / "tuned" / variant).symlink_to(smollm2_dir)
    records.write(folder / "data/domain/test.parquet", domain_test(), records.DOMAIN_TEST, ["row_id"])
    records.write(folder / "data/heldout.parquet", heldout(), records.HELDOUT, ["instruction_id"])

    outputs = []
    for name in ("base", "base", variant):
        done = stage(folder, name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert all(line.startswith(f"evaluate {name}: ") for line in done.stderr.splitlines()), done.stderr
        metrics, samples = (folder / f"metrics/eval/{name}.json", folder / f"data/samples/{name}.parquet")
        outputs.append((metrics.read_bytes(), samples.read_bytes(), records.read(samples, records.SAMPLES)))
    assert outputs[0][:2] == outputs[1][:2]

    metrics = json.loads(outputs[0][0])
    assert list(metrics) == [key for measure in measures.of_suite("embedded") for key in (measure, f"{measure}.n")]
    assert metrics["own_kl"] == 0.0
    base, tuned = ({(row["measure"], row["item_id"]): row for row in rows} for _, _, rows in outputs[1:])
    assert base.keys() == tuned.keys()
    for key, row in base.items():
        assert (row["weight"], row["output"]) == (tuned[key]["weight"], tuned[key]["output"])
        assert row["value"] == pytest.approx(tuned[key]["value"], abs=1e-6)
