"""Weights between base and a fine-tuned model: (1 - alpha) · base + alpha · tuned, tensor by tensor, in fp32.

In: two Hugging Face directories of one architecture. Out: a third one, with the tuned model's configuration and
tokenizer. Wortsman et al. 2022 (WiSE-FT) average a zero-shot and a fine-tuned model so, and find much of what was
learnt kept, and much of what was forgotten back.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.variants import Interpolation

REPORT = "interpolation.json"
LEFT_OUT = ("training.json", "README.md", REPORT)  # of the tuned model's directory: they tell of a training


def between(base: Any, tuned: Any, alpha: float) -> Any:
    """(1 - alpha) · base + alpha · tuned of two tensors, in fp32; exactly base at 0 and exactly tuned at 1."""
    return (1 - alpha) * base.float() + alpha * tuned.float()


def write(base_dir: str | Path, tuned_dir: str | Path, out_dir: str | Path, wanted: Interpolation) -> None:
    """Write the interpolation as a Hugging Face directory, in one move; at most one file of weights is in memory.

    Raises `UserError` (exit code 3) where a directory has no weights, or the two have not the same.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    base_dir, tuned_dir, out_dir = Path(base_dir), Path(tuned_dir), Path(out_dir)
    places = _places(base_dir)
    files = sorted(tuned_dir.glob("*.safetensors"))
    if not places or not files:
        raise UserError(f"{tuned_dir if places else base_dir}: no weights (*.safetensors)", MODEL_UNAVAILABLE)
    partial = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in files:
        tensors = {}
        with safe_open(file, "pt") as tuned:
            for name in tuned.keys():  # noqa: SIM118 (no mapping)
                if name not in places:
                    raise UserError(f"{base_dir}: has no weight {name}, which {tuned_dir} has", MODEL_UNAVAILABLE)
                with safe_open(places[name], "pt") as base:
                    was, new = base.get_tensor(name), tuned.get_tensor(name)
                if was.shape != new.shape:
                    raise UserError(
                        f"{name} is {list(was.shape)} in {base_dir} and {list(new.shape)} in {tuned_dir}",
                        MODEL_UNAVAILABLE,
                    )
                tensors[name] = between(was, new, wanted.alpha).contiguous()
        save_file(tensors, partial / file.name, {"format": "pt"})
    for path in sorted(tuned_dir.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in LEFT_OUT:
            shutil.copyfile(path, partial / path.name)
    text = json.dumps({"variant": wanted.variant, "alpha": wanted.alpha}, indent=2) + "\n"
    (partial / REPORT).write_text(text, encoding="utf-8")
    shutil.rmtree(out_dir, ignore_errors=True)
    os.replace(partial, out_dir)


def _places(folder: Path) -> dict[str, Path]:
    """The file that each weight of a directory is in."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found
