"""Weights between base and a variant: the ends to the bit, the middle by hand, and what can't be mixed is one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anamnesis import interpolation
from anamnesis.errors import UserError
from anamnesis.variants import Interpolation

ROOT = Path(__file__).resolve().parent.parent


def save(folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    return folder


def tensors_in(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Base in bf16 and in one file, tuned in fp32 and in two."""
    import torch

    base = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]]), "spelt-out": torch.ones(1)}
    save(tmp_path / "base", {"model.safetensors": {name: one.bfloat16() for name, one in base.items()}})
    one, two = {"a": torch.tensor([1.001, -2.5])}, {"b": torch.tensor([[4.5]])}
    tuned = save(tmp_path / "tuned", {"model-1.safetensors": one, "model-2.safetensors": two})
    for name in ("config.json", "tokenizer.json", "training.json", "README.md", "model.safetensors.index.json"):
        (tuned / name).write_text(name, encoding="utf-8")
    return tmp_path / "base", tuned


@pytest.mark.parametrize(
    ("alpha", "a", "b"),
    [(0.0, [1.0, -2.0], 0.5), (0.25, [1.00025, -2.125], 1.5), (0.5, [1.0005, -2.25], 2.5), (1.0, [1.001, -2.5], 4.5)],
)
def test_known_answers(alpha: float, a: list[float], b: float, pair: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    out = tmp_path / "out"
    interpolation.write(*pair, out, Interpolation(variant="domain-only", alpha=alpha))
    found = tensors_in(out)
    assert set(found) == {"a", "b"}, "a tied matrix that base spells out is left to the model"
    torch.testing.assert_close(found["a"], torch.tensor(a), atol=1e-7, rtol=0)
    assert found["b"].item() == b
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    if alpha in (0.0, 1.0):
        whole = tensors_in(pair[int(alpha)])
        assert all(torch.equal(tensor, whole[name].float()) for name, tensor in found.items())
    assert json.loads((out / "interpolation.json").read_text(encoding="utf-8")) == {
        "variant": "domain-only",
        "alpha": alpha,
    }
    assert (out / "tokenizer.json").read_text(encoding="utf-8") == "tokenizer.json"
    assert not (out / "training.json").exists()
    assert not (out / "README.md").exists(), "the card is the variant's"
    assert not (tmp_path / "out.partial").exists()


def test_a_second_run_gives_the_same_bytes_and_replaces_the_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for alpha in (0.5, 0.75, 0.5):
        interpolation.write(*pair, out, Interpolation(variant="x", alpha=alpha))
        files = {file.name: file.read_bytes() for file in out.iterdir()}
        if alpha == 0.5:
            first = files
    assert files == first


def test_models_that_do_not_fit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    base, _ = pair
    half = Interpolation(variant="x", alpha=0.5)
    other = save(tmp_path / "other", {"model.safetensors": {"c": torch.ones(1)}})
    with pytest.raises(UserError, match=r"has no weight c"):
        interpolation.write(base, other, tmp_path / "out", half)
    wider = save(tmp_path / "wider", {"model.safetensors": {"a": torch.ones(3)}})
    with pytest.raises(UserError, match=r"a is \[2\] in .*base and \[3\] in .*wider"):
        interpolation.write(base, wider, tmp_path / "out", half)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no weights"):
        interpolation.write(base, tmp_path / "empty", tmp_path / "out", half)
    with pytest.raises(UserError, match=r"empty: no weights"):
        interpolation.write(tmp_path / "empty", other, tmp_path / "out", half)
    assert not (tmp_path / "out").exists()


def test_the_stage(
    project: Callable[..., Path], default_params: dict[str, Any], small_model: Path, smollm2_tokenizer: Any
) -> None:
    """A model of the stage is one that transformers loads, and its logits lie where the weights say."""
    import torch
    from transformers import AutoModelForCausalLM

    default_params["interpolations"] = {"half": {"variant": "committee", "alpha": 0.5}}
    folder = project(default_params, smollm2=small_model)
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    tuned = folder / "models/tuned/committee"
    model.save_pretrained(tuned)
    smollm2_tokenizer.save_pretrained(tuned)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stages.interpolate", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("half").returncode == 0
    found = AutoModelForCausalLM.from_pretrained(folder / "models/interpolated/half")
    before = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    for name, weight in before.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), 2 * weight)
    unknown = run("quarter")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: python -m stages.interpolate <name>; interpolations: half\n"
