"""`python -m anamnesis.why`: what it prints is what the selection did, and says when the written pick is another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from asking import write_conversations
from selecting import ROOT, Tables, instruction, judgment, response

from anamnesis import params as settings
from anamnesis import records, why
from anamnesis.errors import UserError
from stages import select

FILE = "params.yaml"
LONG = "text that goes on and on, well beyond the sixty characters of a line, to its last zebra"
Told = Callable[[str, str], list[str]]
TABLES: Tables = (
    [instruction("aa1"), instruction("aa2"), instruction("b")],
    [
        response("aa1", "alpha", 0),
        response("aa1", "alpha", 1, "truncated") | {"reason": "max_tokens reached"},
        response("aa1", "beta", 0) | {"text": "\x1b[31mred\x1b[0m [bold]words[/bold]\nand more"},
        response("aa1", "beta", 1),
        response("aa2", "alpha", 0),
        response("aa2", "beta", 0),
        response("b", "alpha", 0, "truncated") | {"text": LONG},
    ],
    [
        judgment("aa1/alpha/0", "alpha", 5.0),
        judgment("aa1/alpha/0", "beta", 2.0),
        judgment("aa1/beta/0", "alpha", 4.0),
        judgment("aa1/beta/0", "beta", 4.5),
        judgment("aa1/beta/1", "alpha", None),
        judgment("aa1/beta/1", "beta", 5.0),
        judgment("aa2/alpha/0", "beta", 3.0),
        judgment("aa2/beta/0", "alpha", 3.0),
    ],
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one variant by votes and one without, selected."""
    raw = yaml.safe_load((ROOT / FILE).read_text(encoding="utf-8"))
    raw |= {"target": "alpha", "models": {name: {"uri": f"path:{name}"} for name in ("alpha", "beta")}}
    raw |= {"committee": {"alpha": {}, "beta": {}}, "judges": {"alpha": {}, "beta": {}}}
    both = {"rehearsal": "reconstructed", "members": ["alpha", "beta"], "judges": ["alpha", "beta"]}
    raw["variants"] = {"fair": both | {"rule": "leave-own-judge-out"}, "any": both | {"rule": "random"}}
    raw["select"] = {"heldout": 0.0, "min_votes": 1}
    raw["mix"] = {"domain_fraction": 1.0, "total": 1}  # so that any share may be held out
    (tmp_path / FILE).write_text(yaml.safe_dump(raw), encoding="utf-8")
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    monkeypatch.chdir(tmp_path)
    instructions, responses, judgments = TABLES
    write_conversations(tmp_path, instructions)
    for name in ("alpha", "beta"):
        rows = [row for row in responses if row["member"] == name]
        records.write(f"data/responses/{name}.parquet", rows, records.RESPONSES, ["response_id"])
        votes = [row for row in judgments if row["judge"] == name]
        records.write(f"data/judgments/{name}.parquet", votes, records.JUDGMENTS, ["response_id"])
    records.write("data/borrowed.parquet", [], records.BORROWED, ["source", "instruction_id"])
    select.main()
    return tmp_path


@pytest.fixture
def told(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """What the command prints, line by line."""

    def lines(variant: str, wanted: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["why", variant, wanted])
        capsys.readouterr()
        why.main()
        return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return lines


def test_every_response_is_shown_with_its_votes_and_the_reason(told: Told) -> None:
    lines = told("fair", "aa1")
    assert lines[0] == "aa1: text of aa1"
    assert lines[1].startswith("rule leave-own-judge-out")
    rows = [" ".join(line.split()) for line in lines[4:-1]]
    assert rows == [
        "beta 1 4 4.25 alpha 4, beta 4.5 (not counted) picked red [bold]words[/bold] and more",
        "alpha 1 2 3.5 alpha 5 (not counted), beta 2 runner-up alpha 0",
        "beta 2 – 5 alpha missing, beta 5 (not counted) no candidate: 0 of 1 votes beta 1",
        "alpha 2 – – alpha missing (not counted), beta missing no candidate: max_tokens reached alpha 1",
    ]
    assert lines[-1] == "Picked: beta 1, ahead of alpha 1, by 2."


def test_a_tie_and_a_drop_are_said(told: Told) -> None:
    assert "of 2 candidates within 0 of the best value." in told("fair", "aa2")[-1]
    assert told("any", "aa1")[-1].endswith("of 3 candidates.")
    assert told("fair", "b")[-1] == "Dropped: no member of this variant has a complete response to it."


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"heldout": 0.99}, "Dropped: held out of every variant, to measure forgetting on (select.heldout)."),
        ({"min_score": 4.5}, "Dropped: the best value, 4, is below min_score 4.5."),
        ({"min_margin": 2.5}, "Dropped: the best value is 2 above the next; min_margin is 2.5."),
    ],
)
def test_other_params_are_told_to_be_newer_than_the_pick(
    project: Path, told: Told, changed: dict[str, float], line: str
) -> None:
    raw = yaml.safe_load((project / FILE).read_text(encoding="utf-8"))
    raw["select"] |= changed
    (project / FILE).write_text(yaml.safe_dump(raw), encoding="utf-8")
    lines = told("fair", "aa1")
    assert lines[-2] == line
    assert lines[-1] == "data/selected/fair.parquet says otherwise: it is out of date; run `dvc repro select`"


@pytest.mark.parametrize(("wanted", "words"), [("aa", "2 ids begin so"), ("c", "no such id")])
def test_an_id_must_be_one(project: Path, wanted: str, words: str) -> None:
    assert why.case_of(settings.load(), "fair", "b").pick["instruction_id"] == "b"
    with pytest.raises(UserError, match=words):
        why.case_of(settings.load(), "fair", wanted)


@pytest.mark.usefixtures("project")
def test_full_shows_whole_texts_and_a_variant_must_pick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, whole in ((["why", "fair", "b"], False), (["why", "fair", "b", "--full"], True)):
        monkeypatch.setattr("sys.argv", argv)
        why.main()
        assert ("zebra" in capsys.readouterr().out) == whole
    monkeypatch.setattr("sys.argv", ["why", "nobody", "aa1"])
    with pytest.raises(UserError, match="variant 'nobody' picks no responses; those that do: any, fair"):
        why.main()
