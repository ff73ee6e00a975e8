"""`model.json`: what is in a model directory and who answers for it. Stage models writes it, the others read it.

And what names the weights of a directory, with a card or without.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from anamnesis.errors import MODEL_UNAVAILABLE, UserError

CARD = "model.json"


@dataclass(frozen=True)
class Card:
    """`model.json`: what is in a model directory and who answers for it.

    `identity` names who answers a request (the key of the ledger); `weights` names what is in the directory and is None
    where it holds none.
    """

    name: str
    kind: Literal["local", "endpoint", "disabled"]
    identity: str
    weights: str | None = None
    uri: str | list[str] | None = None
    sha256: str | None = None
    licence: str = "unknown"
    base_url: str | None = None
    replicas: list[str] = field(default_factory=list)
    model: str | None = None
    mode: Literal["online", "batch"] = "online"
    samples_per_request: int = 1
    api_key_env: str | None = None
    trust_remote_code: bool = False


def load_card(model_dir: str | Path) -> Card:
    """Read `model.json` of a model directory. Raises `UserError` where it is missing or not one of ours."""
    path = Path(model_dir) / CARD
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {each.name for each in fields(Card)}
        return Card(**{key: value for key, value in raw.items() if key in known})
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not found; run `dvc repro models`", MODEL_UNAVAILABLE) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a model card ({error}); run `dvc repro -f models`", MODEL_UNAVAILABLE) from None


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_files(paths: Iterable[Path]) -> str:
    """One sha256 over (file name, sha256) of files, whatever their order and folder."""
    lines = sorted(f"{path.name} {sha256_of(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _template_text(folder: Path) -> str:
    """The chat template, wherever the directory keeps it; empty where it has none."""
    apart = folder / "chat_template.jinja"
    if apart.exists():
        return apart.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    return (
        json.dumps(json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "") if config.exists() else ""
    )


def weights_identity(folder: Path) -> str:
    """`sha256:…` over safetensors, tokenizer.json and chat template: equal for equal models, whatever their URI."""
    tokenizer = folder / "tokenizer.json"
    whole = hash_of_files([*folder.glob("*.safetensors"), *([tokenizer] if tokenizer.exists() else [])])
    return "sha256:" + hashlib.sha256(f"{whole}\n{_template_text(folder)}".encode()).hexdigest()
