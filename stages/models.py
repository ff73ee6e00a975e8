"""Materialise one model of params.yaml in models/pretrained/<model>/ (or note which server has it).

python -m stages.models <model>
"""

import os
import sys
from pathlib import Path

from anamnesis import cards, params, sources
from anamnesis.errors import UserError, run


def main() -> None:
    """Make the directory of the model named on the command line; print what it is."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m stages.models <model>, a key under models in params.yaml")
    name = sys.argv[1]
    models = params.load().models
    if name not in models:
        raise UserError(f"models.{name}: no such entry in params.yaml; known: {', '.join(models)}")
    # Conversion needs no GPU; DeepSpeed, which transformers imports on the way, warns unless it is told so.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    target = Path("models/pretrained") / name
    sources.materialise(name, models[name], target)
    card = cards.load_card(target)
    print(f"{name}: {card.kind}, {card.identity}, licence {card.licence}")


if __name__ == "__main__":
    run(main)
