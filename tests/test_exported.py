"""What training leaves behind is a model like the one it began with: transformers and vLLM load it as they did that."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_trackers import READERS, needs
from trainings import change, finished, rows_of, signalled, written

from anamnesis import cards, modelcard, records, server, trackers
from anamnesis.sections import Requests, Serve

ROOT = Path(__file__).resolve().parent.parent
PROMPT = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS = 12


@pytest.fixture(scope="module")
def trained(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model after a few steps in fp32: the project's folder."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("anamnesis", "stages", "prompts", "conf"):
        (folder / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["train"] |= {"learning_rate": 1e-5, "sequence_length": 128, "global_batch": 4, "precision": "fp32"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    shutil.copytree(smollm2_dir, folder / "models/pretrained/smollm2")
    records.write(folder / "data/mixed/committee.parquet", rows_of(24), records.MIXED, ["row_id"])
    finished(folder)
    return folder


def greedy(folder: Path) -> tuple[str, Any]:
    """What transformers writes for the prompt, greedily, in fp32; and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    inputs = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True), tokenizer


@pytest.mark.slow
def test_it_loads_with_the_base_models_template_and_generation_settings(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    tuned, base = trained / "models/tuned/committee", trained / "models/pretrained/smollm2"
    text, tokenizer = greedy(tuned)
    assert text.strip()
    as_it_is = AutoModelForCausalLM.from_pretrained(tuned)
    assert str(as_it_is.dtype) == "torch.float32", "loaded without a dtype it is as exact as it was trained"
    _, before_tokenizer = greedy(base)
    assert tokenizer.chat_template == before_tokenizer.chat_template
    assert tokenizer.get_vocab() == before_tokenizer.get_vocab()
    read = [json.loads((folder / "generation_config.json").read_text(encoding="utf-8")) for folder in (base, tuned)]
    assert read[0] == read[1]
    assert GenerationConfig.from_pretrained(tuned).eos_token_id == GenerationConfig.from_pretrained(base).eos_token_id


@pytest.mark.slow
def test_vllm_serves_it_as_it_is_and_says_what_transformers_says(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `vllm serve <folder>` does, with its own generation settings; in fp32, so that the two can be compared."""
    tuned = trained / "models/tuned/committee"
    expected, _ = greedy(tuned)
    monkeypatch.chdir(tmp_path)
    card = cards.Card("tuned", "local", identity="tuned")
    serve = Serve(dtype="float32", max_model_len=512, vllm_args=["--generation-config", "auto"])
    with server.local(tuned, card, serve, Requests(kv_cache_gib=1)) as endpoint:
        asked = {"model": "tuned", "messages": PROMPT, "temperature": 0, "max_tokens": TOKENS}
        answer = httpx.post(
            f"{endpoint.base_urls[0]}/chat/completions",
            json=asked,
            headers={"Authorization": f"Bearer {endpoint.api_key}"},
            timeout=120,
            trust_env=False,
        ).json()
    assert answer["choices"][0]["message"]["content"] == expected


@pytest.mark.slow
def test_its_card_says_what_was_done(trained: Path) -> None:
    from huggingface_hub import ModelCard

    tuned = trained / "models/tuned/committee"
    report = json.loads((tuned / "training.json").read_text(encoding="utf-8"))
    base = cards.load_card(trained / "models/pretrained/smollm2")
    rows = records.read(trained / "data/mixed/committee.parquet", records.MIXED)
    card = ModelCard.load(tuned / "README.md")
    assert card.content == modelcard.text(report, base, rows)
    assert card.data.pipeline_tag == "text-generation"
    assert f"{report['steps']} optimiser steps over {report['tokens']} tokens" in card.text
    assert str(base.weights) in card.text
    assert str(trained) not in card.content


# --- live metrics of a run that is killed ---

EACH = [pytest.param([name], marks=needs(name)) for name in trackers.PACKAGES]


@pytest.mark.slow
@pytest.mark.parametrize("names", EACH)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_live_metrics_are_the_csv_and_change_no_weight(
    names: list[str], number: signal.Signals, code: int, training_project: Callable[..., Path]
) -> None:
    import csv

    folder = training_project(trackers=names, checkpoint_minutes=0, global_batch=2)
    assert signalled(folder, 3, number)[0] == code
    err = finished(folder)
    assert "resumed" in err
    assert "goes on without it" not in err
    (found,) = READERS[names[0]](folder / "logs").values()
    with (folder / "metrics/train/committee.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert set(found) == {row["step"] for row in rows}
    exact = ("loss", "learning_rate", "grad_norm", "supervised_tokens")  # a step done again took another time
    for row in rows:
        assert {key: found[int(row["step"])][key] for key in exact} == {key: row[key] for key in exact}
    tracked = written(folder)
    change(folder, trackers=[])
    logs = sorted(path for path in (folder / "logs").rglob("*"))
    finished(folder)
    assert written(folder) == tracked
    assert sorted(path for path in (folder / "logs").rglob("*")) == logs


@pytest.mark.slow
@needs("mlflow", "tensorboard")
def test_two_processes_are_one_run(training_project: Callable[..., Path]) -> None:
    folder = training_project(trackers=["tensorboard", "mlflow"], processes=2, global_batch=4)
    finished(folder)
    steps = len((folder / "metrics/train/committee.csv").read_text(encoding="utf-8").splitlines()) - 1
    for name in ("tensorboard", "mlflow"):
        (found,) = READERS[name](folder / "logs").values()
        assert sorted(found) == list(range(1, steps + 1))
