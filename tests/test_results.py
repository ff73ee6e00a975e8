"""Results in numbers, sentences, tables and flat metrics."""

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
import yaml
from compared import compared, samples
from synthetic_run import EVERY_MEASURE, LEADERBOARD, ROOT, load_params, paper_params, wide_params, write_run

from anamnesis import accounts, findings, flat, likeness, plaintext, records, results, tables, wording
from anamnesis import params as settings
from anamnesis.errors import UserError
from stages import report

Made = tuple[Path, Any]


def made(tmp: Path, raw: dict[str, Any], measures: list[str] | None = None) -> Made:
    """A made-up run and its account."""
    write_run(tmp, raw, measures)
    with contextlib.chdir(tmp):
        params = settings.load()
        return tmp, report.read(params)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("small"), load_params())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("wide"), wide_params(), EVERY_MEASURE)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("paper"), paper_params(), LEADERBOARD)


FLAT = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.3, 1.0]
UP = [value + 0.2 + 0.01 * i for i, value in enumerate(FLAT)]
DOWN = [value - 0.2 - 0.01 * i for i, value in enumerate(FLAT)]
MIXED = [value + (0.1 if i % 2 else -0.1) for i, value in enumerate(FLAT)]


@pytest.mark.parametrize(
    ("domain", "own", "learnt", "forgot"),
    [
        (DOWN, UP, "Learnt: better on 1 of 1", "Forgot: worse on 1 of 1"),
        (MIXED, MIXED, "Learnt: nothing shown on the 1", "does not prove that nothing was lost"),
        (UP, DOWN, "Worse on the domain itself", "Better outside the domain"),
    ],
)
def test_findings_follow_the_verdicts(domain: list[float], own: list[float], learnt: str, forgot: str) -> None:
    said = findings.findings(compared(domain_text=(FLAT, domain), own_text=(FLAT, own)))["tuned"]
    assert learnt in said[0]
    assert forgot in said[1]


def test_a_distance_from_base_is_no_evidence_of_forgetting() -> None:
    found = compared(own_kl=([0.0] * 8, [0.1 + 0.01 * i for i in range(8)]))
    assert found.rows[0].cells["tuned"].verdict == "worse"
    assert found.rows[0].verdict("tuned") == results.DISTANCE
    assert "Forgot: worse" not in findings.findings(found)["tuned"][1]
    assert found.comparisons == 0


def test_a_distance_between_variants_has_its_verdict(small: Made) -> None:
    found = small[1].found
    row = next(row for row in found.against_reference if row.measure == "own_kl")
    assert found.reference == "domain-only"
    assert row.verdict("committee") == "better"
    assert "Kept more than domain-only" in findings.rehearsal_findings(found)["committee"]


def test_one_item_has_no_interval() -> None:
    found = compared(domain_text=([1.0], [0.5]), own_text=([1.0], [1.5]))
    assert findings.interval(found.rows[0].cells["tuned"], 3) == "-0.500 [no interval]"
    numbers = flat.summary(found)
    assert not [key for key in numbers if key.endswith((".low", ".high"))]
    assert numbers["tuned.domain_text.diff"] == -0.5
    assert numbers["tuned.learning-text"] == numbers["tuned.forgetting-text"] == 0.5
    point = results.frontier(found)[0]
    assert (point.learnt_low, point.learnt, point.learnt_high, point.forgotten) == (0.5, 0.5, 0.5, 0.5)


def test_models_that_answered_other_items_are_an_error() -> None:
    with pytest.raises(UserError, match="do not pair"):
        results.results({"base": samples("own_text", FLAT), "tuned": samples("own_text", FLAT[1:])}, None, 500, 1)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.1234, "+0.123"), (-0.1, "-0.100"), (-0.0001, "0.000"), (0.0, "0.000")]
)
def test_signs(value: float, expected: str) -> None:
    assert wording.signed(value, 3) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("\x1b]0;title\x07rest", "rest"),
        ("\x1b]8;;https://example.org\x1b\\link", "link"),
        ("two\nlines\tand\rmore", "two lines and more"),
        ("\u202eevil\u202c", "evil"),
        (404, "404"),
    ],
)
def test_plain_is_one_printable_line(text: object, expected: str) -> None:
    assert wording.plain(text) == expected


def test_a_cell_can_not_leave_its_markdown_table() -> None:
    table = wording.markdown_table(["a", "b"], [["x | y", "<b>`z`</b>\nnext"]])
    assert table.splitlines()[2].replace(r"\|", "").count("|") == 3
    assert "<b>" not in table
    assert len(table.splitlines()) == 3


# ------------------------------------------------------------------------------------------------- whole made-up runs


def test_every_model_is_there_with_its_name_and_kind(wide: Made) -> None:
    found = wide[1].found
    assert next(iter(found.models)) == "base"
    assert list(found.models)[1:] == found.variants
    wise = found.models["wise-50"]
    assert (wise.kind, wise.variant, wise.alpha) == ("interpolation", "domain-only", 0.5)
    assert found.models["committee"].label == "committee (ours)"
    assert found.models["committee"].seeds == (17, 18, 19)
    assert found.models["domain-lora"].tuning == "lora"


def test_categories_add_up_to_their_measure(wide: Made) -> None:
    row = next(row for row in wide[1].found.rows if row.measure == "leaderboard_mmlu_pro")
    assert len(row.categories) == 14
    whole = row.cells["committee"]
    parts = [cells["committee"] for cells in row.categories.values()]
    assert sum(part.n for part in parts) == whole.n
    assert sum(part.gained for part in parts) == whole.gained
    assert sum(part.difference * part.n for part in parts) / whole.n == pytest.approx(whole.difference)


def test_lost_items_can_be_read_but_gpqa_is_not_shown(wide: Made) -> None:
    changed = {(one.measure, one.model): one for one in wide[1].found.changes}
    mmlu = changed["leaderboard_mmlu_pro", "domain-only"]
    assert mmlu.lost
    assert all(item.question and item.output and item.category for item in mmlu.lost)
    assert mmlu.hidden_lost == len(mmlu.lost_ids) - len(mmlu.lost)
    assert [item.seeds for item in mmlu.lost] == sorted((item.seeds for item in mmlu.lost), reverse=True)
    gpqa = changed["leaderboard_gpqa", "domain-only"]
    assert gpqa.lost_ids
    assert all(item.question is None and item.output is None for item in gpqa.lost)


def test_table_1_is_about_sources_and_table_2_about_parts(wide: Made) -> None:
    first, second = wide[1].found.tables
    assert (first.name, second.name) == ("table-1", "table-2")
    assert [line.model for line in first.lines] == [
        *("base", "domain-only", "sharegpt", "dolly", "gpteacher", "oasst", "alpaca", "committee")
    ]
    by_model = {line.model: line for line in first.lines}
    assert by_model["dolly"].stands_for == "GenQA"
    assert any("Dolly stands in for GenQA" in note for note in first.notes)
    assert not first.paper
    assert any("left out" in note for note in first.notes)
    assert [line.model for line in second.lines][:5] == [
        *("base", "domain-only", "single-single", "single-multi", "committee")
    ]
    assert {"random-of-nine", "leave-own-judge-out", "domain-lora", "wise-50"} <= {line.model for line in second.lines}
    kept = {column.key for column in first.columns if column.key.startswith("avoided")}
    assert kept == {"avoided", "avoided-text"}
    assert all(by_model[name].cells["avoided"].note for name in ("sharegpt", "dolly", "committee"))


def test_the_papers_numbers_stand_beside_ours_at_its_size_alone(paper: Made, wide: Made) -> None:
    first, second = paper[1].found.tables
    assert first.paper
    assert second.paper
    numbers = {line.key: line.cells["average"].paper for line in first.lines}
    assert (numbers["base"], numbers["ours"], numbers["sharegpt"]) == (39.00, 39.21, 38.00)
    assert numbers["tulu-v2-mix"] is None  # not known
    rows = {line.key: line for line in first.lines}
    assert rows["tulu-v2-mix"].model is None
    assert rows["tulu-v2-mix"].cells["average"].value is None
    assert rows["genqa"].stands_for == "GenQA"
    assert numbers["genqa"] is None
    assert {line.key: line.cells["average"].paper for line in second.lines}["single-model-single-response"] == 38.81
    assert any("second-hand" in note for note in first.notes)
    told = plaintext.markdown(paper[1])
    assert "(39.21)" in told
    assert "In brackets: the paper's." in told
    assert "<i>" not in told  # of a label
    assert not [cell.paper for table in wide[1].found.tables for line in table.lines for cell in line.cells.values()
                if cell.paper]  # fmt: skip


def test_the_papers_numbers_do_not_stand_beside_other_tests_of_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MMLU-Pro from a local file, asked without examples, is no MMLU-Pro of the leaderboard.
    levels = synthetic_run.OTHER_LEVELS | {"mmlu_pro": synthetic_run.OTHER_LEVELS["leaderboard_mmlu_pro"]}
    monkeypatch.setattr(synthetic_run, "OTHER_LEVELS", levels)
    _, account = made(tmp_path, paper_params(), [*LEADERBOARD[1:], "mmlu_pro"])
    first = account.found.tables[0]
    assert not first.paper
    assert [column.label for column in first.columns][:4] == ["MMLU-Pro", "GPQA", "IFEval", "MATH"]
    assert any("nearest to the paper's: MMLU-Pro is MMLU-Pro, 0-shot" in note for note in first.notes)
    assert any("left out" in note for note in first.notes)
    assert not [cell.paper for line in first.lines for cell in line.cells.values() if cell.paper]
    some = settings.Params.model_validate(paper_params() | {"evaluate": paper_params()["evaluate"] | {"items": 100}})
    assert accounts.is_paper_size(settings.Params.model_validate(paper_params()))
    assert not accounts.is_paper_size(some), "a hundred items of each are no whole benchmark"


def test_the_reference_is_tuned_in_full_and_ours_may_be_a_stand_in() -> None:
    raw = load_params()
    lora = {"rehearsal": "none", "tuning": {"method": "lora"}}
    raw["variants"] = {"domain-lora": lora, **raw["variants"]}
    assert accounts.reference_of(settings.Params.model_validate(raw)) == "domain-only"
    raw["variants"] = {"domain-lora": lora}
    assert accounts.reference_of(settings.Params.model_validate(raw)) == "domain-lora"
    plain = [tables.Model(name, "variant", name, rehearsal="reconstructed", members=("a", "b"))
             for name in ("random", "committee")]  # fmt: skip
    assert tables.our_own(plain) == plain[0]
    stand_in = replace(plain[1], stands_for="ours")
    assert tables.our_own([plain[0], stand_in]) == stand_in
    own = replace(plain[0], paper="ours")
    assert tables.our_own([stand_in, own]) == own


def test_every_number_of_the_papers_tables_has_its_items(wide: Made) -> None:
    numbers = flat.summary(wide[1].found)
    keys = {"average": "average.paper", "avoided": "forgetting", "avoided-text": "forgetting-text"}
    for table in wide[1].found.tables:
        for column in table.columns:
            assert column.n == numbers[f"dolly.{keys.get(column.key, column.key)}.n"] > 0


def test_markdown_fits_a_comment_and_says_what_it_left_out(wide: Made, paper: Made) -> None:
    for _, account in (wide, paper):
        text = plaintext.markdown(account)
        assert len(text.encode()) <= plaintext.MOST_CHARACTERS
        assert max(map(len, text.splitlines())) <= plaintext.TERMINAL_WIDTH
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plaintext, "MOST_CHARACTERS", 30_000)
        text = plaintext.markdown(wide[1])
    assert len(text.encode()) <= 30_000
    assert "Left out: " in text.splitlines()[2]
    assert "Measure by measure" in " ".join(text.split())
    assert "## Measure by measure" not in text
    assert "## Learning, forgetting, net" in text


def test_nothing_measured_is_said_and_not_an_error(tmp_path: Path) -> None:
    _, account = made(tmp_path, load_params(), [])
    found = account.found
    assert (found.rows, found.scores, found.tables, results.frontiers(found)) == ([], {}, [], [])
    assert "nothing can be said about forgetting" in plaintext.markdown(account)
    assert len(flat.frontier_lines(found)) == len(flat.score_lines(found)) == len(flat.task_lines(found)) == 1


def test_files_for_plots_have_a_line_a_model_and_the_summarys_numbers(wide: Made) -> None:
    found = wide[1].found
    numbers = flat.summary(found)
    for columns, lines in (
        (flat.FRONTIER, flat.frontier_lines(found)),
        (flat.SCORES, flat.score_lines(found)),
        (flat.TASKS, flat.task_lines(found)),
    ):
        read = list(csv.DictReader(io.StringIO(flat.csv_text(columns, lines))))
        assert len(read) == len(lines) > len(found.variants)
    for line in flat.score_lines(found):
        suffix = "" if line["unit"] == "accuracy" else "-text"
        assert line["value"] == numbers[f"{line['model']}.{line['score']}{suffix}"]
    assert json.dumps(numbers, allow_nan=False)


def test_the_first_frontier_is_of_texts_and_another_of_accuracies(wide: Made, paper: Made) -> None:
    texts, accuracies = results.frontiers(wide[1].found)
    assert (texts.unit, accuracies.unit) == ("bits per byte", "accuracy")
    point = next(point for point in accuracies.points if point.variant == "domain-only")
    assert len(point.seeds) == 3
    assert point.seeds[0] == (point.learnt, point.forgotten)
    assert not results.frontiers(paper[1].found)  # no domain measure was taken


@pytest.mark.parametrize("measures", [[], None])
def test_dvc_draws_the_files(tmp_path: Path, measures: list[str] | None) -> None:
    # One variant, no further seeds, no interpolation: as dvc.yaml has the plots, with the templates of .dvc/plots.
    raw = load_params()
    raw["variants"] = {"domain-only": raw["variants"]["domain-only"]}
    run, account = made(tmp_path, raw, measures)
    found = account.found
    for name, columns, lines in (
        ("frontier", flat.FRONTIER, flat.frontier_lines(found)),
        ("scores", flat.SCORES, flat.score_lines(found)),
        ("tasks", flat.TASKS, flat.task_lines(found)),
        ("types", likeness.TYPES, likeness.type_lines(account.likeness)),
    ):
        records.write_text(run / f"metrics/{name}.csv", flat.csv_text(columns, lines))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=run, check=True)
    shutil.copytree(ROOT / ".dvc/plots", run / ".dvc/plots")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["report"]["plots"]
    (run / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"report": {"cmd": "true", "plots": plots}}}))
    shown = subprocess.run([*dvc, "plots", "show"], cwd=run, check=True, capture_output=True, text=True)
    assert "failed" not in shown.stderr
    html = (run / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert html.count("vegaEmbed(") == len(plots) == 4
    assert "<DVC_METRIC" not in html
    for words in ("further up: more", "against base, 95 % interval", "difference to base, 95 % interval", "of the set"):
        assert words in html, "the template of ours, not DVC's default"
    assert ('"domain-only"' in html) == (measures is None)


def test_the_terminal_fits_and_says_no_difference_shown(wide: Made, small: Made) -> None:
    from rich.console import Console

    for _, account in (small, wide):
        console = Console(width=plaintext.TERMINAL_WIDTH, record=True, file=io.StringIO())
        console.print(plaintext.terminal(account.found))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= plaintext.TERMINAL_WIDTH
        assert results.NOT_SHOWN in text
        assert "Learning, forgetting and net in accuracy" in text
        assert len(text.splitlines()) < 150
