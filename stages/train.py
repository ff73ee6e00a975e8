"""Train: fine-tune the target on one variant's training set.

In: data/mixed/<variant>.parquet, models/pretrained/<target>, conf/deepspeed/zero<n>.json.
Out: models/tuned/<variant>/ (weights, tokenizer, training.json), metrics/train/<variant>.csv.
Besides: checkpoints/<variant>/ while it runs; a run that was killed goes on from there.
Run: python -m stages.train <variant>
More processes: train.processes starts them here; or, over several machines, torchrun … -m stages.train <variant>
"""

import json
import os
import sys
from pathlib import Path

from anamnesis import cards, ranks, records, training
from anamnesis import params as settings
from anamnesis.errors import UserError, run


def main() -> None:
    params = settings.load()
    if len(sys.argv) != 2 or sys.argv[1] not in params.variants:
        raise UserError(f"python -m stages.train <variant>; variants: {', '.join(params.variants)}")
    variant, train = sys.argv[1], params.train
    rows = records.read(f"data/mixed/{variant}.parquet", records.MIXED)
    model_dir = Path("models/pretrained") / params.target
    card = cards.load_card(model_dir)
    ranks.choose_accelerator()
    if train.processes > 1 and not ranks.in_launched_process():
        ranks.launch(train.processes, ["-m", "stages.train", variant])
        return
    conf = Path("conf/deepspeed") / f"zero{train.zero}.json"
    training.train(
        training.Run(
            variant=variant,
            settings=train,
            seed=params.seed,
            rows=rows,
            model_dir=model_dir,
            identity=str(card.weights),
            trust_remote_code=card.trust_remote_code,
            deepspeed=json.loads(conf.read_text(encoding="utf-8")),
            tuned_dir=Path("models/tuned") / variant,
            curve=Path("metrics/train") / f"{variant}.csv",
            checkpoints=Path(os.environ.get("ANAMNESIS_CHECKPOINTS", "checkpoints")) / variant,
        )
    )


if __name__ == "__main__":
    run(main)
