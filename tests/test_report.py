"""The report: what it says agrees everywhere, what models wrote can't break it, and equal inputs give equal bytes."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import Tree, make, numbers
from synthetic_run import LEVELS, ROOT, load_params, write_run

from anamnesis import controls, page, plaintext, probing, records, results, tallies
from anamnesis import flat as flat_numbers
from anamnesis import params as settings
from anamnesis.errors import UserError
from anamnesis.measures import MEASURES
from anamnesis.sections import Model

OUTPUTS = ["report.html", "report.md", "metrics/summary.json", "metrics/frontier.csv"]
OUTPUTS += ["metrics/scores.csv", "metrics/tasks.csv", "metrics/types.csv"]


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The run again, to be changed by a test."""
    return Path(shutil.copytree(root, tmp_path / "run"))


@pytest.fixture(scope="module")
def tree(root: Path) -> Tree:
    return Tree((root / "report.html").read_text(encoding="utf-8"))


def summary_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "metrics/summary.json").read_text(encoding="utf-8"))


def markdown_rows(root: Path) -> list[list[str]]:
    """measure label, model, value, difference, verdict of every line of the result table."""
    _, _, text = (root / "report.md").read_text(encoding="utf-8").partition("## Measure by measure")
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    rows = [row for row in rows if row[1]]  # the others hold a note on the verdict above
    label = ""
    for row in rows:
        label = row[0] if row[1] == "base" else label
        row[0] = label
    return rows


# ---------------------------------------------------------------------------------------------------------- outputs


def test_terminal_output_is_clean_and_fits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(root)
    printed = capsys.readouterr().out
    markdown = (root / "report.md").read_text(encoding="utf-8")
    for text in (printed, markdown):
        assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
        assert max(map(len, text.splitlines())) <= plaintext.TERMINAL_WIDTH
    assert "no difference shown" in printed
    assert "better" in printed


def test_equal_inputs_give_equal_bytes(root: Path, copy: Path) -> None:
    before = {name: (root / name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        (copy / name).unlink()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "stages.report"]
        subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
        assert {name: (copy / name).read_bytes() for name in OUTPUTS} == before


# ---------------------------------------------------------------------------------------------------------- agreement


def test_markdown_page_and_summary_agree(root: Path, tree: Tree) -> None:
    flat = summary_of(root)
    label_of = {results.Row(name, 0.0, 1, {}).label: name for name in MEASURES}
    rows = markdown_rows(root)
    assert len(rows) == len(LEVELS) * 4
    cells = {line[0]: line[1:] for line in tree.cells["results"]}
    header = tree.cells["results"][0][2:]
    for label, model, value, difference, verdict in rows:
        measure = label_of[label]
        key = f"{model}.{measure}"
        assert float(value) == pytest.approx(flat[key], abs=6e-4)
        in_page = next(line for start, line in cells.items() if start.startswith(label))
        if model == "base":
            assert numbers(in_page[0]) == [float(value)]
            continue
        bounds = [flat[f"{key}.{end}"] for end in ("low", "high") if f"{key}.{end}" in flat]
        assert numbers(difference) == pytest.approx([flat[f"{key}.diff"], *bounds], abs=6e-4)
        assert (len(bounds) == 2) == ("[no interval]" not in difference)
        assert bounds or flat[f"{key}.diff"] == 0  # none only where no item changed
        cell = in_page[1 + header.index(model)]
        assert numbers(cell) == [float(value), *numbers(difference)]
        assert verdict in cell
        if verdict in ("better", "worse"):
            low, high = bounds
            assert low > 0 or high < 0
            assert (verdict == "better") == ((low > 0) == MEASURES[measure].higher_is_better)
        assert f"n = {flat[f'{key}.n']}" in next(start for start in cells if start.startswith(label))


def test_what_is_said_of_the_judges_is_in_page_markdown_and_file(root: Path, tree: Tree) -> None:
    rows = records.read(root / "data/agreement.parquet", records.AGREEMENT)
    found = {(row["about"], row["subject"], row["other"], row["figure"]): row for row in rows}
    page_text = " ".join("".join(tree.texts).replace("\u2212", "-").split())
    text = " ".join((root / "report.md").read_text(encoding="utf-8").split())
    for said in (page_text, text):
        assert "Can the judges be trusted?" in said
        for judge in ("smollm2", "qwen-coder"):
            row = found["judge", judge, "", "length_slope"]
            assert f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] points for twice the length" in said
            assert found["control", judge, "evasive", "auc"]["note"] in said
    (pair,) = tree.cells["agreement"][1:]
    row = found["pair", "smollm2", "qwen-coder", "kappa"]
    assert numbers(pair[3]) == pytest.approx([row["value"], row["low"], row["high"]], abs=6e-3)
    for line in tree.cells["ratings"][1:]:
        counts = [found["judge", line[0], "", f"rating.{rating}"]["value"] for rating in range(1, 6)]
        assert [float(cell) for cell in line[2:7]] == counts
        assert sum(counts) == summary_of(root)[f"judge.{line[0]}.scored"]
    assert len(tree.cells["controls"]) == 1 + 2 * len(controls.KINDS)


@pytest.mark.parametrize("judges", [{}, {"smollm2": {"mode": "expected"}}])
def test_few_judges_are_said_to_be_few(tmp_path: Path, judges: dict[str, Any]) -> None:
    raw = load_params()
    raw["judges"] = judges
    raw["variants"] = {"domain-only": {"rehearsal": "none"}}
    write_run(tmp_path, raw)
    make(tmp_path)
    for name in ("report.md", "report.html"):
        text = " ".join((tmp_path / name).read_text(encoding="utf-8").split())
        assert f"there is {'one judge alone' if judges else 'no judge'}" in text
        assert not re.search(r"\bnan\b", text)
    assert "figure-agreeing" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_frontier_runs_the_right_way(root: Path) -> None:
    flat = summary_of(root)
    with open(root / "metrics/frontier.csv", encoding="utf-8", newline="") as file:
        lines = {
            line["variant"]: {key: float(line[key]) for key in flat_numbers.FRONTIER[1:7]}
            for line in csv.DictReader(file)
        }
    assert list(lines) == ["base", "domain-only", "single-single", "committee"]
    assert set(lines["base"].values()) == {0.0}
    for variant in ("domain-only", "committee"):
        line = lines[variant]
        assert line["learnt"] == pytest.approx(-flat[f"{variant}.domain_text.diff"], abs=2e-6)
        assert line["forgotten"] == pytest.approx(flat[f"{variant}.own_text.diff"], abs=2e-6)
        assert line["learnt_low"] <= line["learnt"] <= line["learnt_high"]
        assert line["forgotten_low"] <= line["forgotten"] <= line["forgotten_high"]
    assert lines["domain-only"]["learnt"] > 0
    assert lines["domain-only"]["forgotten"] > lines["committee"]["forgotten"]


def test_counts_in_the_summary_are_those_of_the_files(root: Path, tree: Tree) -> None:
    flat = summary_of(root)
    assert (flat["probe.asked"], flat["probe.kept"], flat["probe.failed"]) == (50, 40, 1)
    assert flat["probe.passed"] == 43
    assert flat["probe.pass_share"] == pytest.approx(43 / 49, abs=1e-6)
    assert sum(int(row[2]) for row in tree.cells["funnel"][1:]) == 50
    for member, responses in (("smollm2", 120), ("qwen-coder", 96)):  # 8 of 40 are held out
        assert flat[f"respond.{member}.ok"] + flat[f"respond.{member}.truncated"] == responses
    for judge in ("smollm2", "qwen-coder"):
        rows = records.read(root / f"data/judgments/{judge}.parquet", records.JUDGMENTS)
        assert flat[f"judge.{judge}.scored"] + flat[f"judge.{judge}.missing"] == len(rows)
        assert flat[f"judge.{judge}.missing"] > 0
    assert flat["mix.domain-only.rows"] == settings.load(root / "params.yaml").mix.total


def test_the_way_from_probe_to_training_set_is_told_with_its_reasons(root: Path, tree: Tree) -> None:
    flat = summary_of(root)
    text = (root / "report.md").read_text(encoding="utf-8")
    header, *lines = tree.cells["ways"]
    assert header == ["variant", "probed", "unique", "held out", *tallies.STEPS[2:]]
    assert [line[0] for line in lines] == ["single-single", "committee"]
    for variant, *cells in lines:
        left = {step: flat.get(f"funnel.{variant}.{step}") for step in tallies.STEPS}
        assert cells.pop(2) == "8"  # held out: no failure, so it is told
        assert cells == ["–" if count is None else str(count) for count in left.values()]
        known = [count for count in left.values() if count is not None]
        assert known == sorted(known, reverse=True)
        assert left["probed"] == 50
        assert left["unique"] == 40
        assert left["kept"] == flat[f"select.{variant}.picks"] > left["clean"]
        assert re.search(rf"\| {variant} +\| +50 \| +40 \|", text)
    assert lines[0][5] == "–"  # its rule asks no judge
    rows = records.read(root / "data/cleaned/committee.parquet", records.CLEANED)
    counted = Counter((row["reason"] or "").removesuffix(" of abc") for row in rows if row["status"] != "ok")
    assert set(counted) == {"overlap with ifeval", "near-duplicate"}
    order = sorted(counted, key=lambda reason: (-counted[reason], reason))
    told = f"Taken out of committee before the mix: {', '.join(f'{reason} {counted[reason]}' for reason in order)}."
    assert told in text
    assert told in "".join(tree.texts)
    assert "Taken out of the domain before the mix: overlap with domain-test 1." in text


def test_timings_are_in_no_output(root: Path, copy: Path) -> None:
    curve = copy / "metrics/train/committee.csv"
    lines = curve.read_text(encoding="utf-8").splitlines()
    slower = [lines[0], *(line.rsplit(",", 1)[0] + ",7.0" for line in lines[1:])]
    curve.write_text("\n".join(slower) + "\n", encoding="utf-8")
    make(copy)
    assert all((copy / name).read_bytes() == (root / name).read_bytes() for name in OUTPUTS)


# ------------------------------------------------------------------------------------------------ what is not there


def test_files_of_a_dropped_variant_member_and_judge_are_ignored(copy: Path) -> None:
    raw = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    del raw["variants"]["single-single"]
    raw["models"]["qwen-coder"]["enabled"] = False
    (copy / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    assert (copy / "data/samples/single-single.parquet").exists()
    make(copy)
    outputs = {name: (copy / name).read_text(encoding="utf-8") for name in OUTPUTS}
    assert not [name for name, text in outputs.items() if "single-single" in text]
    flat = summary_of(copy)
    assert not [key for key in flat if key.startswith(("respond.qwen-coder", "judge.qwen-coder"))]
    assert "took no part" in outputs["report.html"]


def test_a_measure_nobody_answered_has_no_row(tmp_path: Path) -> None:
    write_run(tmp_path, load_params(), measures=[name for name in LEVELS if name not in ("domain_choice", "own_text")])
    make(tmp_path)
    assert not [key for key in summary_of(tmp_path) if "domain_choice" in key or "own_text" in key]
    for name in ("report.md", "report.html"):
        assert MEASURES["domain_choice"].label not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_run_without_rehearsal_has_no_examples_and_no_second_table(tmp_path: Path) -> None:
    raw = load_params()
    raw["variants"] = {"domain-only": {"rehearsal": "none"}}
    write_run(tmp_path, raw)
    make(tmp_path)
    tree = Tree((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "rehearsal-results" not in tree.cells
    assert not [value for _, key, value in tree.attributes if (key, value) == ("class", "answers")]
    assert "no variant picked a reconstructed response" in "".join(tree.texts).lower()


def test_nothing_probed_and_nothing_scored_is_no_division_by_zero(tmp_path: Path) -> None:
    write_run(tmp_path, load_params(), instructions=0)
    make(tmp_path)
    flat = summary_of(tmp_path)
    assert flat["probe.kept"] == 0
    assert "judge.smollm2.mean" not in flat
    assert "figure-lengths" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_missing_input_is_one_line(copy: Path) -> None:
    (copy / "data/samples/committee.parquet").unlink()
    with pytest.raises(UserError, match=r"data/samples/committee.parquet: not found"):
        make(copy)


def test_a_broken_curve_is_one_line(copy: Path) -> None:
    (copy / "metrics/train/committee.csv").write_text("step,loss\n1,high\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics/train/committee.csv: not a training curve"):
        make(copy)


# ------------------------------------------------------------------------------------------------------------ tallies


def row(**values: Any) -> dict[str, Any]:
    return {"status": "ok", "reason": None, "tokens": 10, "member": "a", "sample_index": 0} | values


def test_pass_share_is_the_probe_stage_s() -> None:
    kinds = [("ok", None)] * 5 + [("filtered", "duplicate"), ("truncated", "unfinished"), ("filtered", "surplus")]
    kinds += [("failed", "HTTP 500")] * 2
    rows = [row(status=status, reason=reason) for status, reason in kinds]
    ours = tallies.funnel(rows)
    theirs = probing.pass_share([probing.Sample("", i, "", *kind, "stop", 1) for i, kind in enumerate(kinds)])
    assert ours.pass_share == theirs == 0.75
    assert (ours.asked, ours.kept, ours.passed, ours.failed) == (10, 5, 6, 2)
    assert ours.drops[0] == tallies.Drop("failed", "HTTP 500", 2)


def test_missing_votes_are_counted_and_never_zero() -> None:
    responses = {"a": [row(response_id="1"), row(response_id="2", tokens=20), row(response_id="3", status="truncated")]}
    responses["a"].append(row(response_id="4"))  # to a held-out instruction: no judge was asked, so no vote is missing
    votes = [
        {"response_id": "1", "score": 4.0, "parse": "logprobs"},
        {"response_id": "2", "score": None, "parse": "missing"},
        {"response_id": "gone", "score": 1.0, "parse": "logprobs"},
    ]
    (tally,) = tallies.judges({"j": votes}, responses)
    assert (tally.asked, tally.scored, tally.missing, tally.mean) == (2, 1, 1, 4.0)
    assert tally.rungs == {"logprobs": 1}
    assert tally.by_member == {"a": 4.0}
    assert tally.length_correlation is None


def test_wins_are_held_against_the_candidates_of_the_picked_instructions() -> None:
    responses = {
        "a": [row(response_id=f"a{i}", instruction_id=f"i{i}") for i in range(4)],
        "b": [
            row(response_id=f"b{i}{k}", instruction_id=f"i{i}", member="b", sample_index=k, tokens=30)
            for i in range(4)
            for k in range(3)
        ],
    }
    selected = [row(instruction_id=f"i{i}", response_id=f"b{i}0", member="b") for i in range(3)]
    selected += [row(instruction_id="i3", response_id="a3", member="a")]
    found = tallies.contest("v", selected, responses, ["a", "b"], samples=3)
    assert [(win.member, win.picks, win.share, win.chance) for win in found.wins] == [
        ("a", 1, 0.25, 0.25),
        ("b", 3, 0.75, 0.75),
    ]
    assert all(win.low < win.share < win.high for win in found.wins)
    assert (found.picked_tokens, found.candidate_tokens) == (25.0, 25.0)
    first_only = tallies.contest("v", selected, responses, ["a", "b"], samples=1)
    assert [win.chance for win in first_only.wins] == [0.5, 0.5]


def test_a_set_is_counted_by_source_and_member() -> None:
    mixed = [
        {"source": "reconstructed", "member": "b", "tokens": 60},
        {"source": "domain", "member": None, "tokens": 20},
        {"source": "reconstructed", "member": "a", "tokens": 20},
    ]
    parts = tallies.composition(mixed)
    assert [(part.source, part.member, part.rows, part.tokens) for part in parts] == [
        ("domain", None, 1, 20),
        ("reconstructed", "a", 1, 20),
        ("reconstructed", "b", 1, 60),
    ]
    assert [part.token_share for part in parts] == [0.2, 0.2, 0.6]


def test_examples_do_not_depend_on_the_order_of_rows() -> None:
    ids = [f"id{i}" for i in range(50)]
    chosen = tallies.example_ids(ids, 6, 17)
    assert chosen == tallies.example_ids(reversed(ids), 6, 17)
    assert chosen != tallies.example_ids(ids, 6, 18)
    assert len(set(chosen)) == 6


# ------------------------------------------------------------------------------------------------------ small things


def test_a_server_s_address_is_shown_without_its_secrets() -> None:
    model = Model(base_url="https://user:secret@example.org:8443/v1?key=secret", model="big")
    assert page.source_of(model) == ["big at https://example.org:8443/v1"]


def test_many_variants_still_fit_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = load_params()
    raw["variants"] |= {f"committee-{i}": dict(raw["variants"]["committee"]) for i in range(5)}
    write_run(tmp_path, raw)
    make(tmp_path)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= plaintext.TERMINAL_WIDTH
    assert all(variant in printed for variant in raw["variants"])
