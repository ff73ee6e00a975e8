"""`model.json`: what is in a model directory and who answers for it. Stage models writes it, the others read it."""

import json
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
