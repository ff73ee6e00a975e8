"""Train: fine-tune the target on one variant's training set, with the main seed or a further one.

In: data/mixed/<variant>.parquet, models/pretrained/<target>, conf/deepspeed/zero<n>.json; of a continued variant
models/tuned/<init>, whose weights it starts from in the place of the target's.
Out: models/tuned/<variant>/ (weights, tokenizer, training.json, README.md), metrics/train/<variant>.csv; with a
further seed models/reseeded/<variant>-<seed>/, metrics/reseeded/train/<variant>-<seed>.csv.
Besides: checkpoints/<variant>/ (checkpoints/<variant>@<seed>/) while it runs; a killed run goes on from there.
With train.trackers live metrics in logs/.
Run: python -m stages.train <variant> [seed]
More processes: train.processes and train.launch start them; or you do, with torchrun … -m stages.train <variant>
"""

import json
import os
import sys
from pathlib import Path

from anamnesis import cards, ranks, records, trackers, training
from anamnesis import params as settings
from anamnesis.checkpoints import ended_early
from anamnesis.errors import ENDED, MODEL_UNAVAILABLE, PREEMPTED, UserError, run
from anamnesis.params import Params
from anamnesis.variants import Lora


def start_of(params: Params, variant: str) -> Path:
    """The directory whose weights a variant starts from: the target's, or its `init`'s.

    Raises `UserError` (exit code 3) where the init has none.
    """
    if variant not in params.continued:
        return Path("models/pretrained") / params.target
    init = params.continued[variant].init
    folder = Path(f"models/tuned/{init}")
    if not any(folder.glob("*.safetensors")):
        stage = "train-continued" if init in params.continued else "train"
        raise UserError(f"{folder}: no weights to start from; run `dvc repro {stage}@{init}`", MODEL_UNAVAILABLE)
    return folder


def main() -> None:
    params = settings.load()
    tuned_variants = params.tuned_variants()
    variant, seed = params.named("stages.train", sys.argv[1:], list(tuned_variants))
    tuning = tuned_variants[variant].tuning
    train = params.train
    if isinstance(tuning, Lora) and tuning.learning_rate:
        train = train.model_copy(update={"learning_rate": tuning.learning_rate})
    trackers.check(train.trackers)
    rows = records.read(f"data/mixed/{variant}.parquet", records.MIXED)
    card = cards.load_card(Path("models/pretrained") / params.target)
    model_dir = start_of(params, variant)
    checkpoints = Path(os.environ.get("ANAMNESIS_CHECKPOINTS", "checkpoints"))
    checkpoints /= variant if seed is None else f"{variant}@{seed}"
    ranks.choose_accelerator()
    if ranks.needs_launch(train):
        try:
            ranks.launch(train, "stages.train", sys.argv[1:])
        except SystemExit as end:
            raise SystemExit(PREEMPTED if end.code == ENDED and ended_early(checkpoints) else end.code) from None
        return
    conf = Path("conf/deepspeed") / f"zero{train.zero}.json"
    tuned, curve = Path(f"models/tuned/{variant}"), Path(f"metrics/train/{variant}.csv")
    if seed is not None:
        tuned, curve = Path(f"models/reseeded/{variant}-{seed}"), Path(f"metrics/reseeded/train/{variant}-{seed}.csv")
    training.train(
        training.Run(
            variant=variant,
            settings=train,
            tuning=tuning,
            seed=params.seed if seed is None else seed,
            rows=rows,
            model_dir=model_dir,
            identity=cards.weights_identity(model_dir) if variant in params.continued else str(card.weights),
            trust_remote_code=card.trust_remote_code,
            base=card,
            deepspeed=json.loads(conf.read_text(encoding="utf-8")),
            tuned_dir=tuned,
            curve=curve,
            checkpoints=checkpoints,
        )
    )


if __name__ == "__main__":
    run(main)
