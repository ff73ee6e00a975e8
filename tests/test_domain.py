"""The ICD-10-CM set: right by the package's own tables, split by category, level over chapters, seeded."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anamnesis import icd, records
from anamnesis.errors import BAD_INPUT, UserError

ROOT = Path(__file__).parent.parent
TRAIN, TEST, SEED = 500, 66, 17
CODE = re.compile(r"\b[A-Z]\d[0-9A-Z](?:\.[0-9A-Z]{1,4})?\b")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def codes() -> list[icd.Code]:
    return icd.load_codes()


@pytest.fixture(scope="module")
def built(codes: list[icd.Code]) -> tuple[Rows, Rows]:
    return icd.build(codes, TRAIN, TEST, SEED, "MIT")


def content(row: dict[str, Any], turn: int) -> str:
    return row["messages"][turn]["content"]


def check(question: str, answer: str) -> str:
    """Look the answer up in the package, without our tables; returns the type of the question."""
    import simple_icd_10_cm as package

    title = re.search(r"“(.+)”|: (.+)$", question)
    if "chapter" in question:
        [code] = [found for found in CODE.findall(question) if package.is_valid_item(found)]
        chapter = package.get_ancestors(code)[-1]
        assert package.get_description(chapter).startswith(f"{answer} (")
        return "chapter"
    if title is None:
        [code] = [found for found in CODE.findall(question) if package.is_valid_item(found)]
        assert package.get_description(code) == answer
        return "description"
    said = title[1] or title[2]
    if package.get_description(answer) == said:
        return "code"
    assert said in package.get_inclusion_term(answer)
    return "term"


def test_every_answer_is_right_by_the_package(built: tuple[Rows, Rows]) -> None:
    train, test = built
    types = Counter(check(content(row, 0), content(row, 1)) for row in train)
    assert set(types) == {"description", "code", "term", "chapter"}
    assert max(types.values()) - min(types.values()) <= 22  # level within one a chapter
    for item in test:
        answers = {"choice": lambda item: item["choices"][item["gold"]], "exact": lambda item: item["answer"]}
        check(content(item, 0), answers[item["kind"]](item) if item["kind"] in answers else content(item, 1))


def test_no_other_option_is_right(built: tuple[Rows, Rows]) -> None:
    import simple_icd_10_cm as package

    for item in built[1]:
        if item["kind"] != "choice":
            continue
        assert len(set(item["choices"])) == icd.CHOICES
        asks_for_code = package.is_valid_item(item["choices"][item["gold"]])
        for place, choice in enumerate(item["choices"]):
            if place == item["gold"]:
                continue
            with pytest.raises(AssertionError):
                check(content(item, 0), choice)
            if asks_for_code:  # one inside the other would be half right
                assert not package.is_ancestor(choice, item["choices"][item["gold"]])
                assert not package.is_descendant(choice, item["choices"][item["gold"]])
                assert len(choice) == len(item["choices"][item["gold"]])


def test_no_tested_category_is_trained_on(built: tuple[Rows, Rows]) -> None:
    train, test = built
    tested = {item["category"] for item in test}
    assert not {row["category"] for row in train} & tested
    spoken = {code.split(".")[0] for row in train for turn in row["messages"] for code in CODE.findall(turn["content"])}
    assert not spoken & tested
    options = {code.split(".")[0] for item in test for choice in item["choices"] or [] for code in CODE.findall(choice)}
    assert not {row["category"] for row in train} & {code for code in options if len(code) == 3}


def test_every_code_of_a_held_category_is_held(codes: list[icd.Code]) -> None:
    held = icd.test_categories(codes, SEED)
    for chapter in {code.chapter for code in codes}:
        categories = {code.category for code in codes if code.chapter == chapter}
        assert 0 < len(categories & held) < len(categories)
    assert icd.test_categories(codes[::-1], SEED) == held
    assert icd.test_categories(codes, SEED + 1) != held


def test_counts_chapters_and_gold_positions_are_level(built: tuple[Rows, Rows], codes: list[icd.Code]) -> None:
    train, test = built
    chapter = {code.category: code.chapter for code in codes}
    assert len(train) == len({row["row_id"] for row in train}) == TRAIN
    per_chapter = Counter(chapter[row["category"]] for row in train)
    small = "Codes for special purposes"  # has fewer questions than its share
    assert len(per_chapter) == 22
    assert max(per_chapter.values()) - min(count for name, count in per_chapter.items() if name != small) <= 4
    for kind in ("choice", "exact", "text"):
        items = [item for item in test if item["kind"] == kind]
        assert len(items) == TEST
        assert len({chapter[item["category"]] for item in items}) >= 21
    gold = Counter(item["gold"] for item in test if item["kind"] == "choice")
    assert max(gold.values()) - min(gold.values()) <= 1
    assert len({item["row_id"] for item in test}) == len(test)


def test_equal_seeds_give_equal_rows_and_fewer_are_a_prefix(built: tuple[Rows, Rows], codes: list[icd.Code]) -> None:
    assert icd.build(codes, TRAIN, TEST, SEED, "MIT") == built
    train, _ = icd.build(codes, 40, 22, SEED, "MIT")
    assert train == built[0][:40]
    other, items = icd.build(codes, 40, 22, SEED + 1, "MIT")
    assert other != train
    assert {item["category"] for item in items} != {item["category"] for item in built[1]}


def test_no_title_gives_its_own_code_away(codes: list[icd.Code]) -> None:
    assert not [code.code for code in codes if code.category in code.description]
    assert len({code.description.casefold() for code in codes}) == len(codes)


@pytest.mark.parametrize(("train", "test", "key"), [(10**6, 10, "domain.train"), (10, 10**6, "domain.test")])
def test_asking_for_too_many_is_one_line(codes: list[icd.Code], train: int, test: int, key: str) -> None:
    with pytest.raises(UserError) as raised:
        icd.build(codes, train, test, SEED, "MIT")
    most = re.fullmatch(rf"{key}: 1000000 asked for, and ICD-10-CM gives at most (\d+); lower {key}", str(raised.value))
    assert most
    assert 1000 < int(most[1]) < 10**6


@pytest.fixture
def with_target(tmp_path: Path, smollm2_dir: Path) -> Path:
    """A folder with the target's model, as stage models leaves it."""
    (tmp_path / "models/pretrained").mkdir(parents=True)
    (tmp_path / "models/pretrained/smollm2").symlink_to(smollm2_dir)
    return tmp_path


def run_stage(
    folder: Path, seed: int, source: str, train: int = 40, test: int = 12, others: str = "{}"
) -> subprocess.CompletedProcess[str]:
    """Run the stage in `folder` as dvc does, with the project's params and these changes."""
    text = (ROOT / "params.yaml").read_text()
    text = re.sub(r"(?m)^seed: .*", f"seed: {seed}", text)
    text = re.sub(r"(?m)^domain:(.*\n)(  .*\n)+", "", text)
    text += f"\ndomain: {json.dumps({'source': source, 'train': train, 'test': test, 'licence': 'CC0'})}\n"
    text = re.sub(r"(?m)^  domains: .*", f"  domains: {others}", text)
    (folder / "params.yaml").write_text(text)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; "]
    command[-1] += "runpy.run_module('stages.domain', run_name='__main__')"
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_stage_writes_equal_bytes(with_target: Path, codes: list[icd.Code]) -> None:
    result = run_stage(with_target, SEED, "icd10cm")
    assert result.returncode == 0, result.stderr
    train, test = icd.build(codes[::-1], 40, 12, SEED, "CC0")  # another process, another order
    records.write(with_target / "train.parquet", train[::-1], records.DOMAIN_TRAIN, ["row_id"])
    records.write(with_target / "test.parquet", test[::-1], records.DOMAIN_TEST, ["kind", "row_id"])
    for name in ("train.parquet", "test.parquet"):
        assert (with_target / "data/domain" / name).read_bytes() == (with_target / name).read_bytes()
    assert len(records.read(with_target / "data/domain/train.parquet", records.DOMAIN_TRAIN)) == 40
    assert len(records.read(with_target / "data/domain/test.parquet", records.DOMAIN_TEST)) == 36
    assert "40 training rows" in result.stdout


def test_the_stage_takes_a_users_file_and_names_its_mistakes(with_target: Path) -> None:
    rows = [json.dumps({"instruction": f"q{place}", "output": "a"}) for place in range(60)]
    (with_target / "my.jsonl").write_text("\n".join([*rows, rows[0]]))
    result = run_stage(with_target, SEED, "my.jsonl")
    assert result.returncode == 0, result.stderr
    assert "40 training rows; test items: 12 text; 1 duplicates removed" in result.stdout
    assert (
        result.stderr == "note: my.jsonl is outside data/own/, so a change in it reruns nothing; after one: "
        "`dvc repro -sf domain && dvc repro`\n"
    )
    train = records.read(with_target / "data/domain/train.parquet", records.DOMAIN_TRAIN)
    assert {(row["source"], row["licence"]) for row in train} == {("my.jsonl", "CC0")}

    (with_target / "my.jsonl").write_text("\n".join([*rows, '{"instruction": "q"}']))
    result = run_stage(with_target, SEED, "my.jsonl")
    assert result.returncode == BAD_INPUT
    assert result.stderr.startswith("error: my.jsonl: line 61: field 'output': missing or empty; every row needs")
    assert result.stderr.count("\n") == 1


def test_rows_of_another_domain_are_read_and_none_is_there_twice(with_target: Path) -> None:
    rows = [json.dumps({"instruction": f"q{place}", "output": "a"}) for place in range(60)]
    (with_target / "my.jsonl").write_text("\n".join(rows))
    other = [json.dumps({"instruction": f"p{place}", "output": "b", "licence": "MIT"}) for place in range(5)]
    choice = json.dumps({"question": "Which?", "choices": ["a", "b"], "answer": "a"})
    (with_target / "old.jsonl").write_text("\n".join([*other, other[0], choice, *rows]))
    setting = "{old: {source: old.jsonl, fraction: 0.1, licence: CC-BY-4.0}}"
    result = run_stage(with_target, SEED, "my.jsonl", others=setting)
    assert result.returncode == 0, result.stderr
    train = records.read(with_target / "data/domain/train.parquet", records.DOMAIN_TRAIN)
    old = records.read(with_target / "data/domain/others/old.parquet", records.DOMAIN_TRAIN)
    assert len(old) == 5 + 60 - len(train)
    assert not {row["row_id"] for row in old} & {row["row_id"] for row in train}
    assert {row["licence"] for row in old} == {"MIT", "CC-BY-4.0"}

    (with_target / "old.jsonl").unlink()
    result = run_stage(with_target, SEED, "my.jsonl", others=setting)
    assert result.returncode == BAD_INPUT
    assert result.stderr.splitlines()[-1].startswith("error: mix.domains.old.source: old.jsonl: no such file")


def test_long_rows_are_counted_and_a_prompt_that_fills_the_window_is_one_line(with_target: Path) -> None:
    rows = [{"instruction": f"q{place}", "output": "word " * (300 if place % 2 else 3)} for place in range(60)]
    (with_target / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run_stage(with_target, SEED, "my.jsonl")
    assert result.returncode == 0, result.stderr
    train = records.read(with_target / "data/domain/train.parquet", records.DOMAIN_TRAIN)
    long = sum(len(row["messages"][1]["content"]) > 1000 for row in train)
    assert 0 < long < 40
    line = f"note: {long} of 40 training rows are longer than train.sequence_length, 256 tokens: they are cut"
    assert line in result.stderr

    rows = [{"instruction": f"q{place} " + "word " * 300, "output": "a"} for place in range(60)]
    (with_target / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run_stage(with_target, SEED, "my.jsonl")
    assert result.returncode == BAD_INPUT
    assert result.stderr.splitlines()[-1].startswith("error: 40 rows ('q")
    assert "raise train.sequence_length or shorten the prompts" in result.stderr
