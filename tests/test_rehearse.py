"""What stage rehearse draws and leaves for the variants that name a source; the ids of borrowed instructions."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rehearsal_sets import WRITE, own_file

from anamnesis import records, rehearsal
from anamnesis.params import Params


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
